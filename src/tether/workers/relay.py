"""How a row gets from one process to many: down a chain, piece by piece.

Gloo broadcasts along a tree, where the first process sends the whole row several times and a process sends it on only
once it has all of it. Down a chain everyone sends it at most once, and pieces of it are on all links at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import cast

import torch.distributed as dist
from torch import Tensor

PIECES = 32
"""Pieces at most. To m processes a row takes (m - 2) / 32 longer than to one; more pieces cost more than they save."""

LEAST_BYTES = 2**16
"""Of a piece: what a message costs besides its bytes is little against these."""


def relay(rows: Tensor, chain: Sequence[int], group: dist.ProcessGroup, tag: int) -> Threaded:
    """Bring the first process's rows to all others of a chain: each hands them on to the next.

    Args:
        rows: on the first process what is sent, on others memory for it. It must live until the works are done.
        chain: global ranks, in the same order on each of them.
        group: a group that they all are in.
        tag: a number of its own for everything that is on its way at the same time.

    Returns:
        This process's part, done when it has the rows and has handed them on.
    """
    pieces = rows.view(-1).chunk(max(1, min(PIECES, rows.nbytes // LEAST_BYTES)))
    place = chain.index(dist.get_rank())

    def send(piece: Tensor) -> dist.Work:
        return cast(dist.Work, dist.isend(piece, chain[place + 1], group, tag))  # None only for those not in it

    if place == 0:
        return Threaded(partial(wait_for_all, [send(piece) for piece in pieces]))
    arriving = [cast(dist.Work, dist.irecv(piece, chain[place - 1], group, tag)) for piece in pieces]
    if place == len(chain) - 1:
        return Threaded(partial(wait_for_all, arriving))

    def hand_on() -> None:
        leaving = []
        for piece, arrival in zip(pieces, arriving, strict=True):
            arrival.wait()
            leaving.append(send(piece))
        wait_for_all(leaving)

    return Threaded(hand_on)


class Threaded:
    """Communication that a thread carries on while the program goes on. It is waited for like a `dist.Work`.

    To stop waiting for one of Gloo's sends and receives breaks it; to stop waiting for the thread does not. What the
    thread waits for ends when a neighbour is gone or the group's time is up.

    Args:
        run: communicates, and returns when it is done.
    """

    def __init__(self, run: Callable[[], None]):
        self._error: Exception | None = None
        self._run = run
        # A program that fails does not land what is on its way, and must be able to end all the same: a daemon.
        self._thread = threading.Thread(target=self._try, name="tether-messages", daemon=True)
        self._thread.start()

    def is_completed(self) -> bool:
        """Whether it is done, or has failed."""
        return not self._thread.is_alive()

    def wait(self, timeout: timedelta | None = None) -> None:
        """Return when it is done; raise what the communication has raised, or RuntimeError after the timeout."""
        self._thread.join(timeout.total_seconds() if timeout else None)
        if self._thread.is_alive():
            raise RuntimeError(f"not done after {timeout}")
        if self._error is not None:
            raise self._error

    def _try(self) -> None:
        try:
            self._run()
        except Exception as error:
            self._error = error


def wait_for_all(works: Sequence[dist.Work]) -> None:
    """Return when all are done."""
    for work in works:
        work.wait()
