"""Where elastic averaging stands still and nothing is stationary: the counterexample of the Leader SGD paper.

Teng et al., "Leader stochastic gradient descent for distributed training of deep learning models" (2019), proposition
8. Elastic averaging descends sum_i f(x_i) + lambda ||x_i - z||^2 / 2 in x and z. Two workers on either side of a hill
can hold each other there by the anchor between them. Leader SGD cannot be held: its leader is pulled to itself, so
where it stands still grad f is 0 (theorem 4). That is so of its step, which takes the leader for a constant. The paper
says it of the objective with the leader as a function of the workers (eq. 4), whose gradient has another term, the
others' pull on the leader; that objective has such points on this very hill (`tests/test_theory.py` finds one).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tether.theory.conditions import positive


def hill(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The function of proposition 8: a hill with tails that never end, twice continuously differentiable.

    f(x) = e^(1 - |x|) where |x| > 1,    p(x) = 7/4 - x^2 + x^4/4 + x (1 - x^2)^3 between

    The paper asks for a p of degree 6 with p(-1) = -1, p''(-1) = -1, p'(0) = 1. Its signs at -1 do not join e^(x+1),
    whose value and second derivative there are 1; and whatever the signs, the odd part of p would need three
    coefficients to satisfy four conditions. Degree 7 has a fourth, and the p above is the one without x^6.

    Args:
        x: any tensor; a value for each number in it.

    Examples:
        >>> hill(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([1.0000, 1.7500, 1.0000])
    """
    inside = 7 / 4 - x**2 + x**4 / 4 + x * (1 - x**2) ** 3
    return torch.where(x.abs() > 1, torch.exp(1 - x.abs()), inside)


def elastic_stationary_point(pull: float) -> float:
    """Workers at -y and y with an anchor at 0 stand still on the `hill`: where lambda y = e^(1-y)  (proposition 8).

    None of -y, y and 0 is a stationary point of the hill. It is a strict minimum of elastic averaging's objective, so
    workers that come near it are caught.

    Args:
        pull: lambda, in (0, 1]; for EASGD in the order mix-then-step, alpha over the learning rate.

    Raises:
        ValueError: if the pull is above 1, where no such point lies on the tails.

    Examples:
        >>> [round(elastic_stationary_point(pull), 6) for pull in (1, 0.5, 0.1)]
        [1.0, 1.374823, 2.419163]
    """
    positive(pull=pull)
    if pull > 1:
        raise ValueError(f"pull={pull:g}: proposition 8 needs pull <= 1, where the point lies on the hill's tails")
    # Newton's method on y + log y = 1 - log lambda: concave, so from y = 1 on the left it never overshoots twice.
    y, before = 1.0, math.inf
    while abs(y - before) > 1e-15 * y:
        y, before = y - (y + math.log(y) - 1 + math.log(pull)) / (1 + 1 / y), y
    return y
