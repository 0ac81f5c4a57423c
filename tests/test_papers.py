"""Experiments of the papers: their numbers, what they leave behind, and what is said of mistakes."""

import csv
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import tether
from tether import cli
from tether.config import ConfigError
from tether.papers import EXPERIMENTS, Claim, Outcome, Setting, experiment, find
from tether.papers.experiments import PAPERS
from tether.papers.leader import imagenet, matrix_completion, networks, sinc, switching, symmetry
from tether.papers.leader.comparison import Comparison, Entry, Found, Grid
from tether.papers.leader.descent import descend
from tether.papers.reproduce import reproduce
from tether.run import check, load_clock


def command(monkeypatch, capsys, *arguments):
    """What the command prints, and what it says on failure."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "argv", ["tether", "reproduce", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return capsys.readouterr().out, stopped.value.code


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


# ---- leader/sinc


def literal(method, iterations):
    """The equations of section 6 of the supplement in NumPy: workers and center after each iteration."""

    def gradient(x):
        r = np.linalg.norm(x, axis=1, keepdims=True)
        return (np.cos(np.pi * r) / r - np.sin(np.pi * r) / (np.pi * r**2)) * x / r

    x = np.array([[-6.0, -4.0], [-15.0, -18.0], [20.0, 11.0], [17.0, 8.0]])
    z = x.mean(0)
    rows, centers = [x], [z]
    for _ in range(iterations):
        if method == "EAGD":
            alpha = 0.43 / 4
            x, z = x - 0.1 * gradient(x) - alpha * (x - z), z + alpha * (x - z).sum(0)
        else:
            leader = x[np.sinc(np.linalg.norm(x, axis=1)).argmin()]
            x = x - 0.1 * gradient(x) - 0.1 * (x - leader)
        rows.append(x)
        centers.append(z if method == "EAGD" else x.mean(0))
    return np.array(rows), np.array(centers)


@pytest.mark.parametrize("method", ["EAGD", "LGD"])
def test_sinc_is_its_equation(method):
    found = descend(sinc.height, sinc.METHODS[method], sinc.STARTS, sinc.LEARNING_RATE, 100)
    rows, centers = literal(method, 100)
    # On the slopes of the rings nearby points part: 1e-16 becomes 1e-10 before all come together.
    np.testing.assert_allclose(found.rows.numpy(), rows, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.center.numpy(), centers, rtol=0, atol=1e-8)


def test_sinc_prints_the_papers_numbers(monkeypatch, capsys, tmp_path):
    out, code = command(monkeypatch, capsys, "leader/sinc", "--out", tmp_path / "sinc")
    assert not code
    assert out.count(" holds ") >= 4
    assert "does not hold" not in out
    for number in ("-0.0912, ", "-0.0912459", "-0.2172, ", "-0.217234", "-0.0913252", "-0.2172336", "-0.0425"):
        assert number in out
    outcome = json.loads((tmp_path / "sinc" / "outcome.json").read_text())
    center, best, *_ = outcome["claims"]
    assert center["ours"] == pytest.approx(-0.091246, abs=5e-7)
    assert best["ours"] == pytest.approx(-0.2172336, abs=5e-8)
    assert center["ratio"] == pytest.approx(center["ours"] / -0.0912)
    assert {"command", "seed", "seconds", "commit", "machine", "notes"} <= outcome.keys()
    assert outcome["machine"]["versions"]["torch"] == torch.__version__
    for name in outcome["figures"] + outcome["tables"]:
        assert (tmp_path / "sinc" / name).stat().st_size > 100
    with Image.open(tmp_path / "sinc" / "figure-7.png") as image:
        assert len(image.convert("RGB").getcolors(1_000_000)) > 100
    rows = table(tmp_path / "sinc" / "table-1.csv")
    assert [row["method"] for row in rows] == ["EAGD", "LGD", "uncoupled GD"] * 2
    # The commit is that of this checkout, if it is one.
    asked = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=cli.__file__[: -len("cli.py")], capture_output=True, text=True
    )
    if asked.returncode == 0 and outcome["commit"]:
        assert outcome["commit"].startswith(asked.stdout.strip())


# ---- leader/matrix-completion


def test_matrix_completion_is_its_equation():
    size = matrix_completion.Size(dimension=12, ranks=(3,), trials=1, iterations=30)
    found = dict(matrix_completion._solve(size, 3, (0, 3, 0)))
    random = np.random.default_rng((0, 3, 0))
    U, start = random.standard_normal((12, 3)), random.standard_normal((8, 36)).reshape(8, 12, 3)
    M, rate, pull = U @ U.T, size.learning_rate, 1e-4

    def objective(X):
        return np.square(M - X @ X.T).sum() / 4

    for name, best in found.items():
        X, Z = start, start.mean(0)
        for iteration in range(30):
            losses = [objective(x) for x in X]
            assert best[iteration] == pytest.approx(min(losses), rel=1e-9)
            target = {"EAGD": Z, "LGD": X[np.argmin(losses)], "uncoupled GD": X}[name]
            Z = Z + pull * (X - Z).sum(0)
            X = X - pull * (X - target) - rate * np.stack([(x @ x.T - M) @ x for x in X])


def test_matrix_completion(tmp_path):
    size = matrix_completion.Size(dimension=40, ranks=(1,), trials=2, iterations=120)
    outcome = matrix_completion.study(size, Setting(tmp_path))
    assert [claim.verdict for claim in outcome.claims] == ["holds"] * 2
    assert len(outcome.tables["best-objective"]) == 2 * 3 * 120
    assert "no leader is needed" in outcome.notes[0]
    assert "d = 40 instead of 1,000" in outcome.notes[1]
    assert matrix_completion.PAPER.learning_rate == pytest.approx(5e-4)


# ---- comparisons


SMALL = Comparison(
    data={"name": "digits", "partition": "reshuffled"},
    model={"name": "mlp", "hidden": [16]},
    parameters=65 * 16 + 17 * 10,
    grids={
        "SGD": Grid((0.01, 0.05)),
        "DOWNPOUR": Grid((0.01,)),
        "EASGD": Grid((0.05,)),
        "LSGD": Grid((0.05,), (0.1, 0.5)),
    },
    step_seconds=0.01,
    seconds=0.24,
    evaluations=4,
    workers=(4, 8),
    batch_size=16,
    period=4,
    global_period=8,
    drops=(0.75,),
    slower_links=200,
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    place = tmp_path_factory.mktemp("comparison")
    shares = []
    found = Found(SMALL, Setting(place, progress=lambda what, share: shares.append(share)))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    return found


def test_a_comparison_runs_its_grid(found):
    assert [(each.method, each.workers) for each in found.entries] == (
        [("SGD", 1)] * 2
        + [("DOWNPOUR", 4), ("DOWNPOUR", 8), ("EASGD", 4), ("EASGD", 8)]
        + [("LSGD", 4)] * 2
        + [("LSGD", 8)] * 2
    )
    (run,) = [run for name, run in found.runs.items() if name == "LSGD-8-lr-0.05-pull-0.1"]
    assert run.config["method"] == "LSGD"
    assert run.config["method.groups"] == 2
    assert run.config["trigger"] == "total-steps"
    for entry in found.entries:
        assert found.runs[entry.name].virtual[-1] == pytest.approx(0.24, rel=0.2), entry
    # One worker waits for nobody, rounds of all take little; at a center messages that come together share its link,
    # and DOWNPOUR has one every step.
    steps = {each.method: found.comparison.steps(each) for each in found.entries if each.workers in (1, 8)}
    assert steps["DOWNPOUR"] < steps["EASGD"] < steps["LSGD"] < steps["SGD"]
    best = found.best("SGD", 1)
    assert found.error(best) == min(found.error(each) for each in found.entries if each.method == "SGD")
    seconds, error = found.curve(best)
    assert len(seconds) == 4
    (center,) = [found.runs[each.name].result["center"] for each in found.entries if each.name.startswith("EASGD-8")]
    assert center["loss"] > 0
    assert error[-1] == pytest.approx(1 - found.runs[best.name].result["center"]["accuracy"])
    tables = found.tables()
    assert len(tables["tries"]) == 10
    assert sum(row["shown"] for row in tables["tries"]) == 7
    assert len(tables["curves"]) == sum(len(found.curve(each)[0]) for each in found.entries)
    assert found.draw("loss").axes


def test_a_comparison_goes_on_where_it_was_stopped(found, tmp_path):
    entry = Entry("EASGD", 8, 0.05, None)
    again = dataclasses.replace(SMALL, grids={"EASGD": Grid((0.05,))}, workers=(8,))
    with pytest.raises(KeyboardInterrupt):
        Found(again, Setting(tmp_path, progress=stop_at(0.5)))
    resumed = Found(again, Setting(tmp_path))
    np.testing.assert_array_equal(resumed.curve(entry, "loss"), found.curve(entry, "loss"))


def stop_at(share):
    def progress(what, done):
        if done >= share:
            raise KeyboardInterrupt

    return progress


def test_who_led(found):
    one, groups = (found.runs[found.best("LSGD", workers).name] for workers in (4, 8))
    rounds = (found.comparison.steps(found.best("LSGD", workers)) // 4 for workers in (4, 8))
    assert switching.led(one, of_all=True).sum() == next(rounds)
    assert switching.led(one, of_all=False).sum() == 0
    often = next(rounds)
    assert switching.led(groups, of_all=True).sum() == often // 2
    assert switching.led(groups, of_all=False).sum() == 2 * often
    for claim, run in zip(switching.all_lead([one, groups]), (one, groups), strict=True):
        assert claim.ours == len({w for who in run.leaders if who is not None for w in np.ravel(who)})
    assert len(switching.draw(groups).axes[1].patches) == 2 * 8


def test_how_many_times_faster(found, monkeypatch):
    seconds = np.linspace(1, 10, 10)
    curves = {"fast": (seconds, 0.9 - 0.06 * seconds), "slow": (2 * seconds, 0.9 - 0.06 * seconds)}
    curves["never"] = (seconds, np.full(10, 0.95))
    monkeypatch.setattr(found, "best", lambda method, workers: method)
    monkeypatch.setattr(found, "curve", lambda entry, measure="error": curves[entry])
    assert found.speedup("fast", "slow", 4) == pytest.approx(2)
    assert found.speedup("slow", "fast", 4) == pytest.approx(1 / 2)
    assert found.speedup("slow", "slow", 4) == 1
    # Two thirds of its first step takes "fast" to 0.95 from 1.
    assert found.speedup("fast", "never", 4) > 1 > found.speedup("never", "fast", 4) > 0


@pytest.mark.parametrize(
    ("model", "grids", "counts"),
    [
        ("cnn7", networks.CNN7_GRIDS, {"SGD": 5, "DOWNPOUR": 2 * 5, "EASGD": 2 * 5, "LSGD": 2 * 25}),
        ("resnet20", networks.RESNET20_GRIDS, {"SGD": 3, "DOWNPOUR": 2 * 4, "EASGD": 2 * 3, "LSGD": 2 * 15}),
    ],
)
def test_the_papers_grids(model, grids, counts, tmp_path):
    network = networks.CNN7 if model == "cnn7" else networks.RESNET20
    assert network.grids is grids
    comparison = network.comparison(Setting(tmp_path, paper=True, data=tmp_path))
    entries = list(comparison.entries())
    assert {name: sum(each.method == name for each in entries) for name in counts} == counts
    # One try of each: who sends what when is looked at for each of them.
    for entry in {(each.method, each.workers): each for each in entries}.values():
        config = comparison.config(entry, seed=0)
        check(config, config.method)
        assert config.data["folder"] == str(tmp_path)
        assert (config.batch_size, config.data["crop"], config.optimizer["weight_decay"]) == (128, 28, 1e-4)
        clock = load_clock(config)
        assert clock.nodes == max(1, entry.workers // 4)
        seconds = {"cnn7": 0.01, "resnet20": 0.025}[model] * config.steps
        assert 0.25 * 2000 < seconds <= 2000
        assert (config.scheduler is None) == (model == "cnn7")  # whose learning rate is constant
        if config.scheduler:
            assert config.scheduler["milestones"] == [int(0.75 * config.steps)]


def test_the_rule_for_learning_rates(tmp_path):
    """Three of the paper's grid, scaled as the batch is, and no others."""
    comparison = networks.CNN7.comparison(Setting(tmp_path))
    assert comparison.grids["LSGD"] == Grid((0.1 / 8, 0.01 / 8, 0.001 / 8), (0.1,))
    assert comparison.grids["DOWNPOUR"] == Grid((0.05 / 8, 0.005 / 8, 0.0005 / 8), (None,))
    comparison = networks.RESNET20.comparison(Setting(tmp_path))
    assert comparison.grids["EASGD"] == Grid((0.2 / 8, 0.1 / 8, 0.05 / 8), (None,))
    assert comparison.grids["DOWNPOUR"] == Grid((0.2 / 8, 0.05 / 8, 0.01 / 8), (None,))
    # Messages of the small network over its links take as long, to a period, as the paper's.
    sent = comparison.parameters * comparison.slower_links / comparison.period
    assert sent == pytest.approx(269_722 / 64)


# ---- leader/symmetry


def test_symmetry(tmp_path, monkeypatch):
    monkeypatch.setattr(symmetry, "PULLS", (0.5,))
    monkeypatch.setattr(symmetry, "ITERATIONS", 120)
    outcome = symmetry.symmetry(Setting(tmp_path))
    assert [claim.verdict for claim in outcome.claims[:3]] == ["holds"] * 3
    elastic, leader = outcome.tables["symmetry"]
    y = tether.theory.elastic_stationary_point(0.5)
    assert [elastic[f"end_{name}"] for name in ("0", "1", "center")] == pytest.approx([-y, y, 0], abs=1e-3)
    # x' = η e^(1-x) in continuous time: the slope is 1 / (e^(x_0 - 1) + ηt).
    expected = 1 / (np.exp(y - symmetry.AWAY[0] - 1) + 0.25 * 120)
    assert leader["least_slope_at_the_end"] == pytest.approx(expected, rel=0.1)
    assert outcome.figures["symmetry"].axes


# ---- leader/resnet50


def test_resnet50(images, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "SMALL_STEPS", 12)
    outcome = imagenet.resnet50(Setting(tmp_path / "out", data=images))
    assert len(outcome.claims) == 3
    assert {row["method"]: row["lr"] for row in outcome.tables["tries"]} == {
        "DOWNPOUR": 0.1 / 4,
        "EASGD": 0.2 / 4,
        "LSGD": 0.2 / 4,
    }
    assert "learning rates are 8/32 of the paper's" in outcome.notes[2]


def test_resnet50_as_the_paper_has_it(images):
    comparison = imagenet.comparison(Setting(images, paper=True, data=images))
    (downpour, elastic, leader) = (comparison.config(entry, 0) for entry in comparison.entries())
    # 300 images in shares of 75: two batches of 32 an epoch.
    for config, rate in ((downpour, 0.1), (elastic, 0.2), (leader, 0.2)):
        assert (config.workers, config.batch_size, config.steps) == (4, 32, 2 * 90)
        assert config.optimizer["lr"] == rate
        assert config.scheduler == {"name": "MultiStepLR", "milestones": [60, 120], "gamma": 0.1}
        assert config.model == {"name": "torchvision", "architecture": "resnet50"}
    assert elastic.methods["EASGD"] == {"name": "asynchronous-easgd", "period": 64, "beta": 0.43}
    assert leader.methods["LSGD"] == {"name": "leader", "period": 64, "pull": 0.1, "window": 64}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """300 images to train on and 20 to be tested on, in two classes."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for part, count in (("train", 150), ("val", 10)):
        for number, name in enumerate(("dark", "light")):
            (folder / part / name).mkdir(parents=True)
            for image in range(count):
                pixels = random.integers(0, 128, (20, 24, 3), dtype=np.uint8) + np.uint8(127 * number)
                Image.fromarray(pixels).save(folder / part / name / f"{image}.png")
    return folder


# ---- what an experiment leaves, and what is said of mistakes


@pytest.fixture
def shape(monkeypatch):
    """An experiment that is only here."""
    monkeypatch.setattr("tether.papers.experiments.EXPERIMENTS", dict(EXPERIMENTS))

    @experiment("leader/shape", shows="figure 0", data="shapes", stand_in="one drawn here")
    def shape(setting):
        """Something that is round."""
        return Outcome(
            [Claim("it is round", None, remark="no data")], {}, {"sides": [{"side": 1}]}, [str(setting.data)]
        )

    return find("leader/shape")


def test_outcomes(shape, tmp_path):
    assert (shape.about, shape.source) == ("Something that is round", PAPERS["leader"])
    folder = tmp_path / "shape"
    reproduce(shape, Setting(folder, paper=True, data=tmp_path, seed=3))
    outcome = json.loads((folder / "outcome.json").read_text())
    assert outcome["command"] == f"tether reproduce leader/shape --paper --data {tmp_path} --seed 3 --out {folder}"
    assert outcome["claims"][0]["verdict"] == "not testable on this data"
    assert outcome["setting"] == "paper"
    assert (folder / "sides.csv").read_text() == "side\n1\n"
    reproduce(shape, Setting(folder))  # the same again is no mistake
    with pytest.raises(ConfigError, match="holds leader/shape: give another folder by --out"):
        reproduce(find("leader/sinc"), Setting(folder))
    with pytest.raises(ConfigError, match="is not empty, and nothing there is of an experiment"):
        reproduce(shape, Setting(tmp_path))
    (folder / "outcome.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        reproduce(shape, Setting(folder))
    with pytest.raises(ConfigError, match="is a file: give another place"):
        reproduce(shape, Setting(folder / "sides.csv"))


def test_what_is_needed(shape, tmp_path):
    with pytest.raises(ConfigError, match="leader/shape --paper needs shapes: give the folder by --data FOLDER"):
        reproduce(shape, Setting(tmp_path / "out", paper=True))
    with pytest.raises(ConfigError, match="there is no such folder; leader/shape needs that of shapes"):
        reproduce(shape, Setting(tmp_path / "out", data=tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="leader/sinc needs no data; leave it away"):
        reproduce(find("leader/sinc"), Setting(tmp_path / "out", data=tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("printed", "ours", "holds"),
    [("-0.0912", -0.09124, True), ("-0.0912", -0.09126, False), ("2", 1.6, True), ("1e3", 1300.0, True)],
)
def test_numbers_as_printed(printed, ours, holds):
    claim = Claim.number("a number", printed, ours)
    assert claim.holds == holds
    assert claim.ratio == pytest.approx(ours / float(printed))


def test_the_list(monkeypatch, capsys):
    out, code = command(monkeypatch, capsys)
    assert not code
    for name in EXPERIMENTS:
        assert name in out
        assert name.split("/")[0] in PAPERS


def test_mistakes(monkeypatch, capsys, tmp_path):
    def said(*arguments):
        return command(monkeypatch, capsys, *arguments)[1]

    assert "no experiment is called 'leader/sink'; did you mean 'leader/sinc'?" in said("leader/sink")
    assert "reproduce what?" in said("--paper")
    assert "leader/cnn7 --paper needs CIFAR-10" in said("leader/cnn7", "--paper", "--out", tmp_path / "out")
    assert "no data_batch_1.bin" in said("leader/cnn7", "--data", tmp_path, "--out", tmp_path / "out")
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'tether[plot]'" in said("leader/sinc", "--out", tmp_path / "out")


def test_uncoupled_workers_stay_apart():
    from tether.papers.watched import Uncoupled, Watched

    watched = Watched.of(Uncoupled(period=2))
    tether.simulate(
        torch.nn.Linear(64, 10),
        watched,
        tether.data.digits(),
        workers=3,
        objective=lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0].flatten(1)), batch[1]),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        steps=4,
    )
    alone = [x for x, _ in watched.seen]
    assert len(alone) == 2
    assert not torch.equal(alone[1][0], alone[1][1])
