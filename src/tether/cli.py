"""The command: `tether train | compare | plan | report | reproduce | gallery | partition | methods`."""

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
    from tether import printing
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
    console.print(printing.heading(settings, data), highlight=False)
    folder = out or resume
    try:
        result = _run(settings, name, data, folder, tensorboard)
    except NonFiniteLossError as error:
        raise SystemExit(f"tether: {error}") from error
    except KeyboardInterrupt:
        console.print(f"\nStopped. Go on: tether train --resume {folder}" if folder else "\nStopped.", highlight=False)
        raise SystemExit(130) from None
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    for label, value in zip(printing.columns(settings), printing.row(name, result), strict=True):
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
    from tether import printing
    from tether.config import ConfigError
    from tether.result import NonFiniteLossError
    from tether.run import check, load_data, processes

    _check_has_place(tensorboard, out)
    settings = _load(config, overrides)
    console.quiet = processes()[0] > 0
    names = _list(methods)
    if not names:
        raise ConfigError(f"--methods {methods}: name at least one method")
    for name in names:
        check(settings, name)  # a mistake shows before the first run, not after the last
    data = load_data(settings)
    columns, title = printing.columns(settings), printing.heading(settings, data)
    padding = (0, 0 if settings.clock else 1)  # with the columns of a clock it fits 80 characters only just
    table = Table(*columns, title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=padding)
    for column in table.columns[1:]:
        column.justify = "right"
    diverged = []
    for name in names:
        try:
            table.add_row(*printing.row(name, _run(settings, name, data, out / name if out else None, tensorboard)))
        except NonFiniteLossError as error:
            table.add_row(name, "diverged")
            diverged.append(f"{name} diverged: worker {error.worker}, local step {error.step}")
    console.print(table)
    for line in diverged:
        console.print(line, highlight=False)


@app.command()
def plan(
    config: ConfigPath,
    bandwidth: Annotated[
        str | None, typer.Option(help="Of each worker's link, such as 100Mbit. Default: measured, under torchrun.")
    ] = None,
    latency: Annotated[str | None, typer.Option(help="Of these links, such as 30ms.")] = None,
    workers: Annotated[int | None, typer.Option(min=2, help="Default: as many as the config has.")] = None,
    step: Annotated[str | None, typer.Option(help="What a local step takes. Default: measured here.")] = None,
    methods: Annotated[
        str, typer.Option(help="Names, with commas between; topologies are methods too.")
    ] = "sync,local,easgd,ring,leader",
    periods: Annotated[str, typer.Option(help="Local steps between rounds to try.")] = "4,16,64",
    target: Annotated[
        float | None,
        typer.Option(help="Training loss to reach. Default: where the first method is after 3/4 of its steps."),
    ] = None,
    bounds: Annotated[
        bool, typer.Option(help="Whether to estimate what the theory asks for, and print its bound.")
    ] = True,
    verify: Annotated[bool, typer.Option("--verify", help="Run the best for real, under torchrun.")] = False,
    top: Annotated[int, typer.Option(min=1, help="How many of them.")] = 3,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write plan.json, a picture, and all simulated runs.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Predict how long each method takes on a cluster, and recommend one; under torchrun, the cluster is measured."""
    from tether.config import Config, ConfigError, validate
    from tether.planner.command import Cluster, bits, carry_out, seconds
    from tether.run import processes

    settings = _load(config, overrides)
    if workers is not None:
        settings = validate(Config, settings.model_dump(mode="json") | {"workers": workers}, "--workers")
    if (latency or step) and not bandwidth and settings.clock is None and processes()[1] == 1:
        raise ConfigError("--bandwidth: what do the links carry? Such as --bandwidth 100Mbit")
    cluster = Cluster(
        latency=seconds(latency) if latency else None,
        bandwidth=bits(bandwidth) if bandwidth else None,
        step=seconds(step) if step else None,
    )
    console.quiet = processes()[0] > 0
    try:
        tried = [int(period) for period in _list(periods)]
    except ValueError:
        raise ConfigError(f"--periods {periods}: give whole numbers, with commas between") from None
    carry_out(
        settings,
        cluster,
        _list(methods),
        tried,
        target=target,
        bounds=bounds,
        top=top if verify else 0,
        out=out,
        console=console,
    )


@app.command()
def partition(
    config: ConfigPath,
    out: Annotated[Path | None, typer.Option(help="Draw it too: a .png, .svg or .pdf file.")] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Draw it for a dark page.")] = False,
    overrides: Overrides = None,
) -> None:
    """Show who holds what of the data."""
    from tether import printing
    from tether.config import ConfigError
    from tether.data import holdings, picture
    from tether.run import load_data

    settings = _load(config, overrides)
    try:
        held = holdings(load_data(settings), settings.workers, settings.seed)
    except ValueError as error:
        raise ConfigError(f"data.partition: {error}") from error
    console.print(f"{held.title}, {settings.workers:,} workers, {held.sizes.sum():,} samples", highlight=False)
    console.print(printing.who_holds_what(held))
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
    everything: Annotated[bool, typer.Option("--all", help="All that need no --data, in folders in --out.")] = False,
    paper: Annotated[bool, typer.Option("--paper", help="In the paper's own setting, which may take days.")] = False,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the paper's data are.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Figures, tables, outcome. Default: runs/EXPERIMENT.")
    ] = None,
) -> None:
    """Carry out an experiment of a paper: its figure, its table, which of its claims hold."""
    from tether.config import ConfigError
    from tether.papers.command import carry_out, carry_out_all, list_experiments

    if everything and (name or data):
        raise ConfigError(f"--all is every experiment that needs no data: leave {name or '--data'} away, or --all")
    if everything:
        carry_out_all(paper, seed, out, console)
    elif name is not None:
        carry_out(name, paper, data, seed, out, console)
    elif paper or data or out or seed:
        raise ConfigError("reproduce what? Give an experiment; `tether reproduce` alone lists them")
    else:
        list_experiments(console)


@app.command()
def gallery(
    outcomes: Annotated[
        Path | None,
        typer.Argument(metavar="[FOLDER]", help="Where experiments were carried out; without one, as it was before."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="PAGE", help="The page, Markdown.")] = Path("docs/results.md"),
) -> None:
    """Write the page of results, and its figures to a folder beside it."""
    from tether.papers.command import make_gallery

    make_gallery(outcomes, out, console)


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


def _list(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


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


def _parameters(method: type) -> str:
    parts = []
    for name, parameter in inspect.signature(method).parameters.items():
        required = parameter.default is parameter.empty
        parts.append(name if required else f"{name}={parameter.default}")
    return ", ".join(parts) or "none"
