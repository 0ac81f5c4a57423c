"""Workers at their own speeds: visits to a center, and rounds by a trigger, against their equations in NumPy."""

import dataclasses
import heapq
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import tether
from problems import Point, Quadratics, quadratic
from reference import SGD, Adam
from tether.clock import Clock, Cluster
from tether.traffic import Exchange
from tether.trips import Trips

M, D = 4, 6
PROBLEM = Quadratics.random(M, D)
START = np.random.default_rng(1).normal(size=(M, D))
UNEVEN = Clock(1.0, speeds=(1.0, 0.7, 0.5, 0.25), latency=0.3, bandwidth=1e3, noise="lognormal", spread=0.2)
ORDERS = ["step-then-mix", "mix-then-step"]
OPTIMIZERS = {
    "sgd": (lambda: SGD(0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
    "momentum": (lambda: SGD(0.02, 0.9), lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)),
    "adam": (lambda: Adam(0.05), lambda p: torch.optim.Adam(p, lr=0.05)),
}


def run(method, steps=24, clock=UNEVEN, optimizer="sgd", problem=PROBLEM, start=START, **more):
    return tether.simulate(
        Point(problem.b.shape[1]),
        method,
        problem.data,
        workers=len(problem.b),
        objective=quadratic,
        optimizer=OPTIMIZERS[optimizer][1],
        steps=steps,
        batch_size=None,
        start=torch.tensor(start),
        clock=clock,
        **more,
    )


def trips(result):
    return [trip for record in result.history for trip in record.trips]


# ---- the center: three equations


class DownpourInNumPy:
    def __init__(self, start):
        self.z, self.had = start.mean(0), start.copy()

    def visit(self, i, x, staleness):
        self.z = self.z + (x - self.had[i])
        self.had[i] = self.z
        return self.z - x


class EASGDInNumPy:
    alpha = 0.3

    def __init__(self, start):
        self.z = start.mean(0)

    def visit(self, i, x, staleness):
        change = self.alpha * (x - self.z)
        self.z = self.z + change
        return -change


class DiLoCoInNumPy:
    lr, mu, a, bound = 0.4, 0.6, 0.5, 4

    def __init__(self, start):
        self.z, self.v, self.had = start.mean(0), 0.0, start.copy()

    def visit(self, i, x, staleness):
        if staleness <= self.bound:
            g = (1 + staleness) ** -self.a * (self.had[i] - x)
            self.v = self.mu * self.v + g
            self.z = self.z - self.lr * (g + self.mu * self.v)
        self.had[i] = self.z
        return self.z - x


CENTERS = {
    "downpour": (lambda period: tether.Downpour(period), DownpourInNumPy),
    "easgd": (lambda period: tether.AsynchronousEASGD(period, alpha=0.3), EASGDInNumPy),
    "diloco": (
        lambda period: tether.AsynchronousDiLoCo(
            period, lr=0.4, momentum=0.6, staleness_exponent=0.5, staleness_bound=4
        ),
        DiLoCoInNumPy,
    ),
}
every_center = pytest.mark.parametrize("name", CENTERS)


def visits_in_numpy(center, order, optimizer, visits, overlap, counts):
    """X and z after these visits, and so many steps of each worker: (worker, step), in order."""
    X = START.copy()
    optimizers = [optimizer() for _ in X]
    taken = [0] * M
    changes = [{} for _ in X]  # of each worker, by the step at which they land
    replied = [0] * M

    def step_to(i, until, visiting):
        """Steps up to that one; with "mix-then-step" a visit comes between its gradient and its update."""
        gradient = None
        while taken[i] < until:
            gradient = PROBLEM.A[i] @ (X[i] - PROBLEM.b[i])
            taken[i] += 1
            last = visiting and taken[i] == until
            if order == "step-then-mix":
                X[i] = optimizers[i](X[i], gradient)
            X[i] += changes[i].pop(taken[i], 0)
            if order == "mix-then-step" and not last:
                X[i] = optimizers[i](X[i], gradient)
        return gradient

    for served, (i, step) in enumerate(visits):
        gradient = step_to(i, step, visiting=True)
        change = center.visit(i, X[i].copy(), served - replied[i])
        replied[i] = served + 1
        if overlap:
            changes[i][step + overlap] = change
        else:
            X[i] += change
        if order == "mix-then-step":
            X[i] = optimizers[i](X[i], gradient)
    for i in range(M):
        step_to(i, counts[i], visiting=False)
        X[i] += sum(changes[i].values())  # what is still on its way at the end lands then
    return X, center.z


@every_center
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("overlap", [0, 2, 5])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_visits_are_the_equation(name, order, overlap, optimizer):
    make, literal = CENTERS[name]
    result = run(make(5), steps=33, order=order, overlap=overlap, optimizer=optimizer)
    visits = [(trip.worker, trip.step) for trip in trips(result)]
    agenda = Trips(Cluster(UNEVEN, M, 0), 5, overlap, 33, D * 8)
    assert visits == [(trip.worker, trip.step) for trip in agenda]
    rows, anchor = visits_in_numpy(literal(START), order, OPTIMIZERS[optimizer][0], visits, overlap, agenda.last)
    np.testing.assert_allclose(result.anchor[0].numpy(), anchor, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(result.rows.numpy(), rows, rtol=1e-11, atol=1e-12)
    assert max(trip.staleness for trip in trips(result)) > 4, "nothing stale: the comparison would prove less"
    assert torch.equal(nn.utils.parameters_to_vector(result.center().parameters()), result.anchor[0])


def test_downpour_with_one_worker_is_sgd():
    alone = Quadratics(PROBLEM.A[:1], PROBLEM.b[:1])
    for period, overlap in ((1, 0), (4, 0), (4, 3)):
        visiting = run(tether.Downpour(period), clock=None, overlap=overlap, problem=alone, start=START[:1])
        local = run(tether.LocalSGD(24), clock=None, problem=alone, start=START[:1])
        np.testing.assert_allclose(visiting.rows, local.rows, rtol=1e-12)
        assert visiting.messages == 0, "the center is in the worker's own process"


def test_easgd_with_one_worker_is_the_synchronous_one():
    alone = Quadratics(PROBLEM.A[:1], PROBLEM.b[:1])
    asynchronous, synchronous = (
        run(method(5, alpha=0.4), clock=None, problem=alone, start=START[:1])
        for method in (tether.AsynchronousEASGD, tether.EASGD)
    )
    np.testing.assert_allclose(asynchronous.rows, synchronous.rows, rtol=1e-12)


def test_diloco_without_momentum_is_downpour():
    one, other = (run(method) for method in (tether.Downpour(5), tether.AsynchronousDiLoCo(5, lr=1.0)))
    np.testing.assert_allclose(one.rows, other.rows, rtol=1e-11)


def test_easgd_with_nesterov_momentum_is_eamsgd():
    """v <- mu v - lr grad(x + mu v), x <- x + v, with the pull at x: the paper's form, whose x + mu v is ours."""
    mu, lr, alpha, period = 0.9, 0.02, 0.3, 4
    alone = Quadratics(PROBLEM.A[:1], PROBLEM.b[:1])
    result = tether.simulate(
        Point(D),
        tether.AsynchronousEASGD(period, alpha=alpha),
        alone.data,
        workers=1,
        objective=quadratic,
        optimizer=lambda p: torch.optim.SGD(p, lr=lr, momentum=mu, nesterov=True),
        steps=21,
        batch_size=None,
        start=torch.tensor(START[:1]),
    )
    x = ahead = START[0].copy()
    z, v = x.copy(), np.zeros(D)
    for step in range(1, 22):
        v = mu * v - lr * (PROBLEM.A[0] @ (ahead - PROBLEM.b[0]))
        x = x + v
        ahead = x + mu * v
        if step % period == 0:
            # What is sent is the point at which the next gradient is taken.
            change = alpha * (ahead - z)
            z, x, ahead = z + change, x - change, ahead - change
    np.testing.assert_allclose(result.rows[0].numpy(), ahead, rtol=1e-11)


@every_center
def test_without_gradients_workers_come_to_the_center(name):
    still = tether.data.Dataset.from_workers([(torch.zeros(1, dtype=torch.float64),)] * M)
    method = CENTERS[name][0](2)
    result = tether.simulate(
        Point(D),
        method,
        still,
        workers=M,
        objective=lambda model, batch: batch[0].mean() + 0 * model.x.sum(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        steps=200,
        batch_size=None,
        start=torch.tensor(START),
        clock=UNEVEN,
    )
    np.testing.assert_allclose(result.rows, result.anchor.expand(M, D), atol=1e-8)
    if name == "easgd":  # what a worker gives, the anchor gets: their sum stays
        total = START.sum(0) + START.mean(0)
        np.testing.assert_allclose((result.rows.sum(0) + result.anchor[0]).numpy(), total, rtol=1e-12)


def test_stale_changes_are_left_out():
    bound = tether.AsynchronousDiLoCo(5, lr=0.3, staleness_bound=0)
    result = run(bound, clock=Clock(1.0))
    fresh = [trip for trip in trips(result) if trip.staleness == 0]
    # With equal speeds all others come between: but for the first message of all, nothing is fresh.
    assert [(trip.worker, trip.step) for trip in fresh] == [(0, 5)]
    first = tether.simulate(
        Point(D),
        tether.LocalSGD(5),
        Quadratics(PROBLEM.A[:1], PROBLEM.b[:1]).data,
        workers=1,
        objective=quadratic,
        optimizer=OPTIMIZERS["sgd"][1],
        steps=5,
        batch_size=None,
        start=torch.tensor(START[:1]),
    )
    expected = START.mean(0) + 0.3 * (first.rows[0].numpy() - START[0])
    np.testing.assert_allclose(result.anchor[0].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tether.AsynchronousEASGD(5, alpha=1.0), "0 < alpha < 1"),
        (lambda: tether.AsynchronousEASGD(5, beta=5.0), "0 < alpha < 1"),
        (lambda: tether.AsynchronousEASGD(5, alpha=0.1, beta=0.4), "give one"),
        (lambda: tether.AsynchronousDiLoCo(5, lr=0.0), "lr=0.0"),
        (lambda: tether.AsynchronousDiLoCo(5, lr=0.1, momentum=1.0), "momentum=1.0"),
        (lambda: tether.AsynchronousDiLoCo(5, lr=0.1, staleness_exponent=-1.0), "staleness_exponent=-1.0"),
        (lambda: tether.AsynchronousDiLoCo(5, lr=0.1, staleness_bound=-1), "staleness_bound=-1"),
        (lambda: tether.TimeWindow(0.0), "seconds=0.0"),
    ],
)
def test_wrong_parameters_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        run(make())


def test_what_does_not_suit_is_refused():
    with pytest.raises(ValueError, match="give a clock"):
        run(tether.LocalSGD(5), clock=None, trigger=tether.TotalSteps())
    with pytest.raises(ValueError, match="no rounds in which workers meet"):
        run(tether.Downpour(5), trigger=tether.TotalSteps())
    with pytest.raises(ValueError, match="do not meet"):
        run(tether.Downpour(5), optimizer_state="average")
    with pytest.raises(ValueError, match="step=0"):
        run(tether.Downpour(5), clock=Clock(0.0))
    with pytest.raises(ValueError, match="step=0"):
        run(tether.LocalSGD(5), clock=Clock(0.0), trigger=tether.TotalSteps())
    with pytest.raises(ValueError, match="take processes=1"):
        run(tether.Downpour(5), processes=2)
    with pytest.raises(ValueError, match="longer than the period"):
        run(tether.Downpour(5), overlap=6)


# ---- when they come


def test_visits_with_equal_speeds_go_round():
    agenda = Trips(Cluster(Clock(2.0), 3, 0), period=4, overlap=0, steps=10, size=8)
    seen = [(trip.worker, trip.step, trip.arrived) for trip in agenda]
    assert seen == [(i, 4 * n, 8.0 * n) for n in (1, 2) for i in range(3)]
    assert agenda.last.tolist() == [10, 10, 10]  # the steps that are left are taken, without a visit
    assert agenda.ends.tolist() == [20.0, 20.0, 20.0]


def test_nobody_begins_a_step_when_all_together_have_taken_enough():
    agenda = Trips(Cluster(Clock(1.0, speeds=(1.0, 0.4)), 2, 0), period=3, overlap=0, steps=7, size=8)
    seen = [(trip.worker, trip.step) for trip in agenda]
    # 14 steps: after 10 s, 10 + 4; both have just ended one.
    assert agenda.last.tolist() == [10, 4]
    assert seen == [(0, 3), (0, 6), (1, 3), (0, 9)]


def test_times_of_a_visit_by_hand():
    """The center is the first worker's own. A message takes 2 s and half a second, if it has the links for itself."""
    clock = Clock(1.0, speeds=(1.0, 1.0, 0.8), latency=0.5, bandwidth=80.0)  # 10 bytes a second
    first, *others = Trips(Cluster(clock, 3, 0), period=2, overlap=0, steps=8, size=20)
    assert (first.worker, first.sent, first.arrived, first.replied, first.waited) == (0, 2.0, 2.0, 2.0, 0.0)
    second, third = (next(trip for trip in others if trip.worker == worker) for worker in (1, 2))
    # The third's message comes when a fourth of the second's is in, and then both have half of the link; when the
    # second's is all in, a fourth of the third's is left. The same happens to the replies.
    assert (second.sent, second.arrived, second.replied) == (2.0, 5.5 + 0.5, 9.5 + 0.5)
    assert (third.sent, third.arrived, third.replied) == (2.5, 6.0 + 0.5, 10.0 + 0.5)
    assert (second.waited, third.waited) == (8.0, 8.0)


def test_a_link_is_shared_by_what_is_on_it_at_the_same_time():
    """Cluster.arrivals says the same of messages that begin together."""
    for network in ({}, {"nodes": 2, "node_bandwidth": 800.0}, {"links": ((0, 3, 0.5, 20.0),)}):
        cluster = Cluster(Clock(1.0, latency=0.25, bandwidth=80.0, **network), 4, 0)
        there = Exchange(np.zeros(3, dtype=int), np.arange(1, 4), 100)
        last = cluster.arrivals(there, np.full(4, 2.0))[0]
        agenda = list(Trips(cluster, period=2, overlap=0, steps=2, size=100))
        assert max(trip.arrived for trip in agenda) == pytest.approx(last)


def test_an_overlap_hides_a_message_that_is_shorter_than_it():
    clock = Clock(1.0, latency=0.75, bandwidth=float("inf"))
    for overlap, waited in ((0, 1.5), (1, 0.5), (2, 0.0), (3, 0.0)):
        agenda = [trip for trip in Trips(Cluster(clock, 2, 0), 3, overlap, 30, 8) if trip.worker == 1]
        assert {trip.waited for trip in agenda[:-1]} == {waited}


def test_workers_of_a_node_share_its_link():
    clock = Clock(1.0, nodes=2, latency=1.0, bandwidth=80.0, node_latency=0.25, node_bandwidth=8000.0)
    agenda = {trip.worker: trip for trip in reversed(list(Trips(Cluster(clock, 4, 0), 2, 0, 2, 100)))}
    assert agenda[1].arrived == pytest.approx(2 + 0.1 + 0.25)  # beside the center
    assert agenda[2].arrived == agenda[3].arrived == pytest.approx(2 + 10 + 10 + 1)  # beside one another


def test_same_seed_same_run_whatever_steps_together():
    """Twice the same is the same to the bit; the way of stepping changes rounding only."""
    one, again = (run(tether.Downpour(5), optimizer="adam") for _ in range(2))
    assert torch.equal(one.rows, again.rows)
    assert trips(one) == trips(again)
    for stepping, block in (("rows", 1), ("rows", 3), ("stacked", 4), ("stacked", 2)):
        other = run(tether.Downpour(5), optimizer="adam", stepping=stepping, block=block)
        np.testing.assert_allclose(other.rows, one.rows, rtol=1e-12)
        assert trips(other) == trips(one)
    assert trips(run(tether.Downpour(5), seed=1)) != trips(one)


def test_time_adds_up():
    result = run(tether.AsynchronousEASGD(5), steps=60, overlap=2)
    cluster = Cluster(UNEVEN, M, 0)
    last = result.history[-1].virtual
    np.testing.assert_allclose(last.now, last.computed + last.waited)
    mine = [trip for trip in trips(result) if trip.worker == 2]
    # Between two of its visits a worker computes its five steps, or waits.
    for before, after in itertools.pairwise(mine):
        seconds = cluster.steps(2, before.step, 5).sum()
        assert after.sent - before.sent == pytest.approx(seconds + before.waited)


# ---- rounds by a trigger


def slow_event_loop(speeds, period, steps):
    """Leader SGD's algorithm 1, a step at a time: at which counts all meet, when m periods of steps have been taken."""
    m = len(speeds)
    counts, meetings, total, now = [0] * m, [], 0, [0.0] * m
    target = m * period
    while total < m * steps:
        ends = [(now[i] + 1 / speeds[i], i) for i in range(m)]
        heapq.heapify(ends)
        while total < min(target, m * steps):
            end, i = heapq.heappop(ends)
            now[i], counts[i], total = end, counts[i] + 1, total + 1
            heapq.heappush(ends, (end + 1 / speeds[i], i))
            over = end
        for end, i in ends:
            if end - 1 / speeds[i] < over - 1e-9:
                now[i], counts[i], total = end, counts[i] + 1, total + 1
        if total >= target:
            meetings.append(list(counts))
            now = [max(now)] * m
        target += m * period
    return meetings, counts


@pytest.mark.parametrize("order", ORDERS)
def test_total_steps_is_algorithm_1(order):
    """Asynchronous leader SGD: fast workers take more steps, all are pulled at once."""
    speeds, period, pull, lr = (1.0, 0.73, 0.49, 0.21), 6, 0.3, 0.05
    meetings, counts = slow_event_loop(speeds, period, 31)
    X, losses = START.copy(), [[] for _ in range(M)]
    taken = [0] * M
    leaders = []
    for meeting in [*meetings, counts]:
        held = [None] * M
        for i in range(M):
            while taken[i] < meeting[i]:
                gradient = PROBLEM.A[i] @ (X[i] - PROBLEM.b[i])
                losses[i].append(0.5 * (X[i] - PROBLEM.b[i]) @ gradient)
                taken[i] += 1
                if order == "mix-then-step" and taken[i] == meeting[i] and meeting is not counts:
                    held[i] = gradient
                else:
                    X[i] -= lr * gradient
        if meeting is not counts:
            leader = int(np.argmin([np.mean(each[-10:]) for each in losses]))
            leaders.append(leader)
            X = X - pull * (X - X[leader])
        for i in range(M):
            if held[i] is not None:
                X[i] -= lr * held[i]
    result = run(
        tether.LSGD(period, pull=pull),
        steps=31,
        clock=Clock(1.0, speeds=speeds),
        trigger=tether.TotalSteps(),
        order=order,
    )
    np.testing.assert_allclose(result.rows.numpy(), X, rtol=1e-11)
    assert [record.leader for record in result.history] == leaders
    assert counts[0] > 2 * counts[3]


METHODS = [
    tether.LSGD(6),
    tether.EASGD(6),
    tether.MultiLeaderLSGD(6, 12, 2),
    tether.MultiLeaderLSGD(6, 9, 2),
    tether.DecentralizedSGD(6, "ring"),
    tether.FedAvg(6, fraction=0.5),
]


AT_ONCE, LATER, LATE = ("momentum", 0, 0.0), ("adam", 2, 0.3), ("sgd", 6, 9.0)
RUNS = [
    (method, *run)
    for method in METHODS
    for run in (AT_ONCE, LATER, LATE)
    # A round that is counted by all lands before the next; messages of two parts would be on their way together.
    if run == AT_ONCE or getattr(method, "global_period", 6) % 6 == 0
]


@pytest.mark.parametrize(("method", "optimizer", "overlap", "latency"), RUNS, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_with_equal_speeds_total_steps_are_own_steps(method, order, optimizer, overlap, latency):
    clock = Clock(1.0, latency=latency)
    for steps in (24, 27):
        own, total = (
            run(method, steps, clock, optimizer, order=order, overlap=overlap, trigger=trigger)
            for trigger in (None, tether.TotalSteps())
        )
        np.testing.assert_allclose(total.rows, own.rows, rtol=1e-12)
        assert [record.step for record in total.history] == [record.step for record in own.history]
        np.testing.assert_allclose(total.history[-1].virtual.now, own.history[-1].virtual.now)
        np.testing.assert_allclose(total.history[-1].virtual.waited, own.history[-1].virtual.waited)


def test_a_window_weighs_workers_by_their_steps():
    """Cooperative SGD, section 7: as many local updates as there is time for, with weights."""
    clock = Clock(1.0, speeds=(1.0, 0.5, 0.5, 0.25))
    for by_steps in (True, False):
        result = run(
            tether.LocalSGD(8), steps=9, clock=clock, trigger=tether.TimeWindow(1.0, by_steps), order="step-then-mix"
        )
        X = START.copy()
        for _ in range(2):  # windows of 8 s: 8, 4, 4 and 2 steps, 18 of the 36 there should be
            for i, steps in enumerate((8, 4, 4, 2)):
                for _ in range(steps):
                    X[i] -= 0.05 * (PROBLEM.A[i] @ (X[i] - PROBLEM.b[i]))
            X[:] = np.average(X, axis=0, weights=(8, 4, 4, 2) if by_steps else None)
        np.testing.assert_allclose(result.rows.numpy(), X, rtol=1e-11)
        assert [record.virtual.now.tolist() for record in result.history] == [[8.0] * 4, [16.0] * 4]


def test_the_step_in_which_a_window_ends_is_the_last():
    result = run(tether.LocalSGD(5), steps=10, clock=Clock(1.0, speeds=(1, 1, 1, 0.3)), trigger=tether.TimeWindow(1.0))
    assert result.history[0].virtual.computed.tolist() == pytest.approx([5, 5, 5, 20 / 3])
    assert result.history[0].virtual.waited.tolist() == pytest.approx([5 / 3, 5 / 3, 5 / 3, 0])


# ---- runs


def test_a_slow_worker_does_not_hold_up_the_others():
    clock = Clock(1.0, speeds=(1.0, 1.0, 1.0, 0.25), latency=0.1)
    waits = {}
    for name, method, trigger in (
        ("own", tether.EASGD(8), None),
        ("total", tether.EASGD(8), tether.TotalSteps()),
        ("center", tether.AsynchronousEASGD(8), None),
    ):
        last = run(method, 80, clock, trigger=trigger).history[-1].virtual
        waits[name] = last.waited.sum() / last.now.sum()
    assert waits["own"] > 0.5 > 0.25 > waits["total"] > waits["center"]


CASES = [
    (tether.Downpour(5), None, 0, ORDERS[0]),
    (tether.AsynchronousEASGD(5), None, 3, ORDERS[1]),
    (tether.AsynchronousDiLoCo(5, lr=0.3, momentum=0.5), None, 5, ORDERS[0]),
    (tether.EASGD(5), tether.TotalSteps(), 2, ORDERS[0]),
    (tether.LSGD(5), tether.TotalSteps(), 0, ORDERS[1]),
    (tether.LocalSGD(5), tether.TimeWindow(1.3), 2, ORDERS[1]),
]


@pytest.mark.parametrize(("method", "trigger", "overlap", "order"), CASES, ids=str)
def test_an_interrupted_run_goes_on_bit_for_bit(method, trigger, overlap, order, tmp_path):
    def train(folder, stop=None, **more):
        seen = []

        def on_record(record):
            seen.append(record)
            if record.index == stop:
                raise KeyboardInterrupt

        try:
            result = run(
                method,
                28,
                optimizer="adam",
                order=order,
                overlap=overlap,
                trigger=trigger,
                scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 7, 0.9),
                checkpoints=tether.Checkpoints(tmp_path / folder),
                checkpoint_every=9,
                on_record=on_record,
                stepping="rows",
                block=1,
            )
        except KeyboardInterrupt:
            return None, seen
        return result, seen

    whole, records = train("whole")
    stop = 3
    train("cut", stop)
    result, rest = train("cut")
    assert torch.equal(result.rows, whole.rows)
    assert result.messages == whole.messages
    if result.anchor is not None:
        assert torch.equal(result.anchor, whole.anchor)
    assert 0 < rest[0].index <= stop
    for mine, theirs in zip(rest, records[rest[0].index :], strict=True):
        for field in dataclasses.fields(mine):
            if field.name not in ("seconds", "virtual"):
                np.testing.assert_array_equal(getattr(mine, field.name), getattr(theirs, field.name))
        np.testing.assert_array_equal(mine.virtual.now, theirs.virtual.now)
        np.testing.assert_array_equal(mine.virtual.waited, theirs.virtual.waited)


def test_a_run_with_a_center_is_not_stretched(tmp_path):
    checkpoints = tether.Checkpoints(tmp_path)
    run(tether.Downpour(5), 20, checkpoints=checkpoints)
    with pytest.raises(ValueError, match="would be another run"):
        run(tether.Downpour(5), 40, checkpoints=checkpoints)


def test_diverging_workers_stop_the_run_or_are_left_out():
    problem = Quadratics(PROBLEM.A * np.array([1.0, 1.0, 1.0, 1e200])[:, None, None], PROBLEM.b)
    for method, trigger in ((tether.AsynchronousEASGD(5), None), (tether.EASGD(5), tether.TotalSteps())):
        with pytest.raises(tether.NonFiniteLossError) as caught:
            run(method, problem=problem, trigger=trigger)
        assert caught.value.worker == 3
        assert caught.value.result.rows.isfinite().all()
        result = run(method, problem=problem, trigger=trigger, on_nonfinite="exclude")
        assert list(result.excluded) == [3]
        assert result.rows[:3].isfinite().all()
        assert all(parameter.isfinite().all() for parameter in result.center().parameters())


class Noisy(nn.Module):
    """Batch normalisation and dropout: buffers, and random numbers of the model's own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 10)
        )

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("trigger", [None, tether.TotalSteps()], ids=str)
def test_buffers_and_dropout(trigger):
    torch.manual_seed(0)
    model = Noisy()
    method = tether.Downpour(2) if trigger is None else tether.LocalSGD(2)
    results = [
        tether.simulate(
            model,
            method,
            tether.data.digits(),
            workers=M,
            objective=tether.models.cross_entropy,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.5),
            steps=30,
            batch_size=16,
            clock=dataclasses.replace(UNEVEN, bandwidth=1e6),
            trigger=trigger,
            evaluate=tether.data.classification(tether.data.digits().test),
            evaluate_every=12,
        )
        for _ in range(2)
    ]
    assert torch.equal(results[0].rows, results[1].rows)
    center = results[0].center()
    means = torch.stack([results[0].worker(i).layers[2].running_mean for i in range(M)]).mean(0)
    torch.testing.assert_close(center.layers[2].running_mean, means)
    evaluated = [record for record in results[0].history if record.center]
    assert len(evaluated) == 3
    assert evaluated[-1].center["accuracy"] > 0.5
