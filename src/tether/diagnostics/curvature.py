"""Second derivatives of the loss: the whole Hessian of a small model, its outermost eigenvalues of a large one.

Pan & Song, "Local SGD accelerates convergence by exploiting second order information of the loss function": the whole
spectra of networks of 7,850 and 14,700 parameters, table 2 and figures 3 to 8.

SciPy's `eigsh` (ARPACK) finds outer eigenvalues from products of Hessian and vector. Packages that offer Lanczos for
PyTorch would bring a second way to write down a model's Hessian, beside the one that residues and Newton directions
need here anyway; and none gives the energy of a given vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tether.checks import check_choice, whole
from tether.diagnostics.landscape import WORKING, Landscape, Row

Matrix = Float[Tensor, "d d"]

Progress = Callable[[int, int], None]
"""on_progress(rows done, of how many)."""

KEPT = 40
"""Vectors that Lanczos keeps at least."""

RESTARTS = 100
"""After so many restarts, of some KEPT products each, Lanczos gives up."""

STRIP = 512
"""Rows that are transposed at once."""

Which = Literal["largest", "smallest", "largest-magnitude"]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of a Hessian, ascending, and its eigenvectors: all of them, or some.

    Attributes:
        eigenvalues: `[n]`.
        vectors: `[d, n]`, orthonormal columns.
    """

    eigenvalues: Float[Tensor, " n"]
    vectors: Float[Tensor, "d n"]

    @classmethod
    def of(cls, matrix: Matrix) -> Spectrum:
        """All of a symmetric matrix, of which the lower triangle is read."""
        return cls(*torch.linalg.eigh(matrix))

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest eigenvalue (SecondOrder, table 2)."""
        return float(self.eigenvalues[0]), float(self.eigenvalues[-1])

    def projections(self, v: Row) -> Float[Tensor, " n"]:
        """w_l(v) = v_l^T v (SecondOrder, section 3.3)."""
        return self.vectors.mT @ v.to(self.vectors)


def hessian(
    landscape: Landscape,
    x: Row | None = None,
    worker: int | None = None,
    on_progress: Progress = lambda done, products: None,
) -> Matrix:
    """The Hessian of F, or of F_i, at x, over all samples that the landscape looks at.

    The gradient of a batch is differentiated backwards once for each parameter, many at once; but from a layer's
    parameters only down to that layer. Of each pair of layers one block is computed, and stands for the other too. In
    networks whose last layers have most of the parameters, that is far less than d products with a vector.

    Memory is that of the matrix, d^2 numbers, and little more. `Spectrum.of` needs four times as much.

    Args:
        landscape: model, objective, data. In float32, eigenvalues below some 1e-6 of the largest are rounding.
        x: `[d]`, where. Default: the model's own parameters.
        worker: of whose objective F_i; None for F.
        on_progress: called with the number of rows done, those of every batch by itself, and of all to do.

    Returns:
        A symmetric matrix, in the order of `torch.nn.utils.parameters_to_vector`.
    """
    row = landscape.row(x)
    d = landscape.parameters
    matrix = torch.zeros(d, d, dtype=row.dtype, device=row.device)
    batches = list(landscape.splits(worker))
    for number, (indices, weight) in enumerate(batches):
        views = {name: view.clone().requires_grad_() for name, view in landscape.views(row).items()}
        loss = landscape.loss_at(views, landscape.batch(indices))
        gradient = torch.autograd.grad(loss, tuple(views.values()), create_graph=True, materialize_grads=True)
        first = 0
        for layer, part in enumerate(gradient):
            later = tuple(views.values())[layer:]
            for rows in _at_once(part, later):
                block = _rows(part, later, rows)
                matrix[first + rows.start : first + rows.stop, first:].add_(block, alpha=weight)
                on_progress(number * d + first + rows.stop, len(batches) * d)
            first += part.numel()
    return _mirrored(matrix)


def _rows(gradient: Tensor, later: tuple[Tensor, ...], rows: range) -> Float[Tensor, "k p"]:
    """Derivatives of some entries of a gradient, by the parameter that it is of and those after it."""
    if not gradient.requires_grad:  # the loss is linear in this parameter, and in none that comes after
        return gradient.new_zeros(len(rows), sum(each.numel() for each in later))
    chosen = gradient.new_zeros(len(rows), gradient.numel())
    chosen[range(len(rows)), rows] = 1
    parts = torch.autograd.grad(
        gradient,
        later,
        chosen.view(-1, *gradient.shape),
        retain_graph=True,
        materialize_grads=True,
        is_grads_batched=True,
    )
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def _at_once(gradient: Tensor, later: tuple[Tensor, ...]) -> list[range]:
    """The rows that a gradient's entries give, as many at once as there is room for what one of them works on."""
    counter = _Bytes()
    with counter:
        _rows(gradient, later, range(1))
    most = max(1, WORKING // counter.bytes)
    return [range(first, min(first + most, gradient.numel())) for first in range(0, gradient.numel(), most)]


class _Bytes(TorchDispatchMode):
    """Counts the bytes of all that operations return, but for views of what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        new = (each for each in tree_leaves(returned) if isinstance(each, Tensor))
        self.bytes += sum(each.nbytes for each in new if each.untyped_storage().data_ptr() not in given)
        return returned


def _mirrored(matrix: Matrix) -> Matrix:
    """The upper triangle, below the diagonal too; in place."""
    for first in range(0, len(matrix), STRIP):
        rows, after = slice(first, first + STRIP), slice(first + STRIP, None)
        corner = matrix[rows, rows]
        corner.copy_(corner.triu() + corner.triu(1).mT)
        matrix[after, rows] = matrix[rows, after].mT
    return matrix


def extreme_eigenvalues(
    landscape: Landscape,
    count: int = 1,
    which: Which = "largest-magnitude",
    x: Row | None = None,
    worker: int | None = None,
    tolerance: float = 1e-5,
) -> Spectrum:
    """Some outer eigenvalues and their vectors, by implicitly restarted Lanczos: for any number of parameters.

    The smallest eigenvalues of a network are often among thousands near zero, of which Lanczos can hardly tell one from
    another: ask for one.

    Args:
        landscape: model, objective, data.
        count: how many.
        which: the "largest" or "smallest" ones, or those of "largest-magnitude".
        x: `[d]`, where. Default: the model's own parameters.
        worker: of whose objective F_i; None for F.
        tolerance: how far off an eigenvalue may be, relative to the one of largest magnitude.

    Raises:
        ValueError: if there are not more parameters than eigenvalues.
        RuntimeError: if Lanczos does not converge.
    """
    check_choice("which", which, Which)
    count = whole("count", count, least=1, most=landscape.parameters - 1)
    matrix = operator(landscape, x, worker)
    kept = min(max(2 * count + 1, KEPT), landscape.parameters)
    # ARPACK draws a start of its own for each call: results would differ between calls.
    start = np.random.default_rng(landscape.seed).normal(size=landscape.parameters)

    def lanczos(matrix: LinearOperator, count: int, which: str, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
        return eigsh(matrix, k=count, which=which, v0=start, ncv=kept, tol=tolerance, maxiter=RESTARTS)

    try:
        if which == "largest-magnitude":
            values, vectors = lanczos(matrix, count, "LM", tolerance)
        else:
            # Accuracy relative to an eigenvalue is out of reach for those near zero: so all are moved away from it.
            steepest, _ = lanczos(matrix, 1, "LM", 1e-2)
            sign, shift = (1 if which == "largest" else -1), abs(float(steepest[0]))
            identity = LinearOperator(matrix.shape, matvec=lambda v: v, dtype=np.float64)
            values, vectors = lanczos(sign * matrix + shift * identity, count, "LA", tolerance / 2)
            values = sign * (values - shift)
    except ArpackNoConvergence as error:
        raise RuntimeError(
            f"Lanczos found {len(error.eigenvalues)} of {count} eigenvalues to within {tolerance:g}: ask for fewer, or "
            "raise the tolerance"
        ) from error
    order = np.argsort(values)
    return Spectrum(*(torch.from_numpy(each).to(landscape.x) for each in (values[order], vectors[:, order])))


def operator(landscape: Landscape, x: Row | None = None, worker: int | None = None) -> LinearOperator:
    """The Hessian as SciPy's `LinearOperator`, in float64 outside and the model's precision inside."""

    def product(v: np.ndarray) -> np.ndarray:
        vector = torch.from_numpy(np.ascontiguousarray(v.reshape(-1))).to(landscape.x)
        return landscape.hessian_product(vector, x, worker).double().cpu().numpy()

    return LinearOperator((landscape.parameters,) * 2, matvec=product, dtype=np.float64)
