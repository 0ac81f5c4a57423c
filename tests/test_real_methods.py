"""Real workers are simulated ones: the same rows, for every method, in eight processes on Gloo."""

import pytest
import torch

import tether
from methods_table import M
from problems import Point, Quadratics, quadratic
from real import launch
from scenarios_eight import OPTIMIZERS, STEPS, D, settings, start

pytestmark = pytest.mark.xdist_group("real")


@pytest.fixture(scope="module")
def real():
    return launch("scenarios_eight", M)


@pytest.mark.parametrize(
    ("name", "method", "order", "overlap", "optimizer"),
    [pytest.param(*setting, id=setting[0]) for setting in settings()],
)
def test_same_rows(real, name, method, order, overlap, optimizer):
    simulated = tether.simulate(
        Point(D),
        method,
        Quadratics.random(M, D).data,
        workers=M,
        objective=quadratic,
        optimizer=OPTIMIZERS[optimizer],
        steps=STEPS,
        batch_size=None,
        order=order,
        overlap=overlap,
        start=torch.tensor(start()),
    )
    errors = [process[name] for process in real if isinstance(process[name], str)]
    assert not errors, errors[0]
    rows = torch.stack([process[name]["row"] for process in real])
    torch.testing.assert_close(rows, simulated.rows, rtol=1e-10, atol=1e-12)
