"""Processes killed at any moment: the others stop and say whom they miss; a new start ends as if nothing had been."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import tether
from crash import PERIOD, TIMEOUT, Run, loads, train_simulated

pytestmark = pytest.mark.xdist_group("real")

STEPS, KILLS = 250, 11


def finished(folder, method, size=3, steps=STEPS):
    folder.mkdir(exist_ok=True)
    run = Run(size, folder, steps, method)
    assert run.wait() == [0] * size
    return run.results()


def assert_same(mine, theirs):
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one["row"], other["row"])
        assert one["loss"] == other["loss"]
        assert (one["count"], one["sent"]) == (other["count"], other["sent"])


@pytest.mark.parametrize("method", [tether.EASGD(PERIOD), tether.DecentralizedSGD(PERIOD, "ring")], ids=repr)
def test_killed_at_random_moments(tmp_path, method):
    expected = finished(tmp_path / "undisturbed", method)
    folder = tmp_path / "killed"
    folder.mkdir()
    chance = random.Random(1)
    kills = {"anywhere": 0, "in a round": 0, "in a checkpoint": 0}
    step = 0
    while sum(kills.values()) < KILLS:
        run = Run(3, folder, STEPS, method, pause=0.01)
        victim, kind = chance.randrange(3), min(kills, key=kills.get)
        step += chance.randrange(3, 20)
        moment = {
            "anywhere": lambda run=run: True,
            "in a round": lambda run=run, victim=victim: run.in_flight[victim],
            "in a checkpoint": lambda run=run, victim=victim: run.writing(victim),
        }[kind]
        assert run.until(lambda run=run, victim=victim, step=step: run.steps[victim] >= step)
        assert run.until(moment)
        run.send(victim)
        codes = run.wait(TIMEOUT + 30)
        assert codes[victim] == -signal.SIGKILL
        assert [code for rank, code in enumerate(codes) if rank != victim] == [3, 3]
        assert run.lost() == {rank: str(victim) for rank in range(3) if rank != victim}
        kills[kind] += bool(moment())  # it has died at that moment, not just after
    assert min(kills.values()) >= KILLS // 3
    assert_same(finished(folder, method), expected)
    assert max(loads(folder)) > step - 20  # it did go on, again and again


@pytest.mark.parametrize(
    "method",
    [tether.LocalSGD(PERIOD), tether.DecentralizedSGD(PERIOD, "ring"), tether.LSGD(PERIOD, pull=0.5)],
    ids=lambda method: type(method).__name__,
)
def test_a_silent_process_is_missed_by_name(method, tmp_path):
    """A machine that has lost its network closes no connection; one that is stopped looks the same to the others."""
    run = Run(3, tmp_path, 10_000, method, pause=0.01)
    assert run.until(lambda: any(run.in_flight))
    run.send(1, signal.SIGSTOP)
    began = time.monotonic()
    try:
        for rank in (0, 2):
            run.processes[rank].join(TIMEOUT + 30)
        assert [run.processes[rank].exitcode for rank in (0, 2)] == [3, 3]
        assert time.monotonic() - began > TIMEOUT / 2  # it might have been slow
        assert run.lost() == {0: "1", 2: "1"}
    finally:
        run.send(1, signal.SIGKILL)
        run.wait()


def test_killed_while_some_have_ended(tmp_path):
    """Processes with 40, 80 and 120 batches: who has ended is still saved, and comes back as such."""
    method, steps = tether.LocalSGD(PERIOD), uneven
    expected = finished(tmp_path / "undisturbed", method, steps=steps)
    folder = tmp_path / "killed"
    folder.mkdir()
    for _ in range(2):
        run = Run(3, folder, steps, method, pause=0.02)
        assert run.until(lambda run=run: run.steps[2] > 85)
        run.send(2)
        assert run.wait(TIMEOUT + 30)[:2] == [3, 3]
    mine = finished(folder, method, steps=steps)
    assert torch.equal(mine[0]["row"], mine[2]["row"])
    assert torch.equal(mine[2]["row"], expected[2]["row"])
    assert mine[2]["loss"] == expected[2]["loss"]


def uneven(rank):
    return 40 * (rank + 1)


def test_going_on_with_another_number_of_processes(tmp_path):
    method = tether.EASGD(PERIOD)
    finished(tmp_path, method, size=3, steps=70)
    finished(tmp_path, method, size=2, steps=140)
    assert "from the mean of 3 workers" in (tmp_path / "log-0.txt").read_text()
    assert sorted(loads(tmp_path)) == [0, 70]


def test_simulation_killed_at_random_moments(tmp_path):
    expected = train_simulated()
    chance = random.Random(2)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("crash.py")), str(tmp_path)], env=os.environ
        )
        while not list(tmp_path.glob("*/*.json")):
            time.sleep(0.01)
            assert process.poll() is None
        time.sleep(chance.uniform(0, 0.5))
        process.kill()
        process.wait()
    result = train_simulated(tmp_path)
    assert torch.equal(result.rows, expected.rows)
    assert result.history[-1].losses.tolist() == expected.history[-1].losses.tolist()
    assert result.bytes == expected.bytes


def test_torchrun_restarts(tmp_path):
    """`torchrun --max-restarts` starts the processes again when one has been killed, on a fresh store."""
    expected = finished(tmp_path / "undisturbed", tether.EASGD(PERIOD), size=2)
    folder = tmp_path / "killed"
    folder.mkdir()
    torchrun = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"),
            *(Path(__file__).with_name("crash.py"), folder, "attached"),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        for attempt in range(2):
            victim = folder / f"pid-{attempt}-{attempt}.txt"
            while not victim.exists() or len(list(folder.glob("checkpoints/*"))) < attempt + 1:
                assert torchrun.poll() is None
                time.sleep(0.01)
            time.sleep(0.3)
            os.kill(int(victim.read_text()), signal.SIGKILL)
        assert torchrun.wait(timeout=120) == 0
    finally:
        torchrun.terminate()  # and with it the processes that it started
        torchrun.wait(timeout=60)
    assert_same([torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)], expected)
