"""Counts the messages and bytes that a real network would move, around any `Workers`: see `tether.traffic`."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tether.traffic import AllReduce, AllReduceKind, Broadcast, Exchange, Gather, Traffic, Visit
from tether.workers.base import CenterWorkers, Pending, Workers, check_groups


class Metered:
    """Any workers, with what they send counted.

    Args:
        workers: the workers to count for; all else is theirs.
        allreduce: how a mean travels, "ring" or "star".
        on_traffic: called with whatever is sent.

    Attributes:
        messages: messages sent so far, by all workers together.
        bytes: bytes sent so far, by all workers together; payload only.
    """

    def __init__(
        self,
        workers: Workers,
        allreduce: AllReduceKind = "ring",
        on_traffic: Callable[[Traffic], None] = lambda traffic: None,
    ):
        if allreduce not in get_args(AllReduceKind):
            raise ValueError(f"allreduce={allreduce!r}: choose one of {', '.join(get_args(AllReduceKind))}")
        self.workers = workers
        self.allreduce: AllReduceKind = allreduce
        self._on_traffic = on_traffic
        self.messages = 0
        self.bytes = 0

    @property
    def size(self) -> int:
        """The number of workers m."""
        return self.workers.size

    @property
    def rows(self) -> slice:
        """Which of the m rows this process holds."""
        return self.workers.rows

    @property
    def present(self) -> Bool[Tensor, " m"]:
        """False for a worker that has been excluded."""
        return self.workers.present

    def mean(
        self, x: Float[Tensor, "r k"], *, weights: Float[Tensor, " r"] | None = None, within: int | None = None
    ) -> Pending:
        """See `Workers.mean`."""
        for members in self._groups(within):
            self._send(AllReduce(members, _row_bytes(x), self.allreduce))
        return self.workers.mean(x, weights=weights, within=within)

    def mix(self, x: Float[Tensor, "r k"], weights: Float[Tensor, "m m"]) -> Pending:
        """See `Workers.mix`."""
        self._send(Exchange(*_links(weights, self.present), _row_bytes(x)))
        return self.workers.mix(x, weights)

    def best(
        self, x: Float[Tensor, "r k"], loss: Float[Tensor, " r"], *, within: int | None = None
    ) -> dict[str, Pending | Tensor]:
        """See `Workers.best`."""
        for members in self._groups(within):
            self._send(Gather(members, loss.element_size()))
            self._send(Broadcast(members, _row_bytes(x)))
        return self.workers.best(x, loss, within=within)

    def gather(self, values: Float[Tensor, " r"]) -> Float[Tensor, " m"]:
        """See `Workers.gather`."""
        (members,) = self._groups(None)
        self._send(Gather(members, values.element_size()))
        return self.workers.gather(values)

    def exclude(self, worker: int) -> None:
        """See `Workers.exclude`."""
        self.workers.exclude(worker)

    def _groups(self, within: int | None) -> list[Int[np.ndarray, " n"]]:
        """The workers present in each group that has any."""
        check_groups(self.size, within)
        groups = self.present.view(within or 1, -1)
        first = range(0, self.size, groups.shape[1])
        members = (start + group.nonzero().flatten().numpy() for start, group in zip(first, groups, strict=True))
        return [each for each in members if len(each)]

    def count(self, traffic: Traffic | Visit) -> None:
        """Count something that is sent by other ways than these."""
        self.messages += traffic.messages
        self.bytes += traffic.bytes

    def _send(self, traffic: Traffic) -> None:
        self.count(traffic)
        self._on_traffic(traffic)


class MeteredCenter(Metered):
    """Workers who reach a center, with what they send counted.

    Means and the like are counted for all workers, as all take part in them. Who exchanges with the center is known
    to nobody else, so of exchanges these are the ones of the rows here: a message there and the reply.
    """

    workers: CenterWorkers

    def exchange(self, message: Float[Tensor, "r k"]) -> Pending:
        """See `CenterWorkers.exchange`."""
        for worker in range(self.rows.start, self.rows.stop):
            self.count(Visit(worker, _row_bytes(message)))
        return self.workers.exchange(message)


def _row_bytes(x: Tensor) -> int:
    return x.shape[1] * x.element_size()


def _links(weights: Float[Tensor, "m m"], present: Bool[Tensor, " m"]) -> tuple[np.ndarray, np.ndarray]:
    """Of different workers, both present, of which one hears from the other: `[k]` who hears, `[k]` from whom."""
    coo = weights.to_sparse_coo().coalesce() if weights.layout != torch.sparse_coo else weights.coalesce()
    receiver, sender = coo.indices().cpu()
    heard = (receiver != sender) & (coo.values().cpu() != 0) & present[receiver] & present[sender]
    return receiver[heard].numpy(), sender[heard].numpy()
