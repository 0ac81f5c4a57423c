"""Constants of the bounds, estimated: against closed forms, and intervals against the truth that they should hold."""

import itertools

import numpy as np
import pytest
import torch

import tether
from problems import Point, Quadratics, quadratic
from tether.data import CropAndFlip, Dataset
from tether.diagnostics import (
    Estimate,
    Landscape,
    gradient_statistics,
    optimality_gap,
    optimum,
    smoothness,
)


def distance(model, batch):
    """f_j(x) = ||x - b_j||^2 / 2, whose gradient is x - b_j."""
    return 0.5 * (model.x - batch[0]).square().sum(1).mean()


def pulls(sizes, d=4, seed=0, apart=1.0):
    """Each worker's own b."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, d)) + apart * rng.normal(size=d) for n in sizes]


def landscape_of(b, **options):
    data = Dataset.from_workers([(torch.tensor(each),) for each in b])
    return Landscape(Point(b[0].shape[1]), distance, data, workers=len(b), **options)


B = pulls([7, 12, 5])
X = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)


def means(b):
    return np.stack([each.mean(0) for each in b])


def test_exact_when_all_samples_are_looked_at():
    found = gradient_statistics(landscape_of(B), X)
    gradients = X.numpy() - means(B)
    mean = gradients.mean(0)  # of the workers, not of the samples: F = (1/m) sum_i F_i
    variance = np.mean([each.var(0, ddof=1).sum() * (1 / 3 - 1 / len(each)) for each in B])
    heterogeneity = np.square(gradients).sum(1).mean()
    losses = [0.5 * np.square(X.numpy() - each).sum(1).mean() for each in B]
    expected = {
        found.loss(): np.mean(losses),
        found.squared_norm(): mean @ mean,
        found.noise(3): variance,
        found.noise(None): 0.0,
        found.dissimilarity(): np.square(gradients - mean).sum(1).mean(),
        found.heterogeneity(): heterogeneity,
        found.stochastic_heterogeneity(3): heterogeneity + variance,
    }
    for estimate, true in expected.items():
        assert estimate.value == pytest.approx(true, rel=1e-12, abs=1e-12)
        assert estimate.low == estimate.value == estimate.high  # nothing was left unseen


def test_noise_is_that_of_batches_drawn_without_replacement():
    (b,) = pulls([6])
    batches = np.array([np.mean(b[list(chosen)], 0) for chosen in itertools.combinations(range(6), 2)])
    true = np.square(batches - b.mean(0)).sum(1).mean()
    assert gradient_statistics(landscape_of([b])).noise(2).value == pytest.approx(true, rel=1e-12)


def test_noise_by_worker():
    found = gradient_statistics(landscape_of(B), X)
    by_worker = [each.value for each in found.noise_by_worker(4)]
    assert by_worker == pytest.approx([each.var(0, ddof=1).sum() * (1 / 4 - 1 / len(each)) for each in B], rel=1e-12)
    assert found.noise(4).value == pytest.approx(np.mean(by_worker), rel=1e-12)


def test_noise_is_what_simulated_steps_have():
    b = pulls([40, 40])
    landscape = landscape_of(b)
    steps = [
        tether.diagnostics.local_steps(landscape, sgd(1.0), 1, batch_size=5, x=X, trials=400, seed=seed)
        for seed in range(5)
    ]
    rows = torch.cat(steps).numpy().reshape(-1, 2, 4)  # x - g: with learning rate 1, the mean of b over the batch
    simulated = np.square(rows - means(b)).sum(2).mean()
    assert simulated == pytest.approx(gradient_statistics(landscape, X).noise(5).value, rel=0.05)


def sgd(lr):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


MEASURES = {
    "loss": lambda found: found.loss(),
    "squared norm": lambda found: found.squared_norm(),
    "noise": lambda found: found.noise(5),
    "dissimilarity": lambda found: found.dissimilarity(),
    "heterogeneity": lambda found: found.heterogeneity(),
    "stochastic heterogeneity": lambda found: found.stochastic_heterogeneity(5),
}


@pytest.fixture(scope="module", params=[1.0, 0.0], ids=["different", "alike"])
def trials(request):
    """What is found with 40 of 60 or more samples looked at, 50 times, and the truth."""
    b = pulls([60, 90], apart=request.param)
    x = X + torch.tensor(means(b).mean(0))
    found = [gradient_statistics(landscape_of(b, samples=40, seed=seed), x) for seed in range(50)]
    return found, gradient_statistics(landscape_of(b), x)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_intervals_hold_the_truth_and_estimates_have_no_bias(trials, measure):
    found, exact = trials
    truth = measure(exact).value
    estimates = [measure(each) for each in found]
    values = np.array([each.value for each in estimates])
    assert abs(values.mean() - truth) < 3.5 * values.std() / 50**0.5
    held = sum(each.low <= truth <= each.high for each in estimates)
    assert held >= 43  # of 50 at 95 %
    # Not by being far too wide: about 4 standard deviations, and up to 1.5 times that where the estimate is quadratic.
    assert np.median([each.high - each.low for each in estimates]) < 8 * values.std()


def test_confidence():
    few = landscape_of(B, samples=4)
    wide, narrow = (gradient_statistics(few, X, confidence).loss() for confidence in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.value == wide.value < narrow.high < wide.high
    with pytest.raises(ValueError, match=r"confidence=95.*such as 0.95"):
        gradient_statistics(few, X, 95).loss()


def test_workers_seen_whole_add_no_uncertainty():
    whole = landscape_of([B[0], B[1], B[2][:3]], samples=7)  # the first and the last have no more
    found = gradient_statistics(whole, X)
    first, second, third = found.noise_by_worker(2)
    assert first.low == first.high
    assert third.low == third.high
    assert second.low < second.value < second.high


def test_batches_larger_than_shards_are_refused():
    with pytest.raises(ValueError, match=r"batch_size=6.*from 1 to 5"):
        gradient_statistics(landscape_of(B)).noise(6)


def test_a_worker_with_one_sample_has_no_noise():
    assert gradient_statistics(landscape_of([B[0][:1], B[1][:1]])).noise(1).value == 0


PROBLEM = Quadratics.random(m=3, d=5)


def quadratics():
    return Landscape(Point(5), quadratic, PROBLEM.data, workers=3)


def test_optimum_of_quadratics():
    A, b = PROBLEM.A, PROBLEM.b
    least = np.linalg.solve(A.sum(0), np.einsum("mij,mj->i", A, b))
    landscape = quadratics()
    found = optimum(landscape, torch.ones(5, dtype=torch.float64), tolerance=1e-7)
    assert found.converged
    np.testing.assert_allclose(found.x, least, atol=1e-5)
    gap = optimality_gap(landscape, found)
    true = PROBLEM.losses(np.zeros((3, 5))).mean() - PROBLEM.losses(np.tile(least, (3, 1))).mean()
    assert gap.value == pytest.approx(true, rel=1e-10)
    assert optimality_gap(landscape).value == pytest.approx(true, rel=1e-6)
    # sigma_f^2 of the slides: the workers' gradients where their mean is zero.
    sigma_f = gradient_statistics(landscape, found.x).heterogeneity()
    assert sigma_f.value == pytest.approx(np.square(PROBLEM.gradients(np.tile(least, (3, 1)))).sum(1).mean(), rel=1e-5)


def test_an_optimum_that_was_not_reached_is_said(caplog):
    found = optimum(quadratics(), torch.ones(5, dtype=torch.float64), steps=2)
    assert not found.converged
    assert "no minimum after 2 steps" in caplog.text


def test_smoothness_of_quadratics():
    estimate = smoothness(quadratics())
    assert estimate.value == pytest.approx(max(np.linalg.eigvalsh(A)[-1] for A in PROBLEM.A), rel=1e-6)
    assert estimate.low == estimate.high


def test_intervals_of_smoothness_hold_the_truth():
    """f_j(x) = (a_j^T x)^2 / 2: the Hessian is the second moment of a; one direction is far longer than the others."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(300, 4)) * [5, 1, 1, 0.5]
    data = Dataset.from_workers([(torch.tensor(a),)])

    def objective(model, batch):
        return 0.5 * (batch[0] @ model.x).square().mean()

    true = np.linalg.eigvalsh(a.T @ a / len(a))[-1]
    found = [smoothness(Landscape(Point(4), objective, data, samples=60, seed=seed)) for seed in range(15)]
    assert sum(each.low <= true <= each.high for each in found) >= 12


def test_gap_interval_holds_the_truth():
    b = pulls([80, 60])
    best = optimum(landscape_of(b))
    true = optimality_gap(landscape_of(b), best, X).value
    found = [optimality_gap(landscape_of(b, samples=30, seed=seed), best, X) for seed in range(50)]
    assert sum(each.low <= true <= each.high for each in found) >= 43


def test_dropout_batchnorm_and_augmentation_leave_a_function_of_x():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3),
        torch.nn.BatchNorm2d(2),
        torch.nn.Flatten(),
        torch.nn.Dropout(),
        torch.nn.Linear(32, 10),
    ).double()
    data = tether.data.digits().to(torch.float64).augmented(CropAndFlip(6, 0))
    landscape = Landscape(model, tether.models.cross_entropy, data, workers=2, samples=20)
    batch = landscape.batch(np.concatenate(landscape.looked_at))
    assert (
        landscape.loss()
        == landscape.loss()
        == pytest.approx(tether.models.cross_entropy(model.eval(), batch).item(), rel=1e-12)
    )
    found = gradient_statistics(landscape)
    assert found.loss().value == pytest.approx(landscape.loss(), rel=1e-12)
    assert landscape.module(landscape.x).training is True  # the model is left as it was


def test_objectives_that_do_not_use_their_model_are_refused():
    other = Point(4)
    with pytest.raises(ValueError, match="does not depend on the parameters"):
        Landscape(Point(4), lambda model, batch: distance(other, batch), Dataset((torch.tensor(B[0]),)))


def test_an_estimate_prints_its_interval():
    assert str(Estimate(1.23456, 1, 1.5, 0.95)) == "1.235 [1, 1.5]"
