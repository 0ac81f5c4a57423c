"""The user's own training loop: rounds hooked onto an optimizer, one worker a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor, nn

from tether.checks import check_choice
from tether.methods import Method
from tether.replicas import Replicas
from tether.rounds import Companion, Order, Rounds
from tether.workers import Metered, Pending, Ranks
from tether.workers.ranks import Works

Buffers = Literal["average", "local"]
OptimizerState = Literal["local", "average", "reset"]

# What a process is about to do, when processes meet; a round is the number of its part added to the last.
CLOSE, CENTER, ROUND = 0, 1, 2


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method,
    *,
    overlap: int = 0,
    order: Order = "step-then-mix",
    group: dist.ProcessGroup | None = None,
    broadcast: bool = True,
    buffers: Buffers = "average",
    optimizer_state: OptimizerState = "local",
    samples: int = 1,
) -> Attached:
    """Let a model take part in rounds with the same model on other processes; the training loop stays as it is.

    From now on `optimizer.step()` counts a local step, and the steps at which a round is due talk to the other
    processes. What the optimizer does not do is not counted: a batch whose gradients are only accumulated, or a step
    that a GradScaler skips. Every process calls `attach`, and `close` when its data has ended.

    Args:
        model: the model; its parameters get new memory, side by side. Moving it to another device or dtype must come
            before. It may be wrapped in DistributedDataParallel over another group, or compiled.
        optimizer: any `torch.optim` optimizer of all its trainable parameters.
        method: what a round between workers does, and how often.
        overlap: local steps that a round's message may travel while training goes on; at most the period.
        order: whether a round comes after the optimizer's update, "step-then-mix", or between gradient and update,
            "mix-then-step".
        group: the processes that take part, one worker each. Default: all.
        broadcast: start everywhere from the first process's parameters, frozen ones too, and buffers.
        buffers: "average" takes the mean of real buffers (BatchNorm's statistics) whenever a round lands, "local"
            leaves each worker its own.
        optimizer_state: "local" leaves moments where they are, "average" takes their mean whenever a round lands,
            "reset" clears the state then.
        samples: how many samples this worker holds, for methods that weigh by them.

    Returns:
        A handle to report losses to, to evaluate the mean model with, and to close.

    Raises:
        ValueError: if there is no process group, the model is not the same everywhere, the optimizer is not the
            model's, or the method does not suit the number of workers.
    """
    check_choice("order", order, Order)
    check_choice("buffers", buffers, Buffers)
    check_choice("optimizer_state", optimizer_state, OptimizerState)
    workers = Ranks(group)
    _check_optimizer(model, optimizer)
    replicas = Replicas(model, 1)
    _check_same_everywhere(workers, replicas)
    replicas.bind(model, 0)
    if broadcast:
        source = dist.get_global_rank(workers.group, 0)
        frozen = [p.data for p in model.parameters() if not p.requires_grad]
        for tensor in (replicas.x, *replicas.buffers.values(), *frozen):
            dist.broadcast(tensor, source, group=workers.group)
    return Attached(
        optimizer,
        method,
        workers,
        replicas,
        overlap=overlap,
        order=order,
        average_buffers=buffers == "average",
        optimizer_state=optimizer_state,
        samples=samples,
    )


@dataclass(frozen=True)
class Meeting:
    """What every process is about to do; each says so before it communicates."""

    intents: Int[Tensor, " processes"]

    @property
    def round(self) -> int | None:
        """The part of the method whose round some process starts; then it is everyone's."""
        return int(self.intents.max()) - ROUND if self.intents.max() >= ROUND else None

    @property
    def all_close(self) -> bool:
        """Whether nobody wants anything any more."""
        return bool((self.intents == CLOSE).all())

    @property
    def closing(self) -> Tensor:
        """The processes whose data has ended."""
        return (self.intents == CLOSE).nonzero().flatten()


class Attached:
    """Rounds hooked onto an optimizer; made by `attach`.

    Before each round, and in `center` and `close`, processes say what they are about to do. A process that does
    something else than start a round takes part in a round that others start, so all take part in the same ones, in
    the same order, and nobody waits for ever: not for a process that has skipped a step, and not for one whose data has
    ended. Such a one takes part with its parameters once more, then with a weight of zero until all have closed.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        method: Method,
        workers: Ranks,
        replicas: Replicas,
        *,
        overlap: int,
        order: Order,
        average_buffers: bool,
        optimizer_state: OptimizerState,
        samples: int,
    ):
        self.workers = Metered(workers)
        self._ranks = workers
        self._optimizer = optimizer
        self._replicas = replicas
        self._average_buffers = average_buffers
        self._optimizer_state = optimizer_state
        self._first_state = optimizer.state_dict()["state"]
        self._needs_loss = any(part.needs_losses for part in method.parts)
        self._loss: Tensor | None = None
        self._met: Pending | None = None
        self._open = True
        self.rounds = Rounds(
            method,
            self.workers,
            replicas.x,
            overlap=overlap,
            samples=torch.full((1,), float(samples)),
            companions=self._companions,
            on_land=self._on_land,
        )
        register = optimizer.register_step_post_hook if order == "step-then-mix" else optimizer.register_step_pre_hook
        self._hooks = [register(lambda *_: self._step())]
        if optimizer_state == "average":
            # A layer that one process does not use must have moments there too, to take part in their mean.
            self._hooks.append(optimizer.register_step_pre_hook(lambda *_: self._fill_gradients()))

    @property
    def size(self) -> int:
        """The number of workers m."""
        return self.workers.size

    @property
    def count(self) -> int:
        """Local steps so far."""
        return self.rounds.count

    def report(self, loss: Tensor | float) -> None:
        """The training loss of the step to come; before `optimizer.step()`. Methods that rank workers need it."""
        self._loss = torch.as_tensor(loss).detach().to(self._replicas.x).reshape(1, 1)

    @contextmanager
    def center(self) -> Iterator[None]:
        """Within, the model has the mean of the workers' parameters and buffers; afterwards its own again.

        Every process enters at the same point of its program. Rounds that others are still at are taken part in first.
        """
        self._meet_until(lambda meeting: meeting.round is None, CENTER)
        matrices = self._matrices()
        own = [matrix.clone() for matrix in matrices]
        self._mean_of(matrices)
        try:
            yield
        finally:
            for matrix, before in zip(matrices, own, strict=True):
                matrix.copy_(before)

    def close(self, keep: Literal["center", "own"] = "center") -> None:
        """No more steps here: go on taking part until no process has any, then land what is on its way.

        Args:
            keep: what the model is left with, the "center" of those who were last to close, or its "own" parameters.
        """
        check_choice("keep", keep, Literal["center", "own"])
        if not self._open:
            return
        self._open = False
        for hook in self._hooks:
            hook.remove()
        self._meet_until(lambda meeting: meeting.all_close, CLOSE)
        self.rounds.close()
        if keep == "center":
            self._mean_of(self._matrices())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the model's and the optimizer's own: tensors and numbers."""
        return self.rounds.state_dict() | {"present": self._ranks.present.clone()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`. The model's and the optimizer's own are the caller's to load."""
        self.rounds.load_state_dict({name: value for name, value in saved.items() if name != "present"})
        self._ranks.present.copy_(saved["present"])

    def _step(self) -> None:
        """A local step has been taken, or its gradients are ready: rounds land and start."""
        if self._loss is None:
            if self._needs_loss:
                raise RuntimeError(
                    "this method ranks workers by their loss: call rounds.report(loss) before every optimizer.step()"
                )
            self._loss = torch.full_like(self._replicas.x[:, :1], torch.nan)
        starting = self.rounds.advance(self._loss)
        self._loss = None
        for part in starting:
            self._round(part)

    def _round(self, part: int) -> None:
        meeting = self._say(ROUND + part)
        self.rounds.send(part, self._lr)
        if not self.rounds.overlap:
            self._heed(meeting)

    @property
    def _lr(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def _say(self, intent: int) -> Pending:
        """Tell the others what this process is about to do. First heed what was said last: it is of a round landed."""
        if self._met is not None:
            self._heed(self._met)
        mine = torch.tensor([intent], device=self._replicas.x.device)
        everyone, work = self._ranks.gather_async(mine)
        self._met = Works([work], lambda: everyone.cpu(), mine)
        return self._met

    def _heed(self, met: Pending) -> Meeting:
        """Hear what everyone was about to do; those whose data has ended count no more from now on."""
        meeting = Meeting(met.wait())
        self._met = None
        if not meeting.all_close:
            for process in meeting.closing.tolist():
                self._ranks.present[process] = False
        return meeting

    def _meet_until(self, done: Any, intent: int) -> None:
        """Take part in what others do until everyone is where this process is."""
        while True:
            met = self._say(intent)
            intents = Meeting(met.wait())
            if intents.round is not None:
                self.rounds.join(intents.round, self._lr)
            self._heed(met)
            if done(intents):
                return
            if intents.round is None:
                self._mean_of([matrix.clone() for matrix in self._matrices()])  # others are in `center`

    def _matrices(self) -> list[Tensor]:
        """X and, if they are averaged, buffers."""
        return [self._replicas.x, *(self._replicas.averaged_buffers().values() if self._average_buffers else ())]

    def _mean_of(self, matrices: list[Tensor]) -> None:
        for matrix, mean in [(matrix, self.workers.mean(matrix)) for matrix in matrices]:
            matrix.copy_(mean.wait().expand_as(matrix))

    def _companions(self) -> dict[str, Companion]:
        companions: dict[str, Companion] = {}
        if self._average_buffers:
            for name, matrix in self._replicas.averaged_buffers().items():
                companions[f"buffer {name}"] = Companion([matrix])
        if self._optimizer_state == "average":
            for name, moments in self._moments().items():
                companions[f"optimizer {name}"] = Companion(moments, dim=1)
        return companions

    def _moments(self) -> dict[str, list[Tensor]]:
        """The optimizer's state that has a value a parameter, by name, as rows `[1, n]`."""
        moments: dict[str, list[Tensor]] = {}
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                for name, value in self._optimizer.state.get(p, {}).items():
                    if isinstance(value, Tensor) and value.shape == p.shape:
                        moments.setdefault(name, []).append(value.view(1, -1))
        return moments

    def _fill_gradients(self) -> None:
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)

    def _on_land(self) -> None:
        if self._optimizer_state == "reset":
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": self._first_state, "param_groups": groups})


def _check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    idle = [name for i, name in trainable.items() if i not in stepped]
    if idle:
        raise ValueError(
            f"the optimizer does not hold {idle[0]!r} and {len(idle) - 1} other trainable parameters of the model: "
            "freeze them with requires_grad_(False), or give them to the optimizer"
        )
    if len(stepped - set(trainable)):
        raise ValueError("the optimizer holds parameters that are not the model's, or are frozen; give each its own")


def _check_same_everywhere(workers: Ranks, replicas: Replicas) -> None:
    counts = workers.gather(torch.full((1,), float(replicas.parameters), device=replicas.x.device).double())
    odd = (counts != counts[0]).nonzero().flatten().tolist()
    if odd:
        raise ValueError(
            f"the model has {int(counts[0])} trainable parameters on process 0 and {int(counts[odd[0]])} on process "
            f"{odd[0]}: it must be the same everywhere"
        )
