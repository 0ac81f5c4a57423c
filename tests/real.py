"""Real processes for tests: a function run by several of them on a Gloo group, each one's tensors brought back."""

import os
import socket
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(scenarios: str, processes: int, timeout: float = 600) -> list[dict]:
    """Run `SCENARIOS` of a module in tests/ in so many processes; by process, what each scenario returned.

    A scenario that raises leaves its error's text, and the processes go on with the next.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(processes),
            "OMP_NUM_THREADS": "1",
        }
        running = [
            subprocess.Popen(
                [sys.executable, str(HERE / "real.py"), scenarios, folder],
                env=environment | {"RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(processes)
        ]
        try:
            outputs = [process.communicate(timeout=timeout)[0] for process in running]
        finally:
            for process in running:
                if process.poll() is None:
                    process.kill()
        failed = [output for process, output in zip(running, outputs, strict=True) if process.returncode]
        assert not failed, "\n\n".join(failed)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(processes)]


def main(scenarios: str, folder: str) -> None:
    sys.path.insert(0, str(HERE))
    # A scenario that fails in one process alone leaves the others waiting: not for long.
    dist.init_process_group("gloo", timeout=timedelta(seconds=180))
    results = {}
    for name, scenario in __import__(scenarios).SCENARIOS.items():
        try:
            results[name] = scenario()
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
        dist.barrier()
    torch.save(results, Path(folder) / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
