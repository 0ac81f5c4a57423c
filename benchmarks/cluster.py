"""Training over slow links, measured: hosts with real, shaped networks on this one machine.

    sudo .venv/bin/python benchmarks/cluster.py --mbit 25,100,1000

Each host is a Linux network namespace (`cluster_network.py`) with one process in it (`cluster_worker.py`) training by
one strategy (`cluster_strategies.py`). Traffic is what the hosts' interfaces have counted. Whatever happens, the
namespaces are taken down at the end; what a killed benchmark has left behind, `--clean` removes.

Needs root, and `ip`, `tc`, `setpriv` and `unshare` (Debian: iproute2, util-linux).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from cluster_network import ENDING, INTERFACE, Cluster, clean, undisturbed
from cluster_strategies import STRATEGIES, Settings, Task
from cluster_worker import Report
from rich import box
from rich.console import Console
from rich.table import Table

TOOLS = {"ip": "iproute2", "tc": "iproute2", "setpriv": "util-linux", "unshare": "util-linux"}
"""Commands that must be there, and the packages that bring them."""

RENDEZVOUS_PORT, LIGHTHOUSE_PORT = 29400, 29510
Data = Literal["fashion_mnist", "digits"]
POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0


class StrategyFailedError(RuntimeError):
    """A host's process ended early, or not at all; says which, and its last words."""


def leave(number: int, _: object) -> None:
    """End by an exception, so that everything that was set up is taken down."""
    raise SystemExit(128 + number)


@contextmanager
def processes(lines: dict[str, list[str]], environments: dict[str, dict[str, str]], logs: Path) -> Iterator[Any]:
    """Run command lines by name, each with a log; what still runs at the end is ended, process by process."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, line in lines.items():
            with (logs / f"{name}.log").open("wb") as log:
                environment = os.environ | environments.get(name, {})
                running[name] = subprocess.Popen(
                    line, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
                )
        yield running
    finally:
        with undisturbed():
            stop(list(running.values()))


def stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask processes to end, and end those that do not."""
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_hosts(cluster: Cluster, tasks: Sequence[Task], timeout: float) -> list[Report]:
    """One process a host, from start to end.

    Raises:
        StrategyFailedError: if one of them fails, or time is up.
    """
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        reports = [logs / f"{task.host}.json" for task in tasks]
        worker = Path(__file__).with_name("cluster_worker.py")
        lines, environments = {}, {}
        for task, report in zip(tasks, reports, strict=True):
            words = (sys.executable, worker, task.to_json(), report)
            lines[f"host{task.host}"] = cluster.on(task.host, *words)
            environments[f"host{task.host}"] = environment(cluster, task)
        if STRATEGIES[tasks[0].strategy].lighthouse:
            bind = f"{cluster.address(0)}:{LIGHTHOUSE_PORT}"
            lighthouse = Path(sysconfig.get_path("scripts"), "torchft_lighthouse")
            lines["lighthouse"] = cluster.on(0, lighthouse, "--bind", bind, "--min_replicas", len(tasks))
        with processes(lines, environments, logs) as running:
            running.pop("lighthouse", None)
            wait(running, logs, timeout)
        return [Report(**json.loads(report.read_text())) for report in reports]


def environment(cluster: Cluster, task: Task) -> dict[str, str]:
    """The variables by which the processes of a run find one another."""
    return {
        "MASTER_ADDR": cluster.address(0),
        "MASTER_PORT": str(RENDEZVOUS_PORT),
        "RANK": str(task.host),
        "WORLD_SIZE": str(task.settings.hosts),
        "LOCAL_RANK": "0",
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "OMP_NUM_THREADS": "1",
        "TORCHFT_LIGHTHOUSE": f"http://{cluster.address(0)}:{LIGHTHOUSE_PORT}",
    }


def wait(running: dict[str, subprocess.Popen[bytes]], logs: Path, timeout: float) -> None:
    """Wait until all processes have ended well."""
    deadline = time.monotonic() + timeout
    while any(process.poll() is None for process in running.values()):
        if time.monotonic() > deadline:
            raise StrategyFailedError(f"not done within {timeout:g} seconds")
        if any(process.returncode for process in running.values()):
            break
        time.sleep(POLL_SECONDS)
    for name, process in running.items():
        if process.returncode:
            words = (logs / f"{name}.log").read_text(errors="replace").strip() or "no output"
            raise StrategyFailedError(f"{name} ended with status {process.returncode}:\n{words[-2000:]}")


@dataclass(frozen=True)
class Goal:
    """The training loss to reach: the mean over hosts and so many last steps.

    Attributes:
        loss: the loss.
        window: over how many steps it is averaged.
    """

    loss: float
    window: int


@dataclass(frozen=True)
class Measurement:
    """What a strategy took on links of one speed. Bytes and seconds waited are means over hosts.

    Attributes:
        mbit: what a link carries, in Mbit/s.
        parameters: d.
        seconds: wall clock for all steps, and until what was sent by then had arrived.
        seconds_to_loss: until the goal was reached; None if it never was.
        waited: seconds in communication.
        sent: bytes that left an interface.
        payload: the same without headers.
        formula: bytes that a host should send.
        loss: the averaged training loss at the end.
    """

    strategy: str
    mbit: float
    parameters: int
    seconds: float
    seconds_to_loss: float | None
    waited: float
    sent: float
    payload: float
    formula: float
    loss: float


def measurement(strategy: str, mbit: float, settings: Settings, goal: Goal, reports: Sequence[Report]) -> Measurement:
    """Put together what the hosts have seen."""
    start = min(report.start for report in reports)
    ends = [max(moments) - start for moments in zip(*(report.ends for report in reports), strict=True)]
    losses = [statistics.mean(losses) for losses in zip(*(report.losses for report in reports), strict=True)]
    averaged = [statistics.mean(losses[i : i + goal.window]) for i in range(len(losses) - goal.window + 1)]
    moments = zip(averaged, ends[goal.window - 1 :], strict=True)
    parameters = reports[0].parameters
    return Measurement(
        strategy=strategy,
        mbit=mbit,
        parameters=parameters,
        seconds=max(report.finish for report in reports) - start,
        seconds_to_loss=next((end for loss, end in moments if loss <= goal.loss), None),
        waited=statistics.mean(report.waited for report in reports),
        sent=statistics.mean(report.sent for report in reports),
        payload=statistics.mean(report.payload for report in reports),
        formula=STRATEGIES[strategy].bytes_sent(settings.hosts, parameters, settings.steps, settings.period),
        loss=averaged[-1],
    )


def measure(cluster: Cluster, strategy: str, settings: Settings, goal: Goal) -> Measurement:
    """Train by one strategy."""
    tasks = [Task(strategy, host, cluster.address(host), settings) for host in cluster.hosts]
    return measurement(strategy, cluster.mbit, settings, goal, run_hosts(cluster, tasks, settings.timeout))


def table(measurements: Sequence[Measurement], settings: Settings, goal: Goal) -> Table:
    """What was measured on links of one speed."""
    first = measurements[0]
    title = (
        f"{settings.hosts} hosts at {first.mbit:g} Mbit/s: {settings.data}, d = {first.parameters:,}, batch "
        f"{settings.batch}, {settings.steps} local steps, period {settings.period}, overlap {settings.overlap}"
    )
    shown = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    shown.add_column("\n\nstrategy", no_wrap=True)
    for heading in (
        "\n\nseconds",
        f"seconds\nto loss\n{goal.loss:g}",
        "\nseconds\nwaited",
        "\nMB sent\na host",
        "without\nheaders",
        "\nMB by\nformula",
        "ratio of\nthese two",
        "\nlast\nloss",
    ):
        shown.add_column(heading, justify="right", no_wrap=True)
    for one in measurements:
        shown.add_row(
            one.strategy,
            f"{one.seconds:.2f}",
            "never" if one.seconds_to_loss is None else f"{one.seconds_to_loss:.2f}",
            f"{one.waited:.2f}",
            f"{one.sent / 1e6:.2f}",
            f"{one.payload / 1e6:.2f}",
            f"{one.formula / 1e6:.2f}",
            f"{one.payload / one.formula:.3f}",
            f"{one.loss:.3f}",
        )
    return shown


def numbers(text: str, kind: type[int] | type[float]) -> list[Any]:
    """Numbers above 0 with commas between them."""
    try:
        found = [kind(word) for word in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 25,100") from None
    if min(found) <= 0:
        raise typer.BadParameter(f"{min(found)} is not above 0")
    return found


def chosen(text: str, console: Console) -> list[str]:
    """The strategies with these names that can run here; says which cannot."""
    names = text.split(",")
    for name in names:
        if name not in STRATEGIES:
            raise typer.BadParameter(f"there is no strategy {name!r}; there are {', '.join(STRATEGIES)}")
    missing = {name: [p for p in STRATEGIES[name].packages if not installed(p)] for name in names}
    for name, packages in missing.items():
        if packages:
            console.print(f"{name} is left out, for want of {', '.join(packages)}")
    return [name for name in names if not missing[name]]


def installed(package: str) -> bool:
    """Whether a package, or one that is part of another, can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # what it is part of
        return False


def check_machine() -> None:
    """Stop where hosts cannot be made, and say what to do."""
    packages = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if packages:
        sys.exit(f"cluster.py: some of {', '.join(TOOLS)} are not here: apt-get install {' '.join(packages)}")
    if os.geteuid():
        sys.exit("cluster.py: only root can make network namespaces; run it with sudo")


def main(
    hosts: Annotated[int, typer.Option(min=2, max=200, help="Number of hosts.")] = 4,
    mbit: Annotated[str, typer.Option(help="Speeds of the links in Mbit/s, with commas between them.")] = "25,100,1000",
    strategies: Annotated[str, typer.Option(help="Which, with commas between them.")] = ",".join(STRATEGIES),
    steps: Annotated[int, typer.Option(min=1, help="Local steps of each host.")] = 130,
    period: Annotated[int, typer.Option(min=2, help="Local steps between rounds.")] = 20,
    overlap: Annotated[int, typer.Option(min=1, help="Local steps a message may travel where it overlaps.")] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Samples a step and host.")] = 64,
    hidden: Annotated[str, typer.Option(help="Widths of hidden layers. For d = 10 million: 4096,1664.")] = "1024,256",
    lr: Annotated[float, typer.Option(help="Learning rate of the local SGD.")] = 0.1,
    data: Annotated[Data, typer.Option(help="What to train on.")] = "fashion_mnist",
    loss: Annotated[float, typer.Option(help="The training loss to reach.")] = 0.6,
    window: Annotated[int, typer.Option(min=1, help="Over how many steps that loss is averaged.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the model and the batches.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds that one strategy may take, its start included.")] = 900,
    results: Annotated[Path | None, typer.Option("--json", help="Where to write everything measured.")] = None,
    only_clean: Annotated[bool, typer.Option("--clean", help="Only remove what killed runs have left.")] = False,
) -> None:
    """Train by several strategies on hosts with slow links, and print what each took."""
    check_machine()
    console = Console(width=None if sys.stdout.isatty() else 110)
    if only_clean:
        for owner in clean():
            console.print(f"{owner} belongs to a process that runs; it is left alone")
        return
    if window > steps:
        raise typer.BadParameter(f"--window {window} is more than --steps {steps}")
    speeds, widths, names = numbers(mbit, float), numbers(hidden, int), chosen(strategies, console)
    settings = Settings(hosts, steps, period, overlap, batch, widths, lr, data, seed, timeout)
    goal = Goal(loss, window)
    for number in ENDING:
        signal.signal(number, leave)

    measured: list[Measurement] = []
    failures: list[dict[str, Any]] = []
    for speed in speeds:
        here: list[Measurement] = []
        with Cluster(hosts, speed) as cluster, console.status("") as status:
            for name in names:
                status.update(f"{name} at {speed:g} Mbit/s")
                try:
                    here.append(measure(cluster, name, settings, goal))
                except StrategyFailedError as error:
                    failures.append({"strategy": name, "mbit": speed, "error": str(error)})
                    console.print(f"{name} failed at {speed:g} Mbit/s: {error}", markup=False)
        if here:
            console.print(table(here, settings, goal))
        measured += here
    if results:
        contents = {"settings": asdict(settings), "goal": asdict(goal), "measured": [asdict(one) for one in measured]}
        results.write_text(json.dumps(contents | {"failed": failures}, indent=2) + "\n")
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
