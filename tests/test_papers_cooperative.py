"""Experiments of Cooperative SGD and of the slides on local GD: what they run, and that their claims can fail."""

import contextlib
import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import tether
from tether.config import ConfigError, choose
from tether.models import MODELS
from tether.papers import Setting, find
from tether.papers.cooperative import decentralized, elasticity, network_error, overlap, period, training, wall_clock
from tether.papers.localgd import periods as localgd
from tether.papers.real import STEP_SECONDS, WARM_UP, Link, RealRun
from tether.papers.reproduce import reproduce
from tether.papers.runs import carry_out
from tether.run import check
from tether.theory import zeta

TINY = training.Task(
    data={"name": "digits", "partition": "reshuffled"},
    model={"name": "mlp", "hidden": [16]},
    parameters=65 * 16 + 17 * 10,
    samples=1437,
    epochs=4,
    batch_size=4,
)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Real workers on a slow link: means, a ring, rare means, elastic averaging with and without overlap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wall_clock, "STEPS", 60)
        patch.setattr(wall_clock, "small", lambda setting: TINY)
        methods = {decentralized.called(*at): decentralized.method(*at) for at in ((1, 0), (1, 0.75), (10, 0.75))}
        methods |= {period.called(each): period.method(each) for each in (4, 24)}
        methods |= {name: {"name": "easgd", "period": 1} for name in overlap.OVERLAPS}
        place = tmp_path_factory.mktemp("real")
        clock = wall_clock.wall_clock(methods, 0.4, Setting(place), steps_a_mean=1, overlaps=overlap.OVERLAPS)
        return dataclasses.replace(clock, runs=clock.runs | {"τ = 1": clock.runs["τ = 1, ζ = 0"]})


# ---- real workers


def test_real_workers_on_a_slow_link(real):
    for name, run in real.runs.items():
        assert run.losses.shape == (60, training.WORKERS), name
        assert (np.diff(run.seconds) > 0).all()
        assert run.pace > 0.99 * STEP_SECONDS
        assert real.curve(name)[1][-1] < real.start
    if real.link.mbit is None:
        pytest.skip(f"no slow link here: {real.link.why}")
    pace = {name: run.pace / STEP_SECONDS for name, run in real.runs.items()}
    # Beside the message there are headers, what processes tell one another, and whatever else this machine does.
    assert pace["τ = 1"] > 1.8
    assert pace["τ = 24"] < pace["without overlap"]
    assert pace["with overlap"] < pace["without overlap"]
    assert pace["τ = 10, ζ = 0.75"] < pace["τ = 1, ζ = 0.75"]


def test_real_workers_train_as_simulated_ones(real, tmp_path):
    config = TINY.config(decentralized.method(10, 0.75), 0.4, seed=0)
    config = config.model_copy(update={"steps": 60, "scheduler": None, "evaluate_every": None})
    (run,) = carry_out({"ring": config}, Setting(tmp_path)).values()
    means = real.runs["τ = 10, ζ = 0.75"].losses.reshape(6, 10, training.WORKERS).mean(1)
    np.testing.assert_allclose(run.losses[:6], means, rtol=1e-3)


def test_verdicts_on_wall_clock_time():
    fast, slow = (RealRun(np.arange(1.0, 41) * pace, np.full((40, 8), 1.0)) for pace in (1.0, 2.0))
    clock = wall_clock.WallClock({"fast": fast, "slow": slow}, Link(100.0), 1.0, math.log(10))
    assert clock.less_time("fast", "slow", "", beyond=1.9).verdict == "holds"
    assert clock.less_time("fast", "slow", "", beyond=2.1).verdict == "does not hold"
    assert clock.saved("fast", "slow", "", 0.4, "0.5").ratio == pytest.approx(1)
    assert clock.saved("slow", "fast", "", 0.4, "0.5").verdict == "does not hold"
    assert clock.sooner("fast", "slow", "", 1.9).ours == pytest.approx(2)
    assert len(fast.seconds) > WARM_UP
    unlimited = dataclasses.replace(clock, link=Link(None, "no tc"))
    claim = unlimited.saved("fast", "slow", "", 0.4, "0.5")
    assert (claim.verdict, claim.ours) == ("not testable on this data", None)
    assert "no tc" in claim.remark
    assert "no tc" in unlimited.notes[0]


def test_a_failing_process_is_named(tmp_path):
    config = TINY.config({"name": "local", "period": 1}, 0.4, seed=0)
    config = config.model_copy(update={"workers": 2, "model": {"name": "logistic"}})  # of ten classes
    with pytest.raises(RuntimeError, match="logistic regression is between two classes"):
        wall_clock.carry_out_real({"wrong": config}, Link(None, ""), Setting(tmp_path))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_who_ends_the_command_ends_its_workers(tmp_path):
    """A signal to the command alone, as a supervisor sends it."""
    script = f"""
from pathlib import Path
from test_papers_cooperative import TINY, Link, Setting, decentralized, wall_clock
config = TINY.config(decentralized.method(1, 0.0), 0.4, seed=0)
config = config.model_copy(update={{"workers": 2, "steps": 100_000, "scheduler": None, "evaluate_every": None}})
wall_clock.carry_out_real({{"long": config}}, Link(None, ""), Setting(Path({str(tmp_path)!r})))
"""
    place = Path(__file__).parent

    def workers():
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # ended in the meantime
                found.append(str(tmp_path / "runs") in path.read_text(errors="replace"))
        return sum(found)

    command = subprocess.Popen([sys.executable, "-c", script], cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while workers() < 3 and command.poll() is None and time.monotonic() < deadline:  # torchrun, and two
            time.sleep(0.1)
        assert workers() >= 3
    finally:
        command.terminate()
        code = command.wait(60)
    assert code == 128 + signal.SIGTERM
    assert not workers()


# ---- cooperative/network-error


@pytest.mark.parametrize(("tau", "z"), [(5, 0.0), (5, 0.75), (20, 0.5)])
def test_noise_drives_workers_as_far_apart_as_theory_says(monkeypatch, tau, z):
    monkeypatch.setattr(network_error, "ROUNDS", 40)
    half = 7 / 16 * tether.theory.network_error(tau, z)
    assert network_error.measure(tau, z, seed=0) == pytest.approx(half, rel=0.05)


def test_network_error(monkeypatch, tmp_path):
    monkeypatch.setattr(network_error, "ROUNDS", 30)
    monkeypatch.setattr(network_error, "PERIODS", (2, 10))
    monkeypatch.setattr(network_error, "ZETAS", (0.25, 0.75))
    outcome = network_error.network_errors(Setting(tmp_path))
    assert [claim.verdict for claim in outcome.claims[:4]] == ["holds"] * 4
    assert len(outcome.tables["network-error"]) == 4
    # Were it otherwise, the claims would say so.
    monkeypatch.setattr(network_error, "measure", lambda period, zeta, seed: 0.3 * period**2 * (1 - zeta))
    outcome = network_error.network_errors(Setting(tmp_path))
    verdicts = [claim.verdict for claim in outcome.claims[:4]]
    assert verdicts == ["does not hold", "does not hold", "holds", "does not hold"]


# ---- cooperative/easgd-alpha


def test_any_elasticity_is_easgd_where_that_is_stable():
    def train(method):
        return tether.simulate(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)),
            method,
            tether.data.digits(),
            workers=4,
            objective=tether.models.cross_entropy,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            steps=5,
        ).rows

    torch.manual_seed(0)
    expected = train(tether.EASGD(1, 0.2))
    torch.manual_seed(0)
    assert torch.equal(train(elasticity.AnyElasticity(1, 0.2)), expected)
    with pytest.raises(ValueError, match="come together only for"):
        train(tether.EASGD(1, 0.41))


def test_easgd_alpha(monkeypatch, tmp_path):
    monkeypatch.setattr(elasticity, "task", lambda setting: TINY)
    outcome = elasticity.easgd_alpha(Setting(tmp_path))
    rows = {row["alpha"]: row for row in outcome.tables["elasticities"]}
    # The component along which workers and anchor part grows by zeta a round.
    assert rows[0.23]["growth_a_round"] == pytest.approx(1.07, abs=0.02)
    assert rows[0.2]["discrepancy_before_the_drop"] < rows[0.05]["discrepancy_before_the_drop"]
    assert outcome.claims[2].ours == rows[0.23]["growth_a_round"]
    converging = elasticity.run(TINY, 0.2, Setting(tmp_path), 0.0)
    assert elasticity._diverges(dataclasses.replace(converging, alpha=0.23)).verdict == "does not hold"


# ---- cooperative/period and cooperative/decentralized


def test_period(real, tmp_path):
    runs = carry_out(period.configs(TINY, 0), Setting(tmp_path))
    grid = dict(zip(period.GRID, runs.values(), strict=True))
    outcome = period.study(TINY, grid, real)
    claims = {claim.says: claim for claim in outcome.claims}
    # A mean takes as long as a step: 2 in place of 1 + 1/24, of rounds and what they leave over.
    virtual = next(claim for claim in outcome.claims if claim.remark.startswith("virtual time"))
    rounds = TINY.steps // 24
    assert virtual.ours == pytest.approx(2 * TINY.steps / (TINY.steps + rounds), rel=1e-3)
    assert virtual.verdict == "holds"
    assert len(claims) == 6
    assert len(outcome.tables["periods"]) == 6
    epochs, losses = TINY.loss(grid[1, 0.4])
    assert epochs[-1] == pytest.approx(TINY.epochs)
    assert losses[-1] < losses[0] < training.Task.start(TINY)
    # With the periods the other way round no claim about them can hold.
    reverse = {(tau, rate): grid[other, rate] for tau, other in ((1, 24), (4, 4), (24, 1)) for rate in period.RATES}
    assert period.study(TINY, reverse, real).claims[3].verdict == "does not hold"
    ordered = [claim.holds for claim in period.study(TINY, grid, real).claims[:2]]
    backwards = [claim.holds for claim in period.study(TINY, reverse, real).claims[:2]]
    assert not any(a and b for a, b in zip(ordered, backwards, strict=True))


def test_decentralized(real, tmp_path):
    runs = carry_out(decentralized.configs(TINY, 0.4, 0), Setting(tmp_path))
    grid = dict(zip(decentralized.GRID, runs.values(), strict=True))
    outcome = decentralized.study(TINY, 0.4, grid, real)
    assert len(outcome.claims) == 7
    links = outcome.tables["links"]
    faster = [row["times_faster_than_sync"] for row in links]
    assert faster == sorted(faster)  # the slower the link, the more local steps are worth
    # Where a mean takes one step, what is computed from the epochs is what the clock of the runs said.
    same = next(row for row in links if row["steps_a_mean"] == 1)
    claim = next(claim for claim in outcome.claims if claim.paper == "4")
    assert claim.ours == pytest.approx(same["times_faster_than_sync"], rel=1e-2)
    assert claim.ours < 2
    assert claim.verdict == "does not hold"
    assert {row["network_error"] for row in outcome.tables["grid"]} == {
        float(tether.theory.network_error(*at)) for at in decentralized.GRID
    }


def test_rings():
    for wanted in (0.75, 0.8047378541243649, 0.95):
        W = np.array(decentralized.ring(wanted))
        assert zeta(W) == pytest.approx(wanted, abs=1e-8)
        assert (W > 0).sum() == 3 * training.WORKERS
    np.testing.assert_allclose(W.sum(1), 1)
    with pytest.raises(ValueError, match="does not mix so fast"):
        decentralized.ring(0.7)


# ---- the papers' own settings


def test_the_papers_settings(tmp_path):
    what = training.task(Setting(tmp_path, paper=True, data=tmp_path))
    configs = [*period.configs(what, 0).values(), *decentralized.configs(what, 0.4, 0).values()]
    configs.append(what.config({"name": "easgd", "period": 1}, 0.4, 0).model_copy(update={"overlap": 1}))
    assert {config.optimizer["lr"] for config in configs} == {0.04, 0.4}
    for config in configs:
        check(config, config.method)
        assert (config.workers, config.batch_size, config.steps) == (8, 128, 200 * 48)
        assert config.scheduler == {"name": "MultiStepLR", "milestones": [100 * 48, 150 * 48], "gamma": 0.1}
        assert config.data["folder"] == str(tmp_path)
    model = choose(configs[0].model, MODELS, "model", shape=(3, 32, 32), classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == what.parameters
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    # A mean takes as long as a step, which on this model is this link.
    assert what.clock["bandwidth"] == pytest.approx(2 * 7 / 8 * 32 * what.parameters / 0.11)
    small = training.task(Setting(tmp_path, data=tmp_path))
    check(small.config(decentralized.method(10, 0.75), 0.4, 0), "cooperative")


# ---- localgd/periods


@pytest.fixture(scope="module")
def cancer(tmp_path_factory):
    return localgd.samples(Setting(tmp_path_factory.mktemp("cancer")))


def test_local_gd_is_its_equation(cancer):
    given = localgd.problem(cancer, 1.0, seed=0).scaled(0.5)
    found = localgd.descend(given, period=4, lr=0.1, steps=16)
    inputs, labels, tilts = (each.numpy().reshape(8, 71, *each.shape[1:]) for each in given.data.train)
    inputs = np.concatenate([inputs, np.ones((8, 71, 1))], axis=2)
    x, means = np.zeros((8, 31)), [np.zeros(31)]
    for t in range(1, 17):
        odds = np.einsum("mnd,md->mn", inputs, x)
        gradient = np.einsum("mnd,mn->md", inputs, 1 / (1 + np.exp(-odds)) - labels) / 71
        x = x - 0.1 * (gradient + localgd.PENALTY * x + tilts[:, 0])
        if t % 4 == 0:
            x[:] = x.mean(0)
        means.append(x.mean(0))
    np.testing.assert_array_equal(found.steps, [4, 8, 12, 16])
    expected = given.gap(torch.tensor(np.array([means[t] for t in (4, 8, 12, 16)])))
    np.testing.assert_allclose(found.gap, expected, rtol=1e-9)
    average = given.gap(torch.tensor(np.mean(means[:8], 0))[None])
    np.testing.assert_allclose(found.average[1], average[0], rtol=1e-9)


def test_scaling_changes_sigma_alone(cancer):
    given = localgd.problem(cancer, 1.0, seed=0)
    half = given.scaled(0.5)
    assert half.heterogeneity == pytest.approx(given.heterogeneity / 4, rel=1e-4)
    assert half.smoothness == pytest.approx(given.smoothness, rel=1e-9)
    assert half.least == pytest.approx(given.least, abs=1e-12)
    mixed = localgd.problem(cancer, 0.25, seed=0)
    assert mixed.least == pytest.approx(given.least, abs=1e-12)
    assert mixed.heterogeneity < given.heterogeneity / 4


def test_local_gd(cancer, monkeypatch, tmp_path):
    monkeypatch.setattr(localgd, "PERIODS", (1, 8))
    outcome = localgd.study(cancer, Setting(tmp_path), steps=600)
    bound, faster, *_ = outcome.claims
    assert (bound.verdict, faster.verdict) == ("holds", "holds")
    assert len(outcome.tables["floors"]) == 2 + 2 + 2
    assert outcome.figures["periods"].axes


def test_claims_on_local_gd_can_fail(cancer):
    given = localgd.problem(cancer, 1.0, seed=0)
    found = localgd.descend(given, period=4, lr=0.1, steps=80)
    assert localgd._holds_bound([found]).verdict == "holds"
    tight = dataclasses.replace(found, bound=found.average * 0.99)
    assert localgd._holds_bound([found, tight]).verdict == "does not hold"
    # Of a period that is not longer, nothing is faster, nor is there a higher floor.
    assert [claim.verdict for claim in localgd._by_period([found, found, found], 80)] == ["does not hold"] * 2

    def made(exponent):
        problems = (given, given.scaled(0.5), given.scaled(0.25))
        floors = [np.full(len(found.steps), each.heterogeneity**exponent) for each in problems]
        pairs = zip(problems, floors, strict=True)
        return [dataclasses.replace(found, problem=each, gap=floor) for each, floor in pairs]

    assert localgd._proportional(made(1.0), "", "").verdict == "holds"
    assert localgd._proportional(made(2.0), "", "").verdict == "does not hold"


def test_local_gd_on_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(localgd, "STEPS", 64)
    random = np.random.default_rng(0)
    lines = [f"{label} 1:{label + random.normal():.4f} 3:{random.normal():.4f}" for label in (-1, 1) for _ in range(20)]
    path = tmp_path / "two.txt"
    path.write_text("\n".join(lines) + "\n")
    outcome = reproduce(find("localgd/periods"), Setting(tmp_path / "out", data=path))
    assert outcome.notes[0].startswith("two.txt: 40 samples of 3 numbers")
    assert (tmp_path / "out" / "periods.png").stat().st_size > 1000
    with pytest.raises(ConfigError, match=r"localgd/periods --paper needs .*: give the file by --data FILE"):
        reproduce(find("localgd/periods"), Setting(tmp_path / "other", paper=True))
    with pytest.raises(ConfigError, match="there is no such file; localgd/periods needs two classes"):
        reproduce(find("localgd/periods"), Setting(tmp_path / "other", data=tmp_path))
    path.write_text("\n".join([*lines, "2 1:0.5"]) + "\n")
    with pytest.raises(ConfigError, match="3 classes"):
        reproduce(find("localgd/periods"), Setting(tmp_path / "other", data=path))


def test_all_are_listed():
    names = ("network-error", "easgd-alpha", "overlap", "period", "decentralized")
    for name in [*(f"cooperative/{each}" for each in names), "localgd/periods"]:
        assert find(name).about, name
