"""Run a script on hosts with slow links, as torchrun would on this one: a process a host, its variables set.

    sudo .venv/bin/python benchmarks/cluster_script.py --mbit 100 benchmarks/attach.py round

Prints what the first host printed. Needs what `cluster.py` needs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from cluster_network import Cluster
from cluster_processes import HostFailedError, environment, log_of, prepare, processes, wait


def run_script(cluster: Cluster, script: Path, arguments: Sequence[str], timeout: float) -> str:
    """What the script prints on the first host, once it has ended on all of them.

    Raises:
        HostFailedError: if it fails on one of them, or time is up.
    """
    lines = {f"host{host}": cluster.on(host, sys.executable, script, *arguments) for host in cluster.hosts}
    environments = {f"host{host}": environment(cluster, host) for host in cluster.hosts}
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        with processes(lines, environments, logs) as running:
            wait(running, logs, timeout)
        return log_of("host0", logs).read_text()


def main(
    script: Annotated[Path, typer.Argument(exists=True, dir_okay=False, resolve_path=True)],
    arguments: Annotated[list[str] | None, typer.Argument(help="The script's own.")] = None,
    hosts: Annotated[int, typer.Option(min=2, max=200, help="Number of hosts.")] = 4,
    mbit: Annotated[float, typer.Option(help="Speed of the links in Mbit/s.")] = 100.0,
    timeout: Annotated[float, typer.Option(help="Seconds it may take.")] = 900.0,
) -> None:
    """Run a script on every host of a cluster of namespaces."""
    prepare()
    with Cluster(hosts, mbit) as cluster:
        try:
            print(run_script(cluster, script, arguments or (), timeout), end="")
        except HostFailedError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    app = typer.Typer()
    app.command(context_settings={"allow_interspersed_args": False})(main)
    app()
