"""Bounds against runs: they hold, over many seeds, and what each of their terms is about happens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods_table import random_mixing_matrix
from tether import theory, topology
from theory_problems import Logistic, Quadratics, Ramp, cooperative, noisy


def elastic(m, alpha, W=None):
    ones = np.ones((m, 1))
    W = np.eye(m) if W is None else W
    return np.block([[(1 - alpha) * W, alpha * ones], [alpha * ones.T, np.array([[1 - m * alpha]])]])


def even(m, zeta):
    """A mixing matrix all of whose eigenvalues but one are zeta."""
    return zeta * np.eye(m) + (1 - zeta) / m


M = 8
RING = topology.Ring().weights(M).to_dense().numpy()
WAYS = {
    "sync": (1, np.ones((M, M)) / M),
    "local": (5, np.ones((M, M)) / M),
    "ring": (1, RING),
    "ring-often": (4, RING),
    "easgd": (3, elastic(M, 0.2)),
    "generalized": (2, elastic(M, theory.best_elasticity(M, theory.zeta(RING)), RING)),
    "any": (3, random_mixing_matrix(M + 2)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("share", [1.0, 0.2])
@pytest.mark.parametrize("make", [Quadratics.random, Logistic.random])
def test_theorem_1_holds(make, way, share):
    period, W = WAYS[way]
    for seed in range(3):
        objective = make(M, seed=seed, same=True)
        zeta, auxiliary, start = theory.zeta(W), len(W) - M, objective.optimum + 1.0
        lr = share * theory.largest_learning_rate(
            period=period, zeta=zeta, workers=M, smoothness=objective.smoothness, auxiliary=auxiliary
        )
        if isinstance(objective, Logistic):
            run = cooperative(objective, objective.stochastic_gradients, W, period, 60, lr, start, seeds=16)
            noise = objective.variance(run.path[::7]).max() * 1.1
        else:
            run = cooperative(objective, noisy(objective, 1.0), W, period, 60, lr, start, seeds=16)
            noise = 1.0
        bound = theory.cooperative_bound(
            period=period,
            zeta=zeta,
            workers=M,
            steps=60,
            smoothness=objective.smoothness,
            noise=noise,
            gap=objective.loss(start) - objective.loss(objective.optimum),
            lr=lr,
            auxiliary=auxiliary,
        )
        assert run.gradient <= bound.total
        assert objective.smoothness**2 * run.apart <= bound.total + bound.network


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_theorem_2_holds(way, sigma):
    period, W = WAYS[way]
    for seed in range(3):
        objective = Logistic.random(M, seed=seed)
        zeta, auxiliary, start = theory.zeta(W), len(W) - M, objective.optimum + 0.3
        lr = theory.largest_learning_rate(
            period=period, zeta=zeta, workers=M, smoothness=objective.smoothness, auxiliary=auxiliary, iid=False
        )
        run = cooperative(objective, noisy(objective, sigma), W, period, 120, lr, start, seeds=16)
        bound = theory.cooperative_bound(
            period=period,
            zeta=zeta,
            workers=M,
            steps=120,
            smoothness=objective.smoothness,
            noise=sigma**2,
            gap=objective.loss(start) - objective.loss(objective.optimum),
            lr=lr,
            auxiliary=auxiliary,
            dissimilarity=run.dissimilarity,
        )
        assert run.gradient <= bound.total
        assert bound.dissimilarity > 0 or way == "sync"


def test_the_way_from_the_start_matters():
    """Without noise, and with workers who are never apart, all is 2 (F(u_1) - F_inf)/(eta K)."""
    objective = Ramp(2, slope=1.0)
    start, lr, steps = np.array([-50.0]), 0.1, 400
    run = cooperative(objective, noisy(objective, 0.0), np.ones((2, 2)) / 2, 1, steps, lr, start, seeds=1)
    bound = theory.cooperative_bound(period=1, zeta=0, workers=2, steps=steps, smoothness=1, noise=0, gap=49.5, lr=lr)
    assert bound.total == bound.sync
    # A slope all the way down: half of the bound, the most there can be for a small learning rate.
    assert 0.4 * bound.sync < run.gradient <= bound.sync


def test_noise_averaged_over_workers_matters():
    """At the optimum only eta L sigma^2 / m is left of the bound, and half of that is measured."""
    for m in (2, 8):
        objective = Quadratics(np.ones((m, 1, 1)), np.zeros((m, 1)))
        run = cooperative(objective, noisy(objective, 1.0), np.ones((m, m)) / m, 1, 2000, 0.1, np.zeros(1))
        bound = theory.cooperative_bound(period=1, zeta=0, workers=m, steps=2000, smoothness=1, noise=1, gap=0, lr=0.1)
        assert bound.total == pytest.approx(0.1 / m)
        assert run.gradient / bound.total == pytest.approx(1 / (2 - 0.1), rel=0.05)


@pytest.mark.parametrize(("period", "zeta"), [(10, 0.0), (1, 0.8), (5, 0.8), (5, 0.5)])
def test_workers_are_half_as_far_apart_as_the_network_term_says(period, zeta):
    """Noise alone: its dependence on tau and zeta is exact."""
    m, lr, steps = 8, 0.1, 2000
    flat = Quadratics(np.zeros((m, 1, 1)), np.zeros((m, 1)))
    run = cooperative(flat, noisy(flat, 1.0), even(m, zeta), period, steps, lr, np.zeros(1), seeds=32)
    assert run.apart / (lr**2 * theory.network_error(period, zeta)) == pytest.approx((m - 1) / (2 * m), rel=0.05)


@pytest.mark.parametrize(("period", "zeta", "slope"), [(9, 0.0, 0.1), (1, 0.7, 0.05)])
def test_the_network_term_matters(period, zeta, slope):
    """Many workers, started at the optimum: the sync part is nearly nothing, and the gradient is larger than it."""
    m, lr, steps = 200, 0.1, 1800
    objective = Ramp(m, slope)
    run = cooperative(objective, noisy(objective, 1.0), even(m, zeta), period, steps, lr, np.zeros(1), seeds=4)
    bound = theory.cooperative_bound(
        period=period, zeta=zeta, workers=m, steps=steps, smoothness=1, noise=1, gap=0, lr=lr
    )
    assert bound.sync < run.gradient <= bound.total


def test_the_dissimilarity_term_matters_and_grows_with_the_square_of_the_period():
    """No noise, and so many steps that the start is forgotten: gradient descent that stops beside the optimum."""
    objective = Quadratics(np.array([[[0.1]], [[1.0]]]), np.array([[0.0], [1.0]]))
    floors = []
    for period in (4, 8):
        lr = theory.largest_learning_rate(period=8, zeta=0, workers=2, smoothness=1, iid=False)
        steps = 16_000
        run = cooperative(
            objective, noisy(objective, 0.0), np.ones((2, 2)) / 2, period, steps, lr, objective.optimum, 1
        )
        bound = theory.cooperative_bound(
            period=period,
            zeta=0,
            workers=2,
            steps=steps,
            smoothness=1,
            noise=0,
            gap=0,
            lr=lr,
            dissimilarity=run.dissimilarity,
        )
        assert bound.sync + bound.network == 0 < run.gradient <= bound.total
        floors.append(np.square(objective.gradient(run.path[-period:])).mean())
    # tau (tau - 1) in the bound's C; the squared gradient where local GD stops goes by (tau - 1)^2.
    assert floors[1] / floors[0] == pytest.approx((7 / 3) ** 2, rel=0.25)


def test_eq_30_says_which_floor_is_lower():
    """D-PSGD's workers are nearer each other than local SGD's just where zeta is below the threshold."""
    flat = Quadratics(np.zeros((M, 1, 1)), np.zeros((M, 1)))
    threshold = theory.zeta_threshold(4)

    def apart(period, zeta):
        return cooperative(flat, noisy(flat, 1.0), even(M, zeta), period, 1200, 1.0, np.zeros(1)).apart

    local = apart(4, 0.0)
    assert apart(1, threshold) == pytest.approx(local, rel=0.05)
    assert apart(1, threshold - 0.1) < local < apart(1, threshold + 0.1)


def local_gd(objective, gradients, period, steps, lr, start, seeds=1, seed=0):
    """f at the mean over workers and steps, averaged over seeds."""
    run = cooperative(
        objective, gradients, np.ones((objective.m, objective.m)) / objective.m, period, steps, lr, start, seeds, seed
    )
    return objective.loss(run.path.mean(0)).mean() - objective.loss(objective.optimum)


@pytest.mark.parametrize("period", [1, 4, 16])
@pytest.mark.parametrize("make", [Quadratics.random, Logistic.random])
def test_local_gd_bounds_hold(make, period):
    for seed in range(4):
        objective, steps = make(4, seed=seed), 1024
        start, L = objective.optimum + 1.0, objective.smoothness
        at_optimum = objective.all_gradients(objective.optimum)
        for lr in (None, 1 / (4 * period * L)):
            bound = theory.local_gd_bound(
                period=period,
                workers=4,
                steps=steps,
                smoothness=L,
                distance=4.0,
                variance=theory.sigma_f_squared(at_optimum),
                lr=lr,
            )
            chosen = lr or theory.local_gd_learning_rate(steps=steps, workers=4, smoothness=L)
            assert 0 <= local_gd(objective, noisy(objective, 0.0), period, steps, chosen, start) <= bound.total


@pytest.mark.parametrize("period", [1, 4, 16])
def test_local_sgd_bounds_hold(period):
    for seed in range(2):
        objective, steps = Logistic.random(4, seed=seed), 1024
        every = objective.sample_gradients(np.broadcast_to(objective.optimum, (4, objective.d)))
        # Smooth for each sample, as the theorem asks.
        L = np.square(objective.samples).sum(-1).max() / 4 + objective.penalty
        for lr in (None, 1 / (8 * period * L)):
            bound = theory.local_gd_bound(
                period=period,
                workers=4,
                steps=steps,
                smoothness=L,
                distance=4.0,
                variance=theory.sigma_dif_squared(every),
                stochastic=True,
                lr=lr,
            )
            chosen = lr or theory.local_gd_learning_rate(steps=steps, workers=4, smoothness=L, stochastic=True)
            start = objective.optimum + 1.0
            measured = local_gd(objective, objective.stochastic_gradients, period, steps, chosen, start, seeds=16)
            assert 0 <= measured <= bound.total


def test_each_term_of_the_local_gd_bounds_matters():
    """From the optimum, or with a common optimum, the others are zero, and what is measured is not."""
    apart = Quadratics(np.array([[[0.1]], [[1.0]]]), np.array([[0.0], [1.0]]))
    together = Quadratics(apart.A, np.zeros((2, 1)))
    sizes = {"workers": 2, "steps": 4096, "smoothness": 1}
    at_optimum = apart.all_gradients(apart.optimum)
    sigma = theory.sigma_f_squared(at_optimum)

    def measured(objective, period, lr, start, noise=0.0):
        return local_gd(objective, noisy(objective, noise), period, 4096, lr, start, seeds=16)

    drift = theory.local_gd_bound(period=16, distance=0, variance=sigma, lr=1 / 64, **sizes)
    assert drift.total == drift.drift >= measured(apart, 16, 1 / 64, apart.optimum) > 0
    start = theory.local_gd_bound(period=16, distance=1, variance=0, lr=1 / 64, **sizes)
    assert start.total == start.start >= measured(together, 16, 1 / 64, np.ones(1)) > 0
    noise = theory.local_gd_bound(period=1, distance=0, variance=1, lr=1 / 64, stochastic=True, **sizes)
    assert noise.total == noise.noise >= measured(together, 1, 1 / 64, np.zeros(1), noise=1.0) > 0


def test_the_floor_of_local_gd_goes_by_its_dissimilarity():
    """SPEC, localgd/periods: twice as different objectives, four times the floor; a longer period, a higher one."""
    a = np.array([[[0.1]], [[1.0]]])

    def floor(period, scale):
        objective = Quadratics(a, scale * np.array([[0.0], [1.0]]))
        return local_gd(objective, noisy(objective, 0.0), period, 4096, 0.02, objective.optimum)

    assert floor(16, 2.0) / floor(16, 1.0) == pytest.approx(4)
    assert floor(32, 1.0) > floor(16, 1.0) > floor(8, 1.0) > 0


def spectrum(rng, d, convexity, smoothness):
    """A random symmetric matrix with these least and largest eigenvalues."""
    basis, _ = np.linalg.qr(rng.normal(size=(d, d)))
    values = np.concatenate([[convexity, smoothness], rng.uniform(convexity, smoothness, d - 2)])
    return basis * values @ basis.T


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 10**6),
    condition=st.floats(1, 1000),
    step=st.floats(0.01, 1),
    pull=st.floats(0, 1),
    far=st.floats(0.01, 100),
    sigma=st.floats(0, 10),
    nu=st.floats(0, 3),
)
def test_theorem_1_of_leader_sgd_holds(seed, condition, step, pull, far, sigma, nu):
    """One step on a quadratic, whose expectation is exact, up to the largest learning rate and pull.

    All noise is where it does most: along the stiffest direction.
    """
    rng = np.random.default_rng(seed)
    A = spectrum(rng, 4, 1.0, condition)
    lr = step / (2 * condition * (nu + 1))
    strength = pull / (2 * condition * lr)
    x, z = rng.normal(size=4), far * rng.normal(size=4)
    after = x - lr * (A @ x + strength * (x - z))
    expected = after @ A @ after / 2 + lr**2 * (sigma**2 + nu * np.square(A @ x).sum()) * condition / 2
    excess, leader = x @ A @ x / 2, z @ A @ z / 2
    constants = {"lr": lr, "pull": strength, "smoothness": condition, "convexity": 1.0, "relative_noise": nu}
    bound = theory.leader_step_bound(excess, leader, noise=sigma**2, **constants)
    assert expected <= bound + 1e-12 * (1 + abs(bound) + excess)
    # The third condition in print follows from the others.
    assert lr * np.sqrt(strength) <= 1 / (condition * np.sqrt(2))
    # A worker that is better than its leader does not become worse than that (theorem 14).
    if leader >= excess:
        assert expected <= leader + lr**2 * condition * sigma**2 / 2 + 1e-9 * leader


def leader_sgd(A, sigma, lr, pull, workers, steps, loss_noise=0.0, seeds=200):
    """The excess loss of each worker at the end, averaged over seeds and the last half of the run."""
    rng = np.random.default_rng(0)
    d = len(A)
    X = rng.normal(size=(seeds, workers, d))
    excess = []
    for step in range(steps):
        losses = np.einsum("spi,ij,spj->sp", X, A, X) / 2
        if step >= steps // 2:
            excess.append(losses.mean(0))
        seen = losses + loss_noise * rng.normal(size=losses.shape)
        z = X[np.arange(seeds), seen.argmin(1)][:, None]
        X = X - lr * (X @ A + sigma / np.sqrt(d) * rng.normal(size=X.shape) + pull * (X - z))
    return np.mean(excess, axis=0)


@pytest.mark.parametrize(("condition", "floors"), [(1.0, (0.0393, 0.0558)), (10.0, (0.00435, 0.00478))])
def test_the_limits_of_leader_sgd_hold(condition, floors):
    A = spectrum(np.random.default_rng(1), 4, 1.0, condition)
    lr = 1 / (4 * condition)
    pull = 1 / (2 * condition * lr)
    constants = {"lr": lr, "smoothness": condition, "convexity": 1.0, "noise": 1.0}
    alone = leader_sgd(A, 1.0, lr, 0.0, 4, 400)
    pulled = leader_sgd(A, 1.0, lr, pull, 4, 400)
    misled = leader_sgd(A, 1.0, lr, pull, 4, 400, loss_noise=1.0)
    assert (pulled <= theory.leader_limit(pull=pull, **constants)).all()
    assert (misled <= theory.leader_limit(pull=pull, workers=4, loss_noise=1.0, **constants)).all()
    # What the docstring says of it.
    assert theory.leader_limit(pull=pull, **constants) == 0.125
    assert theory.leader_limit(pull=pull, workers=4, loss_noise=1.0, **constants) == 16.125
    assert (pulled.mean(), misled.mean()) == pytest.approx(floors, rel=0.03)
    # A good leader helps; a leader picked by noisy losses helps less.
    assert (pulled < 0.8 * alone).all()
    assert (misled > 1.05 * pulled).all()


def test_a_leader_picked_by_noisy_losses_is_missed_by_less_than_lemma_17_says():
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(50):
        workers = int(rng.integers(2, 17))
        true = rng.uniform(0, rng.uniform(0, 6), workers)
        seen = true + rng.normal(size=(4000, workers))
        missed = true[seen.argmin(1)].mean() - true.min()
        worst = max(worst, missed / (4 * np.sqrt(workers)))
    assert worst == pytest.approx(0.054, abs=0.005)


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10**6), convexity=st.floats(0.01, 10), pull=st.floats(0, 100))
def test_theorem_2_of_leader_sgd_holds(seed, convexity, pull):
    rng = np.random.default_rng(seed)
    A = spectrum(rng, 4, convexity, 10 * convexity)
    z = rng.normal(size=4)
    w = np.linalg.solve(A + pull * np.eye(4), pull * z)
    factor = theory.stale_leader_factor(pull, convexity)
    assert w @ A @ w <= factor * (z @ A @ z) * (1 + 1e-9)


def test_theorem_2_of_leader_sgd_holds_for_logistic_regression():
    for seed in range(5):
        objective = Logistic.random(1, seed=seed)
        rng = np.random.default_rng(seed)
        for pull in (0.01, 0.1, 1.0):
            z = objective.optimum + rng.normal(size=objective.d)
            w = z.copy()
            for _ in range(500):
                w = w - (objective.gradient(w) + pull * (w - z)) / (objective.smoothness + pull)
            least = objective.loss(objective.optimum)
            factor = theory.stale_leader_factor(pull, convexity=objective.penalty)
            assert objective.loss(w) - least <= factor * (objective.loss(z) - least)
