"""The experiments on second-order information: what is looked at, and that their claims can fail."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import mnist_files
from tether.config import ConfigError
from tether.data import fashion_mnist, mnist
from tether.data.mnist import FASHION_MNIST
from tether.diagnostics import Energy, Spectrum, hessian, local_sgd_update
from tether.papers import Setting, find
from tether.papers.reproduce import reproduce
from tether.papers.second_order import cpdf, curves, eigenvalues, residue, spectra, training
from tether.papers.second_order.training import CNN, MLP, Trained

QUICK = dataclasses.replace(MLP, period=20)
"""The paper's MLP on images of 6 x 6, d = 370, with fewer local steps."""

needs_fashion = pytest.mark.skipif(not FASHION_MNIST.exists(), reason="dataset-fashion-mnist is not installed")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """1,200 images to train on, 300 to be tested on."""
    return mnist_files.write(tmp_path_factory.mktemp("mnist"), *mnist_files.blots(1500, 6))


@pytest.fixture(scope="module")
def setting(images, tmp_path_factory):
    return Setting(tmp_path_factory.mktemp("out"), data=images)


@pytest.fixture(scope="module")
def trained(setting):
    return training.train(QUICK, setting, rounds=4, clients=5)


def test_the_mean_model_is_kept_at_every_round(trained):
    assert trained.centers.shape == (5, 370)
    end = torch.nn.utils.parameters_to_vector(trained.result.center().parameters())
    assert torch.equal(trained.centers[-1], end)
    start = torch.nn.utils.parameters_to_vector(trained.start.parameters())
    assert torch.equal(trained.centers[0], start)
    assert torch.equal(trained.update(2), trained.centers[2].double() - trained.centers[3].double())
    # The first round begins with the batches that any local steps from the start begin with.
    landscape = trained.landscape(None, torch.float32)
    again = local_sgd_update(landscape, training.sgd(0.01), 20, 10, x=trained.centers[0], seed=trained.seed)
    torch.testing.assert_close(trained.update(0), again.double(), atol=1e-6, rtol=0)


def test_pixels_are_in_the_unit_interval(setting, images):
    data, raw = QUICK.data(setting), mnist(images)
    for part, before in ((data.train[0], raw.train[0]), (data.test[0], raw.test[0])):
        scaled = (before - raw.train[0].min()) / (raw.train[0].max() - raw.train[0].min())
        torch.testing.assert_close(part, scaled)
    assert (float(data.train[0].min()), float(data.train[0].max())) == (0, 1)


# ---- figures 3 to 8


def test_lanczos_and_the_whole_hessian_say_the_same(trained):
    landscape = trained.landscape(None)
    whole = cpdf.look(trained, 2, landscape, steps=None)
    lanczos = cpdf.look(trained, 2, landscape, steps=100)
    assert len(whole.update.eigenvalues) == 370
    for name in ("update", "gradient", "batch", "predicted"):
        for share in (1e-3, 0.01, 0.1, 0.5):
            at = share * float(whole.gradient.eigenvalues[-1])
            assert getattr(lanczos, name).share_up_to(at) == pytest.approx(
                getattr(whole, name).share_up_to(at), abs=0.02
            )


def test_what_eq_29_predicts_is_the_update_on_a_quadratic(trained):
    """Of a loss whose gradient and Hessian at x are given, and no noise: full gradients on its second-order model."""
    landscape = trained.landscape(None)
    x = trained.centers[2]
    spectrum = Spectrum.of(hessian(landscape, x))
    gradient = landscape.gradient(x)
    at, H = torch.zeros_like(gradient), spectrum.vectors @ spectrum.eigenvalues.diag() @ spectrum.vectors.mT
    for _ in range(QUICK.period):
        at = at - 0.01 * (gradient + H @ at)
    centers = trained.centers.double().clone()
    centers[3] = centers[2] + at
    quadratic = dataclasses.replace(trained, centers=centers)
    assert cpdf.look(quadratic, 2, landscape, steps=None).off < 1e-6
    # Steps along the gradient alone are not what it predicts.
    centers[3] = centers[2] - gradient
    assert cpdf.look(dataclasses.replace(trained, centers=centers), 2, landscape, steps=None).off > 0.01


def test_claims_about_energy_can_fail():
    at = np.array([0.001, 0.1, 1.0])
    low, high = Energy(at, np.array([0.8, 0.1, 0.1])), Energy(at, np.array([0.1, 0.1, 0.8]))
    as_printed = cpdf._claims(MLP, {10: cpdf.Look(update=low, gradient=high, batch=high, predicted=low)})
    assert [claim.holds for claim in as_printed] == [True] * 5
    assert [claim.ours for claim in as_printed[:3]] == pytest.approx([0.8, 0.1, 0.1])
    turned = cpdf._claims(MLP, {10: cpdf.Look(update=high, gradient=low, batch=low, predicted=low)})
    assert [claim.holds for claim in turned] == [False] * 5
    # One round that says otherwise is enough.
    both = {10: cpdf.Look(low, high, high, low), 20: cpdf.Look(high, high, high, low)}
    assert [claim.holds for claim in cpdf._claims(MLP, both)] == [False, True, True, False, False]


def test_cpdf(setting):
    size = spectra.Size({QUICK: (1, 3)}, {QUICK: 5}, {QUICK: 40}, steps=30)
    outcome = cpdf.study(size, setting)
    (figure,) = outcome.figures.values()
    assert [len(axes.lines) for axes in figure.axes] == [5, 5]  # four CPDFs and what is small
    rows = outcome.tables["energy"]
    assert {(row["round"], row["of"]) for row in rows} == {
        (round, of) for round in (1, 3) for of in ("L-SGD", "GD", "SGD", "L-SGD by eq. 29")
    }
    assert len(outcome.claims) == 5
    assert "The Hessian is of 200 (MLP) training samples" in outcome.notes[0]


# ---- table 2


def test_both_ways_to_the_range_of_eigenvalues(trained):
    landscape, x = trained.landscape(None), trained.centers[2]
    whole, lanczos = (eigenvalues.reach(landscape, x, each) for each in (True, False))
    assert lanczos == pytest.approx(whole, rel=1e-4, abs=1e-4 * whole[1])
    assert abs(whole[0]) < 1e-9 < whole[1]


def test_claims_about_eigenvalues_can_fail():
    as_printed = {round: tuple(map(float, ends)) for round, ends in eigenvalues.TABLE_2[MLP].items()}
    losses = {0: 2.3, 10: 1.0, 60: 0.8, 100: 0.7}
    assert all(claim.holds for claim in eigenvalues._reach_claims(MLP, as_printed, losses, own=True))
    elsewhere = eigenvalues._reach_claims(MLP, as_printed, losses, own=False)
    assert [claim.verdict for claim in elsewhere] == ["not testable on this data"] * 3 + ["holds"] * 3
    turned = {10: (-0.1, 0.1), 100: (-0.1, 0.3)}
    assert not any(claim.holds for claim in eigenvalues._reach_claims(MLP, turned, losses, own=True))
    rising = eigenvalues._reach_claims(MLP, as_printed, losses | {100: 2.4}, own=True)
    assert [claim.holds for claim in rising] == [True] * 5 + [False]
    cnn = {round: tuple(map(float, ends)) for round, ends in eigenvalues.TABLE_2[CNN].items()}
    claims = eigenvalues._reach_claims(CNN, cnn, losses, own=True)
    assert len(claims) == 3 * 2 + 3
    assert all(claim.holds for claim in claims)
    convex = {round: (0.0, high) for round, (_, high) in cnn.items()}
    assert [claim.holds for claim in eigenvalues._reach_claims(CNN, convex, losses, own=False)[-3:]] == [
        False,
        True,
        True,
    ]


def test_eigenvalues(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(eigenvalues, "TABLE_2", {QUICK: eigenvalues.TABLE_2[MLP]})
    size = spectra.Size({QUICK: (1, 10)}, {QUICK: 5}, {QUICK: None})
    outcome = eigenvalues.study(size, setting)
    first, last = outcome.tables["table-2"]
    assert (first["printed_largest"], last["printed_largest"]) == ("", "1.558")
    assert last["loss"] < first["loss"]
    assert outcome.claims[0].ratio == pytest.approx(last["largest"] / 1.558)
    assert outcome.figures["table-2"].axes


# ---- table 3


def test_residue(setting, tmp_path, monkeypatch):
    size = residue.Size((1, 2), (10, 60), trials=20, samples=None, clients=5)
    monkeypatch.setattr(residue, "SMALL", size)
    outcome = reproduce(find("second-order/residue"), setting)
    assert [(row["round"], row["steps"]) for row in outcome.tables["table-3"]] == [(1, 10), (1, 60), (2, 10), (2, 60)]
    said = {claim.says: claim for claim in outcome.claims}
    assert said["round 1: it grows with the local steps"].holds
    written = json.loads((setting.folder / "outcome.json").read_text())
    assert "20 trials" in written["notes"][0]


def test_claims_about_residues_can_fail(setting):
    def found(*ratios):
        from tether.diagnostics import Estimate, Residue

        return {
            10: [
                Residue(steps, torch.ones(1), 1.0, Estimate(ratio, ratio / 2, 2 * ratio, 0.95))
                for steps, ratio in zip((10, 300), ratios, strict=True)
            ]
        }

    assert [claim.holds for claim in residue._claims(found(167.3, 10.2), own=True)] == [True] * 4
    assert [claim.holds for claim in residue._claims(found(2.0, 3.0), own=True)] == [False] * 4
    assert [claim.holds for claim in residue._claims(found(167.3, 10.2), own=False)] == [None, None, True, True]


# ---- figure 2


def test_curves(setting, monkeypatch):
    size = curves.Size({QUICK: 6}, {QUICK: 5})
    outcome = curves.study(size, setting)
    rows = outcome.tables["curves"]
    assert {row["method"] for row in rows} == {"L-SGD", *(f"SGD, η = {rate:g}" for rate in curves.RATES)}
    assert [row["round"] for row in rows if row["method"] == "L-SGD"] == list(range(1, 7))
    (claim,) = outcome.claims
    assert claim.holds == (claim.ours > 1)
    assert outcome.figures["figure-2"].axes
    # One local step of batch 10 at the small rate is no match for a step of a thousand.
    slow = dataclasses.replace(MLP, period=1)
    assert not curves.study(curves.Size({slow: 6}, {slow: 5}), setting).claims[0].holds


# ---- the paper's setting


def test_the_papers_networks(images):
    setting = Setting(images, paper=True, data=images)
    assert (MLP.period, MLP.rounds, CNN.period, CNN.rounds) == (300, 300, 200, 120)
    for network, shape, d in ((MLP, (1, 28, 28), 7_850), (CNN, (3, 32, 32), 14_700)):
        model = network.model(shape, 10)
        assert sum(parameter.numel() for parameter in model.parameters()) == d
        assert isinstance(list(model)[-1], torch.nn.ReLU)  # as its table 4 has it
        assert network.is_on_its_own(setting)
    assert curves.PAPER.rounds == {MLP: 300, CNN: 120}
    for size in (curves.PAPER, cpdf.PAPER, eigenvalues.PAPER):
        assert size.clients == {MLP: 100, CNN: 100}
    for size in (cpdf.PAPER, eigenvalues.PAPER):
        assert (size.steps, size.samples) == (None, {MLP: None, CNN: None})
    assert cpdf.PAPER.rounds == {network: tuple(range(10, 101, 10)) for network in (MLP, CNN)}
    assert residue.Size((10, 100), (10, 30, 100, 300), trials=500, samples=None, clients=100) == residue.PAPER


@needs_fashion
def test_what_stands_in(images, tmp_path):
    own = Setting(tmp_path, data=images)
    assert MLP.is_on_its_own(own)
    assert not CNN.is_on_its_own(own)
    assert CNN.data(own).shape == fashion_mnist().shape
    assert any("CNN: on Fashion-MNIST instead of CIFAR-10" in note for note in training.about({MLP: 100, CNN: 10}, own))
    with pytest.raises(ConfigError, match=r"CNN: no data_batch_1.bin"):
        CNN.data(Setting(tmp_path, paper=True, data=images))
    with pytest.raises(ConfigError, match=r"MLP: no train-images"):
        MLP.data(Setting(tmp_path, data=tmp_path))


def test_trained_networks_are_not_changed_by_being_looked_at(trained):
    before = [parameter.clone() for parameter in trained.start.parameters()]
    trained.landscape(10)
    assert isinstance(trained, Trained)
    for parameter, was in zip(trained.start.parameters(), before, strict=True):
        assert parameter.dtype == was.dtype
