"""Reports as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tether.checks import nearest
from tether.config import ConfigError
from tether.report.page import page
from tether.report.papers import draw
from tether.report.runs import common_folder, read
from tether.report.tables import tables

FORMATS = ("html", "png", "svg", "csv")


def write(places: Sequence[str | Path], out: str | Path | None = None, format: str = "html") -> list[Path]:
    """Write a report about runs: a page, figures for papers, or tables.

    Args:
        places: folders of runs, or folders with such folders in them.
        out: the page, or the folder of figures or tables. Default: `report.html`, `report-png`, ... in the folder in
            which all the runs are.
        format: "html", "png", "svg" or "csv".

    Returns:
        The files.

    Raises:
        ConfigError: if there is no run, one is damaged, none has a record; if what the format needs is not
            installed; or if the files cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format {format}: there is no such format; {nearest(format, FORMATS)}")
    if not places:
        raise ConfigError("report what? Give folders of runs")
    runs = read(places)
    if not any(len(run.steps) for run in runs):
        said = "; ".join(f"{run.folder}: {run.status}" for run in runs[:3])
        raise ConfigError(f"{said}, so there is nothing to report")
    path = Path(out) if out else _beside(places) / ("report.html" if format == "html" else f"report-{format}")
    try:
        if format == "html":
            content = page(runs)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
            return [path]
        path.mkdir(parents=True, exist_ok=True)
        return tables(runs, path) if format == "csv" else draw(runs, path, format)
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: {error.strerror}; give another place by --out") from error


def _beside(places: Sequence[str | Path]) -> Path:
    common = common_folder(places)
    if len(common.resolve().parts) == 1:
        raise ConfigError(f"{' and '.join(map(str, places))} have no folder in common: give a place by --out")
    return common
