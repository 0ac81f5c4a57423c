"""Who led when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tether.report.runs import Run


@dataclass(frozen=True)
class Trace:
    """Who led, in stretches of rounds with the same leader. A stretch begins where the round before it was.

    Attributes:
        since: `[k]`, the records before the stretches; -1 for the start of the run.
        until: `[k]`, the records of their last rounds.
        worker: `[k]`, who.
        of_all: `[k]`, whether of all workers rather than of a group.
    """

    since: np.ndarray
    until: np.ndarray
    worker: np.ndarray
    of_all: np.ndarray

    def against(self, axis: str, run: Run) -> tuple[np.ndarray, np.ndarray]:
        """`[k]` and `[k]`, where on an axis the stretches begin and end."""
        values = np.append(0, run.against(axis))
        return values[self.since + 1], values[self.until + 1]


def trace(run: Run) -> Trace | None:
    """Who led when, in a run of a method with leaders."""
    groups = max((len(who) for who in run.leaders if isinstance(who, list)), default=0)
    places = [[who if isinstance(who, int) else None for who in run.leaders]]
    places += [[who[group] if isinstance(who, list) else None for who in run.leaders] for group in range(groups)]
    found = [(*stretch, place == 0) for place, leaders in enumerate(places) for stretch in _stretches(leaders)]
    return Trace(*(np.array(column) for column in zip(*found, strict=True))) if found else None


def _stretches(leaders: list[int | None]) -> Iterator[tuple[int, int, int]]:
    """Since, until, and who, of rounds in which the same one led; records without a leader are of something else."""
    led = [(at, who) for at, who in enumerate(leaders) if who is not None]
    since = -1
    for number, (at, who) in enumerate(led):
        if number + 1 == len(led) or led[number + 1][1] != who:
            yield since, at, who
            since = at


def led(run: Run) -> str:
    """Who led most, in a sentence."""
    whole = [who for who in run.leaders if isinstance(who, int)]
    groups = [worker for who in run.leaders if isinstance(who, list) for worker in who]
    counts = Counter(whole or groups)
    (worker, most), *_ = counts.most_common(1)
    what = "rounds" if whole else "times that a group had a leader"
    if len(counts) == 1:
        return f"Worker {worker} led in all {most:,} {what}."
    ever = f"{len(counts):,} of {run.workers:,} workers ever led"
    return f"Worker {worker} led in {most:,} of {counts.total():,} {what}; {ever}."
