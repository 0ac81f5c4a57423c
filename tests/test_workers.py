"""How rows reach each other, and what that costs on a network."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tether
from methods_table import CASES, M, random_mixing_matrix
from tether.workers import land
from typechecker import unchecked

ROW = 100 * 8  # bytes of a row of 100 parameters in float64


def rows(m=M, d=100):
    return torch.tensor(np.random.default_rng(0).normal(size=(m, d)))


def test_message_is_a_copy():
    x = rows()
    before = x.clone()
    stacked = tether.Stacked(M)
    messages = [stacked.mean(x), stacked.mix(x, torch.eye(M, dtype=torch.float64)), stacked.best(x, torch.arange(8.0))]
    x.zero_()
    assert all(message.done() for message in messages[:2])
    torch.testing.assert_close(messages[0].wait(), before.mean(0, keepdim=True))
    assert torch.equal(messages[1].wait(), before)
    assert torch.equal(land(messages[2])["row"], before[:1])


def test_weighted_means_within_groups():
    x, weights = rows(), torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]).double()
    mean = tether.Stacked(M).mean(x, weights=weights, within=2).wait()
    first, second = (np.average(x[g], axis=0, weights=weights[g]) for g in (slice(0, 4), slice(4, 8)))
    np.testing.assert_allclose(mean, np.stack([first] * 4 + [second] * 4))


def test_best_takes_the_first_of_equals_and_groups_have_their_own():
    x, loss = rows(), torch.tensor([3.0, 1, 1, 2, 9, 8, 7, 7])
    stacked = tether.Stacked(M)
    assert land(stacked.best(x, loss))["worker"].tolist() == [1]
    grouped = land(stacked.best(x, loss, within=2))
    assert grouped["worker"].tolist() == [1, 6]
    assert torch.equal(grouped["row"], x[[1, 1, 1, 1, 6, 6, 6, 6]])


def test_an_excluded_worker_has_no_part():
    x = rows()
    x[2] = torch.nan
    stacked = tether.Stacked(M)
    stacked.exclude(2)
    others = [0, 1, 3, 4, 5, 6, 7]
    torch.testing.assert_close(stacked.mean(x).wait()[0], x[others].mean(0))
    torch.testing.assert_close(stacked.mean(x, within=2).wait()[0], x[[0, 1, 3]].mean(0))
    assert land(stacked.best(x, torch.tensor([5.0, 4, -9, 3, 6, 7, 8, 9])))["worker"].item() == 3
    W = torch.tensor(random_mixing_matrix(M))
    mixed = stacked.mix(x, W).wait()
    assert mixed[2].isnan().all()
    torch.testing.assert_close(mixed[others].mean(0), x[others].mean(0))
    for worker in others[:-1]:
        stacked.exclude(worker)
    with pytest.raises(ValueError, match="worker 7 is the last one left"):
        stacked.exclude(7)


def test_a_mean_of_nobody_is_an_error():
    with pytest.raises(ValueError, match="none of which has any weight"):
        tether.Stacked(2).mean(torch.ones(2, 3), weights=torch.zeros(2))


def test_no_workers():
    with pytest.raises(ValueError, match="workers=0"):
        tether.Stacked(0)


@settings(deadline=None, max_examples=50)
@given(m=st.integers(2, 9), d=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_mixing_preserves_the_mean_and_contracts_by_zeta(m, d, seed):
    x = torch.tensor(np.random.default_rng(seed).normal(size=(m, d)))
    W = random_mixing_matrix(m, seed)
    mixed = tether.Stacked(m).mix(x, torch.tensor(W)).wait()
    torch.testing.assert_close(mixed.mean(0), x.mean(0))
    spread = lambda x: (x - x.mean(0)).norm().item()  # noqa: E731
    assert spread(mixed) <= tether.topology.zeta(W) * spread(x) * (1 + 1e-9) + 1e-12


@settings(deadline=None, max_examples=25)
@given(
    m=st.integers(2, 7),
    d=st.integers(1, 4),
    period=st.integers(1, 5),
    auxiliary=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_any_cooperative_matrix(m, d, period, auxiliary, seed):
    """[X; Z] <- W [X; Z] for random W, m, d, v and tau, by `Rounds` alone."""
    rng = np.random.default_rng(seed)
    W = random_mixing_matrix(m + auxiliary, seed)
    start, moves = rng.normal(size=(m, d)), rng.normal(size=(3 * period, m, d))
    x = torch.tensor(start)
    rounds = tether.Rounds(tether.CooperativeSGD(period, W, auxiliary), tether.Stacked(m), x)
    stacked = np.vstack([start, np.tile(start.mean(0), (auxiliary, 1))])
    for step, move in enumerate(moves, 1):
        x += torch.tensor(move)
        stacked[:m] += move
        for part in rounds.advance(torch.zeros(m, 1, dtype=torch.float64)):
            rounds.send(part, lr=0.0)
        if step % period == 0:
            stacked = W @ stacked
    np.testing.assert_allclose(x.numpy(), stacked[:m], rtol=1e-10, atol=1e-11)


def cost_of_a_round(method, allreduce="ring"):
    metered = tether.Metered(tether.Stacked(M), allreduce)
    rounds = tether.Rounds(method, metered, rows())
    messages, bytes_ = metered.messages, metered.bytes
    for part in rounds.advance(torch.zeros(M, 1, dtype=torch.float64)):
        rounds.send(part, lr=0.1)
    return metered.messages - messages, metered.bytes - bytes_


LOSSES = M * (M - 1), M * (M - 1) * 8  # everyone's loss to everyone, by a ring


@pytest.mark.parametrize(
    ("method", "messages", "bytes_"),
    [
        (tether.LocalSGD(1), 2 * (M - 1) * M, 2 * (M - 1) * ROW),
        (tether.EASGD(1), 2 * (M - 1) * M, 2 * (M - 1) * ROW),
        (tether.FedAvg(1), 2 * (M - 1) * M, 2 * (M - 1) * ROW),
        (tether.DecentralizedSGD(1, "ring"), 2 * M, 2 * M * ROW),
        (tether.DecentralizedSGD(1, "hypercube"), 3 * M, 3 * M * ROW),
        (tether.DecentralizedSGD(1, "one-peer-exponential"), M, M * ROW),
        (tether.DecentralizedSGD(1, "star"), 2 * (M - 1), 2 * (M - 1) * ROW),
        (tether.GeneralizedElastic(1, "ring"), 2 * M + 2 * (M - 1) * M, (2 * M + 2 * (M - 1)) * ROW),
        (tether.LSGD(1), LOSSES[0] + M - 1, LOSSES[1] + (M - 1) * ROW),
        (tether.LSGD(1, groups=2), 2 * (12 + 3), 2 * (12 * 8 + 3 * ROW)),
        # In groups of 4: the anchor handed out and the mean; between groups: one row each way.
        (tether.HierarchicalElastic(1, groups=2), 2 * 2 * 24 + 2, (2 * 2 * 6 + 2) * ROW),
    ],
    ids=str,
)
def test_cost_of_a_round(method, messages, bytes_):
    assert cost_of_a_round(method) == (messages, bytes_)


def test_a_star_sends_as_many_bytes_in_fewer_messages():
    assert cost_of_a_round(tether.LocalSGD(1), "star") == (2 * (M - 1), 2 * (M - 1) * ROW)
    with pytest.raises(ValueError, match="allreduce='tree'"):
        unchecked(tether.Metered.__init__)(object.__new__(tether.Metered), tether.Stacked(2), "tree")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_metering_changes_nothing(case):
    def drive(workers):
        x = rows()
        rounds = tether.Rounds(case.make(1), workers, x)
        for _ in range(3):
            for part in rounds.advance(torch.arange(8.0, dtype=torch.float64)[:, None]):
                rounds.send(part, lr=0.1)
        return x

    metered = tether.Metered(tether.Stacked(M))
    assert torch.equal(drive(metered), drive(tether.Stacked(M)))
    assert metered.bytes > 0


def alone(method, x, rounds, exclude):
    """Rounds without gradients and without one worker."""
    stacked = tether.Stacked(len(x))
    stacked.exclude(exclude)
    driver = tether.Rounds(method, stacked, x)
    for _ in range(rounds):
        for part in driver.advance(torch.zeros(len(x), 1).to(x)):
            driver.send(part, lr=0.0)
    return driver


def test_rows_of_a_cooperative_matrix_keep_their_sum_without_a_worker():
    W = random_mixing_matrix(M + 2)
    x = torch.ones(M, 3, dtype=torch.float64)
    driver = alone(tether.CooperativeSGD(1, W, auxiliary=2), x, rounds=5, exclude=3)
    torch.testing.assert_close(x[[0, 1, 2, 4, 5, 6, 7]], torch.ones(7, 3, dtype=torch.float64))
    torch.testing.assert_close(driver.states[0]["auxiliary"], torch.ones(2, 3, dtype=torch.float64))


def test_the_mean_of_those_left_is_preserved_or_the_topology_refused():
    x = rows(d=3)
    left = [0, 1, 2, 4, 5, 6, 7]
    mean = x[left].mean(0)
    alone(tether.DecentralizedSGD(1, "hypercube"), x, rounds=200, exclude=3)
    torch.testing.assert_close(x[left], mean.expand(7, -1))
    with pytest.raises(ValueError, match="one-way topology no longer preserves the mean"):
        alone(tether.DecentralizedSGD(1, "one-peer-exponential"), rows(), rounds=1, exclude=3)
    with pytest.raises(ValueError, match=r"without workers \[0\] the others fall apart"):
        alone(tether.DecentralizedSGD(1, "star"), rows(), rounds=1, exclude=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", [case.make(1) for case in CASES], ids=[case.name for case in CASES])
def test_half_precision(dtype, method):
    """Every method agrees with double precision to what half precision can say; large sample counts do not overflow."""
    start, losses = rows(d=20), torch.arange(8.0, dtype=torch.float64)[:, None]

    def drive(x):
        driver = tether.Rounds(method, tether.Stacked(M), x, samples=torch.full((M,), 60_000.0))
        for part in driver.advance(losses.to(x)):
            driver.send(part, lr=0.1)
        return x.double()

    torch.testing.assert_close(drive(start.to(dtype)), drive(start.clone()), rtol=0.05, atol=0.05)


def test_dense_and_sparse_mixing_agree():
    x = rows(m=200, d=5)
    for name in ("ring", "complete", "exponential"):
        W = tether.topology.as_topology(name).weights(200)
        torch.testing.assert_close(tether.Stacked(200).mix(x, W).wait(), W.to_dense() @ x)
