"""What diagnostics make of local steps and of runs: residues, ReLU quantities, drift; and the figures of all."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import reports
import tether
from problems import Point, Quadratics, quadratic
from real import launch
from tether import diagnostics
from tether.diagnostics import (
    Landscape,
    Spectrum,
    drift,
    energy,
    gradient_statistics,
    hessian,
    local_sgd_update,
    local_steps,
    plots,
    residue,
    residues,
    semi_lipschitz,
    snapshot,
    stage,
)
from tether.models import cross_entropy
from tether.run_folder import RunFolder

PROBLEM = Quadratics.random(m=3, d=5)
LR = 0.05


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=LR)


def quadratics():
    return Landscape(Point(5), quadratic, PROBLEM.data, workers=3)


def descended(x, steps):
    """Gradient descent on each quadratic in closed form: x_k - b = (I - lr A)^k (x - b)."""
    contraction = [np.linalg.matrix_power(np.eye(5) - LR * A, steps) for A in PROBLEM.A]
    return PROBLEM.b + np.einsum("mij,mj->mi", contraction, x - PROBLEM.b)


def test_local_steps_are_those_of_each_worker():
    x = torch.ones(5, dtype=torch.float64)
    for steps in (0, 1, 7):
        rows = local_steps(quadratics(), sgd, steps, batch_size=None, x=x)
        np.testing.assert_allclose(rows, descended(x.numpy(), steps), atol=1e-12)
    five = local_steps(quadratics(), sgd, 7, batch_size=None, trials=5, x=x)
    np.testing.assert_allclose(five, descended(x.numpy(), 7)[[0, 1, 2, 0, 1]], atol=1e-12)
    update = local_sgd_update(quadratics(), sgd, 7, batch_size=None, x=x)
    np.testing.assert_allclose(update, x.numpy() - descended(x.numpy(), 7).mean(0), atol=1e-12)


def softmax(workers=4, **options):
    torch.manual_seed(0)
    model = tether.models.second_order_mlp((1, 8, 8), 10, rectified=False).double()
    data = tether.data.digits().to(torch.float64)
    return Landscape(model, cross_entropy, data, workers=workers, **options)


def test_longer_paths_go_on_from_shorter_ones():
    landscape = softmax(workers=2)
    few = local_steps(landscape, sgd, 3, batch_size=10, seed=1)
    more = local_steps(landscape, sgd, 4, batch_size=10, seed=1)
    moved = (more - few).norm(dim=1)
    assert (moved < LR * 10).all()
    for row, after in zip(few, more, strict=True):
        # one step of a batch's gradient, which differs from all samples' by its noise
        assert torch.nn.functional.cosine_similarity(row - after, landscape.gradient(row), dim=0) > 0.3


def test_residues_are_their_definition():
    landscape = softmax(samples=40)
    x = landscape.x + 0.01
    points = x + 0.1 * torch.randn(3, len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    H = hessian(landscape, x)
    found = residues(landscape, points, x)
    for point, each in zip(points, found, strict=True):
        expected = landscape.gradient(point) - landscape.gradient(x) - H @ (point - x)
        torch.testing.assert_close(each, expected, rtol=1e-9, atol=1e-12)
    assert found.norm(dim=1).min() > 1e-4


def test_mean_residue_and_its_ratio():
    landscape = softmax(samples=40)
    short, long = residue(landscape, sgd, [2, 20], batch_size=10, trials=30, seed=3)
    for found in (short, long):
        points = local_steps(landscape, sgd, found.steps, 10, trials=30, seed=3)
        mean = residues(landscape, points).mean(0)
        torch.testing.assert_close(found.mean, mean, rtol=1e-8, atol=1e-13)
        assert found.ratio.value == pytest.approx(float(landscape.gradient().norm() / mean.norm()), rel=1e-8)
        assert found.ratio.low < found.ratio.value < found.ratio.high
        assert found.squared_norm < float(mean.square().sum())
    assert short.ratio.value > 2 * long.ratio.value  # the farther, the larger the residue: table 3


def test_ratios_of_other_trials_lie_in_the_interval():
    landscape = softmax(samples=20)
    (many,) = residue(landscape, sgd, 10, batch_size=10, trials=400, seed=0)
    few = [residue(landscape, sgd, 10, batch_size=10, trials=40, seed=seed)[0] for seed in range(1, 11)]
    # ||E n^s||, which few trials estimate without bias, and many too
    slope = float(landscape.gradient().norm())
    truth = slope / many.squared_norm**0.5
    debiased = np.mean([each.squared_norm for each in few])
    assert debiased == pytest.approx(many.squared_norm, rel=0.15)
    assert sum(each.ratio.low <= truth <= each.ratio.high for each in few) >= 7


def test_quadratics_have_no_residue():
    points = torch.randn(4, 5, dtype=torch.float64)
    np.testing.assert_allclose(residues(quadratics(), points), np.zeros((4, 5)), atol=1e-12)


def test_stage_of_local_gd_in_closed_form():
    x = torch.full((5,), 2.0, dtype=torch.float64)
    found = stage(quadratics(), lr=LR, steps=[1, 3, 9], x=x)
    for number, steps in enumerate([1, 3, 9]):
        rows = descended(x.numpy(), steps)
        np.testing.assert_allclose(found.losses[number], PROBLEM.losses(rows), rtol=1e-10)
        moved = np.square(rows - x.numpy()).sum(1)
        assert found.deviation[number] == pytest.approx(moved.mean(), rel=1e-10)
        loss = PROBLEM.losses(np.tile(x.numpy(), (3, 1))).mean()
        assert found.constant[number] == pytest.approx(moved.mean() / (LR**2 * steps**2 * loss), rel=1e-10)
    assert (np.diff(found.shrinkage, axis=0) < 0).all()
    assert (found.shrinkage < 1).all()


def relu(width=20, **options):
    torch.manual_seed(0)
    model = tether.models.relu_network((1, 8, 8), 10, width=width, depth=2).double()
    data = tether.data.digits().to(torch.float64).partitioned("classes", classes=2)
    return Landscape(model, tether.models.squared_error, data, workers=5, **options)


def test_semi_lipschitz_is_its_definition():
    landscape = relu(samples=30)
    points = landscape.x + 0.05 * torch.randn(
        2, landscape.parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    found = semi_lipschitz(landscape, points)
    for number, point in enumerate(points):
        differences = [
            (landscape.gradient(point, worker) - landscape.gradient(worker=worker)).square().sum()
            for worker in range(5)
        ]
        assert found.gradients[number] == pytest.approx(float(sum(differences)) / 5, rel=1e-10)
        changes = landscape.views(point - landscape.x).values()
        spectral = max(np.linalg.svd(change.numpy(), compute_uv=False)[0] for change in changes)
        assert found.distances[number] == pytest.approx(spectral**2, rel=1e-10)
    assert found.losses == pytest.approx(landscape.loss(), rel=1e-12)


def test_semi_lipschitz_of_quadratics():
    """(1/m) sum_i ||A_i (x - y)||^2, and a vector of parameters has its Euclidean norm."""
    y = torch.linspace(0, 1, 5, dtype=torch.float64)
    found = semi_lipschitz(quadratics(), y[None])
    assert found.gradients[0] == pytest.approx(np.square(PROBLEM.A @ y.numpy()).sum(1).mean(), rel=1e-10)
    assert found.distances[0] == pytest.approx(float(y @ y), rel=1e-10)
    assert found.lipschitz[0] == pytest.approx(found.gradients[0] / found.distances[0])
    assert found.ratio[0] == pytest.approx(found.gradients[0] / (found.distances[0] + found.losses[0]))


def simulated(steps=23, **options):
    return tether.simulate(
        Point(5),
        tether.EASGD(period=5),
        PROBLEM.data,
        workers=3,
        objective=quadratic,
        optimizer=sgd,
        steps=steps,
        batch_size=None,
        **options,
    )


def test_drift_of_a_result_is_that_of_its_steps():
    """Between rounds each worker descends its own quadratic: the distances are known."""
    found = drift(simulated())
    np.testing.assert_array_equal(found.steps, [5, 10, 15, 20])
    x = np.zeros((3, 5))
    anchor = np.zeros(5)
    for number in range(4):
        contraction = [np.linalg.matrix_power(np.eye(5) - LR * A, 5) for A in PROBLEM.A]
        moved = PROBLEM.b + np.einsum("mij,mj->mi", contraction, x - PROBLEM.b)
        mean = moved.mean(0)
        np.testing.assert_allclose(found.drift[number], np.linalg.norm(moved - x, axis=1), rtol=1e-9)
        assert found.consensus[number] == pytest.approx(np.square(moved - mean).sum(1).mean(), rel=1e-9)
        alpha = 2 / 5
        x, anchor = moved - alpha * (moved - anchor), (1 - 3 * alpha) * anchor + 3 * alpha * mean


def test_drift_and_snapshot_of_a_folder(tmp_path):
    place = reports.train(tmp_path / "run", steps=10, checkpoint_every=5, period=4)
    found, records = drift(place), RunFolder(place).history
    np.testing.assert_array_equal(found.steps, [record["step"] for record in records])
    np.testing.assert_allclose(found.drift, [record["drift"] for record in records])
    held = snapshot(place)
    assert held.step == 10
    # The records have what was measured at the end of the run, after two steps from a round.
    assert held.consensus == pytest.approx(found.consensus[-1], rel=1e-5)
    np.testing.assert_allclose(held.drift, found.drift[-1], rtol=1e-5)


def test_runs_without_records_or_checkpoints_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no records yet"):
        drift(simulated(steps=0))
    with pytest.raises(ValueError, match="no checkpoint"):
        snapshot(tether.Checkpoints(tmp_path))


@pytest.mark.xdist_group("real")
def test_snapshots_of_real_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TETHER_TEST_FOLDER", str(tmp_path))
    first, second = launch("scenarios_diagnostics", 2, timeout=200)
    assert not any(isinstance(each, str) for each in (*first.values(), *second.values())), (first, second)

    held = snapshot(tether.Checkpoints(tmp_path / "simulated"))
    assert (held.step, held.rows.shape) == (8, (4, 650))
    assert torch.equal(held.rows, torch.cat([first["simulated"]["rows"], second["simulated"]["rows"]]))
    assert held.consensus == pytest.approx(first["simulated"]["consensus"], rel=1e-10)
    # Three local steps since the round; as many gradients bound how far they led.
    np.testing.assert_allclose(held.drift, (held.rows - held.since_round).norm(dim=1), rtol=1e-12)
    assert (held.drift > 0.01).all()

    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model[2].bias.requires_grad_(False)
    attached = snapshot(tether.Checkpoints(tmp_path / "attached"), model)
    assert torch.equal(attached.rows, torch.stack([first["attached"], second["attached"]]))
    with pytest.raises(ValueError, match="no drift"):
        _ = attached.drift
    with pytest.raises(ValueError, match="give the model too"):
        snapshot(tether.Checkpoints(tmp_path / "attached"))


@pytest.fixture(scope="module")
def figures():
    """Every figure, from small runs of what the papers draw."""
    landscape = softmax(samples=40)
    spectrum = Spectrum.of(hessian(landscape))
    update, slope = local_sgd_update(landscape, sgd, 50, batch_size=10), landscape.gradient()
    found = gradient_statistics(landscape)
    networks = {f"width {width}": relu(width, samples=20) for width in (10, 40)}
    directions = torch.randn(5, networks["width 10"].parameters, dtype=torch.float64)
    radii = torch.logspace(-3, 0, 5)[:, None] * directions / directions.norm(dim=1, keepdim=True)
    trial = networks["width 10"]
    semi = {"width 10": semi_lipschitz(trial, trial.x + radii)}
    stages = {name: stage(network, lr=0.01, steps=[1, 2, 5, 10], batch_size=5) for name, network in networks.items()}
    return {
        "cpdf": plots.cpdf({"L-SGD": energy(spectrum, update), "gradient": energy(spectrum, slope)}),
        "eigenvalues": plots.eigenvalues({"round 0": spectrum}),
        "contributions": plots.contributions(
            spectrum, {"50 local steps": diagnostics.contributions(spectrum, slope, update)}
        ),
        "residues": plots.residues({"t = 0": residue(landscape, sgd, [2, 5, 20], trials=20)}),
        "angles": plots.angles({"gradient": [60, 50], "leader": [40, 30]}, [0, 1], "round"),
        "estimates": plots.estimates({"σ²": found.noise(10), "κ²": found.dissimilarity()}),
        "drift": plots.drift({"EASGD": drift(simulated())}),
        "semi-lipschitz": plots.semi_lipschitz(semi),
        "shrinkage": plots.shrinkage(stages),
        "deviation": plots.deviation(stages),
    }


def test_figures_are_drawn(figures, tmp_path):
    for name, figure in figures.items():
        path = tmp_path / f"{name}.svg"
        figure.savefig(path)
        assert path.stat().st_size > 5000
        for axes in figure.axes:
            assert axes.get_xlabel() or name == "estimates"
            drawn = [line.get_ydata() for line in axes.lines]
            assert any(len(np.atleast_1d(values)) for values in drawn)
    cpdf = figures["cpdf"].axes[0]
    for line in cpdf.lines:
        values = line.get_ydata()
        assert (values[0], values[-1]) == (0, pytest.approx(1))
        assert (np.diff(values) >= 0).all()
    assert [text.get_text() for text in cpdf.get_legend().get_texts()] == ["L-SGD", "gradient"]
    assert re.search(r"round 0 \[.*, .*\]", figures["eigenvalues"].axes[0].get_legend().get_texts()[0].get_text())


def test_the_second_order_papers_remark_3():
    """The update of many local steps has far more of its energy on small eigenvalues than the gradient (figure 3)."""
    landscape = softmax(samples=100)
    spectrum = Spectrum.of(hessian(landscape))
    update = energy(spectrum, local_sgd_update(landscape, sgd, 300, batch_size=10))
    slope = energy(spectrum, landscape.gradient())
    middle = spectrum.range[1] / 4
    assert update.share_up_to(middle) > slope.share_up_to(middle) + 0.1
