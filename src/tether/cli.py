"""The command: `tether train | compare | report | reproduce | partition | methods`."""

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
    from tether.history import Record
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

TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write scalars to the folder `tensorboard` of the run too.")
]


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="A TOML file; `examples/` has some.", show_default=False)
    ] = None,
    method: Annotated[str | None, typer.Option(help="Which method; default: the config's `method`.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write metrics and checkpoints there; go on if it holds this run already."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Go on with the run in this folder; no CONFIG.")
    ] = None,
    tensorboard: TensorBoard = False,
    overrides: Overrides = None,
) -> None:
    """Train with one method; under torchrun, on real workers."""
    from tether.config import ConfigError
    from tether.result import NonFiniteLossError
    from tether.run import load_data, processes

    if (config is None) == (resume is None):
        raise ConfigError("train what? Give a CONFIG, or --resume FOLDER")
    if resume is not None and (method or out):
        raise ConfigError(f"--resume {resume}: its method and folder are those of the run; give neither")
    _check_has_place(tensorboard, out or resume)
    settings = _load(config, overrides) if config else _resumed(resume or Path(), overrides)
    console.quiet = processes()[0] > 0
    name = method or settings.method
    data = load_data(settings)
    console.print(_heading(settings, data), highlight=False)
    folder = out or resume
    try:
        result = _run(settings, name, data, folder, tensorboard)
    except NonFiniteLossError as error:
        raise SystemExit(f"tether: {error}") from error
    except KeyboardInterrupt:
        console.print(f"\nStopped. Go on: tether train --resume {folder}" if folder else "\nStopped.", highlight=False)
        raise SystemExit(130) from None
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    for label, value in zip(_columns(settings), _row(name, result), strict=True):
        table.add_row(label, value)
    console.print(table)


@app.command()
def compare(
    config: ConfigPath,
    methods: Annotated[str, typer.Option(help="Names, with commas between; `tether methods` lists them.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write each method's run to a folder of its name in there.")
    ] = None,
    tensorboard: TensorBoard = False,
    overrides: Overrides = None,
) -> None:
    """Run several methods at equal local steps and print a table; under torchrun, on real workers."""
    from tether.config import ConfigError
    from tether.result import NonFiniteLossError
    from tether.run import check, load_data, processes

    _check_has_place(tensorboard, out)
    settings = _load(config, overrides)
    console.quiet = processes()[0] > 0
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"--methods {methods}: name at least one method")
    for name in names:
        check(settings, name)  # a mistake shows before the first run, not after the last
    data = load_data(settings)
    table = Table(*_columns(settings), title=_heading(settings, data), box=box.SIMPLE_HEAD, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    diverged = []
    for name in names:
        try:
            table.add_row(*_row(name, _run(settings, name, data, out / name if out else None, tensorboard)))
        except NonFiniteLossError as error:
            table.add_row(name, "diverged")
            diverged.append(f"{name} diverged: worker {error.worker}, local step {error.step}")
    console.print(table)
    for line in diverged:
        console.print(line, highlight=False)


@app.command()
def partition(
    config: ConfigPath,
    out: Annotated[Path | None, typer.Option(help="Draw it too: a .png, .svg or .pdf file.")] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Draw it for a dark page.")] = False,
    overrides: Overrides = None,
) -> None:
    """Show who holds what of the data."""
    from tether.config import ConfigError
    from tether.data import holdings, picture
    from tether.data.holdings import BUBBLES
    from tether.run import load_data

    settings = _load(config, overrides)
    try:
        held = holdings(load_data(settings), settings.workers, settings.seed)
    except ValueError as error:
        raise ConfigError(f"data.partition: {error}") from error
    console.print(f"{held.title}, {settings.workers:,} workers, {held.sizes.sum():,} samples", highlight=False)
    if settings.workers <= BUBBLES:
        table = Table("worker", "samples", "of them", box=box.SIMPLE_HEAD)
        for worker, counts in enumerate(held.counts):
            main = (-counts).argsort(kind="stable")[: min(4, (counts > 0).sum())]
            shares = ", ".join(f"{held.names[group]} {counts[group] / counts.sum():.0%}" for group in main)
            table.add_row(str(worker), f"{counts.sum():,}", shares + (", ..." if (counts > 0).sum() > 4 else ""))
    else:
        table = Table("a worker holds", "least", "median", "most", box=box.SIMPLE_HEAD)
        for label, numbers in (("samples", held.sizes), ("classes or groups", (held.counts > 0).sum(1))):
            spread = sorted(numbers.tolist())
            table.add_row(label, *(f"{spread[i]:,}" for i in (0, len(spread) // 2, -1)))
    console.print(table)
    if out is not None:
        try:
            picture(held, dark).savefig(out)
        except (ModuleNotFoundError, OSError, ValueError) as error:
            raise ConfigError(f"--out {out}: {error}") from error
        console.print(f"drawn: {out}", highlight=False)


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


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or folders that have some.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The page, or a folder for other formats. Default: beside the runs."),
    ] = None,
    format: Annotated[str, typer.Option(help="html: a page; png, svg: figures for papers; csv: tables.")] = "html",
) -> None:
    """Make a page about runs: what they measured, and how they were run."""
    from tether.report import write

    written = write(runs, out, format)
    found = written[0] if len(written) == 1 else f"{written[0].parent}: {len(written)} files"
    console.print(found, highlight=False, markup=False, soft_wrap=True)


@app.command()
def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[EXPERIMENT]", help="Such as leader/sinc; without one, lists all."),
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="In the paper's own setting, which may take days.")] = False,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the paper's data are.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Figures, tables, outcome. Default: runs/EXPERIMENT.")
    ] = None,
) -> None:
    """Carry out an experiment of a paper: its figure, its table, which of its claims hold."""
    from tether.config import ConfigError
    from tether.papers.command import carry_out, list_experiments

    if name is not None:
        carry_out(name, paper, data, seed, out, console)
    elif paper or data or out or seed:
        raise ConfigError("reproduce what? Give an experiment; `tether reproduce` alone lists them")
    else:
        list_experiments(console)


COLUMNS = (
    "method",
    "test accuracy of center",
    "of best worker",
    "rounds",
    "MB sent a worker",
    "consensus distance",
    "seconds",
)


def _columns(config: Config) -> tuple[str, ...]:
    return COLUMNS + (("virtual seconds", "waited") if config.clock else ())


def main() -> None:
    """Run the command; what a user or a machine got wrong is said in a line, without a traceback."""
    import logging

    from rich.logging import RichHandler

    from tether.config import ConfigError
    from tether.errors import CheckpointError, RunFolderError, WorkerLostError

    handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False)
    logging.basicConfig(format="%(message)s", handlers=[handler])
    logging.getLogger("tether").setLevel(logging.INFO)
    try:
        app()
    except (ConfigError, CheckpointError, RunFolderError, WorkerLostError) as error:
        raise SystemExit(f"tether: {error}") from error


def _load(path: Path, overrides: list[str] | None) -> Config:
    from tether.config import load

    return load(path, _pairs(overrides))


def _pairs(overrides: list[str] | None) -> dict[str, str]:
    from tether.config import ConfigError

    pairs = {}
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: give KEY=VALUE")
        pairs[key.strip()] = value.strip()
    return pairs


def _resumed(folder: Path, overrides: list[str] | None) -> Config:
    from tether.config import Config, ConfigError, validate
    from tether.run_folder import CHANGEABLE, RunFolder

    settings = RunFolder(folder).config
    changes = _pairs(overrides)
    if fixed := [key for key in changes if key not in CHANGEABLE]:
        raise ConfigError(
            f"--set {fixed[0]}: a run goes on as it was; only {' and '.join(sorted(CHANGEABLE))} may change"
        )
    changed = {key: int(text) if text.isdigit() else text for key, text in changes.items()}
    return validate(Config, settings.model_dump(mode="json") | changed, "--set")


def _check_has_place(tensorboard: bool, folder: Path | None) -> None:
    from tether.config import ConfigError

    if tensorboard and folder is None:
        raise ConfigError("--tensorboard: the scalars are a part of the run's folder; give one by --out FOLDER")


def _run(config: Config, name: str, data: Dataset, folder: Path | None, tensorboard: bool) -> Result:
    from tether.run import run
    from tether.run_folder import RunFolder

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
            folder=RunFolder(folder) if folder else None,
            tensorboard=tensorboard,
            on_record=lambda record: progress.update(bar, rounds=record.round),
            on_progress=lambda count, loss: progress.update(bar, completed=count, loss=loss),
        )


def _heading(config: Config, data: Dataset) -> str:
    wanted = config.data["name"]
    instead = f" ({wanted[0]} is not installed)" if isinstance(wanted, list) and wanted[0] != data.name else ""
    return f"{data}{instead}, {data.partition}, {config.workers} workers, {config.steps} local steps each"


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
        *_times(last),
    ]


def _times(last: Record | None) -> list[str]:
    """When the run would have ended on the cluster that its clock describes, and how much of that was waiting."""
    import numpy as np

    if last is None or last.virtual is None:
        return []
    now, waited = last.virtual.now, last.virtual.waited
    return [f"{np.nanmax(now):.4g}", f"{np.nansum(waited) / max(np.nansum(now), 1e-300):.0%}"]


def _parameters(method: type) -> str:
    parts = []
    for name, parameter in inspect.signature(method).parameters.items():
        required = parameter.default is parameter.empty
        parts.append(name if required else f"{name}={parameter.default}")
    return ", ".join(parts) or "none"
