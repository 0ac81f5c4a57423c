"""Rounds hooked onto a user's optimizer: what all kinds of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tether import random_state
from tether.arrivals import ArrivalLog
from tether.checkpoint import Checkpoints
from tether.checks import check_choice
from tether.methods import Method
from tether.periods import schedule_of
from tether.replicas import Replicas
from tether.rounds import Companion, Order, Rounds
from tether.trees import Tree
from tether.triggers import Pace
from tether.workers import Metered, Ranks

OptimizerState = Literal["local", "average", "reset"]

Keep = Literal["center", "own"]


class Attached(ABC):
    """Rounds hooked onto an optimizer; made by `attach`.

    Attributes:
        workers: the workers, with what they send counted.
        rounds: the rounds themselves.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        method: Method,
        ranks: Ranks,
        workers: Metered,
        replicas: Replicas,
        *,
        overlap: int,
        order: Order,
        average_buffers: bool,
        optimizer_state: OptimizerState,
        samples: int,
        checkpoints: Checkpoints | None,
        pace: Pace,
        log: ArrivalLog | None,
    ):
        self.workers = workers
        self._ranks = ranks
        self._model = model
        self._optimizer = optimizer
        self._checkpoints = checkpoints
        self._log = log
        self._values: Mapping[str, Tree] = {}
        self._kind: list[str | int] = ["attach", type(method).__name__, replicas.parameters]
        self._replicas = replicas
        self._average_buffers = average_buffers
        self._optimizer_state = optimizer_state
        self._closure_again = isinstance(optimizer, torch.optim.LBFGS)
        self._first_state = optimizer.state_dict()["state"]
        self._needs_loss = any(
            part.needs_losses or schedule_of(part.period).looks_at == "loss" for part in method.parts
        )
        self._loss = self._no_loss = replicas.x.new_full((1, 1), torch.nan)
        self._open = True
        self.rounds = Rounds(
            method,
            self.workers,
            replicas.x,
            overlap=overlap,
            samples=torch.full((1,), float(samples)),
            companions=self._companions,
            pace=pace,
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
        """Within, the model has the parameters and buffers of the center; afterwards its own again.

        The center is the mean of the workers, and every process enters at the same point of its program; rounds that
        others are still at are taken part in first. With an asynchronous method it is the model at the center, and a
        process may enter alone.
        """
        if not self._open:
            raise RuntimeError("these rounds are closed: evaluate and save before rounds.close()")
        center = self._center()
        matrices = self._matrices()
        own = [matrix.clone() for matrix in matrices]
        self._be(center)
        try:
            yield
        finally:
            self._be(own)

    def close(self, keep: Keep = "center") -> None:
        """No more steps here: wait until no process has any, meanwhile take part in rounds; all on its way lands.

        Args:
            keep: what the model is left with, the "center" of those who were last to close, or its "own" parameters.
        """
        check_choice("keep", keep, Keep)
        if not self._open:
            return
        self._open = False
        for hook in self._hooks:
            hook.remove()
        center = self._close(keep)
        if center is not None:
            self._be(center)
        if self._log is not None:
            self._log.close()
        self._ranks.close()

    @abstractmethod
    def state_dict(self) -> dict[str, Tree]:
        """What rounds need to go on, for a checkpoint of your own. Lands nothing, but waits for what is on its way."""

    @abstractmethod
    def load_state_dict(self, saved: dict[str, Tree]) -> None:
        """Go on from a `state_dict`. The model's and the optimizer's own are the caller's to load, before."""

    @abstractmethod
    def save(self, values: Mapping[str, Tree] | None = None) -> None:
        """Save a checkpoint: model, optimizer, rounds and what is on its way, random numbers, and values of your own.

        Every process calls it at the same point of its program. One whose data has ended takes part from `close`, with
        the values that it gave last. With an asynchronous method each process saves its own part, when it calls, and
        the first process the center.

        Args:
            values: what else the loop needs to go on, such as `{"batch": 120, "scheduler": scheduler.state_dict()}`.

        Raises:
            ValueError: if `attach` was not told where, or the values hold what a checkpoint cannot.
            CheckpointError: if some process could not write its part; the checkpoints before stay.
        """

    @abstractmethod
    def load(self) -> dict[str, Tree]:
        """Go on from the newest checkpoint; before the first step. Every process calls it at the same point.

        As many processes as saved it go on bit for bit; others from the mean of the models and moments of then, with
        the first process's values, and the log says so. With an asynchronous method: see `tether.attached_center`.

        Returns:
            The values given to `save`; empty if there is no checkpoint yet.

        Raises:
            ValueError: if `attach` was not told where, or the checkpoint is of another model or method.
            CheckpointError: if there are checkpoints, and none of them can be used.
        """

    @abstractmethod
    def _center(self) -> list[Tensor]:
        """What `_matrices` are at the center, a row each."""

    @abstractmethod
    def _close(self, keep: Keep) -> list[Tensor] | None:
        """Take part until all have closed; the center if it is to be kept."""

    def _round(self, part: int) -> None:
        """The round of a part of the method is due."""
        self.rounds.send(part, self._lr)

    def _where(self) -> Checkpoints:
        if self._checkpoints is None:
            raise ValueError("say where: tether.attach(..., checkpoints=tether.Checkpoints(folder))")
        return self._checkpoints

    def _state(self) -> dict[str, Tree]:
        """All that this process needs to go on."""
        return {
            "kind": self._kind,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rounds": self.state_dict(),
            "random": random_state.take(self._device),
            "values": dict(self._values),
        }

    @property
    def _device(self) -> torch.device:
        return self._replicas.x.device

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
                "this method looks at the workers' losses: call rounds.report(loss) before every optimizer.step()"
            )
        starting = self.rounds.advance(self._loss)
        self._loss = self._no_loss
        for part in starting:
            self._round(part)

    @property
    def _lr(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def _matrices(self) -> list[Tensor]:
        """X and, if they are averaged, buffers."""
        return [self._replicas.x, *(self._replicas.averaged_buffers().values() if self._average_buffers else ())]

    def _be(self, rows: list[Tensor]) -> None:
        for matrix, row in zip(self._matrices(), rows, strict=True):
            matrix.copy_(row)

    def _companions(self) -> dict[str, Companion]:
        """What is averaged beside the rows whenever a round lands."""
        return {}

    def _fill_gradients(self) -> None:
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)

    def _on_land(self, part: int) -> None:
        if self._optimizer_state == "reset":
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": self._first_state, "param_groups": groups})
