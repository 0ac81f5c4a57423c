"""Models: the papers' sizes and starts, and that many workers at once are many workers one at a time."""

import copy
import itertools
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

import tether
from tether.config import Config, ConfigError, choose
from tether.data import Dataset
from tether.gradients import RowGradients, StackedGradients
from tether.models import MODELS, cross_entropy, squared_error
from tether.models.cifar import Residual
from tether.papers.leader import imagenet
from tether.replicas import Replicas
from tether.run import load_data, load_model

MNIST, CIFAR, CROP = (1, 28, 28), (3, 32, 32), (3, 28, 28)

SMALL = {  # a sample's shape, outputs, and parameters that make the model quick
    "softmax": ((1, 4, 4), 10, {}),
    "logistic": ((7,), 2, {}),
    "mlp": ((1, 4, 4), 10, {"hidden": [5, 4]}),
    "cnn": ((1, 8, 8), 10, {"channels": [2, 3]}),
    "relu": ((1, 4, 4), 10, {"width": 6, "depth": 3}),
    "second-order-mlp": ((1, 4, 4), 10, {}),
    "second-order-cnn": ((1, 16, 16), 10, {}),
    "cnn7": ((1, 24, 24), 10, {"dropout": 0.0}),
    "resnet20": ((3, 8, 8), 10, {"width": 4}),
    "vgg16": ((3, 8, 8), 10, {"channels": [[4, 4], [6, 6, 6]], "hidden": [8, 8], "dropout": 0.0}),
    "transformer": ((6,), 256, {"width": 8, "layers": 2, "heads": 2}),
}


def make(name, **parameters):
    shape, classes, quick = SMALL[name]
    torch.manual_seed(0)
    return MODELS[name](shape, classes, **quick | parameters)


def batches(name, workers, size, dtype=torch.float64):
    shape, classes, _ = SMALL[name]
    generator = torch.Generator().manual_seed(1)
    if name == "transformer":
        return tuple(torch.randint(0, 256, (workers, size, 6), dtype=torch.uint8, generator=generator) for _ in "xy")
    inputs = torch.randn(workers, size, *shape, dtype=dtype, generator=generator)
    return inputs, torch.randint(0, classes, (workers, size), generator=generator)


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def weights(model):
    return sum(p.numel() for p in model.parameters())


def test_each_model_is_in_these_tests():
    assert set(SMALL) == set(MODELS) - {"torchvision"}


def test_torchvision_is_asked_for_by_what_needs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ConfigError) as error:
        choose({"name": "torchvision", "architecture": "resnet50"}, MODELS, "model", shape=CIFAR, classes=10)
    (line,) = str(error.value).splitlines()
    assert "model: architecture='resnet50' is torchvision's, which cannot be imported here" in line
    assert "pip install 'tether[vision]'" in line


def test_networks_of_torchvision():
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    assert weights(MODELS["torchvision"]((3, 224, 224), 1000, architecture="resnet50")) == imagenet.PARAMETERS
    network = MODELS["torchvision"](CIFAR, 7, architecture="resnet18")
    assert network(torch.randn(2, *CIFAR)).shape == (2, 7)
    with pytest.raises(ConfigError, match="resnet17"):
        choose({"name": "torchvision", "architecture": "resnet17"}, MODELS, "model", shape=CIFAR, classes=10)


@pytest.mark.parametrize(
    ("model", "shape", "parameters", "expected"),
    [
        ("second-order-mlp", MNIST, {}, 7_850),
        ("second-order-cnn", CIFAR, {}, 14_700),
        ("relu", MNIST, {"width": 50}, 39_700),
        ("relu", MNIST, {"width": 100, "depth": 5}, 119_400),
        ("vgg16", CIFAR, {"hidden": []}, 14_728_266),  # the network of most published code for CIFAR-10
        ("resnet20", CIFAR, {}, 269_722),  # 0.27 million in He et al., table 6
    ],
    ids=str,
)
def test_weights_are_as_many_as_in_the_paper(model, shape, parameters, expected):
    assert weights(MODELS[model](shape, 10, **parameters)) == expected


@pytest.mark.parametrize(("model", "shape"), [("resnet20", CROP), ("resnet20", CIFAR), ("vgg16", CIFAR)], ids=str)
def test_layers_are_as_many_as_the_name_says(model, shape):
    network = MODELS[model](shape, 10)
    assert sum(isinstance(part, (nn.Conv2d, nn.Linear)) for part in network.modules()) == int(model[-2:])
    assert network(torch.randn(2, *shape)).shape == (2, 10)


def test_cnn7_is_the_network_of_the_easgd_paper():
    x, shapes = torch.randn(1, *CROP), []
    for layer in MODELS["cnn7"](CROP, 10):
        x = layer(x)
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.Linear)):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(64, 24, 24), (64, 12, 12), (128, 8, 8), (128, 4, 4), (64, 2, 2), (256,), (10,)]
    narrow = [layer.weight.shape[0] for layer in MODELS["cnn7"](CROP, 10, width=32) if hasattr(layer, "weight")]
    assert narrow == [32, 64, 32, 128, 10]


@pytest.mark.parametrize("name", SMALL)
def test_stacked_workers_have_the_gradients_of_each_alone(name):
    # Where vmap has no rule it would loop over the rows, and be right for the wrong reason.
    torch._C._functorch._set_vmap_fallback_enabled(False)
    model, workers = make(name).double(), 3
    replicas = Replicas(model, workers)
    replicas.x.add_(torch.randn_like(replicas.x) * 0.1)
    batch = batches(name, workers, 5)
    try:
        found = {}
        for way in (StackedGradients, RowGradients):
            buffers = {name: buffer.clone() for name, buffer in replicas.buffers.items()}
            gradient = torch.empty_like(replicas.x)
            losses = way(replicas, model, cross_entropy)(replicas.x, buffers, batch, gradient)
            found[way] = losses, gradient, buffers
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(True)
    for worker in range(workers):
        # What PyTorch makes of the ordinary module.
        alone = copy.deepcopy(model)
        parameters = [p for p in alone.parameters() if p.requires_grad]
        nn.utils.vector_to_parameters(replicas.x[worker], parameters)
        loss = cross_entropy(alone, tuple(part[worker] for part in batch))
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        assert expected.abs().max() > 1e-3
        for losses, gradient, buffers in found.values():
            torch.testing.assert_close(losses[worker], loss.detach(), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(gradient[worker], expected, rtol=1e-10, atol=1e-12)
            for name, buffer in alone.named_buffers():
                torch.testing.assert_close(buffers[name][worker], buffer, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stepping", ["stacked", "rows"])
def test_each_worker_has_its_own_batch_norm_statistics(stepping):
    shape, _, _ = SMALL["resnet20"]
    shards = [tuple(part[worker] for part in batches("resnet20", 3, 8)) for worker in range(3)]
    shards = [(images + worker, labels) for worker, (images, labels) in enumerate(shards)]
    model = make("resnet20").double()
    result = tether.simulate(
        model,
        tether.LocalSGD(period=10),
        Dataset.from_workers(shards),
        workers=3,
        objective=cross_entropy,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        steps=1,
        batch_size=None,
        buffers="local",
        stepping=stepping,
    )
    for worker, (images, _) in enumerate(shards):
        norm = result.worker(worker)[1]
        seen = model[0](images)
        torch.testing.assert_close(norm.running_mean, 0.1 * seen.mean((0, 2, 3)).detach())
        expected = 0.9 + 0.1 * seen.var((0, 2, 3)).detach()
        torch.testing.assert_close(norm.running_var, expected)
        assert norm.num_batches_tracked == 1
    means = [result.worker(worker)[1].running_mean for worker in range(3)]
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(means, 2))
    assert torch.equal(model[1].running_mean, torch.zeros(4, dtype=torch.float64))
    assert model(torch.randn(2, *shape, dtype=torch.float64)).shape == (2, 10)


@pytest.mark.parametrize("stepping", ["stacked", "rows"])
@pytest.mark.parametrize("name", ["cnn7", "vgg16", "transformer"])
def test_each_worker_drops_out_on_its_own(name, stepping):
    """Workers that start alike and see the same samples go apart by dropout, and by nothing else."""
    batch = tuple(part.expand(3, *part.shape[1:]) for part in batches(name, 1, 4, torch.float32))

    def rows(dropout, seed=0):
        return tether.simulate(
            make(name, dropout=dropout),
            tether.LocalSGD(period=10),
            Dataset.from_workers([tuple(part[worker] for part in batch) for worker in range(3)]),
            workers=3,
            objective=cross_entropy,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            steps=1,
            batch_size=None,
            stepping=stepping,
            seed=seed,
        ).rows

    without, with_dropout = rows(0.0), rows(0.5)
    assert (without - without[0]).abs().max() < 1e-6
    assert all((with_dropout[a] - with_dropout[b]).abs().max() > 1e-4 for a, b in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(with_dropout, rows(0.5))
    assert not torch.equal(with_dropout, rows(0.5, seed=1))


def test_the_relu_network_is_its_equation():
    network = make("relu").double()
    *hidden, top = (part.weight.detach().numpy() for part in network if isinstance(part, nn.Linear))
    x = batches("relu", 1, 5)[0][0]
    expected = x.numpy().reshape(5, -1).T
    for weight in hidden:
        expected = np.maximum(weight @ expected, 0)
    np.testing.assert_allclose(network(x).detach().numpy(), (top @ expected).T, rtol=1e-12)


def test_the_relu_network_starts_as_in_the_paper():
    torch.manual_seed(0)
    network = MODELS["relu"](MNIST, 10, width=400, depth=2)
    *hidden, top = (part.weight for part in network if isinstance(part, nn.Linear))
    # A variance from n draws is off by a factor of about 1 ± sqrt(2/n).
    for weight, variance in ((hidden[0], 2 / 400), (hidden[1], 2 / 400), (top, 1 / 10)):
        assert weight.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / weight.numel()))


def test_the_top_layer_stays_where_it_is_and_is_one_for_all():
    data = tether.data.digits()
    network = MODELS["relu"]((1, 8, 8), 10, width=6)
    result = tether.simulate(
        network,
        tether.LocalSGD(period=5),
        data,
        workers=3,
        objective=squared_error,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1),
        steps=5,
    )
    assert result.rows.shape[1] == 64 * 6
    assert not torch.equal(result.center()[1].weight, network[1].weight)
    for model in (result.center(), result.worker(2)):
        assert torch.equal(model[-1].weight, network[-1].weight)


def test_convolutions_start_from_he():
    network = MODELS["resnet20"](CIFAR, 10)
    for part in network.modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() > 2000:
            variance = 2 / (part.out_channels * math.prod(part.kernel_size))
            assert part.weight.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / part.weight.numel()))


def test_a_shortcut_takes_every_other_pixel_and_adds_empty_channels():
    block = Residual(4, 8).eval()
    nn.init.zeros_(block.second[0].weight)  # of the sum only the shortcut is left
    x = torch.rand(2, 4, 6, 6)
    expected = torch.zeros(2, 8, 3, 3)
    expected[:, 2:6] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


def test_a_transformer_does_not_look_ahead():
    model = make("transformer", width=16).eval()
    text = torch.randint(0, 256, (1, 6))
    logits = model(text)
    for place in range(6):
        other = text.clone()
        other[0, place] = (other[0, place] + 1) % 256
        changed = (model(other) - logits).abs().amax(-1)[0]
        assert (changed[:place] == 0).all()
        assert (changed[place:] > 0).all()


def test_a_transformer_starts_without_a_preference_and_takes_shorter_texts():
    model = MODELS["transformer"]((32,), 256)
    text = torch.randint(0, 256, (8, 33))
    assert cross_entropy(model, (text[:, :-1], text[:, 1:])).item() == pytest.approx(math.log(256), rel=0.02)
    torch.testing.assert_close(model(text[:, :20]), model(text[:, :32])[:, :20], rtol=1e-4, atol=1e-5)


def test_fused_attention_is_the_same():
    plain, fused = make("transformer").double(), make("transformer", fused=True).double()
    text, _ = batches("transformer", 1, 3)
    torch.testing.assert_close(plain(text[0]), fused(text[0]), rtol=1e-12, atol=1e-12)


def test_a_transformer_learns_a_text():
    text = torch.tensor(list(b"local steps, then a round; " * 40), dtype=torch.uint8)
    windows = text[: 64 * 16 + 1].unfold(0, 17, 16)
    result = tether.simulate(
        MODELS["transformer"]((16,), 256, width=32, layers=1),
        tether.LocalSGD(period=5),
        Dataset((windows[:, :-1], windows[:, 1:]), classes=256),
        workers=2,
        objective=cross_entropy,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
        steps=80,
        batch_size=16,
    )
    assert result.losses.mean() < 0.6 < math.log(256)


def test_one_output_is_the_log_odds_of_the_second_class():
    model = make("logistic").double()
    (inputs,), (labels,) = batches("logistic", 1, 50)
    two = lambda x: torch.cat([torch.zeros(len(x), 1), model(x)], dim=1)  # noqa: E731
    expected = nn.functional.cross_entropy(two(inputs), labels)
    torch.testing.assert_close(cross_entropy(model, (inputs, labels)), expected)
    measured = tether.data.classification((inputs, labels))(model)
    assert measured["loss"] == pytest.approx(expected.item())
    assert measured["accuracy"] == pytest.approx((two(inputs).argmax(1) == labels).double().mean().item())


def test_squared_error_is_half_the_squared_distance():
    outputs, labels = torch.randn(6, 10, dtype=torch.float64), torch.arange(6)
    expected = np.mean([np.sum((o - np.eye(10)[y]) ** 2) / 2 for o, y in zip(outputs.numpy(), labels, strict=True)])
    assert squared_error(nn.Identity(), (outputs, labels)).item() == pytest.approx(expected)
    real = torch.randn(6, dtype=torch.float64)
    expected = ((outputs[:, 0] - real) ** 2).mean().item() / 2
    assert squared_error(nn.Identity(), (outputs[:, :1], real)).item() == pytest.approx(expected)
    several = torch.randn(6, 10, dtype=torch.float64)
    expected = ((outputs - several) ** 2).sum(1).mean().item() / 2
    assert squared_error(nn.Identity(), (outputs, several)).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MODELS["cnn7"](MNIST[1:], 10), r"cnn7 takes images of shape .* not samples of shape \(28, 28\)"),
        (lambda: MODELS["cnn7"]((1, 20, 28), 10), "cnn7 takes images of at least 24 x 24; these are 20 x 28"),
        (lambda: MODELS["vgg16"](CROP, 10), "vgg16 takes images of at least 32 x 32; these are 28 x 28"),
        (lambda: MODELS["vgg16"](CIFAR, 10, hidden=[0]), r"hidden=\[0\]: every layer needs"),
        (lambda: MODELS["second-order-cnn"]((1, 8, 8), 10), "at least 16 x 16"),
        (lambda: MODELS["relu"](MNIST, 10, width=0), "width=0"),
        (lambda: MODELS["relu"](MNIST, 10, depth=0), "depth=0"),
        (lambda: MODELS["resnet20"](MNIST, 10, blocks=0), "blocks=0"),
        (lambda: MODELS["logistic"]((7,), 3), "between two classes, not 3; take softmax"),
        (lambda: MODELS["transformer"](MNIST, 256), r"sequences of shape \(length,\), not samples of shape"),
        (lambda: MODELS["transformer"]((8,), 256, heads=3), "width=128 is not a multiple of heads=3"),
        (lambda: make("transformer")(torch.zeros(1, 6)), "whole numbers of shape .* not torch.float32"),
        (lambda: make("transformer")(torch.zeros(1, 7, dtype=torch.int)), "at most 6"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def config(data, model):
    return Config.model_validate(
        {"workers": 2, "steps": 1, "data": data, "model": model, "optimizer": {"name": "SGD", "lr": 0.1}}
    )


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        ("python-source", "mlp", "mlp does not take samples such as python-source's, torch.uint8 of shape"),
        ("python-source", "resnet20", "resnet20 takes images"),
        ("digits", "transformer", "a transformer takes sequences"),
        ("digits", "cnn7", "at least 24 x 24"),
        ("digits", {"name": "vgg16", "chanels": [[1]]}, "no key 'chanels'; did you mean 'channels'"),
    ],
    ids=str,
)
def test_a_model_that_does_not_suit_the_data(data, model, message):
    settings = config({"name": data, "size": 10_000} if data == "python-source" else data, model)
    with pytest.raises(ConfigError, match=message):
        load_model(settings, load_data(settings))
