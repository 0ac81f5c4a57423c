"""Every method of the table is the equation in its paper."""

import numpy as np
import pytest
import torch

import tether
from methods_table import CASES, RING_ZETA, M, elastic_matrix, random_mixing_matrix
from problems import Point, Quadratics, quadratic
from reference import SGD, Adam, trajectory
from tether.data import Batches, Dataset
from tether.topology import zeta

D = 5
OPTIMIZERS = {
    "sgd": (lambda: SGD(0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (lambda: SGD(0.05, 0.9), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    "adam": (lambda: Adam(0.05), lambda p: torch.optim.Adam(p, lr=0.05)),
}
ORDERS = ["step-then-mix", "mix-then-step"]

every_method = pytest.mark.parametrize("case", CASES, ids=str)
every_linear_method = pytest.mark.parametrize("case", [case for case in CASES if case.matrix is not None], ids=str)


def start(seed=1):
    return np.random.default_rng(seed).normal(size=(M, D))


def run(method, problem, X, optimizer, **kwargs):
    return tether.simulate(
        Point(X.shape[1]),
        method,
        problem.data,
        workers=len(X),
        objective=quadratic,
        optimizer=optimizer,
        batch_size=None,
        start=torch.tensor(X),
        **kwargs,
    )


def still(method, X, rounds, losses=None):
    """Rounds with gradients switched off: losses that no parameter changes."""
    losses = torch.zeros(len(X), dtype=torch.float64) if losses is None else torch.tensor(losses)
    result = tether.simulate(
        Point(X.shape[1]),
        method,
        Dataset.from_workers([(loss[None],) for loss in losses]),
        workers=len(X),
        objective=lambda model, batch: batch[0].mean() + 0 * model.x.sum(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        batch_size=None,
        start=torch.tensor(X),
        steps=rounds * method.parts[0].period,
    )
    return result.rows.numpy()


@every_method
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("period", [1, 3, 4])
def test_equation(case, order, optimizer, period):
    if case.fixed_period:
        period = 1
    problem, X = Quadratics.random(M, D), start()
    ours, theirs = OPTIMIZERS[optimizer]
    expected = trajectory(case, problem, X, ours(), steps=13, period=period, order=order)
    result = run(case.make(period), problem, X, theirs, steps=13, order=order)
    np.testing.assert_allclose(result.rows.numpy(), expected, rtol=1e-11, atol=1e-12)
    assert np.abs(expected - X).max() > 0.1, "nothing moved: the comparison would prove nothing"


@every_method
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("overlap", [0, 1, 2, 3])
def test_overlap(case, order, overlap):
    period = 1 if case.fixed_period else 3
    problem, X = Quadratics.random(M, D), start()
    if overlap > period:
        with pytest.raises(ValueError, match="longer than the period"):
            run(case.make(period), problem, X, OPTIMIZERS["sgd"][1], steps=3, overlap=overlap)
        return
    expected = trajectory(case, problem, X, SGD(0.05, 0.9), steps=14, period=period, order=order, overlap=overlap)
    result = run(case.make(period), problem, X, OPTIMIZERS["momentum"][1], steps=14, order=order, overlap=overlap)
    np.testing.assert_allclose(result.rows.numpy(), expected, rtol=1e-11, atol=1e-12)


@every_linear_method
def test_mixing_matrix(case):
    """Without gradients a linear method's rounds are powers of its matrix."""
    X = start()
    stacked = np.vstack([X, np.tile(X.mean(0), (case.auxiliary, 1))])
    for rounds in (1, 2, 3):
        expected = (np.linalg.matrix_power(case.matrix, rounds) @ stacked)[:M]
        np.testing.assert_allclose(still(case.make(2), X, rounds), expected, rtol=1e-12, atol=1e-13)


@every_method
def test_direction(case):
    """Without gradients rows contract toward their target, and reach it."""
    X = start()
    losses = np.random.default_rng(2).normal(size=M)
    target = case.target(X, losses)
    before = np.linalg.norm(X - target, axis=1).max()
    for rounds in (4, 8, 16):
        after = np.linalg.norm(still(case.make(2), X, rounds, losses) - target, axis=1).max()
        assert after < 0.9 * before or after < 1e-12
        before = after
    far = still(case.make(2), X, 400, losses)
    np.testing.assert_allclose(far, np.tile(target, (M, 1)), atol=1e-9)


@every_linear_method
def test_contracts_at_the_rate_of_zeta(case):
    rate = zeta(case.matrix)
    X = start()
    distances = [np.linalg.norm(still(case.make(1), X, rounds) - X.mean(0)) for rounds in (24, 26)]
    if rate < 1e-9:
        assert max(distances) < 1e-12
    else:
        assert np.sqrt(distances[1] / distances[0]) == pytest.approx(rate, rel=0.02)


@every_method
@pytest.mark.parametrize("overlap", [0, 2])
def test_resumes_to_the_bit(case, overlap):
    """A `Rounds` saved at any step goes on as if it had not been."""
    if case.fixed_period and overlap > 1:
        overlap = 1
    rng = np.random.default_rng(3)
    moves, losses = torch.tensor(rng.normal(size=(20, M, D))), torch.tensor(rng.normal(size=(20, M, 1)))

    def drive(rounds, x, steps):
        for step in steps:
            x += moves[step]
            for part in rounds.advance(losses[step]):
                rounds.send(part, lr=0.1)

    def fresh(x):
        return tether.Rounds(case.make(3), tether.Stacked(M), x, overlap=overlap)

    x = torch.tensor(start())
    whole = fresh(x)
    drive(whole, x, range(20))
    for stop in range(1, 20):
        y = torch.tensor(start())
        first = fresh(y)
        drive(first, y, range(stop))
        saved = first.state_dict()
        resumed_x = y.clone()
        second = fresh(resumed_x)
        second.load_state_dict(saved)
        drive(second, resumed_x, range(stop, 20))
        assert torch.equal(resumed_x, x), f"saved after step {stop}"


@pytest.mark.parametrize(("period", "point"), [(1, 0.8), (5, 0.597895)])
def test_fixed_point_of_local_gd(period, point):
    """sum c_i b_i / sum c_i with c_i = 1 - (1 - lr a_i)^H (SPEC section 2), and the two numbers it gives there."""
    problem = Quadratics(np.array([[[1.0]], [[4.0]]]), np.array([[0.0], [1.0]]))
    result = run(
        tether.LocalSGD(period), problem, np.zeros((2, 1)), lambda p: torch.optim.SGD(p, lr=0.2), steps=100 * period
    )
    c = 1 - (1 - 0.2 * problem.A[:, 0, 0]) ** period
    assert result.rows[0].item() == pytest.approx((c @ problem.b[:, 0]) / c.sum(), abs=1e-12)
    assert result.rows[0].item() == pytest.approx(point, abs=1e-6)


class UncheckedEASGD(tether.EASGD):
    """EASGD that does not refuse an elasticity at which it diverges."""

    def init(self, x, workers):
        return {"anchor": workers.mean(x).wait()}


@pytest.mark.parametrize(("alpha", "grows"), [(0.99 * 2 / (M + 1), False), (1.01 * 2 / (M + 1), True)])
def test_easgd_is_stable_up_to_its_limit(alpha, grows):
    """A common shift of all workers against the anchor, which a gradient would cause, dies out or not."""
    X = start()
    stacked = torch.tensor(X)
    rounds = tether.Rounds(UncheckedEASGD(1, alpha), tether.Stacked(M), stacked)
    stacked += 1
    distances = []
    for _ in range(800):
        for part in rounds.advance(torch.zeros(M, 1, dtype=torch.float64)):
            rounds.send(part, lr=0.0)
        distances.append((stacked - rounds.states[0]["anchor"]).norm().item())
    assert (distances[-1] > 1e3) if grows else (distances[-1] < 1e-3)
    assert (zeta(elastic_matrix(alpha)) > 1) == grows


def test_sync_is_local_of_period_one_is_large_batch_sgd():
    """On real data, with momentum: one worker on the workers' batches put together."""
    data = tether.data.digits().to(torch.float64)
    torch.manual_seed(0)
    model = tether.models.mlp((1, 8, 8), 10, hidden=[16]).double()
    kwargs = {
        "objective": tether.models.cross_entropy,
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "steps": 30,
    }
    sync = tether.simulate(model, tether.SyncSGD(), data, workers=4, batch_size=8, **kwargs)
    local = tether.simulate(model, tether.LocalSGD(1), data, workers=4, batch_size=8, **kwargs)
    assert torch.equal(sync.rows, local.rows)

    batches = Batches(data.shards(4), 8)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    for step in range(30):
        samples = torch.from_numpy(batches.indices(range(4), step).ravel())
        optimizer.zero_grad()
        tether.models.cross_entropy(model, tuple(t[samples] for t in data.train)).backward()
        optimizer.step()
    large = torch.nn.utils.parameters_to_vector(parameters).detach()
    torch.testing.assert_close(sync.rows[2], large, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("general", "special"),
    [
        (tether.CooperativeSGD(3, np.ones((M, M)) / M), tether.LocalSGD(3)),
        (tether.CooperativeSGD(3, elastic_matrix(0.15), auxiliary=1), tether.EASGD(3, alpha=0.15)),
        (tether.HierarchicalElastic(3, groups=1, alpha=0.15), tether.EASGD(3, alpha=0.15)),
        (tether.DecentralizedSGD(3, "complete"), tether.LocalSGD(3)),
        (tether.FedAvg(3), tether.LocalSGD(3)),
        (tether.LSGD(3, pull=0.2, groups=1), tether.LSGD(3, pull=0.2)),
    ],
    ids=lambda method: type(method).__name__,
)
def test_one_method_is_a_case_of_another(general, special):
    problem, X = Quadratics.random(M, D), start()
    a, b = (run(method, problem, X, OPTIMIZERS["adam"][1], steps=20).rows for method in (general, special))
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("m", [2, 4, 8, 16])
@pytest.mark.parametrize("first", [0, 1])
def test_one_peer_exponential_is_the_exact_mean_over_log2_m_rounds(m, first):
    X = np.random.default_rng(0).normal(size=(m, D))
    hops = int(np.log2(m))
    method = tether.DecentralizedSGD(1, "one-peer-exponential")
    rows = still(method, X, hops * (first + 1))
    np.testing.assert_allclose(rows, np.tile(X.mean(0), (m, 1)), atol=1e-14)
    if hops > 1:
        assert np.abs(still(method, X, hops - 1) - X.mean(0)).max() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tether.LocalSGD(0), r"period=0.*at least 1|period=0.*>= 1"),
        (lambda: tether.LocalSGD(True), "period=True"),
        (lambda: tether.EASGD(4, alpha=0.1, beta=0.4), "give one"),
        (lambda: tether.DecentralizedSGD(4, "rnig"), "did you mean 'ring'"),
        (lambda: tether.LSGD(4, pull=2.0), "pull=2.*between 0 and 2"),
        (lambda: tether.LSGD(4, pull=0.0), "pull=0.*between 0 and 2"),
        (lambda: tether.LSGD(4, window=0), "window=0"),
        (lambda: tether.MultiLeaderLSGD(4, 0, groups=2), "global_period=0"),
        (lambda: tether.FedAvg(4, fraction=0.0), r"fraction=0.0.*\(0, 1\]"),
        (lambda: tether.FedAvg(4, weights=(1, 0)), "must be positive"),
        (lambda: tether.CooperativeSGD(4, [[0.5, 0.5], [0.4, 0.6]]), r"not symmetric: w\[0,1\] = 0.5"),
        (lambda: tether.CooperativeSGD(4, [[0.5, 0.4], [0.4, 0.6]]), "row 0 .* sums to 0.9"),
        (lambda: tether.CooperativeSGD(4, np.eye(3)), "eigenvalue of 1"),
        (lambda: tether.CooperativeSGD(4, [[-0.5, 1.5], [1.5, -0.5]]), "eigenvalue of -2"),
        (lambda: tether.CooperativeSGD(4, [[0.5, 0.5]]), "square"),
        (lambda: tether.CooperativeSGD(4, np.ones((2, 2)) / 2, auxiliary=-1), "auxiliary=-1"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (tether.EASGD(1, alpha=0.23), r"alpha=0.23.*0.222222.*alpha=0.2 mixes fastest"),
        (tether.EASGD(1, alpha=0.0), "alpha=0"),
        (tether.EASGD(1, beta=2.0), "alpha=0.25"),
        (tether.GeneralizedElastic(1, alpha=0.3), "alpha=0.3"),
        (tether.GeneralizedElastic(1, "one-peer-exponential"), "changes every round"),
        (tether.HierarchicalElastic(1, groups=3), "3 groups.*1, 2, 4, 8"),
        (tether.HierarchicalElastic(1, groups=2, alpha=0.223), "alpha=0.223.*0.222222"),
        (tether.LSGD(1, groups=5), "5 groups"),
        (tether.LSGD(1, pull=30.0, pull_scaled_by_lr=True), "pull=3"),
        (tether.MultiLeaderLSGD(1, 2, groups=3), "3 groups"),
        (tether.FedAvg(1, weights=(1.0, 2.0)), "2 weights for 8 workers"),
        (tether.CooperativeSGD(1, np.ones((4, 4)) / 4), "W is 4 x 4; 8 workers"),
        (tether.DecentralizedSGD(1, tether.topology.RandomRegular(degree=8)), "degree 8"),
    ],
    ids=str,
)
def test_refuses_these_workers(method, message):
    with pytest.raises(ValueError, match=message):
        run(method, Quadratics.random(M, D), start(), OPTIMIZERS["sgd"][1], steps=1)


@pytest.mark.parametrize("method", [tether.EASGD(3, alpha=0.221), tether.HierarchicalElastic(3, 2, alpha=0.221)])
def test_accepts_just_below_the_limit(method):
    run(method, Quadratics.random(M, D), start(), OPTIMIZERS["sgd"][1], steps=3)


def test_default_elasticity_of_generalized_elastic_reaches_the_zeta_of_the_paper():
    """SPEC section 2: 8-ring, zeta 0.804738 -> 0.656611."""
    assert tether.topology.Ring().zeta(8) == pytest.approx(0.804738, abs=1e-6)
    assert pytest.approx(0.804738, abs=1e-6) == RING_ZETA
    (case,) = [case for case in CASES if case.name == "generalized-elastic"]
    assert zeta(case.matrix) == pytest.approx(0.656611, abs=1e-6)


def test_hierarchical_limit_is_where_an_eigenvalue_passes_minus_one():
    from methods_table import HIERARCHICAL_LIMIT, hierarchical_matrix

    assert np.linalg.eigvalsh(hierarchical_matrix(2, HIERARCHICAL_LIMIT)).min() == pytest.approx(-1)
    assert zeta(hierarchical_matrix(2, 0.999 * HIERARCHICAL_LIMIT)) < 1


def test_multi_leader_pulls_locally_first_and_names_both_leaders():
    problem, X = Quadratics.random(M, D), start()
    method = tether.MultiLeaderLSGD(2, 4, groups=2)
    history = run(method, problem, X, OPTIMIZERS["sgd"][1], steps=4).history
    assert [record.step for record in history] == [2, 4, 4]
    assert [isinstance(record.leader, tuple) for record in history] == [True, True, False]


def test_fedavg_weighs_by_the_samples_that_workers_hold():
    rng = np.random.default_rng(0)
    counts = [1, 2, 3, 6]
    shards = [(torch.tensor(rng.normal(size=(n, 1, 1))) ** 2, torch.tensor(rng.normal(size=(n, 1)))) for n in counts]
    data = tether.data.Dataset.from_workers(shards)
    X = rng.normal(size=(4, 1))
    result = tether.simulate(
        Point(1),
        tether.FedAvg(1),
        data,
        workers=4,
        objective=quadratic,
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-300),
        steps=1,
        batch_size=None,
        start=torch.tensor(X),
    )
    np.testing.assert_allclose(result.rows.numpy(), np.average(X, axis=0, weights=counts)[None].repeat(4, 0))


@pytest.mark.parametrize("size", [3, 10])
def test_random_mixing_matrices_of_these_tests_are_what_they_say(size):
    W = random_mixing_matrix(size)
    tether.topology.check_mixing_matrix(W)
    assert 0 < zeta(W) < 0.9
