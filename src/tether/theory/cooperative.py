"""What Cooperative SGD's theorems promise: bounds on the gradient of the mean model, and what they ask for.

Wang & Joshi, "Cooperative SGD: a unified framework for the design and analysis of local-update SGD algorithms" (2021).
Everything here is about A(tau, W, v): m workers who mix by W every tau local steps, with v auxiliary variables, at a
constant learning rate eta, all starting at one point u_1. The mean u of all m + v rows moves at the effective learning
rate eta_eff = m eta / (m + v) (eq. 13). Objectives are L-smooth and may be non-convex.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tether.checks import whole
from tether.theory.conditions import SLACK, not_negative, positive


@dataclass(frozen=True)
class CooperativeBound:
    """Upper bound on the mean of ||grad F(u_k)||^2 over k = 1..K, as the sum of what causes it.

    All are squared gradient norms: units of loss^2 / parameter^2.

    Attributes:
        sync: what fully synchronous SGD has as well: the way from the start, and gradient noise averaged over workers.
        network: what comes of workers being apart, by gradient noise.
        dissimilarity: what comes of workers being apart because their objectives differ.
    """

    sync: float
    network: float
    dissimilarity: float

    @property
    def total(self) -> float:
        """The bound itself."""
        return self.sync + self.network + self.dissimilarity


def cooperative_bound(
    *,
    period: int,
    zeta: float,
    workers: int,
    steps: int,
    smoothness: float,
    noise: float,
    gap: float,
    lr: float | None = None,
    auxiliary: int = 0,
    dissimilarity: float = 0.0,
) -> CooperativeBound:
    """Bound on the mean squared gradient norm of the mean model over all steps.

    Workers with the same objective (theorem 1, eq. 17):

        sync = 2 (F(u_1) - F_inf) / (eta_eff K) + eta_eff L sigma^2 / m
        network = eta_eff^2 L^2 sigma^2 ((1 + zeta^2)/(1 - zeta^2) tau - 1) (1 + v/m)^2

    With different ones (theorem 2, eq. 20-21) twice that, and

        dissimilarity = C kappa^2,
        C = 6 eta^2 L^2 tau^2 / (1 - zeta) (2 zeta^2/(1+zeta) + 2 zeta/(1-zeta) + (tau-1)/tau)

    Special cases are `zeta=0` (local SGD, eq. 24), `period=1` (D-PSGD, eq. 27), and EASGD (eq. 23), which is
    `auxiliary=1` and `elastic_zeta(best_elasticity(m), m)`. Its network term is

        eta_eff^2 L^2 sigma^2 (m+1)/2 (1 + C (tau-1)),   C = 1 + 2(m+1)/m^2

    (the printed C, 1 + 2(1 + 1/m)^2, is larger than substitution gives, so a looser bound). With `lr=None` it is
    corollary 1's (eq. 18, 25, 28). Federated averaging of a fraction c of the workers, all with the same objective:
    `workers` = c m (section 5.2).

    How much to expect of it: on softmax regression of scikit-learn's digits (8 workers, period 10, batches of 32, 1,000
    steps; L = 5.23) it bounds by 0.283, at the largest learning rate it allows, what is 0.082 on average and 0.197 at
    the start: it holds, and says nothing yet. That learning rate is 0.019 and ends at a loss of 0.76, where 0.5 ends at
    0.13 (`tests/test_theory_practice.py`). Take it for which of two settings drifts less, not for how far one gets.

    Args:
        period: local steps between rounds (tau); must divide `steps`.
        zeta: second largest absolute eigenvalue of W, below 1.
        workers: number of workers m.
        steps: local steps of every worker (K).
        smoothness: Lipschitz constant of every worker's gradient (L), loss / parameter^2.
        noise: variance of a worker's stochastic gradient (sigma^2), at most so much anywhere on the way.
        gap: F(u_1) - F_inf, loss.
        lr: learning rate (eta). Default: `horizon_learning_rate`.
        auxiliary: number of auxiliary variables v.
        dissimilarity: (1/m) sum_i ||grad F_i(x) - grad F(x)||^2, at most so much anywhere on the way (kappa^2); 0 for
            workers with the same objective.

    Raises:
        ValueError: if the learning rate is above `largest_learning_rate`; the message has that, and the largest period
            at which it would not be. Or if another argument is impossible.

    Examples:
        >>> bound = cooperative_bound(period=10, zeta=0, workers=8, steps=10_000, smoothness=1, noise=1, gap=1, lr=0.04)
        >>> round(bound.sync, 6), round(bound.network, 6), bound.dissimilarity
        (0.01, 0.0144, 0.0)
    """
    _check(period, zeta, workers, auxiliary)
    positive(smoothness=smoothness)
    not_negative(noise=noise, gap=gap, dissimilarity=dissimilarity)
    if whole("steps", steps, 1) % period:
        raise ValueError(f"steps={steps}: the theorem counts whole periods; give a multiple of period={period}")
    if lr is None:
        lr = horizon_learning_rate(steps=steps, workers=workers, smoothness=smoothness, auxiliary=auxiliary)
        remedy = "give a smaller lr, or more steps"
    else:
        positive(lr=lr)
        remedy = "give a smaller lr"
    iid = bool(dissimilarity == 0)
    largest = largest_learning_rate(
        period=period, zeta=zeta, workers=workers, smoothness=smoothness, auxiliary=auxiliary, iid=iid
    )
    if lr > largest * (1 + SLACK):
        raise ValueError(
            f"lr={lr:.6g}: theorem {1 if iid else 2} needs lr <= {largest:.6g} for period={period}, zeta={zeta:.6g}; "
            f"{remedy}. {_period_remedy(lr * smoothness, zeta, workers, auxiliary, iid)}"
        )

    shrunk = workers / (workers + auxiliary) * lr
    sync = 2 * gap / (shrunk * steps) + shrunk * smoothness * noise / workers
    network = (lr * smoothness) ** 2 * noise * network_error(period, zeta)
    if iid:
        return CooperativeBound(float(sync), float(network), 0.0)
    C = 6 * (lr * smoothness) ** 2 * _drift(period, zeta)
    return CooperativeBound(float(2 * sync), float(2 * network), float(C * dissimilarity))


def largest_learning_rate(
    *, period: int, zeta: float, workers: int, smoothness: float, auxiliary: int = 0, iid: bool = True
) -> float:
    """The largest learning rate (eta) for which `cooperative_bound` is proved.

    The largest solution of the condition that the proof of theorem 1 ends with, for workers with the same objective,

        eta_eff L + eta^2 L^2 tau^2 / (1 - zeta) (2 zeta^2/(1+zeta) + 2 zeta/(1-zeta) + (tau-1)/tau) <= 1   (eq. 145)

    which is corollary 2's and 3's in their special cases. Eq. 16, eta_eff L + 5 (eta L tau / (1 - zeta))^2 <= 1, is a
    simplification of it that asks for more: 2.8 times less at period 1 and zeta 0, where this one is eta L <= 1. With
    different objectives eta_eff L <= 1 and C <= 1/2 (theorem 2).

    Args:
        period: local steps between rounds (tau).
        zeta: second largest absolute eigenvalue of W, below 1.
        workers: number of workers m.
        smoothness: Lipschitz constant of every worker's gradient (L), loss / parameter^2.
        auxiliary: number of auxiliary variables v.
        iid: whether workers have the same objective.

    Raises:
        ValueError: if an argument is impossible.

    Examples:
        >>> largest_learning_rate(period=10, zeta=0, workers=8, smoothness=1)
        0.1
    """
    _check(period, zeta, workers, auxiliary)
    positive(smoothness=smoothness)
    share, drift = workers / (workers + auxiliary), _drift(period, zeta)
    if iid:
        return 2 / (share + math.sqrt(share**2 + 4 * drift)) / smoothness
    return min(1 / share, math.sqrt(1 / (12 * drift)) if drift else math.inf) / smoothness


def horizon_learning_rate(*, steps: int, workers: int, smoothness: float, auxiliary: int = 0) -> float:
    """The learning rate of corollary 1, for a number of steps known beforehand: eta = (m + v)/(m L) sqrt(m/K).

    With it the bound falls as 1/sqrt(m K): m workers need m times fewer steps.

    Args:
        steps: local steps of every worker (K).
        workers: number of workers m.
        smoothness: Lipschitz constant of every worker's gradient (L), loss / parameter^2.
        auxiliary: number of auxiliary variables v.

    Examples:
        >>> horizon_learning_rate(steps=10_000, workers=4, smoothness=2)
        0.01
    """
    _check(1, 0.0, workers, auxiliary)
    whole("steps", steps, 1)
    positive(smoothness=smoothness)
    return (1 + auxiliary / workers) / smoothness * math.sqrt(workers / steps)


def network_error(
    period: float | Float[np.ndarray, "*grid"], zeta: float | Float[np.ndarray, "*grid"]
) -> float | Float[np.ndarray, "*grid"]:
    """How far apart workers are, in units of what one step's noise does: (1 + zeta^2)/(1 - zeta^2) tau - 1  (eq. 17).

    The mean of ||x_i - u||^2 is at most eta^2 sigma^2 times this where objectives are the same, and the network term
    L^2 times that (eq. 144). Linear in tau, and it grows without limit as zeta goes to 1 (fig. 3a). Noise alone puts
    workers half as far apart as this, so of the whole bound this is the tight part.

    Args:
        period: local steps between rounds (tau).
        zeta: second largest absolute eigenvalue of W.

    Examples:
        >>> network_error(10, 0), network_error(1, 0)
        (9.0, 0.0)
    """
    return (1 + zeta**2) / (1 - zeta**2) * period - 1


def zeta_threshold(period: int) -> float:
    """Below this zeta D-PSGD has a lower error floor than local SGD: sqrt(1 - 2/(tau + 1))  (eq. 30).

    Compares the network terms of A(1, W, 0) and A(tau, J, 0).

    Args:
        period: local steps between rounds of local SGD (tau).

    Examples:
        >>> round(zeta_threshold(2), 5), round(zeta_threshold(10), 5)
        (0.57735, 0.90453)
    """
    return math.sqrt(1 - 2 / (whole("period", period, 1) + 1))


def largest_period(steps: int, workers: int, iid: bool = True) -> int:
    """The largest period that leaves local SGD its rate of 1/sqrt(m K), constants left aside.

    tau <= K^(1/2) m^(-3/2) for workers with the same objective, tau <= K^(1/4) m^(-3/4) for different ones (table 1;
    K >= m^3 tau^2 and K >= m^3 tau^4 in section 5.2). The second is also the period of local gradient descent for this
    rate (LocalGD, the theorem's remark), which makes Omega(K^(3/4) m^(3/4)) rounds.

    Args:
        steps: local steps of every worker (K).
        workers: number of workers m.
        iid: whether workers have the same objective.

    Raises:
        ValueError: if even a round after every step does not leave that rate, with the number of steps that would.

    Examples:
        >>> largest_period(10**6, 4), largest_period(10**6, 4, iid=False)
        (125, 11)
    """
    steps, workers = whole("steps", steps, 1), whole("workers", workers, 1)
    if steps < workers**3:
        raise ValueError(
            f"steps={steps}: for {workers} workers not even period=1 is short enough below {workers**3} steps (m^3)"
        )
    squared = math.isqrt(steps // workers**3)
    return squared if iid else math.isqrt(squared)


def _drift(period: int, zeta: float) -> float:
    """tau^2/(1 - zeta) (2 zeta^2/(1+zeta) + 2 zeta/(1-zeta) + (tau-1)/tau), as in eq. 21 and 145."""
    return period * (_growth(zeta) * period - 1) / (1 - zeta)


def _growth(zeta: float) -> float:
    return 1 + 2 * zeta**2 / (1 + zeta) + 2 * zeta / (1 - zeta)


def _period_remedy(step: float, zeta: float, workers: int, auxiliary: int, iid: bool) -> str:
    """The largest period at which a learning rate would do, which times L is `step`: of a quadratic, its root."""
    share = workers / (workers + auxiliary) * step
    room = (1 - share if iid else (share <= 1) / 12) * (1 - zeta) / step**2
    growth = _growth(zeta)
    period = (
        math.floor((1 + math.sqrt(1 + 4 * growth * room)) / (2 * growth) + SLACK) if room >= 0 and share <= 1 else 0
    )
    return f"At this lr the period may be {period}." if period else "At this lr no period is short enough."


def _check(period: int, zeta: float, workers: int, auxiliary: int) -> None:
    whole("period", period, 1)
    whole("workers", workers, 1)
    whole("auxiliary", auxiliary, 0)
    if not 0 <= zeta < 1:
        raise ValueError(f"zeta={zeta:.6g}: workers come together only if it lies in [0, 1)")
