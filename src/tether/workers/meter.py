"""Counts the messages and bytes that a real network would move, around any `Workers`.

The counts are Cooperative SGD's table 3 without its rounding, and count what is *sent*, over all workers together:

    all-reduce, ring   2 (n-1) messages a worker, each 1/n of the value:  2 (n-1) values in all
    all-reduce, star   n-1 messages to the hub, which is one of the workers, and n-1 back:  2 (n-1) values in all
    neighbours         one message for every ordered pair i != j with w_ij != 0
    best               everyone's loss to everyone, then the leader's row to n-1 workers

An all-reduce moves as many bytes either way; a ring spreads them evenly while a star's hub sends half of them.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tether.workers.base import Pending, Workers, check_groups

AllReduce = Literal["ring", "star"]


class Metered:
    """Any workers, with what they send counted.

    Args:
        workers: the workers to count for; all else is theirs.
        allreduce: how a mean travels, "ring" or "star".

    Attributes:
        messages: messages sent so far, by all workers together.
        bytes: bytes sent so far, by all workers together; payload only.
    """

    def __init__(self, workers: Workers, allreduce: AllReduce = "ring"):
        if allreduce not in get_args(AllReduce):
            raise ValueError(f"allreduce={allreduce!r}: choose one of {', '.join(get_args(AllReduce))}")
        self.workers = workers
        self.allreduce = allreduce
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
            messages = 2 * (members - 1) * (members if self.allreduce == "ring" else 1)
            self._count(messages, 2 * (members - 1) * _row_bytes(x))
        return self.workers.mean(x, weights=weights, within=within)

    def mix(self, x: Float[Tensor, "r k"], weights: Float[Tensor, "m m"]) -> Pending:
        """See `Workers.mix`."""
        links = _links(weights, self.present)
        self._count(links, links * _row_bytes(x))
        return self.workers.mix(x, weights)

    def best(
        self, x: Float[Tensor, "r k"], loss: Float[Tensor, " r"], *, within: int | None = None
    ) -> dict[str, Pending | Tensor]:
        """See `Workers.best`."""
        for members in self._groups(within):
            self._count_gather(members, loss)
            self._count(members - 1, (members - 1) * _row_bytes(x))
        return self.workers.best(x, loss, within=within)

    def gather(self, values: Float[Tensor, " r"]) -> Float[Tensor, " m"]:
        """See `Workers.gather`."""
        self._count_gather(int(self.present.sum()), values)
        return self.workers.gather(values)

    def exclude(self, worker: int) -> None:
        """See `Workers.exclude`."""
        self.workers.exclude(worker)

    def _groups(self, within: int | None) -> list[int]:
        """The number of workers present in each group that has any."""
        check_groups(self.size, within)
        members = self.present.view(within or 1, -1).sum(1).tolist()
        return [n for n in members if n]

    def _count_gather(self, members: int, values: Tensor) -> None:
        messages = members * (members - 1)
        self._count(messages, messages * values.element_size())

    def _count(self, messages: int, bytes: int) -> None:
        self.messages += messages
        self.bytes += bytes


def _row_bytes(x: Tensor) -> int:
    return x.shape[1] * x.element_size()


def _links(weights: Float[Tensor, "m m"], present: Bool[Tensor, " m"]) -> int:
    """Ordered pairs of different workers, both present, of which one hears from the other."""
    coo = weights.to_sparse_coo().coalesce() if weights.layout != torch.sparse_coo else weights.coalesce()
    receiver, sender = coo.indices().cpu()
    heard = (receiver != sender) & (coo.values().cpu() != 0) & present[receiver] & present[sender]
    return int(heard.sum())
