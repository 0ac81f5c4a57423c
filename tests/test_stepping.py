"""Ways of stepping and processes: the same result, whichever; what is chosen and what is refused."""

import copy
import gc
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tether
from problems import Point, Quadratics, quadratic
from tether.gradients import even_block
from tether.layers import product_conv2d, sliced_max_pool2d, written_out

PERIOD, STEPS = 3, 7


def images():
    torch.manual_seed(0)
    samples = tether.data.Dataset((torch.randn(96, 2, 9, 10).double(), torch.randint(0, 3, (96,))))
    # The second pooling leaves part of its input out, and all its windows of a constant image are ties.
    samples.train[0][:8] = 1.0
    return samples


def network():
    """Everything that ways treat differently: convolutions, pooling, BatchNorm's buffers, a tied layer."""
    torch.manual_seed(1)
    tied = nn.Linear(8, 8)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=(1, 2), padding=1, dilation=(1, 2)),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding="same", bias=False),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(4, 8, (2, 1), groups=2),
        nn.Flatten(),
        nn.Linear(8, 8),
        tied,
        nn.Tanh(),
        tied,
        nn.Linear(8, 3),
    ).double()


def train(model=None, data=None, workers=6, **options):
    return tether.simulate(
        model or network(),
        tether.EASGD(PERIOD),
        data or images(),
        workers=workers,
        **{
            "objective": tether.models.cross_entropy,
            "optimizer": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
            "steps": STEPS,
            "batch_size": 4,
            "overlap": 1,
        }
        | options,
    )


def assert_same(result, expected, tolerance=1e-12):
    torch.testing.assert_close(result.rows, expected.rows, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(result.losses, expected.losses, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(result.center().buffers(), expected.center().buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    assert (result.rounds, result.messages, result.bytes) == (expected.rounds, expected.messages, expected.bytes)


@pytest.fixture(scope="module")
def by_rows():
    return train(stepping="rows")


@pytest.mark.parametrize(
    "options", [{"stepping": "stacked"}, {"stepping": "stacked", "block": 4}, {"block": 1}], ids=str
)
def test_the_way_changes_nothing(options, by_rows):
    assert_same(train(**options), by_rows)


@pytest.fixture(scope="module")
def compiled():
    script = Path(__file__).parent / "compiled.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_compiling_changes_nothing(compiled):
    """Blocks of 4 leave one of 2: two sizes, compiled for each."""
    difference, stepping, said = compiled["blocks"]
    assert difference < 1e-12
    assert stepping.startswith("compiled, in blocks of 4, ")
    assert said == []
    difference, stepping = compiled["processes"]
    assert difference < 1e-10
    assert stepping.startswith("compiled, in blocks of 3, ")


def test_what_cannot_be_compiled_is_stacked(compiled):
    difference, (said,) = compiled["impossible"]
    assert difference < 1e-12
    assert "stepping without compiling, which failed" in said


def test_a_compiled_run_is_the_same_to_the_bit(compiled):
    assert compiled["dropout moved"] > 1e-3
    assert compiled["again"]
    assert compiled["resumed"]


def test_a_long_run_is_compiled(compiled):
    assert compiled["long"].startswith("compiled")


@torch.no_grad()
def measured(model):
    return {"norm": float(next(model.parameters()).norm())}


@pytest.mark.parametrize("order", ["step-then-mix", "mix-then-step"])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_change_nothing(processes, order):
    seen, lost = [], []
    alone = train(order=order, evaluate=measured)
    result = train(
        order=order,
        processes=processes,
        evaluate=lambda model: seen.append(model) or measured(model),
        on_record=lost.append,
    )
    assert_same(result, alone, 1e-10)
    assert result.rows.shape[0] == result.workers == 6
    assert result.history[-1].center == pytest.approx(alone.history[-1].center)
    assert result.history[-1].consensus == pytest.approx(alone.history[-1].consensus)
    assert result.best_worker == alone.best_worker
    assert seen  # in this process
    assert lost == result.history
    for worker in range(6):
        for mine, theirs in zip(result.worker(worker).buffers(), alone.worker(worker).buffers(), strict=True):
            torch.testing.assert_close(mine, theirs)
    assert not torch.distributed.is_initialized()


def test_processes_go_on_bit_for_bit(tmp_path):
    whole = train(processes=2)
    train(processes=2, steps=4, checkpoints=tether.Checkpoints(tmp_path))
    assert torch.equal(train(processes=2, checkpoints=tether.Checkpoints(tmp_path)).rows, whole.rows)


def test_processes_leave_threads_and_random_numbers_alone():
    threads, torch_state = torch.get_num_threads(), torch.get_rng_state()
    train(processes=2, steps=2)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_a_worker_that_diverges_in_another_process():
    problem = Quadratics.random(4, 3)
    problem.A[3] *= 1e300

    def run(**options):
        return tether.simulate(
            Point(3),
            tether.LocalSGD(2),
            problem.data,
            workers=4,
            objective=quadratic,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            steps=6,
            batch_size=None,
            start=torch.ones(4, 3, dtype=torch.float64),
            processes=2,
            **options,
        )

    with pytest.raises(tether.NonFiniteLossError, match="worker 3") as caught:
        run()
    assert caught.value.result.rows.shape == (4, 3)
    assert (caught.value.result.rows == 1).all()
    result = run(on_nonfinite="exclude")
    assert list(result.excluded) == [3]
    assert result.center().x.isfinite().all()


def test_an_error_in_every_process_is_the_users_own():
    def objective(model, batch):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train(objective=objective, processes=2)


def test_an_error_in_another_process_alone_has_its_traceback():
    """Only the second process holds workers 3 to 5, and sees their samples."""
    data = images().partitioned(tether.data.partition.Assigned(np.arange(96).reshape(6, 16).tolist()))
    theirs = data.train[0][48:]

    def objective(model, batch):
        if not torch._C._functorch.is_batchedtensor(batch[0]) and (batch[0][0] == theirs).flatten(1).all(1).any():
            raise KeyError("only there")
        return tether.models.cross_entropy(model, batch)

    with pytest.raises(RuntimeError, match=r"(?s)process 1 of the simulation failed: Traceback.*only there"):
        train(data=data, objective=objective, processes=2, stepping="rows")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes": 4}, "processes=4 cannot share 6 workers equally; take one of 1, 2, 3, 6"),
        ({"processes": 0}, "processes=0"),
        ({"processes": 2, "workers": tether.Stacked(6)}, None),
        ({"block": 0}, "block=0"),
    ],
    ids=["processes that do not divide", "no process", "a stack is a number", "no block"],
)
def test_refuses(options, message):
    if message is None:
        assert_same(train(**options), train())
        return
    with pytest.raises(ValueError, match=message):
        train(**options)


class Owned:
    """What only the process that made it may end, such as a process group with its threads."""

    def __init__(self, place):
        self.itself, self.place, self.maker = self, place, os.getpid()

    def __del__(self):
        (self.place / f"ended by {'its maker' if os.getpid() == self.maker else 'a fork'}").touch()


def test_forks_leave_the_garbage_of_the_first_process_alone(tmp_path):
    def objective(model, batch):
        if os.getpid() != maker:
            gc.collect()
        return tether.models.cross_entropy(model, batch)

    maker = os.getpid()
    gc.disable()
    try:
        Owned(tmp_path)
        train(processes=2, objective=objective, stepping="rows")
    finally:
        gc.enable()
    assert [path.name for path in tmp_path.iterdir()] == ["ended by its maker"]


UNGUARDED = """
import torch, tether
scale = 0.5
result = tether.simulate(
    torch.nn.Linear(64, 10), tether.LocalSGD(2), tether.data.digits(), workers=4, steps=4, processes=2,
    objective=lambda model, batch: scale * torch.nn.functional.cross_entropy(model(batch[0].flatten(1)), batch[1]),
    optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
)
print("once", tuple(result.rows.shape))
"""


def test_a_script_needs_no_guard_and_runs_once():
    done = subprocess.run([sys.executable, "-c", UNGUARDED], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "once (4, 650)\n"


@pytest.mark.parametrize(
    ("model", "steps", "way"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(180, 3)), 3, "stacked, in blocks of 6"),
        (nn.Sequential(nn.Flatten(), nn.Linear(180, 40_000), nn.Linear(40_000, 3)), 1, "rows, in blocks of 1"),
        (nn.Sequential(nn.Flatten(), nn.LSTM(180, 3)), 1, "rows, in blocks of 6"),
    ],
    ids=["small", "large", "without a rule"],
)
def test_what_is_chosen(model, steps, way):
    def objective(model, batch):
        outputs = model(batch[0].float())
        return nn.functional.cross_entropy(outputs[0] if isinstance(outputs, tuple) else outputs, batch[1])

    assert train(model, steps=steps, objective=objective).stepping == way


@pytest.mark.parametrize(("rows", "fits", "block"), [(50, 6, 5), (53, 6, 6), (8, 100, 8), (1000, 80, 50), (7, 0, 1)])
def test_blocks_are_equal_where_they_can_be(rows, fits, block):
    assert even_block(rows, fits) == block


@pytest.mark.parametrize("settings", [{}, {"stride": (2, 1), "padding": (1, 2), "dilation": (2, 3)}], ids=str)
def test_a_convolution_is_a_product(settings):
    torch.manual_seed(0)
    images, weight, bias = torch.randn(2, 3, 11, 12), torch.randn(4, 3, 3, 2), torch.randn(4)
    args = [t.double().requires_grad_() for t in (images, weight, bias)]
    mine, theirs = product_conv2d(*args, **settings), nn.functional.conv2d(*args, **settings)
    torch.testing.assert_close(mine, theirs)
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), args) for out in (mine, theirs)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3)], ids=str)
def test_a_linear_layer_with_weights_first(shape, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 4, bias=bias).double(), torch.randn(shape).double()
    mine = written_out(copy.deepcopy(layer))
    torch.testing.assert_close(mine(x), layer(x))
    gradients = (torch.autograd.grad(each(x).square().sum(), list(each.parameters())) for each in (mine, layer))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("kernel", "stride"), [((2, 2), (2, 2)), ((3, 2), (2, 1))])
def test_a_maximum_is_of_slices(kernel, stride):
    """Whole numbers, so that there are ties: the gradient goes to the first."""
    torch.manual_seed(0)
    images = torch.randint(0, 3, (2, 3, 9, 8)).double().requires_grad_()
    mine, theirs = sliced_max_pool2d(images, kernel, stride), nn.functional.max_pool2d(images, kernel, stride)
    assert torch.equal(mine, theirs)
    weights = torch.randn_like(theirs)
    torch.testing.assert_close(*(torch.autograd.grad((out * weights).sum(), images) for out in (mine, theirs)))
    with torch.no_grad():
        images[0, 0, 1, 1] = torch.nan
        assert sliced_max_pool2d(images, kernel, stride)[0, 0, 0, 0].isnan()


def test_logging_is_the_first_processs(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    train(steps=2, checkpoints=tether.Checkpoints(tmp_path))
    train(processes=2, steps=4, checkpoints=tether.Checkpoints(tmp_path))
    assert caplog.text.count("from the mean of the workers") == 1
