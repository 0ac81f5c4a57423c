"""The command: `tether train | compare | methods`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:  # PyTorch takes longer to import than --help should take
    from tether.config import Config
    from tether.data import Dataset
    from tether.result import Result

app = typer.Typer(
    help="Train PyTorch models with workers that mostly compute on their own and communicate rarely.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file; `examples/` has some.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config, such as data.partition=iid."),
]


@app.command()
def train(
    config: ConfigPath,
    method: Annotated[str | None, typer.Option(help="Which method; default: the config's `method`.")] = None,
    overrides: Overrides = None,
) -> None:
    """Train with one method; under torchrun, on real workers."""
    from tether.result import NonFiniteLossError
    from tether.run import load_data, processes

    settings = _load(config, overrides)
    console.quiet = processes()[0] > 0
    name = method or settings.method
    data = load_data(settings)
    console.print(_heading(settings, data), highlight=False)
    try:
        result = _run(settings, name, data)
    except NonFiniteLossError as error:
        raise SystemExit(f"tether: {error}") from error
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    for label, value in zip(COLUMNS, _row(name, result), strict=True):
        table.add_row(label, value)
    console.print(table)


@app.command()
def compare(
    config: ConfigPath,
    methods: Annotated[str, typer.Option(help="Names, with commas between; `tether methods` lists them.")],
    overrides: Overrides = None,
) -> None:
    """Run several methods at equal local steps and print a table."""
    from tether.config import ConfigError
    from tether.result import NonFiniteLossError
    from tether.run import check, load_data

    settings = _load(config, overrides)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"--methods {methods}: name at least one method")
    for name in names:
        check(settings, name)  # a mistake shows before the first run, not after the last
    data = load_data(settings)
    table = Table(*COLUMNS, title=_heading(settings, data), box=box.SIMPLE_HEAD, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    diverged = []
    for name in names:
        try:
            table.add_row(*_row(name, _run(settings, name, data)))
        except NonFiniteLossError as error:
            table.add_row(name, "diverged")
            diverged.append(f"{name} diverged: worker {error.worker}, local step {error.step}")
    console.print(table)
    for line in diverged:
        console.print(line, highlight=False)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Only this one, with all that is to say of it.")] = None,
) -> None:
    """List the methods: each one's equation and parameters."""
    from tether.checks import nearest
    from tether.config import ConfigError
    from tether.methods import METHODS
    from tether.topology import TOPOLOGIES

    if name is not None:
        if name not in METHODS and name not in TOPOLOGIES:
            raise ConfigError(f"no method is called {name!r}; {nearest(name, [*METHODS, *TOPOLOGIES])}")
        if name in TOPOLOGIES:
            console.print(f"{name} as a method is decentralized, over this topology:\n", highlight=False, markup=False)
            console.print(f"    {inspect.getdoc(TOPOLOGIES[name])}\n", highlight=False, markup=False)
            name = "decentralized"
        console.print(inspect.getdoc(METHODS[name]), highlight=False, markup=False)
        return
    for key, method in METHODS.items():
        summary, equation, *_ = (inspect.getdoc(method) or "").split("\n\n")
        console.print(f"[bold]{key}[/]  {summary}")
        console.print(f"    {' '.join(equation.split())}", highlight=False, markup=False)
        console.print(f"    parameters: {_parameters(method)}\n", highlight=False, markup=False)
    console.print(f"A topology's name stands for decentralized over it: {', '.join(TOPOLOGIES)}.", highlight=False)


COLUMNS = (
    "method",
    "test accuracy of center",
    "of best worker",
    "rounds",
    "MB sent a worker",
    "consensus distance",
    "seconds",
)


def main() -> None:
    """Run the command; what a user got wrong is said in a line, without a traceback."""
    from tether.config import ConfigError

    try:
        app()
    except ConfigError as error:
        raise SystemExit(f"tether: {error}") from error


def _load(path: Path, overrides: list[str] | None) -> Config:
    from tether.config import ConfigError, load

    pairs = {}
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: give KEY=VALUE")
        pairs[key.strip()] = value.strip()
    return load(path, pairs)


def _run(config: Config, name: str, data: Dataset) -> Result:
    from tether.run import run

    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rounds]} rounds"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=config.steps, loss=float("nan"), rounds=0)
        return run(
            config,
            name,
            data=data,
            on_record=lambda record: progress.update(bar, rounds=record.round),
            on_progress=lambda count, loss: progress.update(bar, completed=count, loss=loss),
        )


def _heading(config: Config, data: Dataset) -> str:
    wanted = config.data["name"]
    instead = f" ({wanted[0]} is not installed)" if isinstance(wanted, list) and wanted[0] != data.name else ""
    return f"{data.name}{instead}, {data.partition}, {config.workers} workers, {config.steps} local steps each"


def _row(name: str, result: Result) -> list[str]:
    last = result.history[-1] if result.history else None

    def accuracy(of: str) -> str:
        measures = getattr(last, of, {})
        return f"{measures['accuracy']:.1%}" if "accuracy" in measures else "-"

    return [
        name,
        accuracy("center"),
        accuracy("best"),
        str(result.rounds),
        f"{result.bytes / result.workers / 1e6:.2f}",
        f"{result.consensus:.2g}",
        f"{result.seconds:.1f}",
    ]


def _parameters(method: type) -> str:
    parts = []
    for name, parameter in inspect.signature(method).parameters.items():
        required = parameter.default is parameter.empty
        parts.append(name if required else f"{name}={parameter.default}")
    return ", ".join(parts) or "none"
