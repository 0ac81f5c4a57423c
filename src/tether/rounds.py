"""When a round starts and when it lands: periods, overlap, and what a checkpoint of them holds.

A driver (the simulator, or hooks on a user's optimizer) tells `Rounds` of local steps; `Rounds` calls the method's
`send` and `receive`. The two orders of step and round differ only in when the driver speaks: after the optimizer's
update for "step-then-mix", X <- (X - lr G) W, or between gradient and update for "mix-then-step", X <- X W - lr G
(Cooperative SGD, eq. 10 and remark 1). Either way the round belongs to that step. When rounds are due is counted in
local steps, or as a trigger says (`tether.triggers`); how many of them may change on the way (`tether.periods`).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tether.checks import whole
from tether.methods import Method, Step
from tether.periods import Measured, Seen, schedule_of
from tether.triggers import OwnPace, Pace
from tether.workers import Arrived, Message, Pending, Weighted, Workers, land

Order = Literal["step-then-mix", "mix-then-step"]


@dataclass(frozen=True)
class Companion:
    """A matrix `[r, n]` that is averaged whenever a round lands: buffers, an optimizer's moments.

    Attributes:
        blocks: the matrix in pieces that share their memory with what they are pieces of.
        dim: 0 if they are blocks of rows, 1 if of columns.
    """

    blocks: Sequence[Tensor]
    dim: int = 0

    def gather(self) -> Float[Tensor, "r n"]:
        """The matrix in one piece, a copy."""
        return torch.cat(list(self.blocks), dim=self.dim)

    def scatter(self, mean: Float[Tensor, "1 n"]) -> None:
        """Every row becomes the mean."""
        sizes = [block.shape[1] for block in self.blocks]
        parts = mean.split(sizes, dim=1) if self.dim == 1 else [mean] * len(sizes)
        for block, part in zip(self.blocks, parts, strict=True):
            block.copy_(part.expand_as(block))


@dataclass
class Flight:
    """A round on its way: what was sent, the rows as they were then, and when it lands."""

    due: int
    rows: Tensor
    message: Message
    companions: dict[str, Pending]


class Rounds:
    """The rounds of a method over a matrix X.

    Under overlap, what a round sent at step t is applied at step t + overlap: `receive` sees the rows as they were when
    sent, and the change it makes to them is added to the rows as they are now. No local progress is lost, and no
    method has to think about it. A round lands before the next one of its kind starts: two on their way at once would
    both correct the same differences between workers, which makes them grow (averaging every step, three steps late,
    multiplies them by 1.15 a step).

    Args:
        method: what a round does.
        workers: how rows reach each other.
        x: `[r, d]`, this process's rows; moved in place.
        overlap: local steps between a round's start and its landing, from 0 to the period; where that changes, a round
            lands at the latest when the next one starts.
        samples: `[r]`, how many samples each row's worker holds; for methods that weigh by them.
        window: keep at least so many of each worker's last losses.
        companions: what else is averaged when a round lands, by name, as it is at the moment of the call.
        pace: how far the workers are, in the unit of periods. Default: the local steps of these rows.
        on_send: called with a part before its round is sent.
        on_land: called with a part after its round has landed.

    Raises:
        ValueError: if the overlap is negative or longer than the period, or the method does not suit these workers.
    """

    def __init__(
        self,
        method: Method,
        workers: Workers,
        x: Float[Tensor, "r d"],
        *,
        overlap: int = 0,
        samples: Float[Tensor, " r"] | None = None,
        window: int = 1,
        companions: Callable[[], Mapping[str, Companion]] = dict,
        pace: Pace | None = None,
        on_send: Callable[[int], None] = lambda part: None,
        on_land: Callable[[int], None] = lambda part: None,
    ):
        whole("overlap", overlap, least=0)
        self.parts = method.parts
        self._schedules = [schedule_of(part.period) for part in self.parts]
        shortest = min(schedule.longest for schedule in self._schedules)
        if overlap > shortest:
            raise ValueError(
                f"overlap={overlap} is longer than the period of {shortest} local steps: a round would start before "
                f"the one before has landed, and workers would drift apart; take an overlap of at most {shortest}, or "
                "a longer period"
            )
        self.workers = workers
        self.overlap = overlap
        self.count = 0
        self.rounds = [0] * len(self.parts)
        self.states = [part.init(x, workers) for part in self.parts]
        self.losses = x.new_zeros(len(x), 0)
        self._x = x
        self._samples = x.new_ones(len(x)) if samples is None else samples.to(x)
        asked = [part.window for part in self.parts] + [schedule.window for schedule in self._schedules]
        self._window = max(window, *asked)
        self._companions = companions
        self._on_send = on_send
        self._on_land = on_land
        self.pace = pace or OwnPace()
        self.periods: list[int]
        self._seen: list[Seen]
        self._forget_periods()
        self.passed = 0.0
        self._next: list[float] = [float(period) for period in self.periods]
        self._taken = [torch.zeros(len(x)) for _ in self.parts]
        self._flights: dict[int, Flight] = {}

    @property
    def quiet(self) -> int:
        """How many local steps can be taken before rows next touch one another, the last of them included."""
        if not self.pace.exact:
            return 1
        landings = [flight.due - self.count for flight in self._flights.values()]
        return min([math.ceil(self.due - self.pace.now), *landings])

    @property
    def due(self) -> float:
        """When the next round is, in the unit of periods."""
        return min(self._next)

    def advance(self, losses: Float[Tensor, "r n"]) -> list[int]:
        """Note n more local steps and land what is due.

        Args:
            losses: each row's training loss in each of these steps; n at most `quiet`.

        Returns:
            The parts of the method whose round starts with this step, in order. `send` starts them.
        """
        steps = losses.shape[1]
        assert steps <= self.quiet, "the rows should have touched before the last of these steps"
        self.count += steps
        self.pace.advance(steps)
        self.note(losses, torch.full((len(losses),), float(steps)))
        for part in [part for part, flight in self._flights.items() if flight.due == self.count]:
            self._land(part, self._flights.pop(part))
        if (starting := self.starting) and not self.pace.exact:
            self.close()  # who has been slow has not come to where the round before would land
        return starting

    @property
    def starting(self) -> list[int]:
        """The parts of the method whose round is due, in order; those that are due later wait for these."""
        due = self.due
        return [part for part, when in enumerate(self._next) if when == due] if due <= self.pace.now else []

    def note(self, losses: Float[Tensor, "r n"], steps: Float[Tensor, " r"]) -> None:
        """Each row has taken so many more steps, the last of them with these losses."""
        if losses.shape[1] != self._window:
            losses = torch.cat([self.losses, losses], dim=1)[:, -self._window :]
        self.losses = losses
        for taken in self._taken:
            taken += steps

    def send(self, part: int, lr: float) -> Message:
        """Start the round of a part of the method; without overlap, end it too. Returns what was sent."""
        method, x, state = self.parts[part], self._x, self.states[part]
        losses = self.losses[:, -method.window :]
        step = Step(self.count, self.rounds[part], lr, losses, self._samples)
        workers = Weighted(self.workers, self._taken[part].to(x)) if self.pace.by_steps else self.workers
        self.passed = self._next[part]
        if self.overlap:
            self._follow(part)  # by what has landed last
        self._measure(part, lr)
        self._on_send(part)
        message = method.send(x, state, workers, step)
        companions = {name: self.workers.mean(each.gather()) for name, each in self._beside(part).items()}
        self.rounds[part] += 1
        self._taken[part].zero_()
        if self.overlap:
            lands = self.count + min(self.overlap, self.periods[part])
            self._flights[part] = Flight(lands, x.clone(), message, companions)
        else:
            self._land(part, Flight(self.count, x, message, companions))
            self._follow(part)
        self.pace.passed(self.passed)
        self._next[part] = self.passed + self.periods[part]
        return message

    def join(self, part: int, lr: float) -> None:
        """Take part in a round that others start, wherever this process is: what is on its way lands, so does this."""
        self.close()
        self.send(part, lr)
        self.close()

    def close(self) -> None:
        """Land everything that is still on its way."""
        for part in list(self._flights):
            self._land(part, self._flights.pop(part))

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, tensors and numbers only. Waits for what is on its way and keeps it."""
        for flight in self._flights.values():
            landed = land(flight.message)
            flight.message = dict(landed) if isinstance(landed, dict) else landed
            flight.companions = {name: Arrived(companion.wait()) for name, companion in flight.companions.items()}
        return {
            "count": self.count,
            "rounds": list(self.rounds),
            "passed": self.passed,
            "next": list(self._next),
            "periods": list(self.periods),
            "seen": [dict(seen) for seen in self._seen],
            "measures": [measures.clone() for measures in self._measures],
            "bases": {part: base.clone() for part, base in self._bases.items()},
            "states": [_cloned(state) for state in self.states],
            "taken": [taken.clone() for taken in self._taken],
            "losses": self.losses.clone(),
            "flights": {
                part: {
                    "due": flight.due,
                    "rows": flight.rows.clone(),
                    "message": _cloned(land(flight.message)),
                    "companions": {name: companion.wait().clone() for name, companion in flight.companions.items()},
                }
                for part, flight in self._flights.items()
            },
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict` of the same method; the rows themselves are the caller's to restore."""
        if len(saved["states"]) != len(self.states):
            raise ValueError(f"a state of {len(saved['states'])} parts for a method of {len(self.states)}")
        self.count = saved["count"]
        self.rounds = list(saved["rounds"])
        self._resume_periods(saved)
        self._measures = [measures.to(self._x, copy=True) for measures in saved["measures"]]
        self._bases = {part: base.to(self._x, copy=True) for part, base in saved["bases"].items()}
        self._taken = [taken.clone() for taken in saved["taken"]]
        self.losses = saved["losses"].to(self._x, copy=True)
        for mine, theirs in zip(self.states, saved["states"], strict=True):
            for name, value in mine.items():
                value.copy_(theirs[name])
        self._flights = {
            part: Flight(
                flight["due"],
                flight["rows"].to(self._x, copy=True),
                _cloned(flight["message"], self._x.device),
                {name: Arrived(_cloned(mean, self._x.device)) for name, mean in flight["companions"].items()},
            )
            for part, flight in saved["flights"].items()
        }

    def restart(self, saved: dict[str, Any]) -> None:
        """Go on at the same count as a `state_dict` of other workers, with the method's state made anew of the rows."""
        self.count = saved["count"]
        self.rounds = list(saved["rounds"])
        self._forget_periods()
        self._resume_periods(saved)
        self.losses = self._x.new_zeros(len(self._x), 0)
        self.states = [part.init(self._x, self.workers) for part in self.parts]
        self._flights = {}

    def _resume_periods(self, saved: dict[str, Any]) -> None:
        self.passed, self._next, self.periods = saved["passed"], list(saved["next"]), list(saved["periods"])
        self._seen = [dict(seen) for seen in saved["seen"]]
        self.pace.advance(self.count)
        self.pace.passed(self.passed)

    def _forget_periods(self) -> None:
        """Every part's period is its first, and nothing has been measured for it."""
        x = self._x
        self.periods = [schedule.start for schedule in self._schedules]
        self._seen = [{} for _ in self.parts]
        # Of each row: the sum of its last losses and how many these are, its squared drift, its learning rate. The
        # means of these over all workers from when a round has landed to when the next one starts.
        self._measures = [x.new_full((len(x), 4), torch.nan) for _ in self.parts]
        self._bases = {part: x.clone() for part, each in enumerate(self._schedules) if each.looks_at == "drift"}

    def _measure(self, part: int, lr: float) -> None:
        """What the part's schedule looks at, as the round starts."""
        schedule, measures = self._schedules[part], self._measures[part]
        if schedule.looks_at == "nothing":
            return
        losses = self.losses[:, -schedule.window :]
        measures[:, 0], measures[:, 1], measures[:, 3] = losses.sum(1), losses.shape[1], lr
        measures[:, 2] = (self._x - self._bases[part]).square().sum(1) if part in self._bases else 0.0

    def _follow(self, part: int) -> None:
        """The period after the round that is being sent."""
        losses, count, drift, lr = self._measures[part][0].tolist()
        known = not math.isnan(count)
        measured = Measured(losses / count if count else math.nan, math.sqrt(drift), lr) if known else None
        schedule, period = self._schedules[part], self.periods[part]
        self.periods[part] = schedule.follow(period, self.passed, self._seen[part], measured)

    def _beside(self, part: int) -> dict[str, Companion]:
        """What is averaged when a round of the part lands: companions, and what its period follows."""
        companions = dict(self._companions())
        if self._schedules[part].looks_at != "nothing":
            companions["period"] = Companion([self._measures[part]])
        return companions

    def check_replicated(self, workers: Workers) -> None:
        """Raise `RuntimeError` unless all processes have the same of what a method says they have the same of.

        Args:
            workers: how to ask them, without this being counted as what the method sends.
        """
        for method, state in zip(self.parts, self.states, strict=True):
            for name in method.replicated:
                digest = zlib.crc32(state[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
                mine = torch.full((len(self._x),), float(digest), dtype=torch.float64, device=self._x.device)
                everyone = workers.gather(mine)
                odd = (everyone != everyone[0]).nonzero().flatten().tolist()
                if odd:
                    raise RuntimeError(
                        f"the {name} of {type(method).__name__} is not the same for workers 0 and {odd[0]}: their "
                        "processes have not taken part in the same rounds, or compute differently"
                    )

    def _land(self, part: int, flight: Flight) -> None:
        method, x, state = self.parts[part], self._x, self.states[part]
        message = land(flight.message)
        moved = x if flight.rows is x else flight.rows.clone()
        method.receive(moved, state, message)
        if part in self._bases:
            self._bases[part].copy_(moved)
        if moved is not x:
            x.add_(moved.sub_(flight.rows))
        # These are running averages: the mean as it arrives, not a change, which could drive a variance below zero.
        companions = self._beside(part)
        for name, mean in flight.companions.items():
            companions[name].scatter(mean.wait())
        self._on_land(part)


def _cloned(tensors: Any, device: torch.device | None = None) -> Any:
    """A copy of a tensor or a dict of tensors; there, if a device is given."""
    if isinstance(tensors, dict):
        return {name: _cloned(value, device) for name, value in tensors.items()}
    return tensors.to(device or tensors.device, copy=True)
