"""Rows spread over the processes of a `torch.distributed` group: the real workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from tether.checks import whole
from tether.workers.base import Arrived, Pending, check_groups, contest, shares, without


class Works:
    """A value that is here once some communication is done.

    Args:
        works: the communication.
        finish: makes the value of what has arrived.
        keep: buffers that are being sent, which must live until then.
    """

    def __init__(self, works: list[dist.Work], finish: Callable[[], Tensor], keep: object = None):
        self._works = works
        self._finish = finish
        self._keep = keep
        self._value: Tensor | None = None

    def wait(self) -> Tensor:
        """The value, as soon as it is here."""
        if self._value is None:
            for work in self._works:
                work.wait()
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

    Means travel by all-reduce, mixtures by sends and receives between neighbours alone, the best row by a broadcast
    from its process. Nothing but tensors travels.

    Args:
        group: the process group. Default: the one that `torch.distributed` was initialised with.
        rows: workers in each process, r; the same everywhere.

    Raises:
        ValueError: if there is no process group, or rows is below 1.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, rows: int = 1):
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "there is no process group: start the script with torchrun, and call "
                "torch.distributed.init_process_group() first"
            )
        self.group = group or dist.distributed_c10d._get_default_group()
        self.process = dist.get_rank(self.group)
        self.processes = dist.get_world_size(self.group)
        self._r = whole("rows", rows, least=1)
        self.size = self._r * self.processes
        self.rows = slice(self.process * self._r, (self.process + 1) * self._r)
        self.present: Bool[Tensor, " m"] = torch.ones(self.size, dtype=torch.bool)
        self._subgroups: dict[int, dist.ProcessGroup] = {}
        self._exchanges: dict[int, tuple[Tensor, Exchange]] = {}

    def mean(
        self, x: Float[Tensor, "r k"], *, weights: Float[Tensor, " r"] | None = None, within: int | None = None
    ) -> Pending:
        """See `Workers.mean`. Does not block but, with weights, for these: a number a worker."""
        everyone = None if weights is None else self.gather(weights.double().to(x.device)).cpu()
        mine = shares(self.present, everyone, within)[self.rows, None].to(x)
        whole_groups, subgroup = self._groups(within)
        # An absent row may hold NaN, which a weight of zero would not silence.
        parts = torch.where(mine != 0, x, 0) * mine
        sums = parts.view(whole_groups, -1, x.shape[1]).sum(1)
        works = [dist.all_reduce(sums, group=subgroup, async_op=True)] if subgroup else []
        return Works(works, lambda: sums if within is None else sums.repeat_interleave(self._r // whole_groups, 0))

    def mix(self, x: Float[Tensor, "r k"], weights: Float[Tensor, "m m"]) -> Pending:
        """See `Workers.mix`."""
        exchange = self._exchange(weights)
        here = self.present[self.rows, None].to(x.device)
        own = torch.where(here, x, 0)
        outgoing = {process: own[rows] for process, rows in exchange.sends.items()}
        incoming = {process: x.new_empty(count, x.shape[1]) for process, count in exchange.receives.items()}
        operations = [
            *(dist.P2POp(dist.isend, value, group=self.group, group_peer=p) for p, value in outgoing.items()),
            *(dist.P2POp(dist.irecv, value, group=self.group, group_peer=p) for p, value in incoming.items()),
        ]
        works = dist.batch_isend_irecv(operations) if operations else []

        def finish() -> Tensor:
            at_hand = torch.cat([own, *incoming.values()])
            precise = at_hand if x.dtype in (torch.float32, torch.float64) else at_hand.float()
            mixed = (exchange.weights.to(precise) @ precise).to(at_hand)
            return mixed if here.all() else torch.where(here, mixed, before)

        before = own if here.all() else x.clone()
        return Works(works, finish, outgoing)

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
        source = dist.get_global_rank(self.group, holder)
        work = dist.broadcast(row, source, group=subgroup, async_op=True)
        return {"row": Works([work], lambda: row if within is None else row.expand_as(x)), "worker": workers}

    def gather(self, values: Float[Tensor, " r"]) -> Float[Tensor, " m"]:
        """See `Workers.gather`."""
        everyone, work = self.gather_async(values)
        work.wait()
        return everyone

    def gather_async(self, values: Shaped[Tensor, " k"]) -> tuple[Shaped[Tensor, " n"], dist.Work]:
        """The same number of values from each process, side by side, once the work is done."""
        everyone = values.new_empty(self.processes * len(values))
        work = dist.all_gather(list(everyone.split(len(values))), values.contiguous(), self.group, async_op=True)
        return everyone, work

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
