"""A run under way, whoever takes steps when: its loop, records and checkpoints, and what is done about divergence."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from tether import memory
from tether.checkpoint import Checkpoints, Saved
from tether.gradients import Way
from tether.history import Record, Times
from tether.methods import Method
from tether.replicas import Replicas, distances
from tether.result import RECENT, NonFiniteLossError, Result, best, best_worker, center, consensus_distance
from tether.workers import Message, Metered, Workers

log = logging.getLogger(__name__)

Evaluate = Callable[[nn.Module], Mapping[str, float]]


@dataclass(kw_only=True)
class Engine(ABC):
    """The rows of a run and what is known of it; subclasses say who takes steps when, and meets whom."""

    method: Method
    workers: Workers
    metered: Metered
    replicas: Replicas
    way: Way
    mix_first: bool
    exclude: bool
    evaluate: Evaluate | None
    evaluate_every: int | None
    checkpoints: Checkpoints | None
    checkpoint_every: int | None
    on_record: Callable[[Record], None]
    on_progress: Callable[[int, float], None]

    # What must not change from a run to the one that goes on with it, besides the method and the model.
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        self.history: list[Record] = []
        self.records = 0
        self.excluded: dict[int, int] = {}
        self.began = time.perf_counter()
        self.since_round = self.replicas.x.clone()
        self.between: Tensor | None = None
        self.good: tuple[Tensor, dict[str, Tensor], int] = (self.since_round, {}, 0)

    @property
    @abstractmethod
    def count(self) -> int:
        """Local steps so far; where workers have taken different numbers of them, the mean, rounded down."""

    @property
    @abstractmethod
    def rounds_so_far(self) -> int:
        """Rounds so far."""

    @abstractmethod
    def _turn(self, steps: int) -> None:
        """Go on up to the next point at which a run may be looked at, or end: that of `steps` at most."""

    @abstractmethod
    def _over(self, steps: int) -> bool:
        """Whether workers have taken so many steps."""

    @abstractmethod
    def _land(self) -> None:
        """What is on its way lands."""

    @abstractmethod
    def _losses_since_record(self) -> Float[Tensor, " r"]:
        """Each row's mean training loss since the record before; forgotten then."""

    @abstractmethod
    def _recent(self) -> Float[Tensor, " r"]:
        """Each row's mean training loss over its last batches."""

    @abstractmethod
    def _own_state(self) -> dict[str, Any]:
        """What the run needs to go on besides what all kinds of runs do."""

    @abstractmethod
    def _optimizer_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What optimizers keep: that of each parameter as rows, and the rest."""

    @abstractmethod
    def _load(self, part: dict[str, Any], moments: dict[str, Tensor], step: int, same: bool) -> None:
        """Take what `_own_state` and `_optimizer_state` gave; or, if it is not of the same workers, what is common."""

    @abstractmethod
    def _times(self) -> Times | None:
        """What the time is, if there is a clock."""

    @property
    def seconds(self) -> float:
        """Wall-clock time so far, evaluations left out."""
        return time.perf_counter() - self.began

    def run(self, steps: int) -> Result:
        """Take local steps until there have been so many, those before a checkpoint included."""
        memory.keep_freed()
        self._remember(self.since_round)
        saved = self.checkpoints.load(self.workers, self.replicas.x.device) if self.checkpoints else None
        if saved:
            self._go_on(saved, steps)
        while not self._over(steps):
            before = self.count
            self._turn(steps)
            over = self._over(steps)
            self.on_progress(min(self.count, steps), float(self._recent().nanmean()))
            if self.evaluate and self.evaluate_every and self._passed(self.evaluate_every, before) and not over:
                self._record_evaluation()
            # The end is saved as it is before rounds are closed, so that more steps can follow.
            if over or (self.checkpoint_every and self._passed(self.checkpoint_every, before)):
                self._save()
        self._land()
        self._check_finite(range(len(self.replicas.x)))
        if self.evaluate and steps:
            self._record_evaluation()
        return self._result()

    def _passed(self, every: int, before: int) -> bool:
        return before // every < self.count // every

    def _save(self) -> None:
        if self.checkpoints:
            mean = self._center().state_dict()
            self.checkpoints.save(self.count, self._state(), self.workers, self.replicas.x.device, mean)

    def _state(self) -> dict[str, Any]:
        """All that a run needs to go on, bit for bit; what has a row for each worker under "rows"."""
        moments, optimizer = self._optimizer_state()
        return {
            "kind": self._kind,
            "rows": self._rows() | {f"moments {name}": rows for name, rows in moments.items()},
            "optimizer": optimizer,
            "present": self.workers.present[self.workers.rows],
            "excluded": self.excluded,
            "since_round": self.since_round,
            "records": self.records,
            "sent": [self.metered.messages, self.metered.bytes],
            "seconds": self.seconds,
        } | self._own_state()

    @property
    def _kind(self) -> list[str | int]:
        return [self.kind, type(self.method).__name__, self.replicas.parameters]

    def _rows(self) -> dict[str, Tensor]:
        return {"x": self.replicas.x} | {f"buffer {name}": rows for name, rows in self.replicas.buffers.items()}

    def _go_on(self, saved: Saved, steps: int) -> None:
        """Take the state that was saved; or, with another number of workers, start from their mean as it was then."""
        part = saved.parts[0]
        saved.check_is_of(self._kind)
        if saved.step > steps:
            raise ValueError(f"steps={steps}: the run that was saved has taken {saved.step} already")
        rows = part["rows"]
        if saved.same:
            log.info("going on after %d local steps", saved.step)
        else:
            log.warning("going on after %d local steps from the mean of the workers, as there were others", saved.step)
            present = torch.cat([each["present"] for each in saved.parts])
            then = {name: torch.cat([each["rows"][name] for each in saved.parts])[present] for name in rows}
            rows = {name: rows_of_mean(each, len(self.replicas.x)) for name, each in then.items()}
        for name, mine in self._rows().items():
            mine.copy_(rows[name])
        moments = {name.removeprefix("moments "): each for name, each in rows.items() if name.startswith("moments ")}
        self.metered.messages, self.metered.bytes = part["sent"]
        self.began = time.perf_counter() - part["seconds"]
        self.records = part["records"]
        if saved.same:
            self.excluded = part["excluded"]
            for worker in self.excluded:
                self.workers.exclude(worker)
        self._load(part, moments, saved.step, saved.same)
        self.since_round.copy_(part["since_round"] if saved.same else self.replicas.x)
        self._remember()

    def _remember(self, copy: Float[Tensor, "r d"] | None = None) -> None:
        """Keep the state as it is now as the last that is known to be good; `copy`: of X, if there is one already."""
        if copy is None:
            copy = self.between = torch.empty_like(self.replicas.x) if self.between is None else self.between
            copy.copy_(self.replicas.x)
        buffers = {name: buffer.clone() for name, buffer in self.replicas.buffers.items()}
        self.good = copy, buffers, self.count

    def _check_finite(self, rows: Sequence[int], losses: Sequence[Tensor] | Tensor | None = None) -> None:
        """Stop at, or exclude, workers whose loss in their last steps or whose model is not finite.

        Args:
            rows: which of this process's are looked at.
            losses: of each of them `[n]`, in the steps since it was last looked at. Default: no steps.
        """
        x = self.replicas.x
        whole = len(rows) == len(x)
        sums = (x if whole else x[list(rows)]).sum(1).cpu()
        first_bad = torch.zeros(len(x), dtype=torch.float64)
        good = sums.isfinite()
        if isinstance(losses, Tensor):
            good &= losses.isfinite().all(1)
        elif losses is not None:
            good &= torch.tensor([bool(each.isfinite().all()) for each in losses], dtype=torch.bool)
        for number in (~good).nonzero().flatten().tolist():
            mine = torch.empty(0) if losses is None else losses[number]
            wrong = (~mine.isfinite()).nonzero()
            taken = self._taken(rows[number])
            first_bad[rows[number]] = max(taken - len(mine) + int(wrong[0]) + 1 if len(wrong) else taken, 1)
        everyone = self._known(first_bad.to(x.device)).cpu() * self.workers.present
        steps = {worker: int(everyone[worker]) for worker in everyone.nonzero().flatten().tolist()}
        if not steps:
            return
        if not self.exclude or len(steps) == self.workers.present.sum():
            then, buffers, count = self.good
            x.copy_(then)
            for name, buffer in buffers.items():
                self.replicas.buffers[name].copy_(buffer)
            worker = min(steps, key=lambda worker: steps[worker])
            raise NonFiniteLossError(worker, steps[worker], self._result(), count)
        for worker in steps:
            self.workers.exclude(worker)
        self.excluded |= steps

    def _known(self, values: Float[Tensor, " r"]) -> Float[Tensor, " m"]:
        """Each worker's, as far as this process has to know; zero elsewhere."""
        return self.workers.gather(values)

    def _taken(self, row: int) -> int:
        """Local steps that this row has taken."""
        return self.count

    def _look(self, everywhere: bool = False) -> dict[str, Any]:
        """What a record says of the workers as they are; before a round's message, which it would have to wait for.

        Args:
            everywhere: whether consensus distance is measured even where that costs a message.
        """
        losses = self._gather(self._losses_since_record()).numpy()
        return self._distances(everywhere) | {"losses": losses}

    def _distances(self, everywhere: bool) -> dict[str, Any]:
        """Consensus distance and drift."""
        x = self.replicas.x
        measured = everywhere or len(x) == self.workers.size
        drift = self.workers.gather(distances(x, self.since_round))
        return {
            "consensus": consensus_distance(x, self.workers) if measured else np.nan,
            "drift": drift.cpu().numpy(),
        }

    def _center(self) -> nn.Module:
        """The model of the run, which is evaluated and kept."""
        return center(self.replicas, self.workers)

    def _record_evaluation(self) -> None:
        assert self.evaluate is not None
        paused = time.perf_counter()
        losses = self._gather(self._recent())
        measures: dict[str, Any] = {
            "center": dict(self.evaluate(self._center())),
            "best": dict(self.evaluate(best(self.replicas, self.workers, losses))),
            "best_worker": best_worker(losses, self.workers),
        }
        measures |= self._look(everywhere=True)
        self.began += time.perf_counter() - paused
        self._record(**measures)

    def _record(self, **measures: Any) -> None:
        record = Record(
            index=self.records,
            step=self.count,
            round=self.rounds_so_far,
            messages=self.metered.messages,
            bytes=self.metered.bytes,
            seconds=self.seconds,
            virtual=self._times(),
            **measures,
        )
        self.records += 1
        self.history.append(record)
        self.on_record(record)

    def _gather(self, losses: Float[Tensor, " r"]) -> Float[Tensor, " m"]:
        """Each worker's, known to every process."""
        return self.workers.gather(losses.double().to(self.replicas.x.device)).cpu()

    def _result(self) -> Result:
        return Result(
            rows=self.replicas.x,
            losses=self._gather(self._recent()),
            history=self.history,
            excluded=self.excluded,
            seconds=self.seconds,
            stepping=str(self.way),
            method=self.method,
            rounds=self.rounds_so_far,
            messages=self.metered.messages,
            bytes=self.metered.bytes,
            _replicas=self.replicas,
            _workers=self.workers,
        )


def mean_of_last(losses: Float[Tensor, "r n"]) -> Float[Tensor, " r"]:
    """Over the last batches, in double precision."""
    return losses[:, -RECENT:].double().mean(1)


def rows_of_mean(rows: Shaped[Tensor, m * n], count: int) -> Shaped[Tensor, r * n]:
    """So many rows, each the mean of all of these; of what has no mean, the first."""
    mean = rows.double().mean(0).to(rows.dtype) if rows.is_floating_point() else rows[0]
    return mean.repeat(count, *(1 for _ in mean.shape))


def leader(message: Message) -> int | tuple[int, ...] | None:
    """Who leads, if that is what a round sends."""
    if not isinstance(message, dict) or "worker" not in message:
        return None
    worker = message["worker"]
    leaders = tuple((worker if isinstance(worker, Tensor) else worker.wait()).tolist())
    return leaders[0] if len(leaders) == 1 else leaders
