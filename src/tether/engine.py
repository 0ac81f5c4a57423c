"""A simulation under way: local steps of the rows, what happens between them, the record of both, and checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from tether.checkpoint import Checkpoints, Saved
from tether.data import Feed
from tether.gradients import Way
from tether.history import Record
from tether.methods import Method
from tether.replicas import Replicas, distances
from tether.result import RECENT, NonFiniteLossError, Result, best, best_worker, center, consensus_distance
from tether.rounds import Rounds
from tether.stepping import Block, load_optimizer_state, optimizer_state
from tether.virtual_time import VirtualTime
from tether.workers import Message, Metered, Workers

log = logging.getLogger(__name__)

Evaluate = Callable[[nn.Module], Mapping[str, float]]

STRETCH = 100
"""Local steps taken at most before losses are looked at; rounds and evaluations make it fewer. Changes no result."""


@dataclass
class Engine:
    """The rows, the blocks that step them, the rounds between them."""

    method: Method
    workers: Workers
    metered: Metered
    replicas: Replicas
    feed: Feed
    blocks: list[Block]
    rounds: Rounds
    way: Way
    mix_first: bool
    exclude: bool
    evaluate: Evaluate | None
    evaluate_every: int | None
    checkpoints: Checkpoints | None
    checkpoint_every: int | None
    on_record: Callable[[Record], None]
    on_progress: Callable[[int, float], None]
    seed: int
    virtual: VirtualTime | None

    def __post_init__(self) -> None:
        self.history: list[Record] = []
        self.records = 0
        self.excluded: dict[int, int] = {}
        # On the CPU a hundred times faster than to seed every device there might be.
        self._seed = torch.default_generator.manual_seed if self.replicas.x.is_cpu else torch.manual_seed
        self.began = time.perf_counter()
        self.since_round = self.replicas.x.clone()
        self.between: Tensor | None = None
        self._remember(self.since_round)
        self.losses_since_record = torch.zeros(len(self.replicas.x), 0)

    @property
    def seconds(self) -> float:
        """Wall-clock time so far, evaluations left out."""
        return time.perf_counter() - self.began

    def run(self, steps: int) -> Result:
        """Take local steps until there have been so many, those before a checkpoint included."""
        saved = self.checkpoints.load(self.workers, self.replicas.x.device) if self.checkpoints else None
        if saved:
            self._go_on(saved, steps)
        interrupted = [every for every in (self.evaluate_every, self.checkpoint_every) if every]
        while (count := self.rounds.count) < steps:
            left = min([steps - count, STRETCH, self.rounds.quiet, *(every - count % every for every in interrupted)])
            self._advance(left)
            count += left
            self.on_progress(count, float(self._recent_losses().nanmean()))
            if self.evaluate and self.evaluate_every and count % self.evaluate_every == 0 and count < steps:
                self._record_evaluation()
            # The end is saved as it is before rounds are closed, so that more steps can follow.
            if count == steps or (self.checkpoint_every and count % self.checkpoint_every == 0):
                self._save()
        self.rounds.close()
        self._check_finite(torch.zeros(len(self.replicas.x), 1))
        if self.evaluate and steps:
            self._record_evaluation()
        return self._result()

    def _save(self) -> None:
        self.rounds.check_replicated(self.workers)
        if self.checkpoints:
            mean = center(self.replicas, self.workers).state_dict()
            self.checkpoints.save(self.rounds.count, self._state(), self.workers, self.replicas.x.device, mean)

    def _state(self) -> dict[str, Any]:
        """All that a run needs to go on, bit for bit; what has a row for each worker under "rows"."""
        moments, optimizer = optimizer_state(self.blocks)
        return {
            "kind": self._kind,
            "rows": self._rows() | {f"moments {name}": rows for name, rows in moments.items()},
            "optimizer": optimizer,
            "present": self.workers.present[self.workers.rows],
            "excluded": self.excluded,
            "rounds": self.rounds.state_dict(),
            "since_round": self.since_round,
            "losses": self.losses_since_record,
            "records": self.records,
            "sent": [self.metered.messages, self.metered.bytes],
            "seconds": self.seconds,
            "virtual": self.virtual.state_dict() if self.virtual else {},
        }

    @property
    def _kind(self) -> list[str | int]:
        """What must not change from a run to the one that goes on with it."""
        return ["simulate", type(self.method).__name__, self.replicas.parameters]

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
        load_optimizer_state(self.blocks, moments, part["optimizer"])
        self.metered.messages, self.metered.bytes = part["sent"]
        self.began = time.perf_counter() - part["seconds"]
        self.records = part["records"]
        if saved.same:
            self.excluded = part["excluded"]
            for worker in self.excluded:
                self.workers.exclude(worker)
            self.rounds.load_state_dict(part["rounds"])
            self.since_round.copy_(part["since_round"])
            self.losses_since_record = part["losses"]
            if self.virtual:
                self.virtual.load_state_dict(part["virtual"])
        else:
            self.rounds.restart(part["rounds"])
            self.since_round.copy_(self.replicas.x)
            if self.virtual:
                self.virtual.restart(part["virtual"])
        self._remember()

    def _advance(self, steps: int) -> None:
        """Local steps of every worker, and what happens between rows at the last of them."""
        split = self.mix_first and steps == self.rounds.quiet
        whole = steps - 1 if split else steps
        losses = torch.empty(len(self.replicas.x), steps, dtype=torch.float64)
        for block in self.blocks:
            for step in range(whole):
                losses[block.rows, step] = self._gradients(block, step)
                block.update()
            if split:
                losses[block.rows, whole] = self._gradients(block, whole)
            else:
                block.release()
        self._meet(losses)
        if split:
            for block in self.blocks:
                block.update()
                block.release()
            self._remember()

    def _gradients(self, block: Block, step: int) -> Float[Tensor, " rows"]:
        """Gradients for the step `step` steps from now."""
        step += self.rounds.count
        first = self.workers.rows.start
        workers = slice(first + block.rows.start, first + block.rows.stop)
        batches = self.feed(workers, step)
        # Drawn from (seed, step, block), the model's own randomness does not depend on when rounds or evaluations
        # interrupt the steps.
        self._seed(hash((self.seed, step, workers.start)) & (2**63 - 1))
        return block.gradients(self.way.gradients, batches)

    def _meet(self, losses: Float[Tensor, "r n"]) -> None:
        """All rows have taken the same steps: rounds land and start."""
        self._check_finite(losses)
        self.losses_since_record = torch.cat([self.losses_since_record, losses], dim=1)
        if self.virtual:
            self.virtual.compute(self.rounds.count, losses.shape[1])
        starting = self.rounds.advance(losses.to(self.replicas.x))
        for part in starting:
            consensus, drift = self._distances()
            message = self.rounds.send(part, self.blocks[0].lr)
            self._record(consensus, drift, leader=_leader(message))
        if starting:
            self.since_round.copy_(self.replicas.x)
        self._remember(self.since_round if starting else None)

    def _remember(self, copy: Float[Tensor, "r d"] | None = None) -> None:
        """Keep the state as it is now as the last that is known to be good; `copy`: of X, if there is one already."""
        if copy is None:
            copy = self.between = torch.empty_like(self.replicas.x) if self.between is None else self.between
            copy.copy_(self.replicas.x)
        buffers = {name: buffer.clone() for name, buffer in self.replicas.buffers.items()}
        self.good = copy, buffers, self.rounds.count

    def _check_finite(self, losses: Float[Tensor, "r n"]) -> None:
        """Stop at, or exclude, workers whose loss in these steps or whose model is not finite."""
        sums = self.replicas.x.sum(1).cpu()
        first_bad = torch.zeros(len(sums), dtype=torch.float64)
        for row in (~(losses.isfinite().all(1) & sums.isfinite())).nonzero().flatten().tolist():
            wrong = (~losses[row].isfinite()).nonzero()
            first_bad[row] = self.rounds.count + (int(wrong[0]) + 1 if len(wrong) else losses.shape[1])
        everyone = self.workers.gather(first_bad.to(self.replicas.x.device)).cpu() * self.workers.present
        steps = {worker: int(everyone[worker]) for worker in everyone.nonzero().flatten().tolist()}
        if not steps:
            return
        if not self.exclude or len(steps) == self.workers.present.sum():
            rows, buffers, count = self.good
            self.replicas.x.copy_(rows)
            for name, buffer in buffers.items():
                self.replicas.buffers[name].copy_(buffer)
            worker = min(steps, key=lambda worker: steps[worker])
            raise NonFiniteLossError(worker, steps[worker], self._result(), count)
        for worker in steps:
            self.workers.exclude(worker)
        self.excluded |= steps

    def _distances(self, everywhere: bool = False) -> tuple[float, np.ndarray]:
        """Consensus distance, where it costs no message or is asked for `everywhere`, and drift."""
        x = self.replicas.x
        measured = everywhere or len(x) == self.workers.size
        drift = self.workers.gather(distances(x, self.since_round))
        return consensus_distance(x, self.workers) if measured else np.nan, drift.cpu().numpy()

    def _record_evaluation(self) -> None:
        assert self.evaluate is not None
        paused = time.perf_counter()
        losses = self._recent_losses()
        measures: dict[str, Any] = {
            "center": dict(self.evaluate(center(self.replicas, self.workers))),
            "best": dict(self.evaluate(best(self.replicas, self.workers, losses))),
            "best_worker": best_worker(losses, self.workers),
        }
        distances = self._distances(everywhere=True)
        self.began += time.perf_counter() - paused
        self._record(*distances, **measures)

    def _record(self, consensus: float, drift: np.ndarray, **more: Any) -> None:
        losses = self.losses_since_record
        record = Record(
            index=self.records,
            step=self.rounds.count,
            round=sum(self.rounds.rounds),
            # Two parts of a method may start on one step: the second has seen no steps of its own.
            losses=(self._gather(losses) if losses.shape[1] else self._recent_losses()).numpy(),
            consensus=consensus,
            drift=drift,
            messages=self.metered.messages,
            bytes=self.metered.bytes,
            seconds=self.seconds,
            virtual=self.virtual.times(self.workers.present.numpy()) if self.virtual else None,
            **more,
        )
        self.losses_since_record = losses[:, :0]
        self.records += 1
        self.history.append(record)
        self.on_record(record)

    def _recent_losses(self) -> Float[Tensor, " m"]:
        return self._gather(self.rounds.losses[:, -RECENT:])

    def _gather(self, losses: Float[Tensor, "r n"]) -> Float[Tensor, " m"]:
        """The mean of each worker's losses, known to every process."""
        return self.workers.gather(losses.double().mean(1).to(self.replicas.x.device)).cpu()

    def _result(self) -> Result:
        return Result(
            rows=self.replicas.x,
            losses=self._recent_losses(),
            history=self.history,
            excluded=self.excluded,
            seconds=self.seconds,
            stepping=str(self.way),
            method=self.method,
            rounds=sum(self.rounds.rounds),
            messages=self.metered.messages,
            bytes=self.metered.bytes,
            _replicas=self.replicas,
            _workers=self.workers,
        )


def rows_of_mean(rows: Shaped[Tensor, m * n], count: int) -> Shaped[Tensor, r * n]:
    """So many rows, each the mean of all of these; of what has no mean, the first."""
    mean = rows.double().mean(0).to(rows.dtype) if rows.is_floating_point() else rows[0]
    return mean.repeat(count, *(1 for _ in mean.shape))


def _leader(message: Message) -> int | tuple[int, ...] | None:
    """Who leads, if that is what a round sends."""
    if not isinstance(message, dict) or "worker" not in message:
        return None
    worker = message["worker"]
    leaders = tuple((worker if isinstance(worker, Tensor) else worker.wait()).tolist())
    return leaders[0] if len(leaders) == 1 else leaders
