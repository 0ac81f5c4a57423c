"""Leader SGD on strongly convex objectives: what a step gains, where it ends, what a stale leader is worth.

Teng et al., "Leader stochastic gradient descent for distributed training of deep learning models" (2019), section 3.1.
One worker x with a guiding point z takes x_+ = x - eta (g(x) + lambda (x - z)): the pull lambda is scaled by the
learning rate, `LSGD(pull_scaled_by_lr=True)`. f is M-smooth and m-strongly convex, kappa = M/m; the gradient's variance
is at most sigma^2 + nu ||grad f||^2. In its proofs M is `smoothness`, m `convexity`.
"""

from __future__ import annotations

import math

from tether.checks import whole
from tether.theory.conditions import at_most, not_negative, positive


def check_leader_step(
    *, lr: float, pull: float, smoothness: float, convexity: float, relative_noise: float = 0.0
) -> None:
    """Raise unless theorems 1 and 3 hold for these: eta <= 1/(2 M (nu+1)) and eta lambda <= 1/(2 kappa).

    The third condition in print, eta sqrt(lambda) <= 1/(kappa sqrt(2 m)), follows from these two: their product gives
    eta sqrt(lambda) <= 1/(2 kappa sqrt(m)).

    Args:
        lr: learning rate (eta).
        pull: strength of the pull (lambda), loss / parameter^2, as the learning rate multiplies it.
        smoothness: Lipschitz constant of the gradient (M), loss / parameter^2.
        convexity: constant of strong convexity (m), loss / parameter^2; of a quadratic the least eigenvalue.
        relative_noise: the part of the gradient's variance that grows with ||grad f||^2 (nu).

    Raises:
        ValueError: if one does not hold; the message has the largest learning rate, or pull, that would do.

    Examples:
        >>> check_leader_step(lr=0.1, pull=0.5, smoothness=4, convexity=1)
    """
    positive(lr=lr, smoothness=smoothness, convexity=convexity)
    not_negative(pull=pull, relative_noise=relative_noise)
    at_most("convexity", convexity, smoothness, "no function is more convex than smooth, and it")
    at_most("lr", lr, 1 / (2 * smoothness * (relative_noise + 1)), "theorem 1 of Leader SGD")
    largest = convexity / (2 * smoothness * lr)
    at_most(
        "pull", pull, largest, f"theorem 1 of Leader SGD with lr={lr:g} (or lr <= {lr * largest / (pull or 1):.6g})"
    )


def leader_step_bound(
    excess: float,
    leader_excess: float,
    *,
    lr: float,
    pull: float,
    smoothness: float,
    convexity: float,
    noise: float = 0.0,
    relative_noise: float = 0.0,
) -> float:
    """Upper bound on E f(x_+) - f(x*) after one step (theorem 1). Units of the loss.

    (1 - m eta) (f(x) - f(x*)) - eta lambda (f(x) - f(z)) + eta^2 M sigma^2 / 2

    A leader that is better than x speeds up what SGD alone would do; a worse one holds x back, but where f(z) >= f(x)
    not above f(z) + eta^2 M sigma^2 / 2 (theorem 14).

    Args:
        excess: f(x) - f(x*).
        leader_excess: f(z) - f(x*).
        lr: learning rate (eta).
        pull: strength of the pull (lambda), loss / parameter^2.
        smoothness: Lipschitz constant of the gradient (M), loss / parameter^2.
        convexity: constant of strong convexity (m), loss / parameter^2.
        noise: variance of the gradient where it vanishes (sigma^2), (loss / parameter)^2.
        relative_noise: the part of the gradient's variance that grows with ||grad f||^2 (nu).

    Raises:
        ValueError: see `check_leader_step`.

    Examples:
        >>> leader_step_bound(1.0, 0.5, lr=0.1, pull=0.5, smoothness=4, convexity=1)
        0.875
    """
    check_leader_step(lr=lr, pull=pull, smoothness=smoothness, convexity=convexity, relative_noise=relative_noise)
    not_negative(excess=excess, leader_excess=leader_excess, noise=noise)
    return (1 - convexity * lr) * excess - lr * pull * (excess - leader_excess) + lr**2 * smoothness * noise / 2


def leader_limit(
    *,
    lr: float,
    pull: float,
    smoothness: float,
    convexity: float,
    noise: float,
    relative_noise: float = 0.0,
    workers: int = 1,
    loss_noise: float = 0.0,
) -> float:
    """What E f(x_k) - f(x*) is at most in the long run, at constant learning rate and pull. Units of the loss.

    eta kappa sigma^2 / 2                                             (theorem 1: the leader is never worse than x)
    eta kappa sigma^2 / 2 + (4/m) lambda sqrt(p) sigma_f              (theorem 3: it is picked by noisy losses)

    How much to expect of it: on quadratics in four dimensions, 4 workers at half the largest learning rate and the
    largest pull, the first is 0.125 where runs end at 0.039 (kappa = 1) and 0.0044 (kappa = 10). The second is vacuous:
    with sigma_f = 1 it makes 16.1 of it, and runs end at 0.056 and 0.0048. It rests on how far a leader picked by noisy
    losses can be from the best, 4 sqrt(p) sigma_f (lemma 17); with Gaussian noise 6 % of that is the most that was seen
    (`tests/test_theory_bounds.py`).

    Args:
        lr: learning rate (eta).
        pull: strength of the pull (lambda), loss / parameter^2, as the learning rate multiplies it.
        smoothness: Lipschitz constant of the gradient (M), loss / parameter^2.
        convexity: constant of strong convexity (m), loss / parameter^2.
        noise: variance of the gradient where it vanishes (sigma^2), (loss / parameter)^2.
        relative_noise: the part of the gradient's variance that grows with ||grad f||^2 (nu).
        workers: number of workers the leader is picked from (p).
        loss_noise: standard deviation of the losses it is picked by (sigma_f); 0 where they are exact.

    Raises:
        ValueError: see `check_leader_step`.

    Examples:
        >>> round(leader_limit(lr=0.1, pull=0.5, smoothness=4, convexity=1, noise=1), 6)
        0.2
    """
    check_leader_step(lr=lr, pull=pull, smoothness=smoothness, convexity=convexity, relative_noise=relative_noise)
    not_negative(noise=noise, loss_noise=loss_noise)
    chosen_wrongly = 4 / convexity * pull * math.sqrt(whole("workers", workers, 1)) * loss_noise
    return lr * smoothness / convexity * noise / 2 + chosen_wrongly


def stale_leader_factor(pull: float, convexity: float) -> float:
    """What is left of a leader's excess loss by a worker that never hears of another: lambda/(m + lambda)  (theorem 2).

    With a leader z that is never updated a worker converges to the minimum w of f(x) + lambda ||x - z||^2 / 2, and
    f(w) - f(x*) is at most this factor times f(z) - f(x*): long periods are safe if the leader was good.

    Args:
        pull: strength of the pull (lambda), loss / parameter^2.
        convexity: constant of strong convexity (m), loss / parameter^2.

    Examples:
        >>> stale_leader_factor(pull=1, convexity=3)
        0.25
    """
    not_negative(pull=pull)
    positive(convexity=convexity)
    return pull / (convexity + pull)
