"""What a log of arrivals has: who came to the center, or to a round, after how many steps, in which order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tether.history import Trip
from tether.turns import Turn


@dataclass(frozen=True)
class Arrivals:
    """A log of arrivals, as `tether.attach(..., arrivals=path)` writes it: a line of JSON for each.

        {"workers": 4, "method": "Downpour", "overlap": 0}                        first of all
        {"worker": 2, "step": 10, "staleness": 3, "seconds": 0.51}                a message that the center has served
        {"round": 0, "steps": [10, 10, 9, 4], "seconds": 0.51}                    a round that a trigger has started

    Attributes:
        workers: number of workers m.
        method: the method's class.
        overlap: local steps that a message could take.
        lines: the rest, in order.
    """

    workers: int
    method: str
    overlap: int
    lines: list[dict[str, Any]]

    @classmethod
    def read(cls, path: str | Path) -> Arrivals:
        """Read a log.

        Raises:
            ValueError: if it is not one; says which line.
        """
        lines = []
        with Path(path).open() as file:
            for number, line in enumerate(file, start=1):
                try:
                    lines.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(f"{path}: line {number} is not one of a log of arrivals: {error}") from error
        if not lines or not {"workers", "method", "overlap"} <= lines[0].keys():
            raise ValueError(f"{path} is not a log of arrivals: its first line says nothing of workers and method")
        header = {name: lines[0][name] for name in ("workers", "method", "overlap")}
        return cls(**header, lines=lines[1:])

    @property
    def steps(self) -> Int[np.ndarray, " m"]:
        """Local steps that each worker has taken when it is last heard of."""
        taken = np.zeros(self.workers, dtype=np.int64)
        for line in self.lines:
            if "worker" in line:
                taken[line["worker"]] = line["step"]
            else:
                taken[:] = line["steps"]
        return taken

    def check(self, workers: int) -> None:
        """Raise `ValueError` unless the log is one of so many workers."""
        if workers != self.workers:
            raise ValueError(f"the log has {self.workers} workers, this run {workers}")


class LoggedVisits:
    """The visits of a log; see `tether.trips.Visits`."""

    def __init__(self, log: Arrivals):
        self.last: Int[np.ndarray, " m"] = log.steps
        self.ends: Float[np.ndarray, " m"] = np.zeros(log.workers)
        self.budget = int(self.last.sum())
        self._log = log

    def __iter__(self) -> Iterator[Trip]:
        for line in self._log.lines:
            when = line["seconds"]
            yield Trip(line["worker"], line["step"], when, when, when, when, 0.0)


class LoggedTurns:
    """The rounds of a log; see `tether.turns.Turns`."""

    def __init__(self, log: Arrivals):
        self.counts: Int[np.ndarray, " m"] = np.zeros(log.workers, dtype=np.int64)
        self._overlap = log.overlap
        self._sent: Int[np.ndarray, " m"] | None = None
        # Parts of a method that were due together have a line each.
        rounds = [line["steps"] for line in log.lines]
        self._rounds = [each for number, each in enumerate(rounds) if number == 0 or each != rounds[number - 1]]
        self._next = 0

    @property
    def over(self) -> bool:
        """See `Turns.over`."""
        return self._next == len(self._rounds)

    def next(self, due: float) -> Turn:
        """See `Turns.next`."""
        self.counts = np.array(self._rounds[self._next])
        self._next += 1
        landing = self.counts if self._sent is None else np.minimum(self._sent + self._overlap, self.counts)
        return Turn(landing, self.counts, due=True)

    def sent(self, due: float) -> None:
        """See `Turns.sent`."""
        self._sent = self.counts

    def state_dict(self) -> dict[str, Any]:
        """See `Turns.state_dict`."""
        return {"next": self._next}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """See `Turns.load_state_dict`."""
        self._next = saved["next"] - 1
        if self._next >= 0:
            self.next(0)
            self.sent(0)
        self._next = saved["next"]
