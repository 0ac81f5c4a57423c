"""Checkpoints on disk: whole or refused by name, and a resumed run that is bit for bit the one not interrupted."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tether
from methods_table import CASES, M
from problems import Point, Quadratics, quadratic
from tether.trees import mean_of, put_together, take_apart

D = 4
CPU = torch.device("cpu")


def train(method, steps, folder=None, workers=M, every=None, keep=2, order="step-then-mix", overlap=2, **options):
    problem = Quadratics.random(workers, D)
    return tether.simulate(
        Point(D),
        method,
        problem.data,
        workers=workers,
        objective=quadratic,
        start=torch.tensor(np.random.default_rng(1).normal(size=(workers, D))),
        steps=steps,
        batch_size=None,
        order=order,
        overlap=overlap,
        checkpoints=tether.Checkpoints(folder, keep=keep) if folder else None,
        checkpoint_every=every,
        **({"optimizer": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)} | options),
    )


@pytest.mark.parametrize("order", ["step-then-mix", "mix-then-step"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_method_goes_on_bit_for_bit(case, order, tmp_path):
    method = case.make(3)
    options = {"order": order, "overlap": min(2, method.period)}
    whole = train(method, 20, **options)
    for step in (1, 4, 5, 11):  # before a round, in the middle of one, after its landing
        folder = tmp_path / str(step)
        train(method, step, folder, **options)
        resumed = train(method, 20, folder, block=3, **options)
        assert torch.equal(resumed.rows, whole.rows)
        assert resumed.losses.tolist() == whole.losses.tolist()
        assert (resumed.bytes, resumed.messages, resumed.rounds) == (whole.bytes, whole.messages, whole.rounds)


@pytest.mark.parametrize("state", ["local", "average", "reset"])
def test_moments_on_their_way_go_on_bit_for_bit(state, tmp_path):
    options = {"optimizer": lambda p: torch.optim.Adam(p, lr=0.01), "optimizer_state": state}
    whole = train(tether.EASGD(3), 20, **options)
    train(tether.EASGD(3), 4, tmp_path, **options)
    assert torch.equal(train(tether.EASGD(3), 20, tmp_path, **options).rows, whole.rows)


def test_everything_of_a_run_is_saved(tmp_path):
    """BatchNorm's statistics, dropout, moments, schedule, batches, excluded workers, distances since the last round."""
    data = tether.data.digits()

    def run(steps, folder=None):
        torch.manual_seed(0)
        return tether.simulate(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 10)),
            tether.EASGD(5),
            data,
            workers=6,
            objective=tether.models.cross_entropy,
            optimizer=lambda p: torch.optim.AdamW(p, lr=0.01),
            scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=60),
            steps=steps,
            batch_size=8,
            overlap=3,
            evaluate=tether.data.classification(data.test),
            evaluate_every=15,
            checkpoints=tether.Checkpoints(folder) if folder else None,
            checkpoint_every=4 if folder else None,
        )

    whole = run(40)
    run(22, tmp_path)
    resumed = run(40, tmp_path)
    assert torch.equal(resumed.rows, whole.rows)
    assert resumed.history[-1].center == whole.history[-1].center
    since = [record for record in whole.history if record.step > 22]
    assert [record.drift.tolist() for record in resumed.history] == [record.drift.tolist() for record in since]
    assert [record.losses.tolist() for record in resumed.history] == [record.losses.tolist() for record in since]


def test_excluded_workers_stay_excluded(tmp_path):
    def run(steps, folder=None):
        problem = Quadratics.random(M, D)
        problem.A[2] *= 1e300  # worker 2 diverges at once
        return tether.simulate(
            Point(D),
            tether.LocalSGD(3),
            problem.data,
            workers=M,
            objective=quadratic,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            steps=steps,
            batch_size=None,
            start=torch.ones(M, D, dtype=torch.float64),
            on_nonfinite="exclude",
            checkpoints=tether.Checkpoints(folder) if folder else None,
        )

    whole = run(20)
    assert list(whole.excluded) == [2]
    run(10, tmp_path)
    resumed = run(20, tmp_path)
    assert resumed.excluded == whole.excluded
    others = [worker for worker in range(M) if worker != 2]
    assert torch.equal(resumed.rows[others], whole.rows[others])


def test_another_number_of_workers_goes_on_from_the_mean(tmp_path, caplog):
    before = train(tether.EASGD(3), 12, tmp_path)
    after = train(tether.EASGD(3), 12, tmp_path, workers=3)
    assert after.rows.numpy() == pytest.approx(before.rows.mean(0).expand(3, D).numpy(), abs=1e-15)
    assert "from the mean of the workers" in caplog.text
    assert after.rounds == before.rounds
    # Every worker's momentum is the mean of those of then, so equal workers with equal data stay equal.
    further = train(tether.EASGD(3), 15, tmp_path, workers=3)
    assert further.rows.isfinite().all()


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "is damaged": lambda folder: damage(next(folder.glob("rows-*.safetensors"))),
    "cannot be read: No such file": lambda folder: next(folder.glob("rows-*.safetensors")).unlink(),
    "cannot be read: JSONDecodeError": lambda folder: next(folder.glob("*.json")).write_text("{"),
    "cannot be read: KeyError": lambda folder: next(folder.glob("*.json")).write_text("{}"),
    "of another format": lambda folder: edit(next(folder.glob("*.json")), format=99),
    "of something else": lambda folder: edit(next(folder.glob("*.json")), step=3),
    "is not there": lambda folder: next(folder.glob("*.json")).unlink(),
}


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_bad_checkpoint_is_named_and_the_one_before_used(reason, tmp_path, caplog):
    whole = train(tether.EASGD(3), 20)
    train(tether.EASGD(3), 12, tmp_path, every=5)
    assert {folder.name for folder in tmp_path.iterdir()} == {"step-10", "step-12"}
    DAMAGES[reason](tmp_path / "step-12")
    resumed = train(tether.EASGD(3), 20, tmp_path)
    assert torch.equal(resumed.rows, whole.rows)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "step-12 is not used" in line
    assert reason in line


def test_nothing_usable_is_an_error_but_not_an_unfinished_first_save(tmp_path):
    train(tether.EASGD(3), 12, tmp_path, every=5)
    for folder in tmp_path.iterdir():
        damage(next(folder.glob("rows-*.safetensors")))
    with pytest.raises(tether.CheckpointError, match=r"none that all 8 workers can go on from"):
        train(tether.EASGD(3), 20, tmp_path)

    unfinished = tmp_path / "unfinished"
    train(tether.EASGD(3), 5, unfinished)
    next(unfinished.glob("*/*.json")).unlink()
    assert torch.equal(train(tether.EASGD(3), 20, unfinished).rows, train(tether.EASGD(3), 20).rows)


@pytest.mark.parametrize("keep", [1, 3])
def test_old_ones_go(keep, tmp_path):
    train(tether.EASGD(3), 30, tmp_path, every=5, keep=keep)
    assert {folder.name for folder in tmp_path.iterdir()} == {f"step-{step}" for step in (20, 25, 30)[-keep:]}


def test_what_does_not_fit_is_refused(tmp_path):
    train(tether.EASGD(3), 12, tmp_path)
    with pytest.raises(
        ValueError, match=r"of another run \(simulate, EASGD, 4\) than this one \(simulate, LocalSGD, 4\)"
    ):
        train(tether.LocalSGD(3), 20, tmp_path)
    with pytest.raises(ValueError, match="steps=10: the run that was saved has taken 12 already"):
        train(tether.EASGD(3), 10, tmp_path)
    with pytest.raises(ValueError, match="checkpoint_every=5: say where"):
        train(tether.EASGD(3), 10, every=5)
    with pytest.raises(ValueError, match="keep=0"):
        tether.Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match=r"state\.values\.loader is a generator"):
        tether.Checkpoints(tmp_path).save(1, {"values": {"loader": (i for i in ())}}, tether.Stacked(1), CPU)


FULL_DISK = """
import resource, signal, sys, torch, tether
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints, workers, device = tether.Checkpoints(sys.argv[1]), tether.Stacked(1), torch.device("cpu")
checkpoints.save(1, {"x": torch.ones(1000)}, workers, device)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    checkpoints.save(2, {"x": torch.ones(100_000)}, workers, device)
except tether.CheckpointError as error:
    print(error)
print(checkpoints.load(workers, device).step)
"""


def test_a_full_disk_is_named_and_loses_nothing(tmp_path):
    """A limit on the size of files stands in for the disk: the kernel refuses the write in the same place."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    error, step = done.stdout.splitlines()
    assert "step-2/rows-0-1-of-1 could not be written" in error
    assert "too large" in error
    assert step == "1"
    assert not list(tmp_path.glob("*/*.unfinished"))


def test_parts_of_different_saves_are_not_mixed(tmp_path, caplog):
    """A crash may leave one process's part of a save beside another's of an earlier save of the same step."""

    class Half(tether.Stacked):
        """One of two workers, who saves alone."""

        def __init__(self, row):
            super().__init__(2)
            self.rows = slice(row, row + 1)

    for row in (0, 1):
        tether.Checkpoints(tmp_path).save(7, {"row": row}, Half(row), CPU)
    saves = [json.loads(path.read_text())["save"] for path in tmp_path.glob("*/*.json")]
    assert len(set(saves)) == 2
    # Another division of workers reads all parts itself, and sees that they are not of one save.
    assert tether.Checkpoints(tmp_path).load(tether.Stacked(3), CPU) is None
    assert "step-7 is not used: its parts are of different saves" in caplog.text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
)


@given(values)
def test_trees_come_back_as_they_were(tree):
    structure, tensors = take_apart({"a": tree, "b": [torch.arange(3), tree]})
    back = put_together(json.loads(json.dumps(structure)), tensors.__getitem__)
    assert back["a"] == tree
    assert back["b"][1] == tree
    assert torch.equal(back["b"][0], torch.arange(3))


def test_tensors_of_all_kinds_come_back(tmp_path):
    tree = {
        0: torch.ones(2, dtype=torch.bfloat16),
        "0": torch.tensor(7),
        "empty": torch.zeros(3, 0),
        "bool": torch.tensor([True, False]),
        "view": torch.arange(12).view(3, 4)[:, ::2],
        "nan": float("nan"),
    }
    checkpoints = tether.Checkpoints(tmp_path)
    checkpoints.save(1, tree, tether.Stacked(1), CPU)
    (back,) = checkpoints.load(tether.Stacked(1), CPU).parts
    assert list(back) == list(tree)
    for key, value in tree.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(back[key], value)
            assert back[key].dtype == value.dtype
    assert np.isnan(back["nan"])


def test_mean_of_trees():
    trees = [{"x": torch.tensor([1.0]), "n": torch.tensor(3), "s": ("a", torch.tensor(v))} for v in (2.0, 8.0)]
    trees[1]["x"] = torch.tensor([float("nan")])
    assert mean_of(trees, [1.0, 0.0])["x"] == 1  # who does not count may hold anything
    assert mean_of(trees, [1.0, 2.0])["s"] == ("a", torch.tensor(6.0))
    assert mean_of(trees, [1.0, 1.0])["n"] == 3


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    train(tether.EASGD(3), 6, tmp_path)
    for path in Path(tmp_path).rglob("*"):
        if path.is_file():
            assert path.suffix in (".json", ".safetensors")
            assert not path.read_bytes().startswith((b"\x80", b"PK"))
