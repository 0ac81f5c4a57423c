"""How local SGD's long walks approach Newton's step: what K local steps add up to on a quadratic.

Pan & Song, "Local SGD accelerates convergence by exploiting second order information of the loss function". One round
of local SGD takes x to x - Delta; H is the Hessian and g the gradient where it starts, eta the learning rate, K the
number of local steps. (Eq. 22 is printed for x + Delta; eq. 6-9 define Delta as what is subtracted.)
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from tether.checks import whole
from tether.theory.arrays import Array, like, numbers
from tether.theory.conditions import at_most, positive


def newton_update(
    H: Float[Array, "d d"],
    g: Float[Array, " d"],
    lr: float,
    steps: int,
    residues: Float[Array, "k d"] | None = None,
) -> Float[Array, " d"]:
    """The expected update of one round, E[Delta], for x <- x - Delta.

    H^-1 (I - (I - eta H)^K) g                                                                  (eq. 20)
      + sum_k (I - eta H)^(K-1-k) eta E[n_k]                                                    (eq. 17, with residues)

    Exact on a quadratic, and with residues on any function. As K grows it becomes Newton's step H^-1 g (eq. 21) along
    every eigenvector with a positive eigenvalue. Eigenvalues need not be positive for eq. 20: along one of 0 the update
    is K eta g, along a negative one it grows exponentially with K.

    Args:
        H: `[d, d]`, Hessian at the start of the round; symmetric. Loss / parameter^2.
        g: `[d]`, gradient there. Loss / parameter.
        lr: learning rate (eta), at most 1/L with L the largest eigenvalue of H.
        steps: local steps (K).
        residues: `[K, d]`, gradient estimation residues n_k = grad f(x_k) - g - H (x_k - x_0), eq. 11, or their
            expectation. Default: none, as on a quadratic; they have to be small against g (eq. 18).

    Returns:
        `[d]`, in units of the parameters.

    Raises:
        ValueError: if the learning rate is above 1/L, the message has that; or H is not symmetric.

    Examples:
        >>> newton_update(np.diag([1.0, 0.0]), np.array([1.0, 1.0]), lr=0.5, steps=2)
        array([0.75, 1.  ])
    """
    hessian, gradient = numbers(H), numbers(g)
    steps = whole("steps", steps, 0)
    positive(lr=lr)
    if not np.allclose(hessian, hessian.T):
        raise ValueError("H is not symmetric; a Hessian is: take (H + H^T)/2")
    values, vectors = np.linalg.eigh(hessian)
    if values[-1] > 0:
        at_most("lr", lr, 1 / values[-1], "proposition 1 (SecondOrder)")
    update = vectors @ (update_gain(values, lr, steps) * (vectors.T @ gradient))
    if residues is not None:
        given = numbers(residues)
        if len(given) != steps:
            raise ValueError(f"{len(given)} residues for {steps} local steps: give one a step")
        kept = (1 - lr * values) ** np.arange(steps - 1, -1, -1)[:, None]
        update = update + vectors @ (lr * kept * (given @ vectors)).sum(0)
    return like(update, g)


def update_gain(eigenvalues: Float[Array, " d"], lr: float, steps: int) -> Float[Array, " d"]:
    """What a round makes of the gradient along each eigenvector: (1 - (1 - eta lambda)^K) / lambda  (eq. 29).

    K eta where lambda = 0, which is the limit; 1/lambda for K to infinity where lambda is positive (eq. 30). The energy
    of the update along an eigenvector is the square of this times the gradient's (remark 3 divides by lambda, once,
    what is divided by its square).

    Args:
        eigenvalues: `[d]`, of the Hessian (lambda). Loss / parameter^2.
        lr: learning rate (eta).
        steps: local steps (K).

    Examples:
        >>> update_gain(np.array([0.0, 1.0]), lr=0.5, steps=2)
        array([1.  , 0.75])
    """
    return like(_geometric(numbers(eigenvalues), lr, steps), eigenvalues)


def eigen_energy(vectors: Float[Array, "d k"], y: Float[Array, " d"]) -> Float[Array, " k"]:
    """e_l(y) = (v_l^T y)^2: the energy of a vector along each eigenvector (eq. 28). Units of y, squared.

    Args:
        vectors: `[d, k]`, an eigenvector a column, as `eigh` returns them.
        y: `[d]`, a gradient or an update.

    Examples:
        >>> eigen_energy(np.eye(2), np.array([3.0, 4.0]))
        array([ 9., 16.])
    """
    return like((numbers(y) @ numbers(vectors)) ** 2, y)


def descent_energy(
    eigenvalues: Float[Array, " d"], energy: Float[Array, " d"], lr: float, steps: int
) -> Float[Array, " d"]:
    """s_l: what a round changes the loss by along each eigenvector, to second order. Units of the loss.

    s_l = -(1 - (1 - eta lambda_l)^(2K)) e_l / (2 lambda_l),    -K eta e_l where lambda_l = 0                (eq. 32)

    Their sum is -Delta^T g + Delta^T H Delta / 2 for `newton_update`'s Delta (eq. 27, 31). In print the second case has
    another factor of eta, with which it would not be the first one's limit.

    Args:
        eigenvalues: `[d]`, of the Hessian (lambda). Loss / parameter^2.
        energy: `[d]`, the gradient's along each eigenvector, `eigen_energy`.
        lr: learning rate (eta).
        steps: local steps (K).

    Examples:
        >>> descent_energy(np.array([0.0, 1.0]), np.array([1.0, 1.0]), lr=0.5, steps=1)
        array([-0.5  , -0.375])
    """
    return like(-_geometric(numbers(eigenvalues), lr, 2 * steps) * numbers(energy) / 2, eigenvalues)


def _geometric(eigenvalues: Float[np.ndarray, " d"], lr: float, steps: int) -> Float[np.ndarray, " d"]:
    """(1 - (1 - eta lambda)^K) / lambda, the sum of a geometric series; accurate for eigenvalues of 1e-10, too."""
    positive(lr=lr)
    whole("steps", steps, 0)
    shrinks = lr * eigenvalues < 1
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        change = np.where(
            shrinks,
            -np.expm1(steps * np.log1p(-np.where(shrinks, lr * eigenvalues, 0))),
            1 - (1 - lr * eigenvalues) ** steps,
        )
        return np.where(eigenvalues == 0, lr * steps, change / eigenvalues)
