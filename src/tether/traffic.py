"""What workers send one another, as patterns of messages: how many, how large, between whom.

The counts are Cooperative SGD's table 3 without its rounding, and count what is *sent*, over all workers together:

    all-reduce, ring   2 (n-1) messages a worker, each 1/n of the value:  2 (n-1) values in all
    all-reduce, star   n-1 messages to the hub, which is one of the workers, and n-1 back:  2 (n-1) values in all
    exchange           one message for every ordered pair of neighbours
    gather             everyone's value to everyone
    broadcast          the leader's row to n-1 workers
    visit              a row to the center and one back; none from the worker in whose process it is

An all-reduce moves as many bytes either way; a ring spreads them evenly while a star's hub sends half of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Int

AllReduceKind = Literal["ring", "star"]


@dataclass(frozen=True)
class AllReduce:
    """A mean over some workers.

    Attributes:
        members: `[n]`, which workers.
        size: bytes of the value.
        how: by a "ring", or a "star" whose hub is the first of them.
    """

    members: Int[np.ndarray, " n"]
    size: int
    how: AllReduceKind

    @property
    def messages(self) -> int:
        """Messages sent, by all together."""
        return 2 * (len(self.members) - 1) * (len(self.members) if self.how == "ring" else 1)

    @property
    def bytes(self) -> int:
        """Bytes sent, by all together."""
        return 2 * (len(self.members) - 1) * self.size


@dataclass(frozen=True)
class Gather:
    """Everyone's value to everyone.

    Attributes:
        members: `[n]`, which workers.
        size: bytes of a value.
    """

    members: Int[np.ndarray, " n"]
    size: int

    @property
    def messages(self) -> int:
        """Messages sent, by all together."""
        return len(self.members) * (len(self.members) - 1)

    @property
    def bytes(self) -> int:
        """Bytes sent, by all together."""
        return self.messages * self.size


@dataclass(frozen=True)
class Broadcast:
    """One worker's row to the others, from each to the next.

    Attributes:
        members: `[n]`, which workers, the sender among them.
        size: bytes of the row.
    """

    members: Int[np.ndarray, " n"]
    size: int

    @property
    def messages(self) -> int:
        """Messages sent, by all together."""
        return len(self.members) - 1

    @property
    def bytes(self) -> int:
        """Bytes sent, by all together."""
        return self.messages * self.size


@dataclass(frozen=True)
class Exchange:
    """Rows between neighbours.

    Attributes:
        receivers, senders: `[k]`, who hears from whom.
        size: bytes of a row.
    """

    receivers: Int[np.ndarray, " k"]
    senders: Int[np.ndarray, " k"]
    size: int

    @property
    def messages(self) -> int:
        """Messages sent, by all together."""
        return len(self.senders)

    @property
    def bytes(self) -> int:
        """Bytes sent, by all together."""
        return self.messages * self.size


@dataclass(frozen=True)
class Visit:
    """A worker's message to the center, which is in the first worker's process, and the reply.

    Attributes:
        worker: whose.
        size: bytes of each.
    """

    worker: int
    size: int

    @property
    def messages(self) -> int:
        """Messages sent, by both together."""
        return 2 if self.worker else 0

    @property
    def bytes(self) -> int:
        """Bytes sent, by both together."""
        return self.messages * self.size


Traffic: TypeAlias = "AllReduce | Gather | Broadcast | Exchange"
