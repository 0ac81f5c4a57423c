"""Local steps and rounds written out in NumPy, for any equation of the table."""

import numpy as np

from methods_table import Case, Round
from problems import Quadratics


class SGD:
    def __init__(self, lr, momentum=0.0):
        self.lr, self.momentum, self.v = lr, momentum, 0.0

    def __call__(self, X, G):
        self.v = self.momentum * self.v + G
        return X - self.lr * self.v


class Adam:
    def __init__(self, lr, betas=(0.9, 0.999), eps=1e-8):
        self.lr, self.betas, self.eps, self.t, self.m, self.v = lr, betas, eps, 0, 0.0, 0.0

    def __call__(self, X, G):
        a, b = self.betas
        self.t += 1
        self.m, self.v = a * self.m + (1 - a) * G, b * self.v + (1 - b) * G**2
        return X - self.lr * (self.m / (1 - a**self.t)) / (np.sqrt(self.v / (1 - b**self.t)) + self.eps)


class Every:
    """The period that is always the same. Other rules of periods are called like it."""

    def __init__(self, period):
        self.start = period

    def __call__(self, due, losses, drift, lr):
        """The next period, from losses `[m, n]`, drift `[m]` and rate at a round, None before the first is known."""
        return self.start


def trajectory(case: Case, problem: Quadratics, start, optimizer, *, steps, period, order, overlap=0):
    """X after so many local steps.

    Args:
        period: local steps between rounds; or makes the rule that says so, one for each part.
    """
    rules = [Every(period * factor) if isinstance(period, int) else period() for factor in case.factors]
    dues = [rule.start for rule in rules]
    bases = [start.copy() for _ in rules]
    arrived = [(None, None, None) for _ in rules]
    X = start.copy()
    Z = [np.tile(start.mean(0), (case.auxiliary, 1)) for _ in case.equations]
    numbers = [0] * len(case.equations)
    losses = np.zeros((len(X), 0))
    on_their_way = []

    def land(X, due):
        for flight in [f for f in on_their_way if due is None or f[0] == due]:
            on_their_way.remove(flight)
            _, part, change, new_Z, measured = flight
            X, Z[part], arrived[part] = X + change, new_Z, measured
        return X

    for step in range(1, steps + 1):
        G = problem.gradients(X)
        losses = np.column_stack([losses, problem.losses(X)])
        if order == "step-then-mix":
            X = optimizer(X, G)
        X = land(X, step)
        for part, equation in enumerate(case.equations):
            if step != dues[part]:
                continue
            measured = losses, np.linalg.norm(X - bases[part], axis=1), optimizer.lr
            next_period = rules[part](step, *(arrived[part] if overlap else measured))
            lands, dues[part] = step + min(overlap, next_period), step + next_period
            new_X, new_Z = equation(X, Z[part], Round(numbers[part], losses, optimizer.lr))
            numbers[part] += 1
            bases[part] = new_X
            if not overlap:
                X, Z[part] = new_X, new_Z
            elif case.at_once:
                on_their_way.append((lands, part, 0.0, new_Z, measured))
                X = new_X
            else:
                on_their_way.append((lands, part, new_X - X, new_Z, measured))
        if order == "mix-then-step":
            X = optimizer(X, G)
    # The simulator lands what is still on its way when the last local step is over.
    return land(X, None)
