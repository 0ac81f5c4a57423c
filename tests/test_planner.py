"""Plans: candidates, forecasts against times worked out by hand, recommendations, the command, and real workers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import scenarios_planner
import tether
from problems import Point, Quadratics, quadratic
from real import launch
from tether import cli
from tether.config import ConfigError
from tether.history import Record, Times
from tether.methods import DecentralizedSGD, LocalSGD, MultiLeaderLSGD, SyncSGD
from tether.planner import (
    Candidate,
    Conditions,
    Course,
    Forecast,
    Plan,
    course_of,
    make_plan,
    standard_candidates,
    training_loss,
)
from tether.planner.bounds import bound, mixing_of, probe
from tether.planner.command import bits, seconds
from tether.planner.plan import verified
from tether.theory import cooperative_bound, elastic_zeta, largest_learning_rate, round_costs

ROOT = Path(__file__).parent.parent
D = 100

# A ring all-reduce of 800 bytes among 4: 6 hops of 200 bytes, 8 ms each at 0.2 Mbit/s.
CLOCK = tether.Clock(step=0.01, bandwidth=2e5)
MESSAGE = 6 * 0.008
CONDITIONS = Conditions(4, D, CLOCK, torch.float64)
INSTANT = Conditions(4, D, tether.Clock(step=0.01), torch.float64)

METHODS = {"sync": lambda period: SyncSGD(), "local": LocalSGD, "ring": DecentralizedSGD}


def train(candidate, steps, lr=0.05, clock=CLOCK):
    data = Quadratics.random(4, D, seed=3).data
    return tether.simulate(
        Point(D),
        candidate.method,
        data,
        workers=4,
        objective=quadratic,
        optimizer=lambda p: torch.optim.SGD(p, lr=lr),
        steps=steps,
        batch_size=None,
        overlap=candidate.overlap,
        clock=clock,
        evaluate=training_loss(data, quadratic, workers=4),
        evaluate_every=2,
    )


def plan_of(candidates, **options):
    return make_plan(candidates, CONDITIONS, train, steps=48, **options)


def test_candidates_are_methods_with_periods_and_the_least_overlap_that_hides_the_message():
    found = standard_candidates(METHODS, CONDITIONS, periods=(4, 16), steps=48)
    names = [each.name for each in found]
    # 48 ms of an all-reduce are five steps of 10 ms, or the whole period of 4; 64 ms between neighbours are seven.
    assert names == [
        "sync",
        "local 4",
        "local 4 + 4",
        "local 16",
        "local 16 + 5",
        "ring 4",
        "ring 4 + 4",
        "ring 16",
        "ring 16 + 7",
    ]
    assert all(each.overlap <= each.period for each in found)
    fast = standard_candidates(METHODS, INSTANT, periods=(4,))
    assert [each.name for each in fast] == ["sync", "local 4", "ring 4"]
    with pytest.raises(ValueError, match="periods=20, 64: none fits three times into 48 local steps"):
        standard_candidates(METHODS, CONDITIONS, periods=(20, 64), steps=48)


def test_forecasts_are_times_worked_out_by_hand():
    candidates = [
        Candidate("sync", "sync", SyncSGD()),
        Candidate("local 4", "local", LocalSGD(4)),
        Candidate("local 8 + 5", "local", LocalSGD(8), overlap=5),
        Candidate("local 8 + 2", "local", LocalSGD(8), overlap=2),
    ]
    found = {each.candidate.name: each for each in plan_of(candidates, target=1e9).forecasts}
    for each in found.values():
        assert each.message == pytest.approx(MESSAGE)
        assert each.megabytes == pytest.approx(2 * 3 / 4 * 8 * D / 1e6)
    periods = {"sync": 0.01 + MESSAGE, "local 4": 0.04 + MESSAGE, "local 8 + 5": 0.08, "local 8 + 2": 0.06 + MESSAGE}
    assert {name: each.period for name, each in found.items()} == pytest.approx(periods)
    assert found["local 4"].waiting == pytest.approx(MESSAGE / (0.04 + MESSAGE))
    # Only for the last round, which nothing hides.
    assert found["local 8 + 5"].waiting == pytest.approx(MESSAGE / (0.48 + MESSAGE))
    assert found["sync"].seconds == pytest.approx(48 * (0.01 + MESSAGE))


def test_what_rounds_cost_besides_is_each_methods_own():
    clock = tether.Clock(step=0.01, bandwidth=2e5, round=0.001)
    conditions = Conditions(4, D, clock, torch.float64, rounds={"local": 0.02})
    for name, candidate, cost in (
        ("measured", Candidate("local 4", "local", LocalSGD(4)), 0.02),
        ("the clock's", Candidate("sync", "sync", SyncSGD()), 0.001),
    ):
        assert conditions.clock_of(candidate).round == cost, name
        result = train(candidate, 48, clock=conditions.clock_of(candidate))
        assert course_of(result.history).period == pytest.approx(candidate.period * 0.01 + MESSAGE + cost), name


def test_a_course_by_hand():
    def record(index, step, round, now, **measures):
        times = Times(*(np.array([now, now / 2]) for _ in range(4)))
        return Record(index, step, round, np.zeros(2), 0.0, np.zeros(2), 0, 0, 0.0, virtual=times, center=measures)

    history = [
        record(0, 6, 0, 1.0, loss=5.0),
        record(1, 12, 1, 2.0),
        record(2, 16, 1, 3.0, loss=3.0),
        record(3, 24, 2, 4.0, loss=2.0),
    ]
    course = course_of(history)
    assert course.steps.tolist() == [6, 12, 16, 24]
    assert course.seconds.tolist() == [1, 2, 3, 4]
    assert course.rounds.tolist() == [False, True, False, True]
    assert (course.reaches(5.0), course.reaches(4.9), course.reaches(1.0)) == (6, 16, None)
    # Workers have a model in common at rounds only.
    assert (course.when(6), course.when(16), course.when(30)) == (2.0, 4.0, 4.0)
    assert course.period == 2.0


def test_training_loss_is_that_of_the_mean_objective_and_not_of_the_workers_own():
    """Two classes a worker: each is soon good at its own two, and the mean of all models is not."""
    data = tether.data.digits().partitioned("classes", classes=2)
    uneven = tether.data.digits().partitioned("quantity", beta=0.5)
    model = tether.models.mlp(shape=(1, 8, 8), classes=10, hidden=[8])
    for each in (data, uneven):
        shards = each.shards(5, 0)
        of_workers = [
            tether.models.cross_entropy(
                model, tuple(part[torch.from_numpy(shards.whole(worker, 0))] for part in each.train)
            ).item()
            for worker in range(5)
        ]
        measure = training_loss(each, tether.models.cross_entropy, workers=5, samples=10_000)
        assert measure(model)["loss"] == pytest.approx(np.mean(of_workers), rel=1e-5)
    result = tether.simulate(
        model,
        LocalSGD(60),
        data,
        workers=5,
        objective=tether.models.cross_entropy,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        steps=60,
        evaluate=training_loss(data, tether.models.cross_entropy, workers=5),
        evaluate_every=59,
    )
    apart = result.history[0]
    assert apart.center["loss"] > 2 * apart.loss


def test_the_recommendation_is_the_soonest():
    candidates = standard_candidates(METHODS, CONDITIONS, periods=(4, 16), steps=48)
    plan = plan_of(candidates)
    times = {each.candidate.name: each.to_target(plan.target) for each in plan.forecasts}
    reached = {name: when for name, when in times.items() if when is not None}
    assert list(reached.values()) == sorted(reached.values())
    assert reached[plan.recommended.name] <= 1.03 * min(reached.values())
    assert plan.recommended.name != "sync"
    assert plan.recommended.name in plan.reason
    assert re.search(r"times sooner than|level with", plan.reason)


def test_of_level_candidates_the_one_that_sends_least_is_recommended():
    def forecast(name, period, when, megabytes):
        course = Course(np.array([10]), np.array([when]), np.array([0.5]), np.array([True]))
        return Forecast(Candidate(name, name, LocalSGD(period)), megabytes, 1.0, 1.0, 0.0, when, 0.5, course)

    forecasts = forecast("often", 2, 10.0, 1.0), forecast("rare", 8, 10.2, 2.0), forecast("slow", 64, 12.0, 0.1)
    plan = Plan(CONDITIONS, 0.5, forecasts, {}, None)
    assert plan.recommended.name == "rare"
    assert "level with often" in plan.reason


def test_what_diverges_is_said_and_not_recommended():
    def diverging(candidate, steps):
        return train(candidate, steps, lr=1e9 if candidate.kind == "local" else 0.05)

    candidates = [Candidate("local 4", "local", LocalSGD(4)), Candidate("sync", "sync", SyncSGD())]
    plan = make_plan(candidates, CONDITIONS, diverging, steps=48)
    assert plan.recommended.name == "sync"
    assert plan.forecasts[-1].course is None
    with pytest.raises(ValueError, match="every candidate diverged"):
        make_plan(candidates[:1], CONDITIONS, diverging, steps=48)


def test_candidates_are_compared_at_equal_loss_not_at_equal_steps():
    """A method that takes more steps to the target, but less time, takes these steps."""
    candidates = [Candidate("sync", "sync", SyncSGD()), Candidate("leader 4", "leader", tether.LSGD(4, pull=0.5))]
    asked = []

    def counted(candidate, steps):
        asked.append((candidate.name, steps))
        return train(candidate, steps)

    plan = make_plan(candidates, CONDITIONS, counted, steps=48)
    sync = next(each for each in plan.forecasts if each.candidate.kind == "sync")
    longest = int(48 * sync.to_target(plan.target) / (12 * (0.04 + plan.conditions.message(tether.LSGD(4)))))
    assert asked == [("sync", 48), ("leader 4", 48), ("leader 4", longest)]
    assert 48 < longest < 4 * 48


def test_a_target_that_is_not_reached_is_refused_with_the_lowest_loss():
    with pytest.raises(ValueError, match=r"target=-1: no candidate comes to it, the lowest loss is \d"):
        plan_of([Candidate("sync", "sync", SyncSGD())], target=-1.0)


def test_verified_compares_at_the_step_of_the_forecast():
    (forecast,) = plan_of([Candidate("local 4", "local", LocalSGD(4))], target=1e9).forecasts
    target = float(np.nanmedian(forecast.course.losses))
    step = forecast.course.reaches(target)
    rounds = np.arange(4, 52, 4)
    real = Course(rounds, rounds * 0.5, np.linspace(9, 7, 12), np.ones(12, dtype=bool))
    found = verified(forecast, real, target)
    assert found.to_target == (forecast.to_target(target), -(-step // 4) * 2.0)
    assert found.period == (forecast.period, 2.0)
    assert found.loss == (forecast.loss, 7.0)


# ---- bounds


@pytest.mark.parametrize(
    ("method", "mixing"),
    [
        (SyncSGD(), (0.0, 0)),
        (LocalSGD(4), (0.0, 0)),
        (tether.EASGD(4), (8 / 10, 1)),
        (DecentralizedSGD(4), (1 / 3 + 2 / 3 * np.cos(2 * np.pi / 8), 0)),
        (tether.GeneralizedElastic(4), (0.656611, 1)),
        (tether.CooperativeSGD(4, np.full((8, 8), 1 / 8)), (0.0, 0)),
        (DecentralizedSGD(4, "one-peer-exponential"), None),
        (tether.LSGD(4), None),
        (tether.Downpour(4), None),
    ],
)
def test_mixing(method, mixing):
    found = mixing_of(method, 8)
    assert found is None if mixing is None else found == pytest.approx(mixing, abs=1e-6)


def test_bounds_are_those_of_theory():
    problem = Quadratics.random(4, 5, seed=1)
    constants = probe(Point(5), quadratic, problem.data, workers=4, batch_size=None)
    assert constants.noise.value == pytest.approx(0, abs=1e-12)
    candidate = Candidate("easgd 4", "easgd", tether.EASGD(4))
    message = 6 * (40 / 4 * 8 / 2e5)
    conditions = Conditions(4, 5, CLOCK, torch.float64)
    given = {"conditions": conditions, "seconds": 10.5 * (0.04 + message)}
    zeta = elastic_zeta(2 / 6, 4)
    known = {"period": 4, "zeta": zeta, "workers": 4, "smoothness": constants.smoothness.value, "auxiliary": 1}
    largest = largest_learning_rate(**known, iid=False)
    found = bound(candidate, constants, lr=largest / 2, **given)
    expected = cooperative_bound(
        **known,
        steps=40,
        noise=0.0,
        gap=constants.gap.value,
        lr=largest / 2,
        dissimilarity=constants.dissimilarity.value,
    )
    assert found.largest_lr == largest
    assert found.value == pytest.approx(expected.total)
    assert bound(candidate, constants, lr=2 * largest, **given).value is None
    assert bound(Candidate("leader", "leader", tether.LSGD(4)), constants, lr=0.1, **given) is None


# ---- the command


@pytest.mark.parametrize(
    ("text", "value"), [("30ms", 0.03), ("0.5s", 0.5), ("100us", 1e-4), ("2", 2.0), ("1e-3 s", 1e-3)]
)
def test_times_are_read(text, value):
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"), [("100Mbit", 1e8), ("1 Gbit/s", 1e9), ("25Mbits", 25e6), ("2.5mbps", None), ("5e6", 5e6)]
)
def test_bandwidths_are_read(text, value):
    if value is None:
        with pytest.raises(ConfigError, match="give bits a second, such as 100Mbit"):
            bits(text)
    else:
        assert bits(text) == pytest.approx(value)


def command(capsys, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["tether", "plan", str(ROOT / "examples/digits.toml"), *map(str, words)])
    code = 0
    try:
        cli.main()
    except SystemExit as leaving:
        code = leaving.code
    return code, capsys.readouterr().out


def test_the_command_plans_writes_and_is_reported(tmp_path, capsys, monkeypatch):
    words = ["--workers", 4, "--bandwidth", "2Mbit", "--latency", "5ms", "--step", "10ms", "--set", "steps=60"]
    words += ["--methods", "sync,local,ring", "--periods", "4,16", "--out", tmp_path / "plan"]
    code, out = command(capsys, monkeypatch, *words)
    assert code == 0, code
    assert "a local step takes 10 ms; links of 2 Mbit/s, latency 5 ms" in out
    assert re.search(r"Recommended: \S+", out)
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    names = [each["name"] for each in plan["candidates"]]
    assert {"sync", "local 4", "local 16", "ring 4", "ring 16"} <= set(names)
    assert plan["recommended"] in names
    for name in names:
        assert re.search(rf"^ +{re.escape(name)} ", out, re.MULTILINE), name
    assert plan["constants"]["smoothness"]["value"] > 0
    assert sum(each["bound"] is not None for each in plan["candidates"]) == len(names)
    assert (tmp_path / "plan" / "error-runtime.png").stat().st_size > 10_000
    monkeypatch.setattr(
        sys, "argv", ["tether", "report", str(tmp_path / "plan"), "--format", "csv", "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit):
        cli.main()
    assert "plan" in capsys.readouterr().out
    # Planning again goes on from the runs that are there.
    code, again = command(capsys, monkeypatch, *words)
    assert code == 0, code
    assert plan["recommended"] in again


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"what do the links do\? Give --bandwidth 100Mbit"),
        (["--latency", "30ms"], "--bandwidth: what do the links carry"),
        (["--bandwidth", "fast"], "fast: give bits a second, such as 100Mbit"),
        (["--bandwidth", "0Mbit"], "no message would ever arrive"),
        (["--bandwidth", "1Mbit", "--latency", "3 weeks"], "3 weeks: give a time, such as 30ms"),
        (["--bandwidth", "1Mbit", "--periods", "4,x"], "--periods 4,x: give whole numbers"),
        (["--bandwidth", "1Mbit", "--periods", "400"], "--periods: periods=400: none fits three times into 500"),
        (["--bandwidth", "1Mbit", "--methods", "sync,locl"], "no method is called 'locl'; did you mean 'local'"),
        (["--bandwidth", "1Mbit", "--verify"], "--verify runs on real workers: start it with torchrun"),
    ],
)
def test_mistakes(words, message, capsys, monkeypatch):
    code, _ = command(capsys, monkeypatch, *words)
    assert re.search(message, str(code)), code


@pytest.mark.xdist_group("real")
def test_a_round_does_not_cost_what_the_slowest_computes():
    for process in launch("scenarios_planner", 2, timeout=200):
        found = process["slow and fast"]
        clock = tether.Clock(**found["clock"])
        assert np.divide(clock.step, clock.speeds) == pytest.approx(scenarios_planner.STEPS)
        assert found["rounds"] == pytest.approx(scenarios_planner.BESIDES, abs=0.05)  # forty bytes take little


def test_a_period_of_several_parts_has_its_share_of_the_rarer_messages():
    conditions = Conditions(4, D, CLOCK, torch.float64)
    leaders = MultiLeaderLSGD(4, global_period=16, groups=2)
    often, rarely = (cost.seconds(CLOCK) for cost in round_costs(leaders, 4, D, dtype=torch.float64))
    assert conditions.each_period(leaders) == pytest.approx(4 * 0.01 + often + rarely / 4)
    assert conditions.each_period(LocalSGD(4)) == pytest.approx(4 * 0.01 + MESSAGE)


@pytest.mark.xdist_group("real")
def test_real_workers_are_measured_and_train_what_was_simulated(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["-m", "tether", "plan", ROOT / "examples/digits.toml", "--methods", "sync,easgd", "--periods", 5]
    words += ["--set", "workers=4", "--set", "steps=60", "--set", "dtype=float64", "--verify", "--top", 2]
    done = subprocess.run(
        [*map(str, [*launcher, *words, "--out", tmp_path / "plan"])],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Recommended") == 1  # one process prints
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    clock = plan["clock"]
    assert clock["step"] > 0
    assert clock["nodes"] == 1
    assert 0 < clock["node_latency"] < 0.1
    assert clock["node_bandwidth"] > 1e8
    for each in plan["candidates"]:  # two processes that compute come to a round at different moments
        run = json.loads((tmp_path / "plan/runs" / each["name"].replace(" ", "") / "config.json").read_text())
        assert run["clock"].get("round", 0.0) == each["seconds a round besides"]
    assert len(plan["verified"]) == 2
    for each in plan["verified"]:
        predicted, measured = each["loss"]
        assert predicted == pytest.approx(measured, rel=0.05)
        assert all(value > 0 for value in each["period"])
