"""A center outlives its workers, and workers do not outlive their center; both go on from checkpoints."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import replay
from crash import Run
from crash_center import METHOD, TIMEOUT, D, local_step, train

pytestmark = pytest.mark.xdist_group("real")

SIZE = 4


def check_log(run):
    """The survivors have the same center, which the log gives to the bit."""
    survivors = [rank for rank, process in enumerate(run.processes) if process.exitcode == 0]
    rows = [torch.load(run.folder / f"{rank}.pt", weights_only=True)["row"] for rank in survivors]
    _, events = replay.read((run.folder / "arrivals.jsonl").read_text())
    start = torch.zeros(1, D, dtype=torch.float64)
    workers = [replay.Worker(start.clone(), local_step(rank)) for rank in range(SIZE)]
    z = replay.center(replay.Downpour(start, 0), workers, events)
    assert all(torch.equal(row, z[0]) for row in rows)
    for rank, taken in enumerate(run.steps):
        served = [event["step"] for event in events if event["worker"] == rank]
        assert served == list(range(METHOD.period, METHOD.period * (len(served) + 1), METHOD.period))
        assert len(served) - taken // METHOD.period in (0, 1)  # killed before it could count the step


@pytest.mark.parametrize("seed", range(3))
def test_workers_killed_at_random_moments(tmp_path, seed):
    """Two of four, one of them while it exchanges."""
    chance = random.Random(seed)
    run = Run(SIZE, tmp_path, 60, METHOD, pause=0.004, train=train)
    victims = chance.sample(range(1, SIZE), 2)
    for number, victim in enumerate(victims):
        at = chance.randrange(3, 18) + 18 * number
        end = time.monotonic() + 60
        while run.steps[victim] < at or (number == 0 and not run.in_flight[victim]):
            assert time.monotonic() < end
        time.sleep(chance.uniform(0, 0.004))
        run.send(victim)
    codes = run.wait(60)
    assert codes == [-signal.SIGKILL if rank in victims else 0 for rank in range(SIZE)]
    check_log(run)
    said = (tmp_path / "log-0.txt").read_text()
    for rank in range(1, SIZE):
        assert (f"process {rank} has given no sign of life" in said) == (rank in victims)


def test_a_worker_that_was_away(tmp_path):
    """It is taken for lost, comes back while others train, and takes part again."""
    run = Run(SIZE, tmp_path, 350, METHOD, pause=0.004, train=train)
    assert run.until(lambda: run.steps[2] > 5)
    run.send(2, signal.SIGSTOP)
    log = tmp_path / "log-0.txt"
    assert run.until(lambda: "process 2 has given no sign of life" in log.read_text(), timeout=4 * TIMEOUT + 20)
    assert run.steps[0] > run.steps[2] + METHOD.period  # nobody waited for it
    run.send(2, signal.SIGCONT)
    assert run.wait(60) == [0] * SIZE
    assert "worker 2, which was taken for lost, is back" in log.read_text()
    check_log(run)


def test_a_lost_center_is_missed_by_name(tmp_path):
    run = Run(SIZE, tmp_path, 10_000, METHOD, pause=0.004, train=train)
    assert run.until(lambda: min(run.steps) > 5)
    run.send(0)
    assert run.wait(60) == [-signal.SIGKILL, 3, 3, 3]
    assert run.lost() == {1: "0", 2: "0", 3: "0"}


def test_torchrun_restarts_the_center(tmp_path):
    """The process that has the center is killed; started again, it goes on, and so do the others."""
    torchrun = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"),
            *(Path(__file__).with_name("crash_center.py"), tmp_path),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 60
        while len({file.parts[-3] for file in tmp_path.glob("checkpoints/*/*/*.json")}) < 2:
            assert torchrun.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        os.kill(int((tmp_path / "pid-0-0.txt").read_text()), signal.SIGKILL)
        assert torchrun.wait(timeout=60) == 0
    finally:
        torchrun.terminate()  # and with it the processes that it started
        torchrun.wait(timeout=60)
    rows = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(torch.equal(row["row"], rows[0]["row"]) for row in rows)
    assert [row["count"] for row in rows] == [120] * 2
    for rank in range(2):
        assert max(int(file.name.split("-")[-1]) for file in tmp_path.glob(f"loaded-{rank}-*")) >= 8
    _, events = replay.read((tmp_path / "arrivals.jsonl").read_text())
    (resumed,) = [number for number, event in enumerate(events) if "resumed" in event]
    assert events[resumed]["resumed"] == resumed >= 8 // METHOD.period
    for rank in range(2):
        assert [event["step"] for event in events if event.get("worker") == rank][-1] == 120
