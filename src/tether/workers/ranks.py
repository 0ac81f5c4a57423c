"""Rows spread over the processes of a `torch.distributed` group: the real workers."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from tether.checks import whole
from tether.workers.base import Arrived, Pending, check_groups, contest, shares, without
from tether.workers.relay import Threaded, relay, wait_for_all
from tether.workers.watch import Watch


class Works:
    """A value that is here once some communication is done.

    Args:
        works: the communication.
        wait: waits for a part of it.
        finish: makes the value of what has arrived.
        keep: buffers that are being sent, which must live until then.
    """

    def __init__(
        self,
        works: Sequence[dist.Work | Threaded],
        wait: Callable[[dist.Work | Threaded], None],
        finish: Callable[[], Tensor],
        keep: object = None,
    ):
        self._works = works
        self._wait = wait
        self._finish = finish
        self._keep = keep
        self._value: Tensor | None = None

    def wait(self) -> Tensor:
        """The value, as soon as it is here."""
        if self._value is None:
            for work in self._works:
                self._wait(work)
            self._value = self._finish()
            self._works, self._keep = [], None
        return self._value

    def done(self) -> bool:
        """Whether `wait` would return at once."""
        return self._value is not None or all(work.is_completed() for work in self._works)


@dataclass(frozen=True)
class Exchange:
    """What one process has to do for its rows of W X.

    Attributes:
        sends: by process, which of this process's rows it hears, counted from the first of them.
        receives: by process, how many of its rows are heard here.
        weights: `[r, n]`, what these rows make of the n rows at hand: this process's own, then those received, by
            process.
    """

    sends: dict[int, list[int]]
    receives: dict[int, int]
    weights: Float[Tensor, "r n"]


class Ranks:
    """m workers, r consecutive ones in each process of a group: m = r x processes.

    Means travel by all-reduce, mixtures by sends and receives between neighbours alone, the best row from its process
    down a chain of the others. Nothing but tensors travels.

    Args:
        group: the process group. Default: the one that `torch.distributed` was initialised with.
        rows: workers in each process, r; the same everywhere.
        timeout: seconds without a sign of life after which another process is taken for lost. One that is merely slow
            gives them.

    Raises:
        ValueError: if there is no process group, or rows is below 1, or the timeout not above 0.
        WorkerLostError: by whatever communicates, if a process has ended or cannot be reached.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, rows: int = 1, timeout: float = 30.0):
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "there is no process group: start the script with torchrun, and call "
                "torch.distributed.init_process_group() first"
            )
        _let_go_of_default_group()
        self.group = group or dist.distributed_c10d._get_default_group()
        self.process = dist.get_rank(self.group)
        self.processes = dist.get_world_size(self.group)
        self._r = whole("rows", rows, least=1)
        self.size = self._r * self.processes
        self.rows = slice(self.process * self._r, (self.process + 1) * self._r)
        self.present: Bool[Tensor, " m"] = torch.ones(self.size, dtype=torch.bool)
        if not timeout > 0:
            raise ValueError(f"timeout={timeout}: give the seconds after which a silent process is taken for lost")
        self.watch = Watch(self.group, timeout)
        self._relays = 0
        self._subgroups: dict[int, dist.ProcessGroup] = {}
        self._exchanges: dict[int, tuple[Tensor, Exchange]] = {}
        self._at_close: list[weakref.finalize] = []

    def mean(
        self, x: Float[Tensor, "r k"], *, weights: Float[Tensor, " r"] | None = None, within: int | None = None
    ) -> Pending:
        """See `Workers.mean`. Does not block but, with weights, for these: a number a worker."""
        everyone = None if weights is None else self.gather(weights.double().to(x.device)).cpu()
        mine = shares(self.present, everyone, within)[self.rows]
        whole_groups, subgroup = self._groups(within)
        # An absent row may hold NaN, which a weight of zero would not silence.
        counted = x if mine.all() else torch.where((mine != 0)[:, None].to(x.device), x, 0)
        sums = (mine.to(x).view(whole_groups, 1, -1) @ counted.reshape(whole_groups, -1, x.shape[1])).squeeze(1)
        with self.watch.explaining():
            works = [dist.all_reduce(sums, group=subgroup, async_op=True)] if subgroup else []
        return Works(
            works,
            self.watch.wait,
            lambda: sums if within is None else sums.repeat_interleave(self._r // whole_groups, 0),
        )

    def mix(self, x: Float[Tensor, "r k"], weights: Float[Tensor, "m m"]) -> Pending:
        """See `Workers.mix`."""
        exchange = self._exchange(weights)
        here = self.present[self.rows, None].to(x.device)
        everyone_here = bool(here.all())
        at_hand = x.new_empty(exchange.weights.shape[1], x.shape[1])
        own, *heard = at_hand.split([self._r, *exchange.receives.values()])
        own.copy_(x if everyone_here else torch.where(here, x, 0))
        spoken = [own if len(rows) == self._r else own[rows] for rows in exchange.sends.values()]
        sends = zip(exchange.sends, spoken, strict=True)
        receives = zip(exchange.receives, heard, strict=True)
        # Receives first: Gloo takes up to twice as long for what it sends before anyone waits for it.
        operations = [
            *(dist.P2POp(dist.irecv, rows, group=self.group, group_peer=process) for process, rows in receives),
            *(dist.P2POp(dist.isend, rows, group=self.group, group_peer=process) for process, rows in sends),
        ]
        works: Sequence[dist.Work | Threaded] = []
        if operations:
            with self.watch.explaining():
                started = dist.batch_isend_irecv(operations)
            works = [Threaded(partial(wait_for_all, started))] if x.device.type == "cpu" else started
        before = None if everyone_here else x.clone()

        def finish() -> Tensor:
            precise = at_hand if x.dtype in (torch.float32, torch.float64) else at_hand.float()
            mixed = (exchange.weights.to(precise) @ precise).to(at_hand)
            return mixed if before is None else torch.where(here, mixed, before)

        return Works(works, self.watch.wait, finish, spoken)

    def best(
        self, x: Float[Tensor, "r k"], loss: Float[Tensor, " r"], *, within: int | None = None
    ) -> dict[str, Pending | Tensor]:
        """See `Workers.best`. Blocks for the losses, a number a worker, not for the row."""
        whole_groups, subgroup = self._groups(within)
        losses = contest(self.present, self.gather(loss).cpu()).view(within or 1, -1)
        members = losses.shape[1]
        workers = losses.argmin(1) + members * torch.arange(within or 1)
        first = self.rows.start // members
        leaders = workers[first : first + whole_groups]
        if subgroup is None:
            rows = x[leaders.to(x.device) - self.rows.start].repeat_interleave(self._r // whole_groups, 0)
            return {"row": Arrived(rows if within else rows[:1]), "worker": workers}
        holder, position = divmod(int(leaders), self._r)
        row = x[position : position + 1].clone() if holder == self.process else x.new_empty(1, x.shape[1])
        with self.watch.explaining():
            work = self._spread(row, dist.get_global_rank(self.group, holder), subgroup)
        row_of_each = Works([work], self.watch.wait, lambda: row if within is None else row.expand_as(x))
        return {"row": row_of_each, "worker": workers}

    def _spread(self, row: Float[Tensor, "1 k"], source: int, group: dist.ProcessGroup) -> dist.Work | Threaded:
        """Bring the row of a process to all others of a group."""
        if row.device.type != "cpu":
            return dist.broadcast(row, source, group=group, async_op=True)
        ranks = dist.get_process_group_ranks(group)
        place = ranks.index(source)
        self._relays += 1
        return relay(row, [*ranks[place:], *ranks[:place]], group, tag=self._relays)

    def gather(self, values: Float[Tensor, " r"]) -> Float[Tensor, " m"]:
        """See `Workers.gather`."""
        return self.gather_async(values).wait()

    def gather_async(self, values: Shaped[Tensor, " k"]) -> Pending:
        """The same number of values from each process, side by side, once the work is done."""
        everyone = values.new_empty(self.processes * len(values))
        # Gloo's all-gather goes round a ring; this is as many messages, and none waits for another.
        copies = values.repeat(self.processes)
        with self.watch.explaining():
            work = dist.all_to_all_single(everyone, copies, group=self.group, async_op=True)
        return Works([work], self.watch.wait, lambda: everyone, copies)

    def of_first(self, values: Tensor) -> Tensor:
        """The first process's values, on all processes; in place. Blocks."""
        with self.watch.explaining():
            source = dist.get_global_rank(self.group, 0)
            work = dist.broadcast(values, source, group=self.group, async_op=True)
        self.watch.wait(work)
        return values

    def at_close(self, action: Callable[[], object]) -> None:
        """Do something when these workers are closed, or forgotten; it must not hold on to them."""
        self._at_close.append(weakref.finalize(self, action))

    def close(self) -> None:
        """No more communication: give no more signs of life, and let go of the group.

        As long as anyone holds a group, destroying it does not end Gloo's threads, and one of those that is still
        there when the interpreter ends can abort it.
        """
        for action in self._at_close:
            action()
        self.watch.stop()
        self._subgroups.clear()
        del self.group

    def exclude(self, worker: int) -> None:
        """See `Workers.exclude`. Every process says so between the same two messages."""
        if self.present.sum() == 1 and self.present[worker]:
            raise ValueError(f"worker {worker} is the last one left; it cannot be excluded")
        self.present[worker] = False

    def _groups(self, within: int | None) -> tuple[int, dist.ProcessGroup | None]:
        """How many groups lie whole in this process, at least 1, and the processes with which it shares its group."""
        check_groups(self.size, within)
        members = self.size // (within or 1)
        if self._r % members == 0:
            return self._r // members, None
        if members % self._r:
            raise ValueError(
                f"groups of {members} workers across processes of {self._r}: one number must divide the other"
            )
        if within is None:
            return 1, self.group
        if within not in self._subgroups:
            ranks, span = dist.get_process_group_ranks(self.group), members // self._r
            everyone = [ranks[start : start + span] for start in range(0, self.processes, span)]
            with self.watch.explaining():
                self._subgroups[within], _ = dist.new_subgroups_by_enumeration(everyone)
        return 1, self._subgroups[within]

    def _exchange(self, weights: Float[Tensor, "m m"]) -> Exchange:
        """Who sends what to whom for a mixing matrix; worked out once for each."""
        if not self.present.all():
            return self._work_out(without(weights.cpu(), self.present))
        known = self._exchanges.get(id(weights))
        if known is None or known[0] is not weights:
            # The matrix is kept with it, so that no other can come to have its id.
            known = self._exchanges[id(weights)] = weights, self._work_out(weights.cpu())
            if len(self._exchanges) > 32:
                self._exchanges.pop(next(iter(self._exchanges)))
        return known[1]

    def _work_out(self, weights: Float[Tensor, "m m"]) -> Exchange:
        coo = weights.to_sparse_coo().coalesce()
        linked = coo.values() != 0
        receiver, sender = coo.indices()[:, linked]
        values = coo.values()[linked]
        sends, receives = {}, {}
        columns = {worker: number for number, worker in enumerate(range(self.rows.start, self.rows.stop))}
        mine_hears = receiver // self._r == self.process
        mine_speaks = sender // self._r == self.process
        for process in range(self.processes):
            if process == self.process:
                continue
            spoken = sender[mine_speaks & (receiver // self._r == process)].unique()
            heard = sender[mine_hears & (sender // self._r == process)].unique()
            if len(spoken):
                sends[process] = (spoken - self.rows.start).tolist()
            if len(heard):
                receives[process] = len(heard)
                columns |= {worker: len(columns) + number for number, worker in enumerate(heard.tolist())}
        dense = torch.zeros(self._r, len(columns), dtype=values.dtype)
        where = torch.tensor([columns[worker] for worker in sender[mine_hears].tolist()], dtype=torch.long)
        dense[receiver[mine_hears] - self.rows.start, where] = values[mine_hears]
        return Exchange(sends, receives, dense)


def _let_go_of_default_group() -> None:
    """Make `torch.distributed.nn` what it is when it is imported before there is a process group.

    Its functions have the default group of that moment for a default argument (2.13), and optimizers import it when the
    first one is made. So the group outlives `destroy_process_group`, and its threads can abort the interpreter's end.
    """
    from torch.distributed.nn import functional

    for function in vars(functional).values():
        if inspect.isfunction(function) and function.__defaults__:
            kept = (None if isinstance(each, dist.ProcessGroup) else each for each in function.__defaults__)
            function.__defaults__ = tuple(kept)
