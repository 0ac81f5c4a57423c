"""Every synchronous method by the command: under torchrun it trains the same workers as in a simulation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tether
from tether.methods import METHODS

CONFIG = Path(__file__).with_name("every_method.toml")
STEPS = 200

SYNCHRONOUS = [name for name, kind in METHODS.items() if not issubclass(kind, tether.CenterMethod)]
"""The others depend on who comes first."""

SCHEDULED = ["switching", "shrinking", "following"]
"""Methods of the config whose period changes."""

pytestmark = pytest.mark.xdist_group("real")


def compare(methods, out, settings, *launcher):
    """`tether compare` of all methods into a folder."""
    arguments = ["compare", str(CONFIG), "--methods", ",".join(methods), "--out", str(out)]
    for setting in settings:
        arguments += ["--set", setting]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tether", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout.count("consensus") == 1  # one process prints


def result(folder):
    """What a run came to, without what is another number for every run, or rounding."""
    found = json.loads((folder / "result.json").read_text())
    return {key: found[key] for key in found if key not in ("seconds", "consensus")}


def rows(folder):
    """`[m, d]`, the workers at the end, put together from what each process has saved."""
    saved = tether.Checkpoints(folder / "checkpoints").load(tether.Stacked(1), torch.device("cpu"))
    assert saved.step == STEPS
    return torch.cat([part["rows"]["x"] for part in saved.parts])


@pytest.mark.parametrize(
    ("left_out", "settings"),
    [
        ((), ()),
        # A round every step cannot overlap three.
        (("sync",), ("overlap=3", "order=mix-then-step", "optimizer={ name = 'Adam', lr = 0.01 }")),
    ],
    ids=["momentum", "Adam, overlap"],
)
def test_torchrun_trains_what_the_simulator_does(left_out, settings, tmp_path):
    methods = [name for name in SYNCHRONOUS if name not in left_out] + SCHEDULED
    compare(methods, tmp_path / "simulated", settings)
    compare(methods, tmp_path / "real", settings, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    for name in methods:
        real, simulated = tmp_path / "real" / name, tmp_path / "simulated" / name
        assert result(real) == result(simulated), name
        mine, theirs = rows(real), rows(simulated)
        assert mine.shape == (8, 610)
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize(
    "settings",
    [
        ("method=asynchronous-easgd", "period=5", "overlap=2"),
        ("method=leader", "period=10", "trigger=total-steps"),
    ],
    ids=["center", "trigger"],
)
def test_torchrun_trains_workers_at_their_own_speeds(settings, tmp_path):
    """Nobody knows who comes first; but all learn, in two processes of two workers each, and all of them end."""
    arguments = ["train", str(CONFIG), "--out", str(tmp_path / "run"), "--set", "workers=4", "--set", "dtype=float32"]
    for setting in (*settings, "evaluate_every=50"):
        arguments += ["--set", setting]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "tether",
            *arguments,
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert found["center"]["accuracy"] > 0.5
    assert found["bytes"] > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line["step"] for line in lines if line["center"]]
    assert len(evaluated) >= 3
    assert evaluated == sorted(evaluated)
