"""How rows of X reach each other: the interface that every method is written against.

X is the matrix of all workers' models, row i worker i's parameters. A process holds the rows `workers.rows` of it,
r of the m. Whether the others live in the same process or behind a network is nobody's business but this package's.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class Pending(Protocol):
    """A value on its way. The message was copied when it was sent: its source may be written to at once."""

    def wait(self) -> Tensor:
        """The value, as soon as it is here."""
        ...

    def done(self) -> bool:
        """Whether `wait` would return at once."""
        ...


Message: TypeAlias = "Pending | Tensor | dict[str, Pending | Tensor]"
"""What a method sends: something on its way, or several things by name. A plain tensor is already here."""

Received: TypeAlias = "Tensor | dict[str, Tensor]"
"""A message whose every part has arrived."""


class Arrived:
    """A pending value that is already here."""

    def __init__(self, value: Tensor):
        self._value = value

    def wait(self) -> Tensor:
        """The value."""
        return self._value

    def done(self) -> bool:
        """Always true."""
        return True


def land(message: Message) -> Received:
    """Wait for every part of a message."""
    if isinstance(message, dict):
        return {name: part if isinstance(part, Tensor) else part.wait() for name, part in message.items()}
    return message if isinstance(message, Tensor) else message.wait()


@runtime_checkable
class Workers(Protocol):
    """The m workers, seen from the process that holds the rows `rows` of them."""

    @property
    def size(self) -> int:
        """The number of workers m."""
        ...

    @property
    def rows(self) -> slice:
        """Which of the m rows this process holds; r of them."""
        ...

    @property
    def present(self) -> Bool[Tensor, " m"]:
        """False for a worker that has been excluded: it has no part in a mean, a mixture or a contest for the best."""
        ...

    def mean(
        self, x: Float[Tensor, "r k"], *, weights: Float[Tensor, " r"] | None = None, within: int | None = None
    ) -> Pending:
        """The mean of all rows, `[1, k]`; or, `within` so many equal groups, each row's own group's mean, `[r, k]`.

        Args:
            x: this process's rows of a matrix with m rows.
            weights: how much each of these rows counts; they need not sum to one. Default: all the same.
            within: number of groups of consecutive workers; must divide m.
        """
        ...

    def mix(self, x: Float[Tensor, "r k"], weights: Float[Tensor, "m m"]) -> Pending:
        """This process's rows of W X, `[r, k]`. Worker i hears from worker j only where w_ij is not zero."""
        ...

    def best(
        self, x: Float[Tensor, "r k"], loss: Float[Tensor, " r"], *, within: int | None = None
    ) -> dict[str, Pending | Tensor]:
        """The row with the least loss, under `"row"`, and the number of its worker, under `"worker"`.

        `[1, k]` and `[1]`; or `within` so many equal groups `[r, k]`, each row's own group's best, and `[groups]`.
        The first of equal losses wins.
        """
        ...

    def gather(self, values: Float[Tensor, " r"]) -> Float[Tensor, " m"]:
        """Small per-worker numbers, made known to everyone. Blocks."""
        ...

    def exclude(self, worker: int) -> None:
        """From now on do without this worker."""
        ...


@runtime_checkable
class CenterWorkers(Workers, Protocol):
    """Workers who can reach a center."""

    def exchange(self, message: Float[Tensor, "r k"]) -> Pending:
        """The center's reply to each of these rows, `[r, k]`; they arrive there one after the other."""
        ...


class Weighted:
    """Workers whose means weigh rows by these numbers, times whatever else a method weighs them by.

    Args:
        workers: the workers; all else is theirs.
        weights: `[r]`, of this process's rows.
    """

    def __init__(self, workers: Workers, weights: Float[Tensor, " r"]):
        self._workers = workers
        self._weights = weights

    def mean(
        self, x: Float[Tensor, "r k"], *, weights: Float[Tensor, " r"] | None = None, within: int | None = None
    ) -> Pending:
        """See `Workers.mean`."""
        weights = self._weights if weights is None else weights * self._weights
        return self._workers.mean(x, weights=weights, within=within)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workers, name)


def check_groups(workers: int, groups: int | None) -> None:
    """Raise `ValueError` unless the workers can be cut into this many equal groups."""
    if groups is None or (groups >= 1 and workers % groups == 0):
        return
    divisors = [g for g in range(1, workers + 1) if workers % g == 0]
    raise ValueError(
        f"{workers} workers cannot be cut into {groups} groups of equal size; "
        f"groups that divide {workers}: {', '.join(map(str, divisors))}"
    )


def shares(present: Bool[Tensor, " m"], weights: Float[Tensor, " m"] | None, within: int | None) -> Float[Tensor, " m"]:
    """What each worker's row counts for in the mean of its group: shares that sum to one, in double precision.

    Raises:
        ValueError: if nobody present has any weight.
    """
    # Sample counts summed in half precision would overflow.
    counts = present.double() if weights is None else weights.double() * present
    total = counts.view(within or 1, -1).sum(1, keepdim=True)
    nobody_left = ~present.view(within or 1, -1).any(1, keepdim=True)
    if not ((total > 0) | nobody_left).all():
        raise ValueError("a mean over workers none of which has any weight")
    return (counts.view(within or 1, -1) / total).nan_to_num(0).view(-1)


def contest(present: Bool[Tensor, " m"], losses: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """The losses by which the best worker is found: one that is absent, or whose loss is NaN, cannot win."""
    return torch.where(present.to(losses.device), losses, torch.inf).nan_to_num(nan=torch.inf, posinf=torch.inf)


def without(weights: Float[Tensor, "m m"], present: Bool[Tensor, " m"]) -> Float[Tensor, "m m"]:
    """A mixing matrix with the absent workers cut out: the weight they had goes to each neighbour's own row.

    A symmetric matrix stays one and every row keeps its sum, so the mean of those present is preserved.
    """
    W = weights.to_dense()
    kept = W * (present[:, None] & present[None, :]).to(W)
    return kept + torch.diag(W.sum(1) - kept.sum(1))
