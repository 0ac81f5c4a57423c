"""The experiments on ReLU networks: what is run, and that their claims can fail."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

import mnist_files
from tether.models import relu_network
from tether.papers import EXPERIMENTS, Setting, find
from tether.papers.curves import times_sooner
from tether.papers.relu import depth, period, width
from tether.papers.relu.training import DISTRIBUTIONS, PAPER, SMALL, Found, Network, Size
from tether.papers.reproduce import reproduce
from tether.run import check, load_data, load_model

TINY = Size(steps=40, batch_size=5, evaluations=8, held_out=100, rates=(4.0, 1.0))
ONE_RATE = dataclasses.replace(TINY, rates=(4.0,))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """2,000 images to train on, 500 to be tested on."""
    return mnist_files.write(tmp_path_factory.mktemp("mnist"), *mnist_files.blots(2500, 28))


@pytest.fixture(scope="module")
def found(images, tmp_path_factory):
    networks = {"narrow": Network(width=4, period=5), "wide": Network(width=32, period=5)}
    return Found(networks, TINY, Setting(tmp_path_factory.mktemp("out"), data=images))


def test_every_curve_is_the_best_of_its_rates(found, tmp_path):
    assert len(found.runs) == 2 * 2 * 2
    for how, label in itertools.product(DISTRIBUTIONS, found.networks):
        losses = {rate: found.end(label, how, rate=rate) for rate in TINY.rates}
        assert found.best(label, how) == min(losses, key=losses.get)
        steps, loss = found.curve(label, how)
        np.testing.assert_array_equal(steps, np.arange(5, 41, 5))
        assert found.end(label, how) == pytest.approx(loss[-2:].mean())
    run = found.runs["non-IID", "wide", 1.0]
    assert run.config["optimizer.lr"] == pytest.approx(2 * 10 / 32)
    assert (run.workers, run.rounds[-1], run.config["method"]) == (50, 8, "local")
    held = np.array(run.holdings["counts"])
    assert set(np.count_nonzero(held, axis=1)) == {2}  # classes of a client
    assert np.count_nonzero(found.runs["IID", "wide", 1.0].holdings["counts"], axis=1).min() > 5
    tables = found.tables()
    assert sum(row["shown"] for row in tables["tries"]) == 4
    assert len(tables["curves"]) == 8 * 8
    assert [len(axes.lines) for axes in found.draw().axes] == [2] * 4


def test_the_unit_of_learning_rates_is_the_inverse_of_a_tangent_kernel():
    """Gradients of one output at the start have 1/rate as their mean squared norm, of any width and depth."""
    torch.manual_seed(0)
    x = torch.randn(1, 784)
    for network in (Network(width=50), Network(width=200), Network(width=200, depth=3)):
        squares = []
        for _ in range(20):
            model = relu_network((1, 28, 28), 10, network.width, network.depth, unit_samples=True)
            parameters = [p for p in model.parameters() if p.requires_grad]
            for output in model(x)[0]:
                squares.append(
                    sum(g.square().sum() for g in torch.autograd.grad(output, parameters, retain_graph=True))
                )
        assert float(torch.stack(squares).mean()) * network.rate == pytest.approx(1, rel=0.25)


def test_width(images, tmp_path):
    outcome = width.study((2, 32), ONE_RATE, Setting(tmp_path / "as-it-is", data=images))
    assert [claim.holds for claim in outcome.claims[:2] + outcome.claims[3:5]] == [True] * 4
    turned = width.study((32, 2), ONE_RATE, Setting(tmp_path / "turned", data=images))
    assert [claim.holds for claim in turned.claims[:2] + turned.claims[3:5]] == [False] * 4
    for claim, other in zip(outcome.claims[:3], turned.claims[:3], strict=True):
        assert claim.ours == pytest.approx(-other.ours)
    assert turned.claims[3].ours == pytest.approx(1 / outcome.claims[3].ours, rel=0.5)
    assert "instead of MNIST" not in " ".join(outcome.notes)


def test_period(images, tmp_path):
    outcome = period.study((1, 20), ONE_RATE, Setting(tmp_path / "as-it-is", data=images))
    turned = period.study((20, 1), ONE_RATE, Setting(tmp_path / "turned", data=images))
    assert outcome.claims[1].holds  # two classes a client
    assert not turned.claims[1].holds
    assert outcome.claims[2].ours == pytest.approx(outcome.claims[1].ours / outcome.claims[0].ours)
    assert {row["period"] for row in outcome.tables["tries"]} == {1, 20}


def test_depth(images, tmp_path):
    outcome = depth.study((2, 60), ONE_RATE, Setting(tmp_path / "as-it-is", data=images))
    assert outcome.claims[0].holds
    turned = depth.study((60, 2), ONE_RATE, Setting(tmp_path / "turned", data=images))
    assert not turned.claims[1].holds  # as well as the single layer
    assert turned.claims[1].ours == pytest.approx(outcome.claims[0].ours)
    assert not turned.claims[-2].holds  # 3 times as many weights
    assert not turned.claims[-1].holds  # 10 times as many neurons


def test_a_rate_that_diverges_before_the_first_record_is_not_shown(images, tmp_path):
    size = dataclasses.replace(ONE_RATE, rates=(1e30, *ONE_RATE.rates))
    found = Found({"one": Network(width=16)}, size, Setting(tmp_path / "out", data=images))
    assert found.best("one", "IID") == ONE_RATE.rates[0]
    gone = next(row for row in found.tables()["tries"] if row["rate"] == 1e30)
    assert "diverged" in gone["status"]
    assert not gone["shown"]
    assert gone["test_loss_at_the_end"] == float("inf")


def test_counts_of_the_paper():
    single, deep = depth.SINGLE, Network(width=100, depth=5)
    assert (single.parameters, deep.parameters) == (39_700, 119_400)
    for network in (single, deep, Network(width=10, depth=5)):
        model = relu_network((1, 28, 28), 10, network.width, network.depth)
        assert sum(parameter.numel() for parameter in model.parameters()) == network.parameters


def test_as_the_paper_has_it(images):
    """Every run of every figure: its config is possible, its model can be made and takes the data."""
    setting = Setting(images, paper=True, data=images)
    networks = {
        *(Network(width=each) for each in width.WIDTHS),
        *(Network(period=each) for each in period.PERIODS),
        *(Network(width=each, depth=5) for each in depth.WIDTHS),
    }
    data = load_data(PAPER.config(Network(), "IID", 1.0, setting))
    assert data.name == images.name
    for network, how, rate in itertools.product(networks, DISTRIBUTIONS, PAPER.rates):
        config = PAPER.config(network, how, rate, setting)
        check(config, config.method)
        assert (config.workers, config.data["path"], config.period) == (50, str(images), network.period)
    for network in networks:
        model = load_model(PAPER.config(network, "IID", 1.0, setting), data)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert trained == network.parameters - 10 * network.width


def test_what_stands_in(tmp_path):
    config = SMALL.config(Network(), "IID", 1.0, Setting(tmp_path))
    assert config.data == {"name": "fashion-mnist", "held_out": 2000, "partition": "iid"}
    for name in ("relu/width", "relu/period", "relu/depth"):
        assert EXPERIMENTS[name].stand_in == "Fashion-MNIST"


def test_what_is_left_in_the_folder(images, tmp_path, monkeypatch):
    monkeypatch.setattr(period, "SMALL", ONE_RATE)
    monkeypatch.setattr(period, "PERIODS", (1, 5))
    reproduce(find("relu/period"), Setting(tmp_path / "out", data=images))
    outcome = json.loads((tmp_path / "out" / "outcome.json").read_text())
    assert outcome["figures"] == ["figure-2.png", "figure-2.svg"]
    assert outcome["tables"] == ["tries.csv", "curves.csv"]
    assert "fixed" in " ".join(outcome["notes"])
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 4


def test_times_sooner():
    steps = np.linspace(1, 10, 10)
    falling = np.exp(-steps / 4)
    assert times_sooner((steps, falling), (3 * steps, falling)) == pytest.approx(3)
    assert times_sooner((3 * steps, falling), (steps, falling)) == pytest.approx(1 / 3)
    # One that never falls as far as the other begins at is compared at its least value.
    assert times_sooner((steps, falling), (steps, np.full(10, 0.9))) >= 1
