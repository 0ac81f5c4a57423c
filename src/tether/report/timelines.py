"""Who computed and who waited when, by the clock of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tether.report.runs import Run

ROUNDS = 20
"""So many rounds from the start are drawn: they are alike, and more could not be told apart."""

WORKERS = 64
"""So many workers are drawn, the first of them."""


@dataclass(frozen=True)
class Spans:
    """Stretches of virtual time.

    Attributes:
        worker: `[k]`, whose.
        since: `[k]`, seconds.
        until: `[k]`, seconds.
    """

    worker: np.ndarray
    since: np.ndarray
    until: np.ndarray


@dataclass(frozen=True)
class Timeline:
    """What the workers did at the start of a run.

    Attributes:
        workers: how many are drawn.
        spans: by what they did: "computing", "waiting", or "sending" while they computed.
        finding: what can be said of the whole run, in a sentence.
        caption: what is drawn.
    """

    workers: int
    spans: dict[str, Spans]
    finding: str
    caption: str


def waited(run: Run) -> float | None:
    """The share of their time that the workers of a run have waited, if it has a clock."""
    if run.now is None or run.waited is None or not len(run.now) or not np.nansum(run.now[-1]):
        return None
    return float(np.nansum(run.waited[-1]) / np.nansum(run.now[-1]))


def timeline(run: Run) -> Timeline | None:
    """The first rounds of a run that has a clock."""
    share = waited(run)
    if share is None:
        return None
    assert run.now is not None
    assert run.waited is not None
    assert run.arrivals is not None
    records = np.flatnonzero(run.rounds <= ROUNDS)
    workers = min(run.workers, WORKERS)
    now, idle, arrivals = (
        np.vstack([np.zeros(workers), each[records, :workers]]) for each in (run.now, run.waited, run.arrivals)
    )
    since, until, idle, arrival = now[:-1], now[1:], np.diff(idle, axis=0), arrivals[:-1]
    # A wait ends when a round arrives: that of the record before, if it was still on its way then, else this one's.
    resumed = np.where((since < arrival) & (arrival <= until), arrival, until)
    paused = resumed - idle
    spans = {
        "computing": _spans(np.vstack([since, resumed]), np.vstack([paused, until])),
        "waiting": _spans(paused, resumed),
        "sending": _spans(since, np.where(idle > 0, np.minimum(paused, arrival), np.minimum(arrival, until))),
    }
    most = int(np.nanargmin(run.waited[-1]))
    finding = f"Workers waited for {share:.0%} of their time"
    finding += f"; worker {most} waited least." if share > 0.005 and np.ptp(run.waited[-1]) > 0 else "."
    drawn = f"The first {run.rounds[records[-1]]:,} rounds" if len(records) else "No rounds"
    drawn += f" of the first {workers} workers" if workers < run.workers else ""
    caption = f"{drawn}: coloured while a worker computes, pale while it waits; a thin line is a message on its way."
    return Timeline(workers, spans, finding, caption)


def _spans(since: np.ndarray, until: np.ndarray) -> Spans:
    """Those that take any time, from `[k, m]` of begins and ends."""
    record, worker = np.nonzero(until - since > 1e-12 * np.nanmax(until, initial=0))
    return Spans(worker, since[record, worker], until[record, worker])
