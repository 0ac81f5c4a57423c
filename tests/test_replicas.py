"""X: rows that are modules' parameters."""

import pytest
import torch
from torch import nn

import tether
from tether.replicas import Replicas
from tether.result import center


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_rows_are_parameters_to_vector():
    model = net()
    replicas = Replicas(model, 3)
    vector = nn.utils.parameters_to_vector(model.parameters())
    assert replicas.x.shape == (3, len(vector)) == (3, replicas.parameters)
    for i in range(3):
        assert torch.equal(replicas.x[i], vector)
        assert torch.equal(nn.utils.parameters_to_vector(replicas.worker(i).parameters()), vector)


def test_a_modules_parameters_are_views_of_its_row():
    replicas = Replicas(net(), 2)
    module = replicas.worker(1)
    replicas.x[1] = 7
    assert all((p == 7).all() for p in module.parameters())
    module[1](torch.randn(5, 4))
    assert torch.equal(replicas.buffers["1.running_mean"][1], module[1].running_mean)
    assert not torch.equal(replicas.buffers["1.running_mean"][0], module[1].running_mean)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    module(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(nn.utils.parameters_to_vector(module.parameters()), replicas.x[1])
    assert not (replicas.x[1] == 7).all()
    assert not (replicas.x[0] == 7).any()


def test_the_given_module_is_left_alone():
    model = net()
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    replicas = Replicas(model, 2)
    replicas.x.zero_()
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)


def test_center_is_the_mean_with_buffers():
    replicas = Replicas(net(), 3)
    replicas.x.copy_(torch.arange(3.0)[:, None].expand_as(replicas.x))
    replicas.buffers["1.running_var"].copy_(torch.arange(3.0)[:, None].expand(3, 4))
    workers = tether.Stacked(3)
    mean = center(replicas, workers)
    assert all((p == 1).all() for p in mean.parameters())
    assert (mean[1].running_var == 1).all()
    workers.exclude(2)
    assert all((p == 0.5).all() for p in center(replicas, workers).parameters())


def test_frozen_parameters_stay_out():
    model = net()
    model[0].requires_grad_(False)
    replicas = Replicas(model, 2)
    assert replicas.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    replicas.x.fill_(3)
    worker = replicas.worker(0)
    assert torch.equal(worker[0].weight, model[0].weight)
    assert not worker[0].weight.requires_grad
    assert (worker[3].weight == 3).all()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def test_tied_parameters_are_one():
    replicas = Replicas(Tied(), 2)
    assert replicas.parameters == 15
    worker = replicas.worker(1)
    assert worker.head.weight is worker.embedding.weight
    replicas.x[1] = 2
    assert (worker.head.weight == 2).all()


def test_tied_parameters_train_alike_in_both_ways_of_stepping():
    torch.manual_seed(0)
    model = Tied().double()
    data = tether.data.Dataset((torch.arange(5).repeat(8), torch.arange(5).roll(1).repeat(8)))
    runs = [
        tether.simulate(
            model,
            tether.LocalSGD(2),
            data,
            workers=2,
            objective=tether.models.cross_entropy,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
            steps=6,
            batch_size=5,
            stepping=stepping,
        )
        for stepping in ("stacked", "rows")
    ]
    torch.testing.assert_close(runs[0].rows, runs[1].rows, rtol=1e-12, atol=1e-13)
    assert not torch.allclose(runs[0].rows[0], nn.utils.parameters_to_vector(model.parameters()), atol=1e-3)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, dtype=torch.complex64))


def half_and_half():
    model = net()
    model[0].half()
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ReLU(), "no parameters to train: it has none"),
        (net().requires_grad_(False), "all 6 are frozen"),
        (half_and_half(), r"'0.weight' has torch.float16, '1.weight' has torch.float32.*\.to\(dtype\)"),
        (Complex(), "'weight' is .*complex64"),
        (nn.Sequential(nn.LazyLinear(3)), "'0.weight' has no shape yet"),
    ],
    ids=["none", "frozen", "mixed", "complex", "lazy"],
)
def test_refuses(model, message):
    with pytest.raises(ValueError, match=message):
        Replicas(model, 2)


def test_mixed_dtypes_are_fine_if_the_odd_ones_are_frozen():
    model = half_and_half()
    model[0].requires_grad_(False)
    assert Replicas(model, 2).x.dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 5), (3, 26)])
def test_start_must_fit(shape):
    with pytest.raises(ValueError, match=r"start has shape .*need \(2, 34\)"):
        Replicas(net(), 2, torch.zeros(shape))


def test_needs_a_row():
    with pytest.raises(ValueError, match="rows=0"):
        Replicas(net(), 0)
