"""Whether the other processes are still there: each gives a sign of life, and misses those of the others.

A process that dies closes its connections, and whoever talks to it fails at once, but not whoever talks to others; one
whose machine has lost its network closes nothing, and a communication with it waits for as long as the group's
timeout, half an hour by default. Signs of life tell both cases from a process that is merely slow, and tell who it is.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from tether.errors import WorkerLostError
from tether.workers.relay import Threaded

BEAT = 1.0
"""Seconds between two signs of life, or a tenth of the timeout if that is less."""


class Watch:
    """Signs of life of the processes of a group, in the group's store.

    Args:
        group: the processes.
        timeout: seconds without a sign of life after which a process is taken for lost.
    """

    def __init__(self, group: dist.ProcessGroup, timeout: float):
        self._timeout = timeout
        self._beat = min(BEAT, timeout / 10)
        self._in_slices = dist.get_backend(group) == "gloo"
        self._beats = _Beats(group, self._beat, timeout)
        self._stuck: list[dist.Work | Threaded] = []
        self.stop = weakref.finalize(self, self._beats.stop)
        atexit.register(_leave, self._stuck)

    def wait(self, work: dist.Work | Threaded) -> None:
        """Wait for a communication; one that to stop waiting for leaves as it was.

        Raises:
            WorkerLostError: if it cannot come to an end because another process has been lost.
        """
        if not self._in_slices:
            with self.explaining():
                work.wait()
            return
        while True:
            try:
                work.wait(timedelta(seconds=self._beat))
                return
            except RuntimeError as error:
                if work.is_completed():
                    raise self._explain(error) from error
            try:
                self.check()
            except WorkerLostError:
                self._stuck.append(work)
                raise

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """What communication fails with within becomes a `WorkerLostError`, if a process has been lost."""
        try:
            yield
        except RuntimeError as error:
            raise self._explain(error) from error

    @property
    def name(self) -> str:
        """What its keys in the store begin with: the same on all processes, and another one for every watch."""
        return self._beats.name

    @property
    def timeout(self) -> float:
        """Seconds without a sign of life after which a process is taken for lost."""
        return self._timeout

    @property
    def beat(self) -> float:
        """Seconds between two signs of life."""
        return self._beat

    def check(self, only: int | None = None) -> None:
        """Raise `WorkerLostError` if a process has been silent for too long, or the group's store.

        Args:
            only: the process that is needed, if the others are not.
        """
        silence, process = self._beats.silence(only)
        if silence > self._timeout:
            raise _lost(process, silence)

    def lost(self) -> dict[int, float]:
        """The processes that have been silent for too long, and for how many seconds."""
        return {process: silence for process, silence in self._beats.silences() if silence > self._timeout}

    def _explain(self, error: RuntimeError) -> RuntimeError:
        """Who has been lost, now that a communication has failed; the error itself if everyone is there."""
        if isinstance(error, WorkerLostError):
            return error
        began = time.monotonic()
        while time.monotonic() - began < self._timeout:
            silence, process = self._beats.silence()
            if silence > 3 * self._beat:
                return _lost(process, silence)
            time.sleep(self._beat / 10)
        return error


class _Beats:
    """The thread that gives and takes the signs of life."""

    def __init__(self, group: dist.ProcessGroup, beat: float, timeout: float):
        self._beat, self._timeout = beat, timeout
        # A connection of its own: the shared one serves one request at a time, and some wait for minutes.
        store: Any = dist.distributed_c10d._get_process_group_store(group)
        self._store = store.clone()
        me, count = dist.get_rank(group), dist.get_world_size(group)
        self.name = f"tether/watch/{self._store.add(f'tether/watches/{me}', 1)}"
        self._keys = [f"{self.name}/{process}" for process in range(count)]
        self._mine = self._keys[me]
        self._heard = [b""] * count
        self._when = [time.monotonic()] * count
        self._answered = time.monotonic()
        self._asked: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tether-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        # A thread that is still in a request when the interpreter ends would abort it.
        self._thread.join(self._timeout)

    def silences(self) -> list[tuple[int, float]]:
        """Each process, and for how many seconds it has been silent.

        As of the last answer: while this process itself sleeps, the others' signs only wait to be read.
        """
        return [(process, self._answered - when) for process, when in enumerate(self._when)]

    def silence(self, only: int | None = None) -> tuple[float, int | None]:
        """For how many seconds, and which process: the one that has been silent for longest; None is the store."""
        asked = self._asked
        unanswered = 0.0 if asked is None else time.monotonic() - asked
        silences = self.silences()
        process, silence = max(silences, key=lambda one: one[1]) if only is None else silences[only]
        # The store may be gone because the process that kept it has missed another one, and stopped.
        return (
            (unanswered, None) if unanswered > silence and silence < 2 * self._beat else (silence + unanswered, process)
        )

    def _run(self) -> None:
        everyone = False
        while not self._stopped.is_set():
            self._asked = self._asked or time.monotonic()
            try:
                self._store.add(self._mine, 1)
                everyone = everyone or self._store.check(self._keys)
                heard = self._read() if everyone else self._heard
            except dist.DistNetworkError:
                return  # a broken connection stays broken; `silence` grows
            except RuntimeError:
                pass  # `silence` grows
            else:
                self._asked, self._answered = None, time.monotonic()
                for process, (now, before) in enumerate(zip(heard, self._heard, strict=True)):
                    if now != before or not everyone:
                        self._when[process] = self._answered
                self._heard = heard
            self._stopped.wait(self._beat)

    def _read(self) -> list[bytes]:
        if self._store.has_extended_api():
            return self._store.multi_get(self._keys)
        return [self._store.get(key) for key in self._keys]


def _lost(process: int | None, silence: float) -> WorkerLostError:
    if process is None:
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        keeper = "torchrun's agent on the first machine" if agent else "process 0"
        return WorkerLostError(
            None if agent else 0,
            f"{keeper} keeps the store of the process group, which has not answered for {silence:.0f} s: it has ended "
            "or cannot be reached",
        )
    return WorkerLostError(
        process,
        f"process {process} has given no sign of life for {silence:.0f} s: it has ended or cannot be reached, and "
        "the others cannot go on without it. Start again: a run that was saved goes on from its last checkpoint",
    )


def _leave(stuck: list[dist.Work | Threaded]) -> None:
    """End this process at once if it waits for what never comes: Gloo would not let it exit before the timeout."""
    if any(not work.is_completed() for work in stuck):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
