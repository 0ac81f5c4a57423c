"""A simulation shared by several processes of this machine: `Ranks` with some rows each, started for the user.

The processes are forks of this one. So they have the model, objective, optimizer and data as they are here, lambdas
included, without a copy of the samples; and a script is not run a second time. Their rows of X are in memory that all
share, so that this process has the whole of X in the end. What travels between rows travels by Gloo, as it does between
machines.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeAlias

import torch
import torch.distributed as dist

from tether.errors import WorkerLostError
from tether.replicas import Replicas
from tether.result import NonFiniteLossError, Result
from tether.workers import Ranks, Stacked, Workers

Train: TypeAlias = Callable[[Workers, Replicas, bool], Result]
"""train(workers, replicas, first): trains these rows; `first` in the process that the user sees."""

START = timedelta(seconds=120)
"""How long processes may take to find each other."""


def shared_out(processes: int, replicas: Replicas, train: Train) -> Result:
    """Train equal parts of the rows in so many processes, of which this is the first.

    Args:
        processes: how many, at least 2; they divide the number of rows.
        replicas: all rows; moved to memory that the processes share.
        train: what every process does with its part.

    Raises:
        ValueError: if the rows cannot be shared out, or not here.
        RuntimeError: if one of the other processes fails; has its traceback.
    """
    check(processes, replicas)
    replicas.share()
    context = multiprocessing.get_context("fork")
    pipes, ends = zip(*(context.Pipe() for _ in range(1, processes)), strict=True)
    others = [
        context.Process(target=_other, args=(number, pipes, ends, replicas, train), daemon=True)
        for number in range(1, processes)
    ]
    with ExitStack() as stack:
        stack.enter_context(_one_thread())
        stack.callback(_end, others, pipes)
        with _no_garbage():
            for other in others:
                other.start()
        for end in ends:
            end.close()
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=START)
        for pipe in pipes:
            pipe.send(store.port)
        reach = stack.enter_context(_member(store, 0, len(replicas.x), processes))
        # They end before this process leaves the group, which would wait for what they have not sent.
        stack.callback(_end, others, pipes)
        try:
            result = train(reach, replicas.part(reach.rows), True)
            _hear(pipes)
        except NonFiniteLossError as error:
            _hear(pipes)  # their rows are back at the last good state too
            error.result = _whole(error.result, replicas, reach)
            raise
        except WorkerLostError:
            _hear([pipe for pipe in pipes if pipe.poll()])
            raise
        return _whole(result, replicas, reach)


def check(processes: int, replicas: Replicas) -> None:
    """Raise `ValueError` unless so many processes can share these rows, here."""
    rows = len(replicas.x)
    if rows % processes:
        fitting = [n for n in range(1, rows + 1) if rows % n == 0]
        raise ValueError(
            f"processes={processes} cannot share {rows} workers equally; take one of {', '.join(map(str, fitting))}"
        )
    if not replicas.x.is_cpu:
        raise ValueError(f"processes={processes} is for models on the CPU; this one is on {replicas.x.device}")
    if sys.platform != "linux":
        raise ValueError(f"processes={processes} forks this process, which is safe on Linux only; use torchrun")
    if dist.is_initialized():
        raise ValueError(
            f"processes={processes}: this process is in a process group already; share the workers among its processes "
            "by workers=tether.Ranks(rows=...)"
        )


def _other(
    number: int, pipes: Sequence[Connection], ends: Sequence[Connection], replicas: Replicas, train: Train
) -> None:
    """What another process does: its part, then says what went wrong, if anything did."""
    # A pipe ends when nobody else holds it; Ctrl-C is for the first process, which ends the others.
    for pipe in [*pipes, *(end for end in ends if end is not ends[number - 1])]:
        pipe.close()
    pipe = ends[number - 1]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.getLogger("tether").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    _compile_in_process()
    report = ""
    try:
        store = dist.TCPStore("127.0.0.1", pipe.recv(), is_master=False, timeout=START)
        with _member(store, number, len(replicas.x), len(ends) + 1) as reach:
            try:
                train(reach, replicas.part(reach.rows), False)
            except NonFiniteLossError:
                pass
            except Exception:
                report = traceback.format_exc()
            pipe.send(report)
            if not report:
                pipe.recv()  # until the first process has all reports, or has gone
    except (EOFError, OSError):
        pass
    finally:
        sys.stdout.flush()
        os._exit(bool(report))


def _hear(pipes: Sequence[Connection]) -> None:
    """Wait for the reports of other processes; raise `RuntimeError` for the first that failed."""
    for number, pipe in enumerate(pipes, start=1):
        try:
            report = pipe.recv()
        except EOFError:
            report = "it ended without a word, as a process does that is killed for want of memory"
        if report:
            raise RuntimeError(f"process {number} of the simulation failed: {report}")


def _end(others: Sequence[BaseProcess], pipes: Sequence[Connection]) -> None:
    for pipe in pipes:
        pipe.close()
    for other in others:
        if other.pid is not None:
            other.join(timeout=1)
            other.terminate()
            other.join()


@contextmanager
def _member(store: dist.Store, number: int, rows: int, processes: int) -> Iterator[Ranks]:
    """This process as one of a group on this machine."""
    before = os.environ.get("GLOO_SOCKET_IFNAME")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        dist.init_process_group("gloo", store=store, rank=number, world_size=processes)
    finally:
        if before is None:
            del os.environ["GLOO_SOCKET_IFNAME"]
        else:
            os.environ["GLOO_SOCKET_IFNAME"] = before
    reach = Ranks(rows=rows // processes)
    try:
        yield reach
    finally:
        reach.close()
        dist.destroy_process_group()


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Forks within have no garbage of this process, and find none among what was its own.

    A process group that has become garbage ends its threads when it is collected, and in a fork these do not exist: it
    would abort, or wait for them for ever.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for this process, as for each of the others: together they have a core each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compile_in_process() -> None:
    """A forked process has none of the helpers that the first one may have started to compile with."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    if "torch._inductor.config" in sys.modules:
        sys.modules["torch._inductor.config"].compile_threads = 1  # type: ignore[attr-defined]


def _whole(result: Result, replicas: Replicas, reach: Ranks) -> Result:
    """The result of all rows, which are in this process now."""
    everyone = Stacked(len(replicas.x))
    everyone.present.copy_(reach.present)
    return dataclasses.replace(result, rows=replicas.x, _replicas=replicas, _workers=everyone)
