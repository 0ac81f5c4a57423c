"""What one host of `cluster.py` does: train the benchmark's model by one strategy, and write down what it took.

Model, data, seeds and local steps are the same for every strategy.
"""

from __future__ import annotations

import copy
import itertools
import json
import statistics
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep, thread_time

import torch
import torch.distributed as dist
from cluster_network import INTERFACE
from cluster_strategies import STRATEGIES, Loop, Settings, Task
from jaxtyping import Int
from torch import Tensor, nn

import tether
from tether.workers.paces import StepCounter

WARM_UP = 10
"""Local steps before the clock starts. They tell what a step takes when nobody communicates."""

HEADERS = 66
"""Bytes of every packet that are not payload: Ethernet's 14, IP's 20, and 32 of TCP with its time stamps.

On fast links the kernel hands on, and counts, many segments as one large packet: there, headers are counted too low.
"""


@dataclass(frozen=True)
class Report:
    """What a host has seen. Moments are seconds of the machine's clock, which all hosts share.

    Attributes:
        parameters: d.
        start: when the first step began.
        ends: when each step ended.
        finish: when all that the strategy had sent by then had arrived as well.
        losses: the training loss of each step.
        waited: seconds beyond what the same step takes when nobody communicates.
        sent: bytes that left the interface.
        payload: the same without headers.
    """

    parameters: int
    start: float
    ends: list[float]
    finish: float
    losses: list[float]
    waited: float
    sent: int
    payload: int


@dataclass
class Stopwatch:
    """The seconds that each part of each step took."""

    parts: dict[str, list[float]] = field(default_factory=lambda: {"backward": [], "update": []})

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Take the time of one part of a step."""
        start = monotonic()
        yield
        self.parts[part].append(monotonic() - start)

    def excess(self, part: str, usual: Stopwatch) -> float:
        """Seconds spent in a part of all steps beyond what it usually takes."""
        expected = statistics.median(usual.parts[part])
        return sum(max(0.0, seconds - expected) for seconds in self.parts[part])


def drawn(settings: Settings, host: int, samples: int) -> Int[Tensor, "steps batch"]:
    """The samples in each of a host's batches, at random from all: a function of the seed and the host alone.

    There are as many as all hosts together need, since a host may take more steps than others.
    """
    generator = torch.Generator().manual_seed(1000 * settings.seed + host)
    return torch.randint(samples, (settings.hosts * settings.steps, settings.batch), generator=generator)


@contextmanager
def allotment(task: Task) -> Iterator[Iterator[int]]:
    """The local steps to take, by number: this host's own, or until all hosts together have taken theirs."""
    if not STRATEGIES[task.strategy].asynchronous:
        yield iter(range(task.settings.steps))
        return
    ranks = tether.Ranks()
    counter = StepCounter(ranks)
    ranks.at_close(counter.stop)

    def until_enough() -> Iterator[int]:
        for step in itertools.count():
            if counter.total() >= task.settings.hosts * task.settings.steps:
                return
            yield step
            counter.add(1)

    yield until_enough()
    ranks.close()


def train_step(
    loop: Loop,
    parameters: list[nn.Parameter],
    batch: tuple[Tensor, ...],
    watch: Stopwatch,
    slow: float = 1.0,
    lasting: float = 0.0,
) -> float:
    """One local step and whatever communication belongs to it. Returns the loss.

    Up to its update it lasts `lasting` seconds, or what it computes if that is longer, times `slow`.
    """
    begun, computed = monotonic(), thread_time()
    for p in parameters:
        p.grad = None
    inputs, labels = batch
    loss = nn.functional.cross_entropy(loop.model(inputs), labels)
    with watch.time("backward"):
        loss.backward()
    computed = thread_time() - computed
    sleep(max(0.0, begun + slow * max(lasting, computed) - monotonic()))
    with watch.time("update"):
        loop.update(loss)
    return loss.item()


def warm_up(task: Task, model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> Stopwatch:
    """Local steps on a copy of the model, at the same time on every host."""
    watch, model = Stopwatch(), copy.deepcopy(model)
    optimizer = task.optimizer(model)
    alone = Loop(model, lambda loss: optimizer.step())
    dist.barrier()
    for batch in batches:
        train_step(alone, list(model.parameters()), batch, watch)
    return watch


@dataclass(frozen=True)
class Sent:
    """What has left this host's interface so far."""

    bytes: int
    packets: int

    @classmethod
    def now(cls) -> Sent:
        """Read the interface's counters."""
        counters = Path("/sys/class/net", INTERFACE, "statistics")
        return cls(*(int((counters / name).read_text()) for name in ("tx_bytes", "tx_packets")))

    def since(self, before: Sent) -> Sent:
        """What has left in between."""
        return Sent(self.bytes - before.bytes, self.packets - before.packets)

    @property
    def payload(self) -> int:
        """The bytes that are not headers."""
        return self.bytes - HEADERS * self.packets


def run(task: Task) -> Report:
    """Train, after everyone is ready."""
    strategy = STRATEGIES[task.strategy]
    data = getattr(tether.data, task.settings.data)()
    torch.manual_seed(task.settings.seed)
    model = tether.models.mlp(data.train[0].shape[1:], data.classes, task.settings.hidden)
    indices = drawn(task.settings, task.host, len(data.train[0]))

    def batch(step: int) -> tuple[Tensor, ...]:
        return tuple(t[indices[step]] for t in data.train)

    usual = warm_up(task, model, map(batch, range(min(WARM_UP, task.settings.steps))))
    watch = Stopwatch()
    losses, ends = [], []
    slow = task.settings.slow if task.host == task.settings.hosts - 1 else 1.0
    with strategy.begin(task, model) as loop, allotment(task) as steps:
        parameters = list(model.parameters())
        dist.barrier()
        before, start = Sent.now(), monotonic()
        for step in steps:
            losses.append(train_step(loop, parameters, batch(step), watch, slow, task.settings.lasting))
            ends.append(monotonic())
        loop.finish()
        finish = monotonic()
        dist.barrier()
        sent = Sent.now().since(before)
    return Report(
        parameters=sum(p.numel() for p in parameters),
        start=start,
        ends=ends,
        finish=finish,
        losses=losses,
        waited=watch.excess(strategy.waits_in, usual) + finish - ends[-1],
        sent=sent.bytes,
        payload=sent.payload,
    )


def main(task: str, report: str) -> None:
    """Do a task given as JSON, and write the report to a file."""
    todo = Task.from_json(task)
    dist.init_process_group("gloo", timeout=timedelta(seconds=todo.settings.timeout))
    done = run(todo)
    Path(report).write_text(json.dumps(asdict(done)))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
