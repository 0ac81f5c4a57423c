"""A config under torchrun trains the same workers as in a simulation."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.xdist_group("real")


def output(*command):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    arguments = ["train", str(ROOT / "examples" / "digits.toml"), "--set", "steps=60", "--set", "dtype=float64"]
    done = subprocess.run(
        [sys.executable, *command, "-m", "tether", *arguments, "--set", "overlap=3"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [line.split() for line in done.stdout.splitlines() if line.strip() and "seconds" not in line]


def test_torchrun_trains_what_the_simulator_does():
    simulated = output()
    real = output("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    # Rounding may show in the last digit of a consensus distance near zero.
    assert [line for line in real if "distance" not in line] == [line for line in simulated if "distance" not in line]
    assert any("accuracy" in line for line in real)
