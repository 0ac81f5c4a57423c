"""The strategies that `cluster.py` compares: what each does between a gradient and the next batch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

import tether
from tether.methods import CenterMethod
from tether.triggers import Trigger

BYTES = 4
"""The size of a parameter."""


@dataclass(frozen=True)
class Settings:
    """What is the same for all strategies and hosts.

    Attributes:
        hosts: number of hosts m.
        steps: local steps of each host.
        period: local steps between rounds, for strategies that have them.
        overlap: local steps that a message may travel, for strategies that overlap.
        batch: samples a step and host.
        hidden: widths of the model's hidden layers.
        lr: learning rate of the local SGD.
        data: name of a data set in `tether.data`.
        seed: of the model and of the batches.
        timeout: seconds that a strategy may take.
        slow: how many times as long a local step takes on the last host.
        lasting: seconds that a local step lasts at least up to its update: what computing leaves of it is slept, as
            a stand-in for hosts whose steps do not wait for one another's cores.
    """

    hosts: int
    steps: int
    period: int
    overlap: int
    batch: int
    hidden: list[int]
    lr: float
    data: str
    seed: int
    timeout: float
    slow: float
    lasting: float


@dataclass(frozen=True)
class Task:
    """What to do, and as which host.

    Attributes:
        strategy: a name in `STRATEGIES`.
        host: this host's number.
        address: this host's address.
    """

    strategy: str
    host: int
    address: str
    settings: Settings

    @classmethod
    def from_json(cls, text: str) -> Task:
        """What `to_json` wrote."""
        fields = json.loads(text)
        return cls(**(fields | {"settings": Settings(**fields["settings"])}))

    def to_json(self) -> str:
        """The task as text."""
        return json.dumps(asdict(self))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The local optimizer of every strategy."""
        return torch.optim.SGD(model.parameters(), lr=self.settings.lr)


@dataclass(frozen=True)
class Loop:
    """A strategy at work.

    Attributes:
        model: what to call with a batch.
        update: what to do with a loss after its `backward()`.
        finish: what to do after the last step for what is still on its way.
    """

    model: Callable[[Tensor], Tensor]
    update: Callable[[Tensor], object]
    finish: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Strategy:
    """A way to train on several hosts.

    Attributes:
        begin: sets it up around a model.
        traffic: bytes that a host sends a round, of the number of hosts m and of parameters d.
        packages: what must be installed.
        every_step: whether every step is a round.
        waits_in: the part of a step that communicates.
        lighthouse: whether torchft's coordinator must be running.
        method: tether's method, of the period.
        trigger: what starts its rounds.
    """

    begin: Callable[[Task, nn.Module], AbstractContextManager[Loop]]
    traffic: Callable[[int, int], float]
    packages: tuple[str, ...] = ()
    every_step: bool = False
    waits_in: Literal["backward", "update"] = "update"
    lighthouse: bool = False
    method: Callable[[int], tether.Method] | None = None
    trigger: Trigger | None = None

    @property
    def asynchronous(self) -> bool:
        """Whether hosts take as many steps as they can, until all together have taken enough."""
        return self.trigger is not None or self._has_center

    def bytes_sent(self, taken: Sequence[int], parameters: int, period: int) -> float:
        """What a host should send when each host has taken so many steps; the mean over hosts."""
        steps = sum(taken) // len(taken)
        rounds = float(steps if self.every_step else steps // period)
        if self._has_center:  # beside which the first host is
            rounds = statistics.mean(own // period for own in taken[1:])
        return rounds * self.traffic(len(taken), parameters)

    @property
    def _has_center(self) -> bool:
        return isinstance(self.method, type) and issubclass(self.method, CenterMethod)


def all_reduce(m: int, d: int) -> float:
    """A ring all-reduce: every host passes on all but its own share of the sum, then of the result."""
    return 2 * (m - 1) / m * BYTES * d


def neighbours(m: int, d: int) -> float:
    """A whole model to each of two neighbours."""
    return min(m - 1, 2) * BYTES * d


def one_to_all(m: int, d: int) -> float:
    """A model from one host to all others, averaged over hosts; before it, a loss from each to all."""
    return (m - 1) / m * BYTES * d + (m - 1) * BYTES


def with_center(m: int, d: int) -> float:
    """A model from every host but the first to the center there, and one back; averaged over hosts."""
    return 2 * (m - 1) / m * BYTES * d


def nothing(m: int, d: int) -> float:
    """Nobody sends anything."""
    return 0.0


@contextmanager
def alone(task: Task, model: nn.Module) -> Iterator[Loop]:
    """No communication at all: what the local steps take."""
    optimizer = task.optimizer(model)
    yield Loop(model, lambda loss: optimizer.step())


@contextmanager
def ddp(task: Task, model: nn.Module) -> Iterator[Loop]:
    """DistributedDataParallel: gradients are averaged at every step."""
    optimizer = task.optimizer(model)
    yield Loop(nn.parallel.DistributedDataParallel(model), lambda loss: optimizer.step())


@contextmanager
def bare(task: Task, model: nn.Module) -> Iterator[Loop]:
    """As little as it takes: an all-reduce of the flattened parameters every period."""
    optimizer = task.optimizer(model)
    steps = 0

    def update(loss: Tensor) -> None:
        nonlocal steps
        optimizer.step()
        steps += 1
        if steps % task.settings.period == 0:
            flat = nn.utils.parameters_to_vector(model.parameters()).detach()
            dist.all_reduce(flat)
            nn.utils.vector_to_parameters(flat / task.settings.hosts, model.parameters())

    yield Loop(model, update)


@contextmanager
def post_local_sgd(task: Task, model: nn.Module) -> Iterator[Loop]:
    """PyTorch's PostLocalSGDOptimizer. Its warm-up ends such that it averages after the same steps as the others."""
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    averager = PeriodicModelAverager(period=task.settings.period, warmup_steps=task.settings.period - 1)
    optimizer = PostLocalSGDOptimizer(task.optimizer(model), averager)
    yield Loop(model, lambda loss: optimizer.step())


@contextmanager
def accelerate_local_sgd(task: Task, model: nn.Module) -> Iterator[Loop]:
    """Accelerate's LocalSGD. On leaving, it averages once more; the clock has stopped by then."""
    from accelerate import Accelerator
    from accelerate.local_sgd import LocalSGD

    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, task.optimizer(model))
    with LocalSGD(accelerator=accelerator, model=prepared, local_sgd_steps=task.settings.period) as local_sgd:

        def update(loss: Tensor) -> None:
            optimizer.step()
            local_sgd.step()

        yield Loop(prepared, update)


@contextmanager
def torchft_manager(task: Task, model: nn.Module) -> Iterator[object]:
    """A torchft Manager that has met the others: like everyone's, its connections are there before the clock starts."""
    from torchft import Manager, ProcessGroupGloo

    timeout = timedelta(seconds=task.settings.timeout)
    store = dist.TCPStore(task.address, 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=timeout),
        load_state_dict=model.load_state_dict,
        state_dict=model.state_dict,
        min_replica_size=task.settings.hosts,
        use_async_quorum=False,
        timeout=timeout,
        quorum_timeout=timeout,
        rank=0,
        world_size=1,
        store_addr=task.address,
        store_port=store.port,
        replica_id=f"host{task.host}",
        init_sync=False,
    )
    manager.start_quorum()
    manager.should_commit()
    yield manager
    dist.barrier()
    manager.shutdown(wait=False)


@contextmanager
def torchft_local_sgd(task: Task, model: nn.Module) -> Iterator[Loop]:
    """torchft's LocalSGD."""
    from torchft.local_sgd import LocalSGD

    optimizer = task.optimizer(model)
    with torchft_manager(task, model) as manager, LocalSGD(manager, model, optimizer, sync_every=task.settings.period):
        yield Loop(model, lambda loss: optimizer.step())


@contextmanager
def torchft_diloco(task: Task, model: nn.Module) -> Iterator[Loop]:
    """torchft's DiLoCo, with the outer optimizer of its paper."""
    from torchft.local_sgd import DiLoCo

    optimizer = task.optimizer(model)
    outer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    with (
        torchft_manager(task, model) as manager,
        DiLoCo(manager, [model], optimizer, outer, sync_every=task.settings.period),
    ):
        yield Loop(model, lambda loss: optimizer.step())


@contextmanager
def attached(
    method: Callable[[int], tether.Method], trigger: Trigger | None, overlaps: bool, task: Task, model: nn.Module
) -> Iterator[Loop]:
    """A method of tether in the user's own loop."""
    optimizer = task.optimizer(model)
    overlap = task.settings.overlap if overlaps else 0
    rounds = tether.attach(model, optimizer, method(task.settings.period), overlap=overlap, trigger=trigger)

    def update(loss: Tensor) -> None:
        rounds.report(loss)
        optimizer.step()

    yield Loop(model, update, finish=lambda: rounds.close(keep="own"))


def _attached(
    name: str,
    method: Callable[[int], tether.Method],
    traffic: Callable[[int, int], float],
    trigger: Trigger | None = None,
) -> dict[str, Strategy]:
    """A method without overlap and with it."""
    return {
        name + suffix: Strategy(partial(attached, method, trigger, overlaps), traffic, method=method, trigger=trigger)
        for suffix, overlaps in (("", False), ("-overlap", True))
    }


_TORCHFT = ("torchft", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")

STRATEGIES: dict[str, Strategy] = {
    "alone": Strategy(alone, nothing),
    "ddp": Strategy(ddp, all_reduce, every_step=True, waits_in="backward"),
    "post-local-sgd": Strategy(post_local_sgd, all_reduce),
    "accelerate-local-sgd": Strategy(accelerate_local_sgd, all_reduce, packages=("accelerate",)),
    "torchft-local-sgd": Strategy(torchft_local_sgd, all_reduce, packages=_TORCHFT, lighthouse=True),
    "torchft-diloco": Strategy(torchft_diloco, all_reduce, packages=_TORCHFT, lighthouse=True),
    "bare": Strategy(bare, all_reduce),
    **_attached("tether-local", tether.LocalSGD, all_reduce),
    **_attached("tether-easgd", tether.EASGD, all_reduce),
    **_attached("tether-ring", tether.DecentralizedSGD, neighbours),
    **_attached("tether-leader", tether.LSGD, one_to_all),
    **_attached("tether-leader-total", tether.LSGD, one_to_all, tether.TotalSteps()),
    **_attached("tether-downpour", tether.Downpour, with_center),
    **_attached("tether-async-easgd", tether.AsynchronousEASGD, with_center),
}
"""Every strategy by its name."""
