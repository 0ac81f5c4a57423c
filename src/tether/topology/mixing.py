"""Mixing matrices: how neighbours' models are weighed, how fast that brings workers together, what it must satisfy."""

from __future__ import annotations

import warnings

import networkx as nx
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


def metropolis_hastings(graph: nx.Graph) -> Float[Tensor, "m m"]:
    """The Metropolis-Hastings mixing matrix of an undirected graph, sparse (CSR), float64."""
    degree = dict(graph.degree())
    pairs = [(i, j) for i, j in graph.edges()]
    values = [1 / (1 + max(degree[i], degree[j])) for i, j in pairs]
    own = np.ones(len(graph))
    for (i, j), w in zip(pairs, values, strict=True):
        own[i] -= w
        own[j] -= w
    receivers = [i for i, _ in pairs] + [j for _, j in pairs] + list(range(len(graph)))
    senders = [j for _, j in pairs] + [i for i, _ in pairs] + list(range(len(graph)))
    return sparse(receivers, senders, np.concatenate([values, values, own]), len(graph))


def zeta(weights: Tensor | np.ndarray) -> float:
    """The second largest absolute eigenvalue of a mixing matrix: the factor by which a round shrinks differences.

    The eigenvector of all ones is projected out first. Taking the second of the sorted absolute values instead is
    wrong for a matrix with an eigenvalue below -1, whose largest absolute value is not the one of consensus.

    Args:
        weights: W, `[m, m]`, with unit row and column sums; dense or sparse.

    Examples:
        >>> round(zeta(np.array([[0.75, 0.25], [0.25, 0.75]])), 6)
        0.5
    """
    W = _dense(weights)
    if len(W) == 1:
        return 0.0
    rest = W - 1 / len(W)
    symmetric = np.allclose(rest, rest.T, atol=1e-12)
    eigenvalues = np.linalg.eigvalsh(rest) if symmetric else np.linalg.eigvals(rest)
    return float(np.abs(eigenvalues).max())


def check_mixing_matrix(weights: Tensor | np.ndarray, tolerance: float = 1e-9) -> None:
    """Raise unless W is symmetric, has unit row sums, and all its other eigenvalues lie inside (-1, 1).

    Cooperative SGD, assumption 5.

    Raises:
        ValueError: naming the condition that fails, with the value that does.

    Examples:
        >>> check_mixing_matrix(np.eye(2))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: the mixing matrix has an eigenvalue of 1 besides the one of consensus; ...
    """
    W = _dense(weights)
    if W.ndim != 2 or W.shape[0] != W.shape[1]:
        raise ValueError(f"a mixing matrix is square, not of shape {tuple(W.shape)}")
    if not np.isfinite(W).all():
        raise ValueError("the mixing matrix has entries that are not finite")
    skew = np.abs(W - W.T)
    if skew.max() > tolerance:
        i, j = np.unravel_index(skew.argmax(), W.shape)
        raise ValueError(
            f"the mixing matrix is not symmetric: w[{i},{j}] = {W[i, j]:.6g} but w[{j},{i}] = {W[j, i]:.6g}"
        )
    sums = W.sum(1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > tolerance:
        raise ValueError(f"row {worst} of the mixing matrix sums to {sums[worst]:.6g}; every row must sum to 1")
    if len(W) > 1:
        eigenvalues = np.linalg.eigvalsh(W - 1 / len(W))
        extreme = eigenvalues[np.abs(eigenvalues).argmax()]
        if abs(extreme) > 1 - tolerance:
            raise ValueError(
                f"the mixing matrix has an eigenvalue of {extreme:.6g} besides the one of consensus; all others must "
                "lie inside (-1, 1), or workers never come together: connect the graph, or make the weights lazier"
            )


def check_present(weights: Float[Tensor, "m m"], present: Bool[Tensor, " m"]) -> None:
    """Raise unless the workers that are left, of those in a mixing matrix, still come together.

    Raises:
        ValueError: if some were excluded and the others can no longer reach one another, or can only unevenly.
    """
    if present.all():
        return
    W = _dense(weights)
    absent = (~present).nonzero().flatten().tolist()
    if not np.allclose(W, W.T):
        raise ValueError(
            f"without workers {absent} this one-way topology no longer preserves the mean; take a symmetric one, or "
            "stop at the first worker that diverges"
        )
    left = W[np.ix_(present.numpy(), present.numpy())]
    if not nx.is_connected(nx.from_numpy_array(left)):
        raise ValueError(f"without workers {absent} the others fall apart; take a topology with more links")


def sparse(
    receivers: list[int] | np.ndarray, senders: list[int] | np.ndarray, values: np.ndarray, workers: int
) -> Float[Tensor, "m m"]:
    """W as a compressed sparse matrix: mixing along few edges costs what the edges cost, not m x m."""
    indices = torch.as_tensor(np.stack([np.asarray(receivers), np.asarray(senders)]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        numbers = torch.as_tensor(values, dtype=torch.float64)
        coo = torch.sparse_coo_tensor(indices, numbers, (workers, workers), check_invariants=True)
        return coo.to_sparse_csr()


def _dense(weights: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(weights, Tensor):
        weights = weights.detach().cpu().to_dense().double().numpy()
    return np.asarray(weights, dtype=np.float64)
