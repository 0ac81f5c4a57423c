"""Cooperative SGD: the general form, any mixing matrix over workers and auxiliary variables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tether.methods.base import Method, State, Step
from tether.topology import check_mixing_matrix
from tether.workers import Message, Pending, Workers


@dataclass(frozen=True)
class CooperativeSGD(Method):
    """A(tau, W, v): mix m workers and v auxiliary variables by any symmetric matrix.

    [X; Z] <- W [X; Z]

    Every linear method of the family is one of these: W = J is local SGD; EASGD's W is eq. 11. The auxiliary variables
    have no data; they start at the mean of the workers (Wang & Joshi, "Cooperative SGD" (2021), eq. 7-11).

    Args:
        period: local steps between rounds (tau), at least 1.
        W: the mixing matrix, `[m + v, m + v]`; rows of numbers, an array or a tensor. Workers first.
        auxiliary: number of auxiliary variables v.

    Raises:
        ValueError: if W is not symmetric with unit row sums and all eigenvalues but one inside (-1, 1), or is not of
            size m + v.
    """

    W: Sequence[Sequence[float]] | np.ndarray | Tensor
    auxiliary: int = 0

    replicated = ("auxiliary",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auxiliary < 0:
            raise ValueError(f"auxiliary={self.auxiliary}: the number of auxiliary variables is at least 0")
        matrix = torch.as_tensor(np.asarray(self.W, dtype=np.float64))
        check_mixing_matrix(matrix)
        # Numbers in tuples can be compared, hashed and written to a config; a tensor in a frozen dataclass cannot.
        object.__setattr__(self, "W", tuple(map(tuple, matrix.tolist())))

    def init(self, x: Float[Tensor, "r d"], workers: Workers) -> State:
        """The auxiliary variables Z, `[v, d]`, at the mean of the workers."""
        m, v = workers.size, self.auxiliary
        if len(self.W) != m + v:
            raise ValueError(
                f"W is {len(self.W)} x {len(self.W)}; {m} workers and {v} auxiliary variables need {m + v}"
            )
        start = workers.mean(x).wait() if v else x[:1]
        return {"auxiliary": start.repeat(v, 1)}

    def send(self, x: Float[Tensor, "r d"], state: State, workers: Workers, step: Step) -> Message:
        """Each row's mixture with the other rows, and what the rows add to the auxiliary variables."""
        W, m = torch.tensor(self.W, dtype=torch.float64), workers.size
        present = workers.present.to(W)
        xx, zx = W[:m, :m].to(x.device), W[m:, :m]
        xz = W[workers.rows.start : workers.rows.stop, m:].to(x)
        # The weight that an absent worker had in an auxiliary variable goes to that variable itself.
        zz = (W[m:, m:] + torch.diag(zx @ (1 - present))).to(x)
        # Row i's part in auxiliary variable k is w_ki x_i: side by side, their mean over the workers is one message.
        parts = torch.cat([x * column[workers.rows, None] for column in zx.to(x)] or [x[:, :0]], dim=1)
        message: dict[str, Pending | Tensor] = {
            "mixed": workers.mix(x, xx),
            "from_auxiliary": xz @ state["auxiliary"],
            "auxiliary": zz @ state["auxiliary"],
        }
        if self.auxiliary:
            message["from_workers"] = workers.mean(parts * present.sum().to(x))
        return message

    def receive(self, x: Float[Tensor, "r d"], state: State, message: dict[str, Tensor]) -> None:
        """Workers and auxiliary variables become their mixtures."""
        x.copy_(message["mixed"]).add_(message["from_auxiliary"])
        if self.auxiliary:
            auxiliary = state["auxiliary"]
            auxiliary.copy_(message["auxiliary"]).add_(message["from_workers"].view_as(auxiliary))
