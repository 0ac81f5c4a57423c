"""The examples as a user starts them, and what frameworks train beside loops by hand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
END = r"process (\d) of 2: (\d+ local steps, \d+ rounds), parameters (\w{12})"

pytestmark = pytest.mark.xdist_group("commands")


def torchrun(script, *arguments):
    """What two processes print that torchrun starts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def accuracy(output):
    return float(re.findall(r"center's accuracy ([\d.]+)%", output)[-1])


def check_ends(output, taken):
    ends = re.findall(END, output)
    assert sorted(rank for rank, *_ in ends) == ["0", "1"]
    assert {counts for _, counts, _ in ends} == {taken}
    assert len({parameters for *_, parameters in ends}) == 1


def test_plain_goes_on_from_a_checkpoint(tmp_path):
    once = torchrun("examples/plain.py", "--epochs", 6)
    check_ends(once, "132 local steps, 6 rounds")
    assert accuracy(once) > 85
    torchrun("examples/plain.py", "--epochs", 6, "--checkpoints", tmp_path / "all")
    alone = subprocess.run([sys.executable, "examples/plain.py", "--epochs", "1"], cwd=ROOT, capture_output=True)
    assert alone.returncode == 0
    again = torchrun("examples/plain.py", "--epochs", 6, "--checkpoints", tmp_path / "all")
    assert "epoch" not in again  # all of them are done
    assert re.findall(END, again)[0][2] == re.findall(END, once)[0][2]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(precision):
    pytest.importorskip("accelerate")
    output = torchrun("examples/with_accelerate.py", "--epochs", 6, "--accumulate", 2, "--precision", precision)
    check_ends(output, "138 local steps, 13 rounds")
    assert "a Sequential" in output
    assert accuracy(output) > 85


def test_lightning():
    pytest.importorskip("lightning")
    output = torchrun("examples/with_lightning.py", "--epochs", 6, "--overlap", 3)
    check_ends(output, "138 local steps, 13 rounds")
    assert accuracy(output) > 85


def test_lightning_trains_what_a_loop_does(tmp_path):
    pytest.importorskip("lightning")
    output = torchrun("tests/lightning_fits.py", tmp_path)
    assert output.count("6 fits agree") == 2
    assert "rounds are of one optimizer, and configure_optimizers gives 2" in output
