"""Processes on the hosts of a `Cluster`, one each, that find one another by torchrun's variables."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster_network import ENDING, INTERFACE, Cluster, undisturbed

TOOLS = {"ip": "iproute2", "tc": "iproute2", "setpriv": "util-linux", "unshare": "util-linux"}
"""Commands that must be there, and the packages that bring them."""

RENDEZVOUS_PORT = 29400
POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0


class HostFailedError(RuntimeError):
    """A host's process ended early, or not at all; says which, and its last words."""


def prepare() -> None:
    """Stop where hosts cannot be made, and say what to do; from now on, whatever asks this process to end raises."""
    packages = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if packages:
        sys.exit(f"some of {', '.join(TOOLS)} are not here: apt-get install {' '.join(packages)}")
    if os.geteuid():
        sys.exit("only root can make network namespaces; run this with sudo")
    for number in ENDING:
        signal.signal(number, _leave)


def environment(cluster: Cluster, host: int) -> dict[str, str]:
    """The variables by which a host's process finds the others."""
    return {
        "MASTER_ADDR": cluster.address(0),
        "MASTER_PORT": str(RENDEZVOUS_PORT),
        "RANK": str(host),
        "WORLD_SIZE": str(len(cluster.hosts)),
        "LOCAL_RANK": "0",
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def processes(
    lines: Mapping[str, Sequence[str]], environments: Mapping[str, Mapping[str, str]], logs: Path
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Run command lines by name, each with a log; what still runs at the end is ended, process by process."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, line in lines.items():
            with log_of(name, logs).open("wb") as log:
                environment = {**os.environ, **environments.get(name, {})}
                running[name] = subprocess.Popen(
                    line, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
                )
        yield running
    finally:
        with undisturbed():
            _stop(list(running.values()))


def wait(running: Mapping[str, subprocess.Popen[bytes]], logs: Path, timeout: float) -> None:
    """Wait until all processes have ended well.

    Raises:
        HostFailedError: if one of them fails, or time is up.
    """
    deadline = time.monotonic() + timeout
    while any(process.poll() is None for process in running.values()):
        if time.monotonic() > deadline:
            raise HostFailedError(f"not done within {timeout:g} seconds")
        if any(process.returncode for process in running.values()):
            break
        time.sleep(POLL_SECONDS)
    for name, process in running.items():
        if process.returncode:
            words = log_of(name, logs).read_text(errors="replace").strip() or "no output"
            raise HostFailedError(f"{name} ended with status {process.returncode}:\n{words[-2000:]}")


def log_of(name: str, logs: Path) -> Path:
    """What a process has printed."""
    return logs / f"{name}.log"


def _stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask processes to end, and end those that do not."""
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _leave(number: int, _: object) -> None:
    """End by an exception, so that everything that was set up is taken down."""
    raise SystemExit(128 + number)
