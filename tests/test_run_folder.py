"""The folder of a run: stopped anywhere and gone on with, it ends as if it had never been stopped."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
from safetensors.torch import load_file

from tether import cli

ROOT = Path(__file__).parent.parent
CONFIG = str(ROOT / "examples" / "digits.toml")
SHORT = ["--set", "steps=60", "--set", "checkpoint_every=7", "--set", "evaluate_every=20", "--set", "overlap=3"]


def tether(*arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tether", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return lines


def assert_same(folder, other):
    assert metrics(folder) == metrics(other)
    mine, theirs = (load_file(each / "center.safetensors") for each in (folder, other))
    assert all((mine[name] == theirs[name]).all() for name in theirs)
    mine, theirs = (json.loads((each / "result.json").read_text()) | {"seconds": 0} for each in (folder, other))
    assert mine == theirs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert not tether("train", CONFIG, "--method", "easgd", *SHORT, "--out", folder, monkeypatch=monkeypatch)
    return folder


def test_what_is_in_it(undisturbed):
    names = {path.name for path in undisturbed.iterdir()}
    assert names == {
        *("config.json", "about.json", "metrics.jsonl", "holdings.json"),
        *("checkpoints", "center.safetensors", "result.json"),
    }
    config = json.loads((undisturbed / "config.json").read_text())
    assert (config["method"], config["steps"], config["order"]) == ("easgd", 60, "step-then-mix")
    about = json.loads((undisturbed / "about.json").read_text())
    assert {"tether", "torch", "python"} <= about["versions"].keys()
    table = pandas.read_json(undisturbed / "metrics.jsonl", lines=True)
    assert table.step.tolist() == [10, 20, 20, 30, 40, 40, 50, 60, 60]
    assert table.index.tolist() == table["index"].tolist()
    assert np.isfinite(np.stack(table.losses)).all()
    assert table.center.iloc[-1]["accuracy"] > 0.6
    held = json.loads((undisturbed / "holdings.json").read_text())
    assert np.sum(held["counts"]) == 1437
    assert len(held["counts"]) == config["workers"]
    result = json.loads((undisturbed / "result.json").read_text())
    assert result["center"] == pytest.approx(table.center.iloc[-1])
    assert result["bytes"] == table.bytes.iloc[-1]


def test_going_on_with_more_steps(tmp_path, undisturbed, monkeypatch):
    folder = tmp_path / "run"
    assert not tether(
        "train", CONFIG, "--method", "easgd", *SHORT, "--set", "steps=33", "--out", folder, monkeypatch=monkeypatch
    )
    assert len(metrics(folder)) == 5
    assert not tether("train", "--resume", folder, "--set", "steps=60", monkeypatch=monkeypatch)
    assert_same(folder, undisturbed)


@pytest.mark.xdist_group("real")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill"])
def test_stopped_at_any_moment(number, tmp_path, undisturbed, monkeypatch):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "tether", "train", CONFIG, "--method", "easgd", *SHORT, "--out", str(folder)]
    interrupted = 0
    for steps in (8, 22):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while not any((folder / "checkpoints").glob(f"step-{steps // 7 * 7}/*.json")):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(number)
        output = process.communicate(timeout=60)[0]
        if process.returncode == 0:  # a fast machine was done before the signal came
            continue
        interrupted += 1
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert f"tether train --resume {folder}" in " ".join(output.split())
    assert interrupted
    (folder / "metrics.jsonl").open("a").write('{"index": 99, "st')  # as a kill in the middle of a line leaves it
    assert not tether("train", "--resume", folder, monkeypatch=monkeypatch)
    assert_same(folder, undisturbed)


@pytest.mark.parametrize(
    ("limit", "every", "file"),
    [(100, 7, "config.json"), (2_000, 60, "metrics.jsonl"), (150_000, 7, "checkpoints/step-7/rows-0-8-of-8")],
)
def test_a_full_disk_is_named_and_loses_nothing(limit, every, file, tmp_path, undisturbed, monkeypatch):
    """A limit on the size of files stands in for the disk: the kernel refuses the write in the same place."""
    folder = tmp_path / "run"
    arguments = ["train", CONFIG, "--method", "easgd", *SHORT, "--set", f"checkpoint_every={every}", "--out", folder]
    with monkeypatch.context() as full:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            said = tether(*arguments, monkeypatch=full)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert " ".join(said.split()).startswith(f"tether: {folder / file} could not be written: ")
    assert "too large" in said
    if file == "metrics.jsonl":
        whole = (undisturbed / file).read_text().splitlines()
        assert len((folder / file).read_text().splitlines()) < len(whole)
    assert not list(folder.rglob("*.unfinished"))
    assert not tether(*arguments, monkeypatch=monkeypatch)
    assert_same(folder, undisturbed)


@pytest.mark.xdist_group("real")
def test_torchrun_writes_the_same_and_restarts(tmp_path, undisturbed):
    """Two processes of four workers each, one of them killed: torchrun starts both again, and they end the same."""
    folder = tmp_path / "run"
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2", "-m", "tether"]
    arguments = ["train", CONFIG, "--method", "easgd", *SHORT, "--out", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", *command, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while not list(folder.glob("checkpoints/step-14/*.json")):
            assert process.poll() is None
            time.sleep(0.001)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        output = process.communicate(timeout=200)[0]
    finally:
        process.terminate()  # and with it the processes that it started
        process.wait(timeout=60)
    assert process.returncode == 0, output[-3000:]
    assert "going on after" in output
    mine, theirs = metrics(folder), metrics(undisturbed)
    assert [record["step"] for record in mine] == [record["step"] for record in theirs]
    for one, other in zip(mine, theirs, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-4)
        assert one["bytes"] == other["bytes"]
    assert not json.loads((folder / "result.json").read_text())["excluded"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "train what? Give a CONFIG, or --resume FOLDER"),
        (["train", CONFIG, "--out", "{run}", "--set", "period=7"], "holds a run with period = "),
        (
            ["train", CONFIG, "--method", "easgd", *SHORT, "--out", "{run}", "--set", "period=7"],
            "period = 10, this one",
        ),
        (["train", "--resume", "{run}", "--set", "period=7"], "--set period: a run goes on as it was; only"),
        (["train", "--resume", "{run}", "--set", "steps=many"], "steps = 'many'"),
        (["train", "--resume", "{run}", "--set", "steps=3"], "steps=3: the run that was saved has taken 60 already"),
        (["train", "--resume", "{run}", "--method", "local"], "give neither"),
        (["train", "--resume", "nowhere"], "nowhere is not a run's folder: config.json: No such file"),
        (["train", CONFIG, "--out", "{here}"], "is not empty and is not a run's folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[-2:]),
)
def test_mistakes(arguments, message, undisturbed, monkeypatch):
    places = {"run": undisturbed, "here": ROOT / "docs"}
    words = [word.format(**places) for word in arguments or ["train"]]
    assert message in " ".join(tether(*words, monkeypatch=monkeypatch).split())
