"""What `tether.theory` computes: the papers' numbers, equations, conditions, and what runs do exactly as it says."""

import inspect
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tether
from methods_table import RING, elastic_matrix, generalized_matrix
from problems import Point, Quadratics, quadratic
from tether import theory

COOPERATIVE = {"period": 10, "zeta": 0.5, "workers": 8, "steps": 10_000, "smoothness": 2.0, "noise": 3.0, "gap": 5.0}


@pytest.mark.parametrize("name", theory.__all__)
def test_there_are_examples(name):
    """They are run by `test_docs`."""
    described = inspect.unwrap(getattr(theory, name))
    assert ">>> " in inspect.getdoc(described) or inspect.isclass(described)


# Mixing


@pytest.mark.parametrize("m", [1, 2, 5, 8, 100])
def test_best_elasticity_of_easgd(m):
    best = theory.best_elasticity(m)
    assert best == pytest.approx(2 / (m + 2))
    assert theory.elastic_zeta(best, m) == pytest.approx(m / (m + 2))
    assert all(theory.elastic_zeta(best + d, m) > m / (m + 2) for d in (-1e-4, 1e-4))
    assert theory.elastic_zeta(theory.elastic_limit(m), m) == pytest.approx(1)


@settings(deadline=None, max_examples=100)
@given(m=st.integers(1, 50), zeta=st.floats(0, 1), alpha=st.floats(-0.5, 1.5))
def test_no_elasticity_mixes_faster_than_the_best(m, zeta, alpha):
    best = theory.best_elasticity(m, zeta)
    assert theory.elastic_zeta(best, m, zeta) == pytest.approx(m * zeta / (m + 1 + zeta))
    assert theory.elastic_zeta(best, m, zeta) <= theory.elastic_zeta(alpha, m, zeta) + 1e-12
    assert best <= theory.elastic_limit(m) * (1 + 1e-12)


@pytest.mark.parametrize("alpha", [0.05, 0.1125, 0.2, 0.23])
def test_elastic_zeta_is_that_of_the_matrix(alpha):
    assert theory.elastic_zeta(alpha, 8) == pytest.approx(theory.zeta(elastic_matrix(alpha)))
    ring = theory.zeta(RING)
    assert ring == pytest.approx(0.804738, abs=1e-6)
    assert theory.elastic_zeta(alpha, 8, ring) == pytest.approx(theory.zeta(generalized_matrix(alpha)))


def test_methods_take_the_same_elasticities():
    assert tether.EASGD(1).elasticity(8) == theory.best_elasticity(8)
    workers = tether.Stacked(8)
    state = tether.GeneralizedElastic(1).init(torch.zeros(8, 1, dtype=torch.float64), workers)
    assert state["alpha"].item() == pytest.approx(theory.best_elasticity(8, theory.zeta(RING)), abs=1e-14)
    assert tether.topology.zeta is theory.zeta
    assert tether.topology.check_mixing_matrix is theory.check_mixing_matrix


# Cooperative SGD


def test_eq_17_and_20():
    lr, L, s2, K, m, tau, z, v = 0.005, 2.0, 3.0, 10_000, 8, 10, 0.5, 2
    eff = m / (m + v) * lr
    sync = 2 * 5 / (eff * K) + eff * L * s2 / m
    network = eff**2 * L**2 * s2 * ((1 + z**2) / (1 - z**2) * tau - 1) * (1 + v / m) ** 2
    C = 6 * lr**2 * L**2 * tau**2 / (1 - z) * (2 * z**2 / (1 + z) + 2 * z / (1 - z) + (tau - 1) / tau)
    same = theory.cooperative_bound(**COOPERATIVE, lr=lr, auxiliary=v)
    assert (same.sync, same.network, same.dissimilarity) == pytest.approx((sync, network, 0))
    assert same.total == pytest.approx(sync + network)
    different = theory.cooperative_bound(**COOPERATIVE, lr=lr, auxiliary=v, dissimilarity=7.0)
    assert (different.sync, different.network) == pytest.approx((2 * sync, 2 * network))
    assert different.dissimilarity == pytest.approx(C * 7)
    assert C <= 0.5


def test_corollaries_are_special_cases():
    m, K, L, s2, gap = 4, 40_000, 2.0, 3.0, 5.0
    sizes = {"workers": m, "steps": K, "smoothness": L, "noise": s2, "gap": gap}
    sync = (2 * L * gap + s2) / math.sqrt(m * K)
    for tau, zeta, v in ((4, 0.0, 0), (1, 0.6, 0), (4, 0.6, 1)):
        network = m / K * (1 + v / m) ** 2 * ((1 + zeta**2) / (1 - zeta**2) * tau - 1) * s2
        bound = theory.cooperative_bound(period=tau, zeta=zeta, auxiliary=v, **sizes)
        assert (bound.sync, bound.network) == pytest.approx((sync, network))  # eq. 18
    psasgd = theory.cooperative_bound(period=4, zeta=0, **sizes)
    assert psasgd.network == pytest.approx(m * 3 * s2 / K)  # eq. 25
    dpsgd = theory.cooperative_bound(period=1, zeta=0.6, **sizes)
    assert dpsgd.network == pytest.approx(m * s2 / K * 2 * 0.36 / 0.64)  # eq. 28


@pytest.mark.parametrize("m", [1, 4, 8])
@pytest.mark.parametrize("tau", [1, 10])
def test_eq_23_with_its_exact_constant(m, tau):
    lr, eff = 1e-3, m / (m + 1) * 1e-3
    bound = theory.cooperative_bound(
        period=tau, zeta=m / (m + 2), workers=m, steps=1000, smoothness=1, noise=1, gap=0, lr=lr, auxiliary=1
    )
    exact, printed = (
        0.5 * eff**2 * (m + 1) * (1 + C * (tau - 1)) for C in (1 + 2 * (m + 1) / m**2, 1 + 2 * (1 + 1 / m) ** 2)
    )
    assert bound.network == pytest.approx(exact)
    assert exact < printed or tau == 1


@settings(deadline=None, max_examples=200)
@given(
    period=st.integers(1, 50),
    zeta=st.floats(0, 0.99),
    workers=st.integers(1, 64),
    auxiliary=st.integers(0, 3),
    smoothness=st.floats(0.01, 100),
    iid=st.booleans(),
)
def test_the_largest_learning_rate_and_period_are_the_largest(period, zeta, workers, auxiliary, smoothness, iid):
    where = {"zeta": zeta, "workers": workers, "auxiliary": auxiliary, "smoothness": smoothness}
    largest = theory.largest_learning_rate(period=period, iid=iid, **where)
    share, e = workers / (workers + auxiliary), largest * smoothness
    C1 = 2 * zeta**2 / (1 + zeta) + 2 * zeta / (1 - zeta) + (period - 1) / period
    drift = e**2 * period**2 / (1 - zeta) * C1
    if iid:
        assert share * e + drift == pytest.approx(1)  # eq. 145
        # Whatever eq. 16 allows is allowed.
        fraction = (-share + math.sqrt(share**2 + 20 * (period / (1 - zeta)) ** 2)) / (10 * (period / (1 - zeta)) ** 2)
        assert fraction <= e * (1 + 1e-9)
    else:
        assert max(share * e, 12 * drift) == pytest.approx(1)  # theorem 2
    numbers = {"steps": 50 * period, "noise": 1, "gap": 1, "dissimilarity": 0.0 if iid else 1.0}
    theory.cooperative_bound(period=period, lr=largest, **where, **numbers)
    with pytest.raises(ValueError, match=re.escape(f"lr <= {largest:.6g}")) as refused:
        theory.cooperative_bound(period=period, lr=1.3 * largest, **where, **numbers)
    said = str(refused.value)
    if "no period" in said:
        assert theory.largest_learning_rate(period=1, iid=iid, **where) < 1.3 * largest
    else:
        shorter = int(said.rsplit(" ", 1)[1].rstrip("."))
        assert shorter < period
        assert theory.largest_learning_rate(period=shorter, iid=iid, **where) >= 1.3 * largest * (1 - 1e-6)
        assert theory.largest_learning_rate(period=shorter + 1, iid=iid, **where) < 1.3 * largest


def test_conditions_of_corollaries_2_and_3():
    for tau in (1, 2, 10):
        e = theory.largest_learning_rate(period=tau, zeta=0, workers=8, smoothness=1)
        assert e + e**2 * tau * (tau - 1) == pytest.approx(1)
    for z in (0.1, 0.8):
        e = theory.largest_learning_rate(period=1, zeta=z, workers=8, smoothness=1)
        assert e + e**2 * 2 * z / (1 - z) * (z / (1 + z) + 1 / (1 - z)) == pytest.approx(1)


def test_zeta_threshold_makes_network_terms_equal():
    assert theory.zeta_threshold(2) == pytest.approx(0.57735, abs=1e-5)
    assert theory.zeta_threshold(10) == pytest.approx(0.90453, abs=1e-5)
    for period in (1, 2, 10, 100):
        zeta = theory.zeta_threshold(period)
        assert theory.network_error(1, zeta) == pytest.approx(theory.network_error(period, 0))


def test_network_error_over_a_grid():
    tau, zeta = np.meshgrid(np.arange(1.0, 5), np.linspace(0, 0.9, 4))
    surface = theory.network_error(tau, zeta)
    assert surface[0, 0] == 0
    np.testing.assert_allclose(np.diff(surface, n=2, axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(surface + 1, (1 + zeta**2) / (1 - zeta**2) * tau)


@settings(deadline=None, max_examples=200)
@given(workers=st.integers(1, 50), steps=st.integers(1, 10**9))
def test_largest_period_is_the_largest(workers, steps):
    if steps < workers**3:
        with pytest.raises(ValueError, match=f"below {workers**3} steps"):
            theory.largest_period(steps, workers)
        return
    for iid, power in ((True, 2), (False, 4)):
        period = theory.largest_period(steps, workers, iid)
        assert workers**3 * period**power <= steps < workers**3 * (period + 1) ** power
    # Of local gradient descent, rounds: Omega(T^(3/4) M^(3/4)).
    assert steps / period >= (steps * workers) ** 0.75 * (1 - 1e-9)


# Local gradient descent


def test_the_slides_bounds():
    M, T, H, L, far, s2 = 4, 10_000, 5, 2.0, 3.0, 7.0
    sizes = {"period": H, "workers": M, "steps": T, "smoothness": L, "distance": far, "variance": s2}
    assert theory.local_gd_learning_rate(steps=T, workers=M, smoothness=L) == math.sqrt(M) / (4 * L * math.sqrt(T))
    full = theory.local_gd_bound(**sizes)
    assert full.start == pytest.approx(8 * L * far / math.sqrt(M * T))
    assert full.drift == pytest.approx(3 * M * s2 * H**2 / (2 * L * T))
    assert full.total == full.start + full.drift
    stochastic = theory.local_gd_bound(**sizes, stochastic=True)
    assert stochastic.start == pytest.approx(32 * L * far / math.sqrt(M * T))
    assert stochastic.noise == pytest.approx(5 * s2 / (2 * L * math.sqrt(M * T)))
    assert stochastic.drift == pytest.approx(s2 * M * (H - 1) ** 2 / (4 * L * T))


@pytest.mark.parametrize("stochastic", [False, True])
def test_the_slides_condition_is_on_the_period(stochastic):
    """H <= sqrt(T/M) at the slides' learning rate."""
    sizes = {"workers": 4, "steps": 10_000, "smoothness": 3.0, "distance": 1, "variance": 1, "stochastic": stochastic}
    theory.local_gd_bound(period=50, **sizes)
    with pytest.raises(ValueError, match=r"the period may be 50$"):
        theory.local_gd_bound(period=51, **sizes)
    with pytest.raises(ValueError, match="no period is short enough"):
        theory.local_gd_bound(period=51, lr=1.0, **sizes)


@pytest.mark.parametrize("period", [1, 5])
def test_the_simulator_finds_the_fixed_point_of_local_gd(period):
    problem = Quadratics(np.array([[[1.0]], [[4.0]]]), np.array([[0.0], [1.0]]))
    result = tether.simulate(
        Point(1),
        tether.LocalSGD(period),
        problem.data,
        workers=2,
        objective=quadratic,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.2),
        steps=40 * period,
        batch_size=None,
    )
    expected = {1: 0.8, 5: 0.597895}[period]
    assert result.rows[0].item() == pytest.approx(expected, abs=1e-6)
    assert theory.local_gd_fixed_point([1, 4], [0, 1], 0.2, period) == pytest.approx(result.rows[0].item(), abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10**6), m=st.integers(1, 6), period=st.integers(1, 8), share=st.floats(0.01, 0.95))
def test_the_fixed_point_of_local_gd_stays(seed, m, period, share):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0, 3, m), rng.normal(size=m)
    with pytest.raises(ValueError, match="converge only for lr < ") as refused:
        theory.local_gd_fixed_point(a, b, 1e6, period)
    limit = float(str(refused.value).rsplit(" ", 1)[1])
    lr = share * limit
    x = fixed = theory.local_gd_fixed_point(a, b, lr, period)
    for _ in range(period):
        x = x - lr * a * (x - b)
    assert np.mean(x) == pytest.approx(fixed, abs=1e-6 * (1 + abs(fixed)) * np.abs(x).max())
    with pytest.raises(ValueError, match="converge only"):
        theory.local_gd_fixed_point(a, b, 1.01 * limit, period)


def test_what_the_slides_bounds_are_made_of():
    rng = np.random.default_rng(0)
    X, gradients = rng.normal(size=(4, 3)), rng.normal(size=(4, 50, 3))
    assert theory.consensus_distance(X) == pytest.approx(np.square(X - X.mean(0)).sum() / 4)
    assert theory.consensus_distance(torch.tensor(X)) == theory.consensus_distance(X)
    full = gradients.mean(1)
    assert theory.sigma_f_squared(full) == pytest.approx(np.square(full).sum() / 4)
    noise = np.square(gradients - full[:, None]).sum(-1).mean()
    assert theory.sigma_dif_squared(torch.tensor(gradients)) == pytest.approx(theory.sigma_f_squared(full) + noise)


def test_bregman_divergence():
    rng = np.random.default_rng(0)
    A, (x, y) = torch.tensor(Quadratics.random(1, 4).A[0]), torch.tensor(rng.normal(size=(2, 4)))
    apart = x - y
    square = theory.bregman_divergence(lambda x: x @ A @ x / 2, x, y)
    assert square.item() == pytest.approx((apart @ A @ apart / 2).item())
    convex = theory.bregman_divergence(lambda x: torch.logsumexp(x, 0), x, y)
    assert 0 < convex.item() <= (apart @ apart).item() / 2


# Leader SGD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.2}, "lr=0.2.* lr <= 0.125"),
        ({"lr": 0.1, "relative_noise": 1.0}, "lr=0.1.* lr <= 0.0625"),
        ({"pull": 2.0}, r"pull=2.*\(or lr <= 0.0625\) needs pull <= 1.25"),
        ({"convexity": 5.0}, "convexity=5.* convexity <= 4"),
    ],
)
def test_leader_conditions_name_what_would_satisfy_them(change, message):
    fine = {"lr": 0.1, "pull": 0.5, "smoothness": 4.0, "convexity": 1.0, "noise": 1.0}
    for function in (theory.leader_limit, lambda **given: theory.leader_step_bound(1.0, 0.5, **given)):
        function(**fine)
        with pytest.raises(ValueError, match=message):
            function(**fine | change)
    theory.leader_limit(**fine | {"pull": 1.25})


def test_leader_limit():
    fine = {"lr": 0.1, "pull": 0.5, "smoothness": 4.0, "convexity": 2.0}
    assert theory.leader_limit(**fine, noise=3.0) == pytest.approx(0.5 * 0.1 * 2 * 3)
    assert theory.leader_limit(**fine, noise=3.0, workers=9, loss_noise=0.1) == pytest.approx(0.3 + 2 * 0.5 * 3 * 0.1)


def test_proposition_8_polynomial():
    """Degree 6 cannot, with the signs in print or with the right ones; degree 7 can, and joins smoothly."""
    conditions = {"printed": [1, -1, 1, -1, 1, -1, 1], "right": [1, -1, 1, 1, 1, 1, 1]}
    for degree, solvable in ((6, False), (7, True)):
        powers = [np.poly1d([1] + [0] * n) for n in range(degree + 1)]
        rows = [[p.deriv(k)(at) for p in powers] for at in (1, -1) for k in (0, 1, 2)] + [
            [p.deriv()(0) for p in powers]
        ]
        for wanted in conditions.values():
            found = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0]
            assert np.allclose(np.array(rows) @ found, wanted) == solvable
    # Both sides of where the pieces meet: values and two derivatives.
    for at in (-1.0, 1.0):
        for near in (at * (1 - 1e-9), at * (1 + 1e-9)):
            x = torch.tensor(near, dtype=torch.float64, requires_grad=True)
            first = torch.autograd.grad(theory.hill(x), x, create_graph=True)[0]
            second = torch.autograd.grad(first, x)[0]
            assert (theory.hill(x).item(), first.item(), second.item()) == pytest.approx((1, -at, 1), abs=1e-7)


def slope(x):
    x = torch.as_tensor(x, dtype=torch.float64).clone().requires_grad_()
    return torch.autograd.grad(theory.hill(x).sum(), x)[0]


@pytest.mark.parametrize(("pull", "y"), [(1, 1.0), (0.5, 1.374823), (0.1, 2.419163)])
def test_proposition_8(pull, y):
    """Elastic averaging's objective has a strict minimum at (-y, y, 0), and f is stationary at none of the three."""
    found = theory.elastic_stationary_point(pull)
    assert found == pytest.approx(y, abs=1e-6)

    def objective(point):
        x, z = point[:2], point[2]
        return (theory.hill(x) + pull / 2 * (x - z) ** 2).sum()

    point = torch.tensor([-found * (1 + 1e-12), found * (1 + 1e-12), 0.0], dtype=torch.float64)
    assert torch.func.grad(objective)(point).abs().max() < 1e-9
    assert (torch.linalg.eigvalsh(torch.autograd.functional.hessian(objective, point)) > 0).all()
    assert (slope(point).abs() >= pull * found - 1e-9).all()


def run_on_the_hill(method, start, steps, lr):
    """Where two workers end."""
    result = tether.simulate(
        Point(1),
        method,
        workers=2,
        objective=lambda model, batch: theory.hill(model.x).sum(),
        optimizer=lambda p: torch.optim.SGD(p, lr=lr),
        steps=steps,
        start=torch.tensor(start, dtype=torch.float64)[:, None],
        order="mix-then-step",
        stepping="rows",
    )
    return result.rows.detach().flatten()


def test_elastic_averaging_is_caught_where_leader_sgd_is_not():
    """Proposition 8 and theorem 4, in the simulator: from near the point, each with the same pull."""
    pull, lr = 0.5, 0.25
    y = theory.elastic_stationary_point(pull)
    start = [-y - 0.2, y + 0.3]
    caught = run_on_the_hill(tether.EASGD(1, alpha=pull * lr), start, 500, lr)
    spread = (caught[1] - caught[0]).item() / 2
    middle = (caught[1] + caught[0]).item() / 2
    assert abs(slope(caught)).min() > 0.5
    # Held by an anchor between them, each at the slope that the pull makes up for.
    assert slope(caught).numpy() == pytest.approx(-pull * (caught.numpy() - middle), abs=1e-4)
    assert spread == pytest.approx(y, abs=0.3)
    leader = run_on_the_hill(tether.LSGD(1, pull=pull, pull_scaled_by_lr=True), start, 500, lr)
    assert abs(slope(leader)).min() < 0.02


@pytest.mark.parametrize("start", [(-3.0, 2.0), (-1.5, 2.5), (0.3, -2.0), (0.9, 1.1)])
def test_theorem_4_a_leader_moves_wherever_f_has_a_slope(start):
    """In the simulator: its own pull is 0, so only where grad f is 0 can it stand still."""
    lr, before = 0.25, torch.tensor(start, dtype=torch.float64)
    leader = theory.hill(before).argmin()
    after = run_on_the_hill(tether.LSGD(1, pull=0.5, pull_scaled_by_lr=True), list(start), 1, lr)
    assert (after - before)[leader].item() == pytest.approx(-lr * slope(before)[leader].item(), abs=1e-14)
    assert abs((after - before)[leader]) > 0.01


def test_theorem_4_is_of_the_leaders_step_not_of_the_objective():
    """With the leader as a function of the workers (eq. 4) there are such points; its step does not stop there."""
    first = torch.tensor(-2.0, dtype=torch.float64)
    low, high = 0.3, 0.7  # on the hill's far side, where it grows steeper
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope([middle]) > -slope(first[None]) else (low, middle)
    pair = torch.stack([first, torch.tensor(middle, dtype=torch.float64)])
    pull = (slope(first[None]) / (pair[1] - pair[0])).item()
    assert 0 < pull <= 1
    assert theory.hill(pair).argmin() == 0

    def objective(pair):
        values = theory.hill(pair)
        return (values + pull / 2 * (pair - pair[values.argmin()]) ** 2).sum()

    assert torch.func.grad(objective)(pair).abs().max() < 1e-12
    assert (slope(pair).abs() > 0.3).all()
    moved = run_on_the_hill(tether.LSGD(1, pull=pull, pull_scaled_by_lr=True), pair.tolist(), 1, lr=0.25) - pair
    assert moved[0].item() == pytest.approx(-0.25 * slope(pair)[0].item())


def in_plane(A, r):
    """x with cos(angle) = r/sqrt(kappa), between lemma 26's direction and the last eigenvector."""
    values, vectors = np.linalg.eigh(A)
    low, high = math.atan(math.sqrt(values[0] / values[-1])), math.pi / 2
    for _ in range(100):
        angle = (low + high) / 2
        x = math.cos(angle) * vectors[:, 0] + math.sin(angle) * vectors[:, -1]
        cosine = x @ A @ x / np.linalg.norm(A @ x)
        low, high = (angle, high) if cosine < r / math.sqrt(values[-1] / values[0]) else (low, angle)
    return x


@pytest.mark.parametrize("seed", range(6))
def test_theorem_6(seed):
    """As the pull goes to 0 at least half of the leaders improve the direction; fewer and fewer as it grows."""
    rng = np.random.default_rng(seed)
    A = Quadratics.random(1, int(rng.integers(2, 6)), seed).A[0]
    x = rng.normal(size=len(A))
    shares = [theory.angle_improvement(A, x, pull, samples=4000) for pull in (0, 1e-6, 0.1, 1.0, 10.0)]
    assert shares[0] == 1
    assert shares[1] >= 0.5 - 2 / math.sqrt(4000)
    assert (np.diff(shares) <= 0).all()


@pytest.mark.parametrize("condition", [150.0, 1e4])
def test_theorem_7(condition):
    """In its range of directions half of the leaders improve them, whatever the pull."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    A = basis * np.array([1.0, 3.0, 20.0, condition]) @ basis.T
    for r in (2.0001, theory.largest_cosine_ratio(condition)):
        x = in_plane(A, r)
        for pull in (0.01, 1.0, 100.0, 1e6):
            assert theory.angle_improvement(A, x, pull, samples=4000) >= 0.5 - 2 / math.sqrt(4000)


def test_theorem_7_speaks_of_steep_valleys_only():
    r = theory.largest_cosine_ratio(1e4)
    assert r / 100 + r**1.5 / 10 == pytest.approx(1)
    assert theory.largest_cosine_ratio(136) == pytest.approx(2, abs=1e-3)
    with pytest.raises(ValueError, match=r"below 135\.9"):
        theory.largest_cosine_ratio(100)
    # Outside its range a strong pull can spoil the direction for more than half of the leaders.
    A = np.diag([1.0, 2.0])
    assert theory.angle_improvement(A, np.array([1.0, 0.3]), 1e6) < 0.5


# Second order


def local_steps(A, x, lr, steps):
    for _ in range(steps):
        x = x - lr * A @ x
    return x


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10**6), steps=st.integers(0, 300), share=st.floats(0.001, 1))
def test_newton_update_is_what_local_steps_do(seed, steps, share):
    """On quadratics with eigenvalues of both signs and 0."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    H = basis * np.array([0.0, -0.02, 1e-10, 0.5, 3.0]) @ basis.T
    H, x = (H + H.T) / 2, rng.normal(size=5)
    update = theory.newton_update(H, H @ x, share / 3.0000001, steps)
    np.testing.assert_allclose(x - update, local_steps(H, x, share / 3.0000001, steps), rtol=1e-8, atol=1e-8)
    kept = theory.newton_update(torch.tensor(H), torch.tensor(H @ x), share / 3.0000001, steps)
    np.testing.assert_array_equal(kept.numpy(), update)


def test_newton_update_approaches_newtons_step():
    H, x = Quadratics.random(1, 4).A[0], np.ones(4)
    lr = 1 / np.linalg.eigvalsh(H)[-1]
    np.testing.assert_allclose(theory.newton_update(H, H @ x, lr, 10**5), x, rtol=1e-9)  # eq. 21
    with pytest.raises(ValueError, match=f"lr <= {lr:.6g}"):
        theory.newton_update(H, H @ x, 1.1 * lr, 10)


def test_eq_17_is_exact_on_any_function():
    rng = np.random.default_rng(0)
    points, x, lr, steps = rng.normal(size=(20, 3)), rng.normal(size=3), 0.3, 25

    def gradient(x):
        return -points.T @ (1 / (1 + np.exp(points @ x))) / 20

    weight = 1 / (1 + np.exp(points @ x))
    H, g = points.T * (weight * (1 - weight)) @ points / 20, gradient(x)
    now, residues = x.copy(), []
    for _ in range(steps):
        residues.append(gradient(now) - g - H @ (now - x))  # eq. 11
        now = now - lr * gradient(now)
    update = theory.newton_update(H, g, lr, steps, residues=np.array(residues))
    np.testing.assert_allclose(x - now, update, rtol=1e-10)
    assert np.linalg.norm(x - now - theory.newton_update(H, g, lr, steps)) > 0.01
    with pytest.raises(ValueError, match="3 residues for 25"):
        theory.newton_update(H, g, lr, steps, residues=np.zeros((3, 3)))


def test_energies_of_update_and_descent():
    """Eq. 28, 29 and 32 add up to the update and to what it changes the loss by."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    values = np.array([-0.1, 0.0, 0.2, 1.0, 4.0])
    H, g, lr, K = basis * values @ basis.T, rng.normal(size=5), 0.2, 30
    H = (H + H.T) / 2
    update = theory.newton_update(H, g, lr, K)
    energy = theory.eigen_energy(basis, g)
    gained = theory.update_gain(values, lr, K)
    np.testing.assert_allclose(theory.eigen_energy(basis, update), gained**2 * energy, rtol=1e-9)
    descent = theory.descent_energy(values, energy, lr, K)
    assert descent.sum() == pytest.approx(-update @ g + update @ H @ update / 2)
    assert descent[1] == pytest.approx(-K * lr * energy[1])
    # Towards 0 from both sides, where the quotient itself loses all digits.
    near = theory.descent_energy(np.array([-1e-14, 0.0, 1e-14]), np.ones(3), lr, K)
    np.testing.assert_allclose(near, -K * lr, rtol=1e-10)
    # Of a long round the energy is on small eigenvalues, divided by lambda^2.
    long = theory.update_gain(values[2:], lr, 10**4) ** 2
    np.testing.assert_allclose(long, 1 / values[2:] ** 2)


@pytest.mark.parametrize("steps", [5, 40])
def test_a_round_of_the_simulator_is_newton_update(steps):
    problem = Quadratics.random(1, 4)
    (A,), (b,) = problem.A, problem.b
    lr = 0.9 / np.linalg.eigvalsh(A)[-1]
    result = tether.simulate(
        Point(4),
        tether.LocalSGD(steps),
        problem.data,
        workers=1,
        objective=quadratic,
        optimizer=lambda p: torch.optim.SGD(p, lr=lr),
        steps=steps,
        batch_size=None,
    )
    np.testing.assert_allclose(-result.rows[0].numpy(), theory.newton_update(A, -A @ b, lr, steps), rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.best_elasticity(0), "workers=0"),
        (lambda: theory.best_elasticity(4, 1.5), "zeta=1.5"),
        (lambda: theory.cooperative_bound(**COOPERATIVE | {"zeta": 1.07}), r"zeta=1.07.*\[0, 1\)"),
        (lambda: theory.cooperative_bound(**COOPERATIVE | {"steps": 10_001}), "steps=10001.*multiple of period=10"),
        (lambda: theory.cooperative_bound(**COOPERATIVE | {"steps": 100}), "a smaller lr, or more steps"),
        (lambda: theory.cooperative_bound(**COOPERATIVE | {"noise": -1.0}), "noise=-1"),
        (lambda: theory.cooperative_bound(**COOPERATIVE | {"smoothness": 0.0}), "smoothness=0"),
        (lambda: theory.cooperative_bound(**COOPERATIVE | {"lr": math.nan}), "lr=nan"),
        (lambda: theory.zeta_threshold(0), "period=0"),
        (lambda: theory.local_gd_fixed_point([1, -1], [0, 1], 0.1, 1), "curvatures are at least 0"),
        (lambda: theory.local_gd_fixed_point([1, 1], [0], 0.1, 1), "one number a worker"),
        (lambda: theory.elastic_stationary_point(1.5), "pull=1.5"),
        (lambda: theory.angle_improvement(np.diag([1.0, -1.0]), np.ones(2), 0.1), "eigenvalue of -1"),
        (lambda: theory.angle_improvement(np.array([[1.0, 1], [0, 1]]), np.ones(2), 0.1), "not symmetric"),
        (lambda: theory.angle_improvement(np.eye(2), np.zeros(2), 0.1), "x is 0"),
        (lambda: theory.newton_update(np.array([[1.0, 1], [0, 1]]), np.ones(2), 0.1, 1), "not symmetric"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
