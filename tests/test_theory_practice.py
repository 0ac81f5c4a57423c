"""What the bounds are worth on real data: the figures in their docstrings. `pytest -s` prints them.

Softmax regression of scikit-learn's digits: convex, and its constants are known.
"""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.datasets import load_digits

from tether import theory

M, PERIOD, STEPS, BATCH = 8, 10, 1000, 32
PENALTY = 0.01


@pytest.fixture(scope="module")
def digits():
    """Images `[n, 64]` from 0 to 1, classes `[n, 10]` as ones and zeros, and the smoothness of the mean loss."""
    images, labels = load_digits(return_X_y=True)
    images = images / 16
    # The Hessian of cross-entropy in the ten outputs is at most 1/2.
    return images, np.eye(10)[labels], float(np.linalg.eigvalsh(images.T @ images / len(images))[-1] / 2)


def log_softmax(outputs):
    outputs = outputs - outputs.max(-1, keepdims=True)
    return outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))


def loss(weights, images, classes):
    return -(log_softmax(images @ weights) * classes).sum(-1).mean(-1)


def gradient(weights, images, classes):
    return images.swapaxes(-1, -2) @ (np.exp(log_softmax(images @ weights)) - classes) / images.shape[-2]


def variance(weights, images, classes):
    """Of a batch's gradient."""
    wrong = np.exp(log_softmax(images @ weights)) - classes
    squares = np.square(wrong).sum(1) @ np.square(images).sum(1) / len(images)
    return (squares - np.square(gradient(weights, images, classes)).sum()) / BATCH


def local_sgd(digits, lr):
    """The mean of ||grad F(u_k)||^2, the largest variance of gradients, and the loss at the end."""
    images, classes, _ = digits
    rng = np.random.default_rng(0)
    workers = np.zeros((M, 64, 10))
    gradients, variances = [], []
    for k in range(1, STEPS + 1):
        u = workers.mean(0)
        if k % 5 == 1:
            gradients.append(np.square(gradient(u, images, classes)).sum())
            variances.append(variance(u, images, classes))
        batch = rng.integers(0, len(images), (M, BATCH))
        workers = workers - lr * gradient(workers, images[batch], classes[batch])
        if k % PERIOD == 0:
            workers[:] = workers.mean(0)
    return np.mean(gradients), max(variances), loss(workers.mean(0), images, classes)


def test_cooperative_bound_on_digits(digits):
    """Above what is measured, below the first gradient; what trains best is far beyond what the theorem speaks of."""
    images, classes, L = digits
    sizes = {"period": PERIOD, "zeta": 0, "workers": M, "smoothness": L}
    largest = theory.largest_learning_rate(**sizes)
    measured, noise, end = local_sgd(digits, largest)
    bound = theory.cooperative_bound(**sizes, steps=STEPS, noise=noise, gap=math.log(10), lr=largest)
    first = np.square(gradient(np.zeros((64, 10)), images, classes)).sum()
    _, _, end_of_larger = local_sgd(digits, 0.5)
    print(f"\nL={L:.3g} lr<={largest:.3g} noise={noise:.3g} measured={measured:.3g} bound={bound.total:.3g} {bound}")
    print(f"first={first:.3g} loss: {end:.3g} at the largest allowed, {end_of_larger:.3g} at 0.5")
    assert measured < bound.total
    assert (L, largest, bound.total, measured, first) == pytest.approx((5.23, 0.0191, 0.283, 0.0815, 0.197), rel=0.02)
    assert (end, end_of_larger) == pytest.approx((0.755, 0.126), rel=0.05)


def test_local_gd_bound_on_digits(digits):
    """Vacuous: more than the whole loss at the start."""
    images, classes, _ = digits
    order = np.argsort(classes.argmax(1), kind="stable")[: len(images) // M * M]
    own, own_classes = images[order].reshape(M, -1, 64), classes[order].reshape(M, -1, 10)
    images, classes = images[order], classes[order]
    L = float(np.linalg.eigvalsh(own.swapaxes(1, 2) @ own / own.shape[1]).max() / 2) + PENALTY

    def objective(flat):
        w = flat.reshape(64, 10)
        return loss(w, images, classes) + PENALTY / 2 * flat @ flat, (
            gradient(w, images, classes) + PENALTY * w
        ).ravel()

    found = minimize(objective, np.zeros(640), jac=True, method="L-BFGS-B", options={"maxiter": 1000, "gtol": 1e-9})
    best = found.x.reshape(64, 10)
    sigma = theory.sigma_f_squared((gradient(best, own, own_classes) + PENALTY * best).reshape(M, 640))
    lr = theory.local_gd_learning_rate(steps=STEPS, workers=M, smoothness=L)
    bound = theory.local_gd_bound(
        period=PERIOD, workers=M, steps=STEPS, smoothness=L, distance=found.x @ found.x, variance=sigma
    )
    workers, mean = np.zeros((M, 64, 10)), np.zeros((64, 10))
    for t in range(1, STEPS + 1):
        mean += workers.mean(0) / STEPS
        workers = workers - lr * (gradient(workers, own, own_classes) + PENALTY * workers)
        if t % PERIOD == 0:
            workers[:] = workers.mean(0)
    measured, start = objective(mean.ravel())[0] - found.fun, math.log(10) - found.fun
    print(f"\nL={L:.3g} lr={lr:.3g} sigma_f^2={sigma:.3g} distance={found.x @ found.x:.3g}")
    print(f"measured={measured:.3g} start={start:.3g} bound={bound.total:.3g} {bound}")
    assert measured < bound.total
    assert (lr, measured, start, bound.total) == pytest.approx((0.00368, 1.25, 1.56, 34.5), rel=0.02)
    # The slides' first term falls with the square root of the steps.
    assert STEPS * (bound.start / start) ** 2 == pytest.approx(485_000, rel=0.05)
