"""Scalars for TensorBoard: those of the metrics, whatever has interrupted the run."""

import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tether import cli
from tether.config import Config, ConfigError
from tether.run import run
from tether.run_folder import RunFolder

CONFIG = {
    "workers": 4,
    "steps": 40,
    "period": 5,
    "evaluate_every": 10,
    "checkpoint_every": 10,
    "data": "digits",
    "model": {"name": "mlp", "hidden": [8]},
    "optimizer": {"name": "SGD", "lr": 0.1},
    "method": "leader",
}


def scalars(folder):
    """Steps and values by tag, as TensorBoard reads them."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(folder):
    """The same, from the metrics."""
    history = RunFolder(folder).history
    rounds = [record for record in history if record["best_worker"] is None]
    evaluations = [record for record in history if record["best_worker"] is not None]
    assert len(rounds) == 8
    assert len(evaluations) == 4
    found = {
        "workers/loss": [(each["step"], np.mean(each["losses"])) for each in rounds],
        "workers/drift": [(each["step"], np.median(each["drift"])) for each in rounds],
        "workers/consensus_distance": [(each["step"], each["consensus"]) for each in rounds],
        "workers/leader": [(each["step"], each["leader"]) for each in rounds],
        "sent/rounds": [(each["step"], each["round"]) for each in rounds],
        "sent/MB_a_worker": [(each["step"], each["bytes"] / 4e6) for each in rounds],
        "best/worker": [(each["step"], each["best_worker"]) for each in evaluations],
        "center/consensus_distance": [(each["step"], each["consensus"]) for each in evaluations],
    }
    for of in ("center", "best"):
        for name in ("loss", "accuracy"):
            found[f"{of}/{name}"] = [(each["step"], each[of][name]) for each in evaluations]
    return found


def check(folder):
    found, wanted = scalars(folder), expected(folder)
    assert found.keys() == wanted.keys()
    for tag, points in wanted.items():
        assert np.array(found[tag]) == pytest.approx(np.array(points), rel=1e-6), tag


def stop_at(step):
    """Interrupts a run at a record of this step, as Ctrl-C does."""

    def interrupt(record):
        if record.step == step:
            raise KeyboardInterrupt

    return interrupt


def test_scalars_are_the_metrics(tmp_path):
    run(Config(**CONFIG), folder=RunFolder(tmp_path), tensorboard=True)
    check(tmp_path)


# The round and the evaluation at step 20 come before its checkpoint, 25 after it; at 5 there is none yet.
@pytest.mark.parametrize("step", [5, 10, 20, 25, 40])
def test_a_run_that_goes_on_goes_on_with_them(step, tmp_path):
    config, folder = Config(**CONFIG), RunFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(config, folder=folder, tensorboard=True, on_record=stop_at(step))
    run(config, folder=RunFolder(tmp_path))
    check(tmp_path)


def test_they_can_begin_later(tmp_path):
    config = Config(**CONFIG)
    with pytest.raises(KeyboardInterrupt):
        run(config, folder=RunFolder(tmp_path), on_record=stop_at(25))
    assert not (tmp_path / "tensorboard").exists()
    run(config, folder=RunFolder(tmp_path), tensorboard=True)
    check(tmp_path)


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tether", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def test_the_command(tmp_path, monkeypatch):
    (tmp_path / "run.toml").write_text(
        """
        workers = 2
        steps = 10
        data = "digits"
        model = "mlp"
        optimizer = { name = "SGD", lr = 0.1 }
        """
    )
    train = ("train", tmp_path / "run.toml", "--tensorboard")
    assert command(monkeypatch, *train, "--out", tmp_path / "run") == 0
    assert [step for step, _ in scalars(tmp_path / "run")["workers/loss"]] == [10]
    assert "give one by --out FOLDER" in command(monkeypatch, *train)
    compare = ("compare", tmp_path / "run.toml", "--methods", "local,sync", "--tensorboard")
    assert "give one by --out FOLDER" in command(monkeypatch, *compare)
    assert command(monkeypatch, *compare, "--out", tmp_path / "both") == 0
    assert len(scalars(tmp_path / "both" / "sync")["workers/loss"]) == 10


def test_without_the_package(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"--tensorboard needs tensorboard.*pip install 'tether\[tensorboard\]'"):
        run(Config(**CONFIG), folder=RunFolder(tmp_path / "run"), tensorboard=True)
    assert not (tmp_path / "run").exists()
