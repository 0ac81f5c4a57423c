"""How far real workers are, as a trigger counts it: steps of all in the group's store, or this machine's clock."""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.distributed as dist

from tether.triggers import OwnPace, Pace, TimeWindow, TotalPace, TotalSteps, Trigger, WindowPace
from tether.workers.ranks import Ranks

POLL = 0.02
"""Seconds after which the steps of others are asked for again, by a process that is in the middle of its own step."""


def pace_of(trigger: Trigger | None, ranks: Ranks, device: torch.device) -> Pace:
    """The pace by which rounds of these workers are due. Every process calls it at the same point.

    Args:
        trigger: what a round is due of. Default: local steps of each worker.
        ranks: the workers; the pace ends with them.
        device: where small numbers live that processes exchange.

    Raises:
        ValueError: if it is no trigger.
    """
    match trigger:
        case None:
            return OwnPace()
        case TotalSteps():
            counter = StepCounter(ranks)
            ranks.at_close(counter.stop)
            return TotalPace(counter.add, counter.total, ranks.rows.stop - ranks.rows.start, ranks.size)
        case TimeWindow():
            # The first window opens for all when the last of them is there.
            ranks.gather(torch.zeros(ranks.rows.stop - ranks.rows.start, device=device))
            return WindowPace(trigger)
    raise ValueError(f"trigger={trigger!r}: give tether.TotalSteps() or tether.TimeWindow(seconds)")


class StepCounter:
    """Local steps of all workers, in the group's store. A thread adds and reads them while training goes on.

    Args:
        ranks: the workers.
    """

    def __init__(self, ranks: Ranks):
        # A connection of its own: the shared one serves one request at a time, and some wait for minutes.
        store: Any = dist.distributed_c10d._get_process_group_store(ranks.group)
        self._store = store.clone()
        self._key = f"{ranks.watch.name}/steps"
        self._counted = self._uncounted = 0
        self._changed = threading.Condition()
        self._patience = ranks.watch.timeout
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="tether-steps", daemon=True)
        self._thread.start()

    def add(self, steps: int) -> None:
        """Count so many more steps of workers here."""
        with self._changed:
            self._uncounted += steps
            self._changed.notify()

    def total(self) -> int:
        """All steps that anyone has counted: those here, and those of others as far as is known."""
        with self._changed:
            return self._counted + self._uncounted

    def stop(self) -> None:
        """Count no more."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        # A thread that is still in a request when the interpreter ends would abort it.
        self._thread.join(self._patience)

    def _run(self) -> None:
        while not self._stopped:
            adding = self._uncounted
            try:
                counted = self._store.add(self._key, adding)
            except RuntimeError:
                return  # whoever next waits for the others learns that the store is lost
            with self._changed:
                self._counted = counted
                self._uncounted -= adding
                if not (self._stopped or self._uncounted):
                    self._changed.wait(POLL)
