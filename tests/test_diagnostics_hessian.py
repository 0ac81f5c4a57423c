"""Curvature: Hessians, eigenvalues, energies, Newton directions; against closed forms, autograd and LAPACK."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import tether
from problems import Point, Quadratics, quadratic
from tether.diagnostics import (
    Landscape,
    Spectrum,
    angle,
    contributions,
    energy,
    extreme_eigenvalues,
    hessian,
    lanczos_energy,
    leader_direction,
    newton_direction,
    spectral_density,
)
from tether.models import cross_entropy

DIGITS = tether.data.digits().to(torch.float64)


class Tied(nn.Module):
    """Two layers of one weight, a frozen bias, and a parameter whose place in the order is not that in the model."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(5, 10)
        self.first = nn.Linear(64, 5)
        self.second = nn.Linear(5, 5)
        self.third = nn.Linear(5, 5)
        self.third.weight = self.second.weight
        self.third.bias.requires_grad_(False)

    def forward(self, x):
        x = torch.tanh(self.first(x.flatten(1)))
        return self.last(self.third(torch.tanh(self.second(x))))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10)
    )


MODELS = {
    "softmax": lambda: tether.models.second_order_mlp((1, 8, 8), 10, rectified=False),
    "mlp": lambda: tether.models.mlp((1, 8, 8), 10, hidden=[6]),
    "conv": convolutional,
    "tied": Tied,
}


def landscape_of(model, workers=1, **options):
    torch.manual_seed(0)
    return Landscape(MODELS[model]().double(), cross_entropy, DIGITS, workers=workers, **options)


@pytest.fixture(scope="module", params=MODELS)
def whole(request):
    landscape = landscape_of(request.param, samples=50, batch_size=20)
    return landscape, hessian(landscape)


def test_hessian_is_that_of_autograd(whole):
    landscape, found = whole
    expected = torch.autograd.functional.hessian(
        lambda x: sum(weight * landscape.sample_loss(x, batch) for batch, weight in landscape.batches()), landscape.x
    )
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    assert torch.equal(found, found.mT)


def test_products_are_those_of_the_hessian(whole):
    landscape, found = whole
    v = torch.randn(3, landscape.parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(landscape.hessian_product(v), v @ found, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(landscape.hessian_product(v[0]), found @ v[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("model", "which"),
    [("conv", "largest"), ("conv", "smallest"), ("conv", "largest-magnitude"), ("softmax", "smallest")],
)
def test_lanczos_equals_lapack(model, which):
    landscape = landscape_of(model, samples=50)
    matrix = hessian(landscape)
    every = Spectrum.of(matrix)
    values = every.eigenvalues
    expected = {
        "largest": values[-4:],
        "smallest": values[:1],
        "largest-magnitude": values[values.abs().argsort()[-4:]].sort().values,
    }[which]
    found = extreme_eigenvalues(landscape, len(expected), which)
    steepest = float(values.abs().max())
    torch.testing.assert_close(found.eigenvalues, expected, rtol=0, atol=1e-5 * steepest)
    off = matrix @ found.vectors - found.vectors * found.eigenvalues
    assert off.norm(dim=0).max() < 2e-5 * steepest


def test_hessian_of_softmax_regression_in_closed_form():
    """(1/n) sum_j (diag(p_j) - p_j p_j^T) x z_j z_j^T, z_j with a one for the bias; of a worker, and of all."""
    torch.manual_seed(0)
    data = DIGITS.partitioned("quantity", beta=1.0, min_samples=20)
    landscape = Landscape(MODELS["softmax"]().double(), cross_entropy, data, workers=3, batch_size=300)
    layer = landscape.model[1]

    def closed(indices):
        z = data.train[0][indices].flatten(1).numpy()
        p = torch.softmax(layer(torch.tensor(z)), 1).detach().numpy()
        z = np.hstack([z, np.ones((len(z), 1))])
        S = np.einsum("nc,ce->nce", p, np.eye(10)) - np.einsum("nc,ne->nce", p, p)
        blocks = np.einsum("nce,ni,nj->ciej", S, z, z, optimize=True) / len(z)
        # parameters_to_vector has all weights before all biases
        order = np.concatenate([np.arange(650).reshape(10, 65)[:, :64].ravel(), np.arange(650).reshape(10, 65)[:, 64]])
        return blocks.reshape(650, 650)[np.ix_(order, order)]

    each = [closed(held) for held in landscape.held]
    np.testing.assert_allclose(hessian(landscape, worker=1), each[1], atol=1e-12)
    # Workers of unequal size count alike: F is the mean of the F_i.
    assert len({len(held) for held in landscape.held}) == 3
    np.testing.assert_allclose(hessian(landscape), np.mean(each, 0), atol=1e-12)


def test_progress_and_parts_change_nothing():
    seen = []
    landscape = landscape_of("mlp", samples=30)
    whole = hessian(landscape, on_progress=lambda done, of: seen.append((done, of)))
    assert seen == sorted(set(seen))
    assert seen[-1] == (landscape.parameters,) * 2
    parts = hessian(landscape_of("mlp", samples=30, batch_size=7))
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-13)


def test_hessian_at_another_point():
    landscape = landscape_of("mlp", samples=30)
    x = landscape.x + 0.1
    moved = Landscape(landscape.module(x), cross_entropy, DIGITS, samples=30)
    assert torch.equal(moved.x, x)
    torch.testing.assert_close(hessian(landscape, x), hessian(moved), rtol=1e-12, atol=1e-15)
    assert not torch.allclose(hessian(landscape), hessian(moved))


def test_a_loss_that_is_linear_has_no_curvature():
    class Linear(Point):
        pass

    data = tether.data.Dataset((torch.eye(3, dtype=torch.float64),))
    landscape = Landscape(Linear(3), lambda model, batch: (batch[0] @ model.x).mean(), data)
    assert not hessian(landscape).any()


def test_float32_agrees_to_its_precision():
    double = landscape_of("conv", samples=50)
    single = Landscape(copy.deepcopy(double.model).float(), cross_entropy, DIGITS.to(torch.float32), samples=50)
    exact, rounded = hessian(double), hessian(single).double()
    assert (exact - rounded).norm() < 1e-5 * exact.norm()


def random_spectrum(d=12, seed=0):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(d, d)))
    values = np.sort(np.concatenate([[0.0, 0.0], rng.uniform(-0.2, 3, size=d - 2)]))
    return values, q, torch.tensor(q * values @ q.T)


def test_energy_and_cpdf_are_their_definitions():
    values, _, matrix = random_spectrum()
    v = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = energy(Spectrum.of(matrix), v)
    lapack, vectors = np.linalg.eigh(matrix.numpy())
    np.testing.assert_allclose(found.eigenvalues, values, atol=1e-12)
    assert found.energies.sum() == pytest.approx(float(v @ v), rel=1e-12)
    for x in (-1.0, -0.05, 0.5, 1.7, 10.0):
        w = vectors.T @ v.numpy()
        assert found.share_up_to(x) == pytest.approx((w[lapack <= x] ** 2).sum() / (w**2).sum(), abs=1e-12)
    assert found.cumulative[-1] == pytest.approx(1)
    middle = found.quantile(0.5)
    assert found.share_up_to(middle) >= 0.5 > found.share_up_to(middle - 1e-9)


def test_contributions_add_up_and_are_those_of_the_paper():
    """Their sum is the second-order change of the loss; for the expected update of local SGD each is eq. 32."""
    values, q, matrix = random_spectrum()
    spectrum = Spectrum.of(matrix)
    g, step = torch.randn(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = contributions(spectrum, g, step)
    assert found.sum() == pytest.approx(float(-step @ g + step @ matrix @ step / 2), rel=1e-10)

    lr, K = 0.1, 20
    flat = np.isclose(values, 0)
    # sum_k (1 - lr lambda)^k lr: what K steps down a quadratic do along each direction
    factor = np.array([lr * sum((1 - lr * value) ** k for k in range(K)) for value in values])
    update = torch.tensor(q * factor @ q.T) @ g
    e = spectrum.projections(g).numpy() ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        eq32 = np.where(flat, -K * lr * e, -(1 - (1 - values * lr) ** (2 * K)) * e / (2 * values))
    # The two directions without curvature have no order among themselves.
    found = contributions(spectrum, g, update)
    np.testing.assert_allclose(found[~flat], eq32[~flat], rtol=1e-8)
    assert found[flat].sum() == pytest.approx(eq32[flat].sum(), rel=1e-8)


def test_energies_need_every_eigenvector_and_a_vector():
    spectrum = Spectrum.of(random_spectrum()[2])
    with pytest.raises(ValueError, match="4 of 12 eigenvectors"):
        energy(Spectrum(spectrum.eigenvalues[:4], spectrum.vectors[:, :4]), torch.ones(12, dtype=torch.float64))
    with pytest.raises(ValueError, match="vector is zero"):
        energy(spectrum, torch.zeros(12, dtype=torch.float64))


PROBLEM = Quadratics.random(m=3, d=20)


def quadratics():
    return Landscape(Point(20), quadratic, PROBLEM.data, workers=3)


def test_lanczos_energy_with_as_many_steps_as_eigenvalues_is_exact():
    v = torch.linspace(1, 2, 20, dtype=torch.float64)
    exact = energy(Spectrum.of(torch.tensor(PROBLEM.A.mean(0))), v)
    found = lanczos_energy(quadratics(), v, steps=1000)
    np.testing.assert_allclose(found.eigenvalues, exact.eigenvalues, rtol=1e-8)
    np.testing.assert_allclose(found.energies, exact.energies, rtol=1e-5, atol=1e-10)


def test_lanczos_energy_of_few_steps_has_the_right_moments():
    v = torch.linspace(1, 2, 20, dtype=torch.float64)
    A = PROBLEM.A.mean(0)
    found = lanczos_energy(quadratics(), v, steps=4)
    assert len(found.eigenvalues) == 4
    for k in range(8):
        true = v.numpy() @ np.linalg.matrix_power(A, k) @ v.numpy()
        assert (found.energies * found.eigenvalues**k).sum() == pytest.approx(true, rel=1e-9)


def test_lanczos_stops_where_the_vector_has_no_more_energy():
    _, vectors = np.linalg.eigh(PROBLEM.A.mean(0))
    found = lanczos_energy(quadratics(), torch.tensor(2 * vectors[:, 3] + vectors[:, 7]), steps=10)
    np.testing.assert_allclose(found.energies, [4, 1], rtol=1e-9)


def test_spectral_density_is_the_share_of_eigenvalues():
    landscape = landscape_of("conv", samples=50)
    matrix = hessian(landscape)
    found = spectral_density(landscape, vectors=8, steps=20)
    assert found.energies.sum() == pytest.approx(1)
    values = np.linalg.eigvalsh(matrix.numpy())
    for x in np.quantile(values, [0.9, 0.97]) + 1e-6 * values[-1]:
        assert found.share_up_to(x) == pytest.approx((values <= x).mean(), abs=0.06)


def test_newton_direction_of_a_quadratic_ends_at_its_minimum():
    landscape = quadratics()
    A = PROBLEM.A
    least = np.linalg.solve(A.sum(0), np.einsum("mij,mj->i", A, PROBLEM.b))
    x = torch.ones(20, dtype=torch.float64)
    np.testing.assert_allclose(x + newton_direction(landscape, x, tolerance=1e-10), least, atol=1e-8)


def test_newton_direction_of_a_singular_hessian_is_the_shortest():
    landscape = landscape_of("softmax", samples=300)  # softmax: adding to all classes alike changes nothing
    matrix, slope = hessian(landscape), landscape.gradient()
    damping = 1e-3
    found = newton_direction(landscape, damping=damping, tolerance=1e-9)
    expected = -torch.linalg.solve(matrix + damping * torch.eye(650, dtype=torch.float64), slope)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    # Without damping eigenvalues near zero, of pixels that are always black, take many steps: said, not hidden.
    with pytest.raises(RuntimeError, match=r"no Newton direction.*damping"):
        newton_direction(landscape, tolerance=1e-9, steps=5)


def test_newton_direction_where_curvature_is_negative():
    values = torch.tensor([-1.0, 0.5, 2.0, 0.0], dtype=torch.float64)
    data = tether.data.Dataset((values[None],))

    def saddle(model, batch):
        return ((batch[0] * model.x.square()).sum(1) / 2 + (batch[0] * model.x).sum(1)).mean()

    found = newton_direction(Landscape(Point(4), saddle, data), torch.tensor([1.0, 2, 3, 4], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([-2.0, -3, -4, 0], dtype=torch.float64), rtol=1e-6, atol=1e-8)


def test_angles():
    e = torch.eye(3, dtype=torch.float64)
    assert angle(e[0], 5 * e[1]) == pytest.approx(90)
    assert angle(e[0], -e[0]) == pytest.approx(180)
    assert angle(e[0], 3 * e[0] + 3e-9 * e[1]) == pytest.approx(np.degrees(1e-9), rel=1e-6)
    with pytest.raises(ValueError, match="zero vector"):
        angle(e[0], 0 * e[1])


def test_leader_direction_and_its_angle():
    """Leader SGD, section 3.3: on f = x^T A x / 2, d_N = -x; a leader at the minimum turns the direction toward it."""
    landscape = quadratics()
    x, z = torch.ones(20, dtype=torch.float64), torch.linspace(0, 1, 20, dtype=torch.float64)
    slope = torch.tensor(PROBLEM.gradients(np.ones((3, 20))).mean(0))
    torch.testing.assert_close(leader_direction(landscape, z, 0.3, x), -(slope + 0.3 * (x - z)))
    newton = newton_direction(landscape, x, tolerance=1e-10)
    angles = [angle(leader_direction(landscape, x + newton, pull, x), newton) for pull in (0.0, 0.1, 1.0, 10.0)]
    assert angles[0] == pytest.approx(angle(-slope, newton))
    assert angles == sorted(angles, reverse=True)
    assert angles[0] > 3 * angles[-1]
