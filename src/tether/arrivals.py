"""The arrival log of real workers: what reached the center, or which rounds there were, in the order it happened.

A file of JSON lines. The first says of what run it is, each of the others what happened next:

    {"workers": 4, "method": "Downpour", "overlap": 0}
    {"worker": 2, "step": 10, "staleness": 3, "seconds": 0.52}
                                                a message that the center has served
    {"round": 0, "steps": [10, 12, 4, 11], "ended": [2], "seconds": 0.52}
                                                a round, how far everyone was when it began, and who takes part in no
                                                later one, because its data has ended
    {"resumed": 120, "workers": 4}              the run went on from a checkpoint, not in everyone's state of then

A worker computes by itself between these lines, so they are all of a run's order that depends on how fast machines are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jaxtyping import Float, Int

from tether.history import Trip
from tether.turns import Turn
from tether.workers import Visit


class ArrivalLog:
    """Writes an arrival log, line by line.

    Args:
        path: the file; there is a new one once the first line is written.
        workers: number of workers m.
        method: the method's name.
        overlap: local steps between a message's departure and its landing.
    """

    def __init__(self, path: str | Path, workers: int, method: str, overlap: int):
        self.path = Path(path)
        self._header = {"workers": workers, "method": method, "overlap": overlap}
        self._file: TextIO | None = None
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._began

    def visit(self, visit: Visit) -> None:
        """The center has served a message."""
        self._write(
            {"worker": visit.worker, "step": visit.step, "staleness": visit.staleness, "seconds": visit.seconds}
        )

    def round(self, part: int, steps: list[int], ended: list[int], seconds: float) -> None:
        """A round of a part of the method: each worker's local steps when it began, whose data had ended, and when."""
        self._write({"round": part, "steps": steps, "ended": ended, "seconds": seconds})

    def resume(self, events: int, *, exact: bool) -> None:
        """Go on with the log of a run that goes on from a checkpoint: what came after that is forgotten.

        Args:
            events: how many messages or rounds the checkpoint had seen.
            exact: whether everyone goes on from just this moment, so that the log is that of a run never interrupted.
        """
        lines = self.path.read_text().splitlines()[1:] if self.path.exists() else []
        kept: list[str] = []
        left = events
        for line in lines:
            if not line.endswith("}"):  # cut short
                break
            left -= "resumed" not in json.loads(line)
            if left < 0:
                break
            kept.append(line)
        if not exact or left > 0:
            kept.append(json.dumps({"resumed": events, "workers": self._header["workers"]}))
        self._file = self._opened(kept)

    def close(self) -> None:
        """Nothing more will happen."""
        if self._file:
            self._file.close()

    def _write(self, event: dict[str, Any]) -> None:
        self._file = self._file or self._opened([])
        print(json.dumps(event), file=self._file, flush=True)

    def _opened(self, lines: list[str]) -> TextIO:
        """The file, with these lines in it after the first; there as a whole or as it was before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f"{self.path.name}.unfinished")
        unfinished.write_text("".join(f"{line}\n" for line in [json.dumps(self._header), *lines]))
        unfinished.replace(self.path)
        return self.path.open("a")


@dataclass(frozen=True)
class Arrivals:
    """What an arrival log says; see this module.

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
            ValueError: if it is not one, or its run went on from a checkpoint in the middle; says which line.
        """
        lines = []
        with Path(path).open() as file:
            for number, line in enumerate(file, start=1):
                try:
                    lines.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(f"{path}: line {number} is not one of an arrival log: {error}") from error
                if "resumed" in lines[-1]:
                    raise ValueError(
                        f"{path}: line {number}: the run went on from a checkpoint here, with workers that were not "
                        "where they had been; what came before can be done again from the lines before"
                    )
        if not lines or not {"workers", "method", "overlap"} <= lines[0].keys():
            raise ValueError(f"{path} is not an arrival log: its first line says nothing of workers and method")
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
        together = groupby(log.lines, key=lambda line: line["steps"])
        self._rounds = [(steps, [who for line in lines for who in line["ended"]]) for steps, lines in together]
        self._next = 0

    @property
    def over(self) -> bool:
        """See `Turns.over`."""
        return self._next == len(self._rounds)

    def next(self, due: float) -> Turn:
        """See `Turns.next`."""
        steps, ended = self._rounds[self._next]
        self.counts = np.array(steps)
        self._next += 1
        landing = self.counts if self._sent is None else np.minimum(self._sent + self._overlap, self.counts)
        return Turn(landing, self.counts, due=True, ended=() if self.over else tuple(ended))

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
