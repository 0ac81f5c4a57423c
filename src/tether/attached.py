"""Rounds hooked onto a user's optimizer: how processes agree on what they do together, and what they save."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tether import random_state
from tether.checkpoint import Checkpoints
from tether.checks import check_choice
from tether.methods import Method
from tether.replicas import Replicas
from tether.rounds import Companion, Order, Rounds
from tether.trees import Tree, mean_of
from tether.workers import Metered, Pending, Ranks

log = logging.getLogger(__name__)

OptimizerState = Literal["local", "average", "reset"]

# What a process is about to do, when processes meet; a round is the number of its part added to the last.
CLOSE, CENTER, SAVE, ROUND = 0, 1, 2, 3


@dataclass(frozen=True)
class Meeting:
    """What every process is about to do; each says so before it communicates."""

    intents: Int[Tensor, " processes"]

    @property
    def round(self) -> int | None:
        """The part of the method whose round some process starts; then it is everyone's."""
        return self.first - ROUND if self.first >= ROUND else None

    @property
    def first(self) -> int:
        """What is done first, by everyone: the others then do that too."""
        return int(self.intents.max())

    @property
    def closing(self) -> Tensor:
        """The processes whose data has ended."""
        return (self.intents == CLOSE).nonzero().flatten()


class Attached:
    """Rounds hooked onto an optimizer; made by `attach`.

    Before each round, and in `center`, `save` and `close`, processes say what they are about to do. A process that does
    something else than start a round takes part in a round that others start, so all take part in the same ones, in
    the same order, and nobody waits for ever: not for a process that has skipped a step, and not for one whose data has
    ended. Such a one takes part with its parameters once more, then with a weight of zero until all have closed.
    """

    def __init__(
        self,
        model: nn.Module,
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
        checkpoints: Checkpoints | None,
    ):
        self.workers = Metered(workers)
        self._ranks = workers
        self._model = model
        self._optimizer = optimizer
        self._checkpoints = checkpoints
        self._values: Mapping[str, Tree] = {}
        self._kind: list[str | int] = ["attach", type(method).__name__, replicas.parameters]
        self._replicas = replicas
        self._average_buffers = average_buffers
        self._optimizer_state = optimizer_state
        self._closure_again = isinstance(optimizer, torch.optim.LBFGS)
        self._first_state = optimizer.state_dict()["state"]
        self._needs_loss = any(part.needs_losses for part in method.parts)
        self._loss = self._no_loss = replicas.x.new_full((1, 1), torch.nan)
        self._met: Pending | None = None
        self._open = True
        self._all_have_moments = False
        self.rounds = Rounds(
            method,
            self.workers,
            replicas.x,
            overlap=overlap,
            samples=torch.full((1,), float(samples)),
            companions=self._companions,
            on_land=self._on_land,
        )
        self._mix_first = order == "mix-then-step"
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(lambda *_: None if self._mix_first else self._step()),
        ]

    @property
    def size(self) -> int:
        """The number of workers m."""
        return self.workers.size

    @property
    def count(self) -> int:
        """Local steps so far."""
        return self.rounds.count

    @property
    def open(self) -> bool:
        """Whether there are steps to come: `close` has not been called."""
        return self._open

    def report(self, loss: Tensor | float) -> None:
        """The training loss of the step to come; before `optimizer.step()`. Methods that rank workers need it."""
        self._loss = torch.as_tensor(loss).detach().to(self._replicas.x).reshape(1, 1)

    @contextmanager
    def center(self) -> Iterator[None]:
        """Within, the model has the mean of the workers' parameters and buffers; afterwards its own again.

        Every process enters at the same point of its program. Rounds that others are still at are taken part in first.
        """
        self._meet(CENTER)
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
        self._meet(CLOSE)
        self.rounds.close()
        self.rounds.check_replicated(self._ranks)
        if keep == "center":
            self._mean_of(self._matrices())
        self._ranks.close()

    def state_dict(self) -> dict[str, Tree]:
        """What rounds need to go on, for a checkpoint of your own. Lands nothing, but waits for what is on its way."""
        sent = self.workers.messages, self.workers.bytes
        present = self._ranks.present.clone()
        return self.rounds.state_dict() | {"present": present, "sent": sent, "moments": self._all_have_moments}

    def load_state_dict(self, saved: dict[str, Tree]) -> None:
        """Go on from a `state_dict`. The model's and the optimizer's own are the caller's to load, before."""
        self.rounds.load_state_dict(saved)
        self._ranks.present.copy_(saved["present"])
        self.workers.messages, self.workers.bytes = saved["sent"]
        self._all_have_moments = saved["moments"]

    def save(self, values: Mapping[str, Tree] | None = None) -> None:
        """Save a checkpoint: model, optimizer, rounds and what is on its way, random numbers, and values of your own.

        Every process calls it at the same point of its program. One whose data has ended takes part from `close`, with
        the values that it gave last.

        Args:
            values: what else the loop needs to go on, such as `{"batch": 120, "scheduler": scheduler.state_dict()}`.

        Raises:
            ValueError: if `attach` was not told where, or the values hold what a checkpoint cannot.
            CheckpointError: if some process could not write its part; the checkpoints before stay.
        """
        self._values = dict(values or {})
        self._where()
        self._meet(SAVE)
        self._write()

    def load(self) -> dict[str, Tree]:
        """Go on from the newest checkpoint; before the first step. Every process calls it at the same point.

        As many processes as saved it go on bit for bit; others from the mean of the models and moments of then, with
        the first process's values, and the log says so.

        Returns:
            The values given to `save`; empty if there is no checkpoint yet.

        Raises:
            ValueError: if `attach` was not told where, or the checkpoint is of another model or method.
            CheckpointError: if there are checkpoints, and none of them can be used.
        """
        saved = self._where().load(self._ranks, self._replicas.x.device)
        if saved is None:
            return {}
        saved.check_is_of(self._kind)
        part = saved.parts[0]
        if not saved.same:
            log.warning("going on after %d local steps from the mean of %d workers", saved.step, len(saved.parts))
            present = part["rounds"]["present"].double().tolist()
            of_all = {name: [each[name] for each in saved.parts] for name in ("model", "optimizer")}
            part = part | {name: mean_of(trees, present) for name, trees in of_all.items()}
        self._model.load_state_dict(part["model"])
        self._optimizer.load_state_dict(part["optimizer"])
        self._values = part["values"]
        if saved.same:
            self.load_state_dict(part["rounds"])
            random_state.restore(part["random"], self._replicas.x.device)
        else:
            self.rounds.restart(part["rounds"])
        return dict(self._values)

    def _where(self) -> Checkpoints:
        if self._checkpoints is None:
            raise ValueError("say where: tether.attach(..., checkpoints=tether.Checkpoints(folder))")
        return self._checkpoints

    def _write(self) -> None:
        self.rounds.check_replicated(self._ranks)
        device = self._replicas.x.device
        state = {
            "kind": self._kind,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rounds": self.state_dict(),
            "random": random_state.take(device),
            "values": dict(self._values),
        }
        # Whoever has skipped a step has counted fewer.
        counts = self._ranks.gather(torch.full((1,), float(self.count), dtype=torch.float64, device=device))
        self._where().save(int(counts.max()), state, self._ranks, device)

    def _before_step(self, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Whatever is done between gradients and update; a closure, which makes the gradients, is called before it."""
        averaging = self._optimizer_state == "average"
        if not (self._mix_first or averaging):
            return None
        # The optimizer's step, as its hooks see it, has the optimizer for its first argument.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None and not self._closure_again:
            with torch.enable_grad():
                loss = closure()
            args, kwargs = args[:1], kwargs | {"closure": lambda: loss}
        if averaging:
            # A layer that one process does not use must have moments there too, to take part in their mean.
            self._fill_gradients()
        if self._mix_first:
            self._step()
        return args, kwargs

    def _step(self) -> None:
        """A local step has been taken, or its gradients are ready: rounds land and start."""
        if self._needs_loss and self._loss is self._no_loss:
            raise RuntimeError(
                "this method ranks workers by their loss: call rounds.report(loss) before every optimizer.step()"
            )
        starting = self.rounds.advance(self._loss)
        self._loss = self._no_loss
        for part in starting:
            self._round(part)

    def _round(self, part: int) -> None:
        self._say(ROUND + part)
        self._send(part)

    def _send(self, part: int, join: bool = False) -> None:
        """Start a round, or join one."""
        if self._optimizer_state == "average" and not self._all_have_moments:
            # Moments come to be with the first step, which a process may have skipped.
            mine = torch.full_like(self._replicas.x[:, 0], float(bool(self._moments())))
            self._all_have_moments = bool(self._ranks.gather(mine).all())
        (self.rounds.join if join else self.rounds.send)(part, self._lr)

    @property
    def _lr(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def _say(self, intent: int) -> Pending:
        """Tell the others what this process is about to do. First heed what was said last: it is of a round landed."""
        if self._met is not None:
            self._heed(self._met)
        mine = torch.tensor([intent], device=self._replicas.x.device)
        self._met = self._ranks.gather_async(mine)
        return self._met

    def _heed(self, met: Pending) -> Meeting:
        """Hear what everyone was about to do; those whose data has ended count no more from now on."""
        meeting = Meeting(met.wait().cpu())
        self._met = None
        if meeting.first != CLOSE:
            for process in meeting.closing.tolist():
                self._ranks.present[process] = False
        return meeting

    def _meet(self, intent: int) -> None:
        """Take part in what others do until everyone is where this process is, or has closed."""
        if not self._open and intent != CLOSE:
            raise RuntimeError("these rounds are closed: evaluate and save before rounds.close()")
        while True:
            met = self._say(intent)
            meeting = Meeting(met.wait().cpu())
            if meeting.round is not None:
                self._send(meeting.round, join=True)
            self._heed(met)
            if meeting.first == intent:
                return
            if meeting.first == SAVE:
                self._write()
            elif meeting.first == CENTER:
                self._mean_of([matrix.clone() for matrix in self._matrices()])

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
        if self._all_have_moments:
            for name, moments in self._moments().items():
                companions[f"optimizer {name}"] = Companion(moments, dim=1)
        return companions

    def _moments(self) -> dict[str, list[Tensor]]:
        """The optimizer's state but what is one number a tensor, such as counts of steps; by name, as rows `[1, n]`."""
        moments: dict[str, list[Tensor]] = {}
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                for name, value in self._optimizer.state.get(p, {}).items():
                    if isinstance(value, Tensor) and (value.dim() or not p.dim()):
                        moments.setdefault(name, []).append(value.view(1, -1))
        return moments

    def _fill_gradients(self) -> None:
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)

    def _on_land(self, part: int) -> None:
        if self._optimizer_state == "reset":
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": self._first_state, "param_groups": groups})
