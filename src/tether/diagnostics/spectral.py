"""Where a vector's energy lies: on the Hessian's directions of large curvature or of small.

Pan & Song, "Local SGD accelerates convergence by exploiting second order information of the loss function", section
3.3, eq. 28 and 31 to 33, figures 3 to 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tether.checks import whole
from tether.diagnostics.curvature import Spectrum
from tether.diagnostics.landscape import Landscape, Row


@dataclass(frozen=True, eq=False)
class Energy:
    """The energy of a vector along directions, ascending by their eigenvalues.

    Attributes:
        eigenvalues: `[n]`.
        energies: `[n]`, e_l = w_l^2 (eq. 28).
    """

    eigenvalues: Float[np.ndarray, " n"]
    energies: Float[np.ndarray, " n"]

    @property
    def cumulative(self) -> Float[np.ndarray, " n"]:
        """The CPDF at each eigenvalue: the share of the energy on it and all smaller ones (eq. 33)."""
        return np.cumsum(self.energies) / self.energies.sum()

    def share_up_to(self, eigenvalue: float) -> float:
        """The CPDF F(eigenvalue): the share of the energy on eigenvalues up to this one (eq. 33)."""
        return float(self.energies[self.eigenvalues <= eigenvalue].sum() / self.energies.sum())

    def quantile(self, share: float) -> float:
        """The least eigenvalue up to which there is this share of the energy."""
        return float(self.eigenvalues[np.searchsorted(self.cumulative, share).clip(max=len(self.eigenvalues) - 1)])


def energy(spectrum: Spectrum, v: Row) -> Energy:
    """The energy of a vector on each eigen-direction (eq. 28).

    Args:
        spectrum: all eigenvectors.
        v: `[d]`, a vector that is not zero.

    Raises:
        ValueError: if the spectrum is not whole, or the vector zero.
    """
    _check(spectrum, v)
    return Energy(_numpy(spectrum.eigenvalues), _numpy(spectrum.projections(v)) ** 2)


def contributions(spectrum: Spectrum, gradient: Row, update: Row) -> Float[np.ndarray, " n"]:
    """What each eigen-direction contributes to the change of the loss by a step x - update, to second order.

    s_l = -w_l(update) w_l(gradient) + lambda_l w_l(update)^2 / 2;  their sum is u_SOE (eq. 22, 31). For the update that
    theory expects of local SGD they are eq. 32.

    Args:
        spectrum: all eigenvectors.
        gradient: `[d]`, of the loss at x.
        update: `[d]`, what is subtracted from x.

    Raises:
        ValueError: if the spectrum is not whole, or the update zero.
    """
    _check(spectrum, update)
    slope, step = (_numpy(spectrum.projections(v)) for v in (gradient, update))
    return -step * slope + _numpy(spectrum.eigenvalues) * step**2 / 2


def _check(spectrum: Spectrum, v: Row) -> None:
    d, n = spectrum.vectors.shape
    if d != n:
        raise ValueError(f"{n} of {d} eigenvectors do not hold all energy: take `Spectrum.of`, or `lanczos_energy`")
    if not v.any():
        raise ValueError("the vector is zero: it has no energy to distribute")


def lanczos_energy(
    landscape: Landscape, v: Row, steps: int = 100, x: Row | None = None, worker: int | None = None
) -> Energy:
    """The energy of a vector on as many eigenvalues as Lanczos takes steps: for any number of parameters.

    Lanczos from v gives the Gauss quadrature of v's energy (Golub & Meurant, "Matrices, moments and quadrature"): the
    n nodes and weights whose first 2n moments v^T H^k v are right. Their CPDF is a staircase through the true one. With
    as many steps as there are different eigenvalues that v has energy on, it is exact.

    Args:
        landscape: model, objective, data; in float64 as for `hessian`.
        v: `[d]`, a vector that is not zero.
        steps: products of the Hessian with a vector; as many vectors are kept.
        x: `[d]`, where. Default: the model's own parameters.
        worker: of whose objective F_i; None for F.

    Raises:
        ValueError: if the vector is zero.
    """
    steps = whole("steps", steps, least=1)
    if not v.any():
        raise ValueError("the vector is zero: it has no energy to distribute")
    v = v.to(landscape.x)
    basis, diagonal, beside = [v / v.norm()], [], []
    for _ in range(min(steps, landscape.parameters)):
        product = landscape.hessian_product(basis[-1], x, worker)
        diagonal.append(float(basis[-1] @ product))
        q = torch.stack(basis)
        for _ in range(2):  # once leaves what rounding has lost of orthogonality
            product = product - q.mT @ (q @ product)
        beside.append(float(product.norm()))
        if beside[-1] <= 1000 * torch.finfo(v.dtype).eps * max(map(abs, diagonal + beside)):
            break  # v lies in the span of as many eigenvectors, and what is left is rounding
        basis.append(product / beside[-1])
    off = beside[: len(diagonal) - 1]
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    return Energy(nodes, vectors[0] ** 2 * float(v @ v))


def spectral_density(
    landscape: Landscape, vectors: int = 10, steps: int = 50, x: Row | None = None, worker: int | None = None
) -> Energy:
    """The share of eigenvalues up to each, estimated: stochastic Lanczos quadrature.

    The energy of a random vector is spread evenly over all eigen-directions on average, so the mean CPDF of some is
    about the share of eigenvalues (Lin, Saad & Yang, "Approximating spectral densities of large matrices").

    Args:
        landscape: model, objective, data.
        vectors: how many random vectors.
        steps: products of the Hessian with each.
        x: `[d]`, where. Default: the model's own parameters.
        worker: of whose objective F_i; None for F.

    Returns:
        Nodes and their weights, which add up to 1.
    """
    generator = torch.Generator().manual_seed(landscape.seed)
    found = []
    for _ in range(whole("vectors", vectors, least=1)):
        v = torch.randn(landscape.parameters, generator=generator, dtype=torch.float64)
        found.append(lanczos_energy(landscape, v / v.norm(), steps, x, worker))
    nodes = np.concatenate([each.eigenvalues for each in found])
    weights = np.concatenate([each.energies for each in found]) / len(found)
    order = np.argsort(nodes)
    return Energy(nodes[order], weights[order])


def _numpy(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
