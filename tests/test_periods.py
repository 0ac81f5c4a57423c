"""Periods that change: the rules written out, every method of the table under them, simulated and on real workers."""

import math

import numpy as np
import pytest
import torch

import tether
from methods_table import CASES, M
from problems import Point, Quadratics, quadratic
from reference import SGD, trajectory
from test_methods import ORDERS, D, run, start
from tether.clock import Cluster
from tether.config import Config, ConfigError, validate
from tether.periods import AdaComm, FollowDrift, Measured, PostLocal
from tether.run import load_method
from tether.trips import Trips


class Switch:
    """Post-local: one step, then many."""

    def __init__(self, period, switch, first=1):
        self.period, self.switch, self.start = period, switch, first

    def __call__(self, due, losses, drift, lr):
        return self.start if due < self.switch else self.period


class Shrinking:
    """AdaComm at a constant learning rate."""

    def __init__(self, first, every, shrink, window):
        self.start, self.every, self.shrink, self.window = first, every, shrink, window
        self.tau, self.first_loss = first, None

    def __call__(self, due, losses, drift, lr):
        if losses is None:
            return self.tau
        loss = losses[:, -self.window :].mean()
        if self.first_loss is None:
            self.first_loss, self.decided = loss, due
        elif due >= self.decided + self.every:
            tau = math.ceil(self.start * math.sqrt(loss / self.first_loss))
            self.tau = tau if tau < self.tau else math.ceil(self.shrink * self.tau)
            self.decided = due
        return self.tau


class Following:
    """The period that keeps drift where it was."""

    def __init__(self, first, most):
        self.start, self.most, self.tau, self.target = first, most, float(first), None

    def __call__(self, due, losses, drift, lr):
        if drift is None:
            return self.start
        rms = math.sqrt((drift**2).mean())
        self.target = self.target or rms
        self.tau = min(max(self.tau * min(max(self.target / rms, 0.5), 2), 1), self.most)
        return round(self.tau)


SCHEDULES = {
    "post-local": (PostLocal(5, switch=4), lambda: Switch(5, switch=4)),
    "adacomm": (AdaComm(6, every=8, window=3), lambda: Shrinking(6, every=8, shrink=0.5, window=3)),
    "follow-drift": (FollowDrift(4, most=12), lambda: Following(4, most=12)),
}
of_steps = [case for case in CASES if not case.fixed_period and case.factors == [1]]


@pytest.mark.parametrize("case", of_steps, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("overlap", [0, 2])
def test_every_method_under_every_schedule(case, schedule, order, overlap):
    problem, X = Quadratics.random(M, D), start()
    period, rule = SCHEDULES[schedule]
    expected = trajectory(case, problem, X, SGD(0.1), steps=60, period=rule, order=order, overlap=overlap)
    result = run(
        case.make(period), problem, X, lambda p: torch.optim.SGD(p, lr=0.1), steps=60, order=order, overlap=overlap
    )
    np.testing.assert_allclose(result.rows.numpy(), expected, rtol=1e-10, atol=1e-11)
    periods = np.diff([0] + [record.step for record in result.history if record.round])
    assert len(set(periods)) > 1, f"the period never changed: {periods}"


def rounds_of(method, **options):
    """Local steps at which rounds were."""
    problem, X = Quadratics.random(M, D), start()
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "steps": 60} | options
    return [record.step for record in run(method, problem, X, **options).history]


def test_parts_have_schedules_of_their_own():
    method = tether.MultiLeaderLSGD(PostLocal(4, switch=3), PostLocal(10, switch=5, first=5), groups=2)
    # Local: 1 2 3 7 11 15 19 23 ..., global: 5 15 25 ...
    assert rounds_of(method, steps=24) == [1, 2, 3, 5, 7, 11, 15, 15, 19, 23]


def test_a_message_of_a_schedule_is_four_numbers_and_of_a_plan_none():
    def sent(period):
        return run(
            tether.LocalSGD(period),
            Quadratics.random(M, D),
            start(),
            lambda p: torch.optim.SGD(p, lr=0.1),
            steps=12,
        )

    constant, planned, measured = (sent(p) for p in (3, PostLocal(3, switch=1, first=3), FollowDrift(3, most=3)))
    assert constant.bytes == planned.bytes
    assert constant.messages == planned.messages
    # A ring's 2 (m - 1) messages a worker, and 2 (m - 1) / m of four numbers.
    assert measured.messages == 2 * constant.messages
    assert measured.bytes - constant.bytes == 4 * 2 * (M - 1) * 4 * 8


def test_adacomm_by_hand():
    rule = AdaComm(20, every=100, lr_exponent=1)
    seen = {}

    def then(due, loss, lr=0.1, period=20):
        return rule.follow(period, due, seen, Measured(loss=loss, drift=0, lr=lr))

    assert then(20, 4.0) == 20  # F_0
    assert then(100, 1.0) == 20  # not yet
    assert then(120, 1.0) == 10  # 20 sqrt(1/4)
    assert then(220, 1.0, period=10) == 5  # would not have shrunk: half
    assert then(320, 0.09, period=5) == 3  # 20 sqrt(0.0225)
    assert then(420, 0.09, lr=0.01, period=3) == 10  # 20 sqrt(10 0.0225) = 9.49
    assert then(520, 4.0, lr=0.001, period=10) == 20  # never longer than the first
    assert then(620, math.nan, period=20) == 20
    assert rule.follow(20, 720, seen, None) == 20


def test_follow_drift_by_hand():
    rule = FollowDrift(10, target=2.0, least=4, most=30)
    seen = {}

    def then(drift, period):
        return rule.follow(period, 0, seen, Measured(loss=0, drift=drift, lr=0))

    assert then(2.5, 10) == 8
    assert then(2.0, 8) == 8
    assert then(0.1, 8) == 16  # at most doubled
    assert then(0.1, 16) == 30
    assert then(100.0, 30) == 15
    assert then(100.0, 15) == 8  # 7.5
    assert then(100.0, 8) == 4
    assert then(0.0, 4) == then(math.inf, 4) == 4


def test_drift_stays_where_it_was_as_the_rate_falls():
    def drifts(period):
        problem, X = Quadratics.random(M, D), start()
        result = run(
            tether.LocalSGD(period),
            problem,
            X,
            lambda p: torch.optim.SGD(p, lr=0.05),
            scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99),
            steps=300,
        )
        return np.array([np.sqrt((record.drift**2).mean()) for record in result.history])

    constant, following = drifts(5), drifts(FollowDrift(5, most=100))
    assert constant[-1] < 0.2 * constant[0]
    assert (following[5:] > 0.5 * following[0]).all()
    assert len(following) < 0.5 * len(constant)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("overlap", [0, 2])
def test_resumes_to_the_bit(schedule, overlap, tmp_path):
    def go(steps, folder):
        return run(
            tether.LocalSGD(SCHEDULES[schedule][0]),
            Quadratics.random(M, D),
            start(),
            lambda p: torch.optim.SGD(p, lr=0.1),
            steps=steps,
            overlap=overlap,
            checkpoints=tether.Checkpoints(tmp_path / folder),
        )

    whole = go(50, "whole")
    for stop in (7, 13, 22, 31):
        go(stop, str(stop))
        again = go(50, str(stop))
        assert torch.equal(again.rows, whole.rows)
        assert [r.step for r in again.history] == [r.step for r in whole.history if r.step > stop]


@pytest.mark.parametrize("trigger", [tether.TotalSteps(), tether.TimeWindow(seconds=1.0)], ids=str)
def test_under_a_trigger(trigger):
    """Equal speeds: as without one."""
    method, clock = tether.LocalSGD(PostLocal(5, switch=4)), tether.Clock(step=1.0)
    problem, X = Quadratics.random(M, D), start()
    plain, triggered = (
        run(method, problem, X, lambda p: torch.optim.SGD(p, lr=0.1), steps=29, clock=clock, trigger=each)
        for each in (None, trigger)
    )
    assert torch.equal(plain.rows, triggered.rows)
    assert [r.step for r in plain.history] == [r.step for r in triggered.history][: len(plain.history)]


QUADRATIC = {"objective": quadratic, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "batch_size": None}


def problem_of(m, method):
    return Point(D), method, Quadratics.random(m, D).data


@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_asynchronous_workers_visit_by_a_plan(overlap):
    """Visits of each worker at its own local steps 1, 2, 3, 4 and then every fifth."""
    clock = tether.Clock(step=1.0, speeds=(1, 1, 0.5), latency=0.25)
    period = PostLocal(5, switch=4)
    visits = {worker: [] for worker in range(3)}
    for trip in Trips(Cluster(clock, 3, seed=0), period, overlap, steps=30, size=0):
        visits[trip.worker].append(trip.step)
    for steps in visits.values():
        assert steps[:4] == [1, 2, 3, 4]
        assert set(np.diff(steps[3:])) == {5}
    result = tether.simulate(
        *problem_of(3, tether.Downpour(period)), workers=3, clock=clock, overlap=overlap, steps=30, **QUADRATIC
    )
    came = [(trip.worker, trip.step) for record in result.history for trip in record.trips]
    assert sorted(came) == sorted((worker, step) for worker, steps in visits.items() for step in steps)


def test_a_config_names_schedules():
    """Of a config, of a method's table, and of either period of a method with two."""
    content = {
        "workers": 4,
        "steps": 1,
        "period": {"name": "adacomm", "first": 20, "every": 100},
        "data": "digits",
        "model": "logistic",
        "optimizer": {"name": "SGD", "lr": 0.1},
        "methods": {
            "post": {"name": "easgd", "period": {"name": "post-local", "period": 8, "switch": 100}},
            "two": {"name": "multi-leader", "groups": 2, "global_period": {"name": "follow-drift", "first": 16}},
        },
    }
    config = validate(Config, content, "test")
    assert load_method(config, "local") == tether.LocalSGD(AdaComm(20, every=100))
    assert load_method(config, "post") == tether.EASGD(PostLocal(8, switch=100))
    assert load_method(config, "two") == tether.MultiLeaderLSGD(AdaComm(20, every=100), FollowDrift(16), groups=2)
    content["methods"]["post"]["period"]["swich"] = 3
    with pytest.raises(ConfigError, match=r"methods.post.period: there is no key 'swich'; did you mean 'switch'"):
        load_method(validate(Config, content, "test"), "post")
    content["period"] = {"name": "adacom"}
    with pytest.raises(ConfigError, match=r"method.period.name: there is no 'adacom'; did you mean 'adacomm'"):
        load_method(validate(Config, content, "test"), "local")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PostLocal(0, switch=3), "period=0"),
        (lambda: PostLocal(4, switch=0), "switch=0"),
        (lambda: AdaComm(10, every=10, shrink=1.0), "shrink=1: give a number between 0 and 1"),
        (lambda: AdaComm(10, every=10, lr_exponent=-1), "lr_exponent=-1"),
        (lambda: FollowDrift(3, least=4), "first=3: give a whole number, at least 4"),
        (lambda: FollowDrift(30, most=20), "most=20: give a whole number, at least 30"),
        (lambda: FollowDrift(3, target=0), "target=0: give a distance"),
        (lambda: rounds_of(tether.LocalSGD(PostLocal(4, switch=3)), overlap=5), "overlap=5 is longer than the period"),
        (
            lambda: tether.simulate(*problem_of(3, tether.Downpour(FollowDrift(4))), workers=3, steps=3, **QUADRATIC),
            "it follows a mean over all workers, and workers of Downpour do not meet",
        ),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
