"""Who computed and who waited when, by the clock of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tether.report.runs import TIMELINE_ROUNDS, Run

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
    records = np.flatnonzero(run.rounds <= TIMELINE_ROUNDS)
    workers = min(run.workers, WORKERS)
    spans = _of_trips(run, workers) if any(run.trips) else _of_rounds(run, records, workers)
    most = int(np.nanargmin(run.waited[-1]))
    finding = f"Workers waited for {share:.0%} of their time"
    finding += f"; worker {most} waited least." if share > 0.005 and np.ptp(run.waited[-1]) > 0 else "."
    what = "visits to the center of each worker" if any(run.trips) else "rounds"
    drawn = f"The first {run.rounds[records[-1]]:,} {what}" if len(records) else f"No {what}"
    drawn += f" of the first {workers} workers" if workers < run.workers else ""
    caption = f"{drawn}: coloured while a worker computes, pale while it waits; a thin line is a message on its way."
    return Timeline(workers, spans, finding, caption)


def _of_rounds(run: Run, records: np.ndarray, workers: int) -> dict[str, Spans]:
    """Of the times at which workers met."""
    assert run.now is not None
    assert run.waited is not None
    assert run.arrivals is not None
    now, idle, arrivals = (
        np.vstack([np.zeros(workers), each[records, :workers]]) for each in (run.now, run.waited, run.arrivals)
    )
    since, until, idle, arrival = now[:-1], now[1:], np.diff(idle, axis=0), arrivals[:-1]
    # A wait ends when a round arrives: that of the record before, if it was still on its way then, else this one's.
    resumed = np.where((since < arrival) & (arrival <= until), arrival, until)
    paused = resumed - idle
    return {
        "computing": _spans(np.vstack([since, resumed]), np.vstack([paused, until])),
        "waiting": _spans(paused, resumed),
        "sending": _spans(since, np.where(idle > 0, np.minimum(paused, arrival), np.minimum(arrival, until))),
    }


def _of_trips(run: Run, workers: int) -> dict[str, Spans]:
    """Of the times at which each worker by itself has sent a message to the center, and had the reply."""
    trips = [trip for record in run.trips for trip in record if trip["worker"] < workers]
    worker = np.array([trip["worker"] for trip in trips], dtype=int)
    sent, replied, resumed, waited = (
        np.array([trip[name] for trip in trips]) for name in ("sent", "replied", "resumed", "waited")
    )
    paused = resumed - waited
    since, before = np.zeros(len(trips)), np.zeros(workers)
    for number, who in enumerate(worker):
        since[number], before[who] = before[who], resumed[number]
    whose = np.concatenate([worker, worker])
    return {
        "computing": _spans(np.concatenate([since, sent]), np.concatenate([sent, paused]), whose),
        "waiting": _spans(paused, resumed, worker),
        "sending": _spans(sent, np.minimum(replied, paused), worker),
    }


def _spans(since: np.ndarray, until: np.ndarray, worker: np.ndarray | None = None) -> Spans:
    """Those that take any time: of these workers; or from `[k, m]` of begins and ends."""
    (*_, whose) = taken = np.nonzero(until - since > 1e-12 * np.nanmax(until, initial=0))
    return Spans(whose if worker is None else worker[taken], since[taken], until[taken])
