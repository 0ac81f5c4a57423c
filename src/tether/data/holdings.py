"""Who holds what: how many samples of each class, or group, every worker has; as numbers and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.data.dataset import Dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BUBBLES = 40
"""More workers than these are drawn as a heat map."""

ROWS = 24
"""More groups than these are drawn as the largest ones, and the others together."""

LIGHT = {"paper": "white", "ink": "#24292f", "low": "#eef4fa", "high": "#0b4f94"}
DARK = {"paper": "#14171c", "ink": "#d7dbe0", "low": "#1d2733", "high": "#8cc4ff"}


@dataclass(frozen=True)
class Holdings:
    """Who holds what of a data set.

    Attributes:
        counts: `[m, groups]`, samples that each worker holds of each class or group.
        names: what the groups are called.
        title: of which data, and how it was divided.
    """

    counts: np.ndarray
    names: tuple[str, ...]
    title: str

    @property
    def sizes(self) -> np.ndarray:
        """`[m]`, samples that each worker holds."""
        return self.counts.sum(1)


def holdings(data: Dataset, workers: int, seed: int = 0) -> Holdings:
    """Who holds what when a data set is divided, as `simulate` divides it with the same seed.

    Where shards are reshuffled every epoch, it is who holds what in the first.

    Args:
        data: the samples and their partition.
        workers: number of workers m.
        seed: which of the possible partitions.

    Raises:
        ValueError: if the partition does not suit the data and the number of workers.
    """
    shards = data.shards(workers, seed)
    grouping = data.grouping()
    groups = np.zeros(len(data), int) if grouping is None else grouping.cpu().numpy()
    found, groups = np.unique(groups, return_inverse=True)
    counts = [np.bincount(groups[shards.whole(worker, 0)], minlength=len(found)) for worker in range(workers)]
    names = tuple(data.names[group] if data.names else str(group) for group in found)
    if grouping is None:
        names = ("samples",)
    return Holdings(np.stack(counts), names, f"{data}, {data.partition}")


def picture(held: Holdings, dark: bool = False) -> Figure:
    """A matplotlib figure of who holds what: a bar for each worker's samples, below it what they are.

    Up to 40 workers have a bubble for each class, its area the number of samples. More are the columns of a heat map of
    shares, ordered by the class that they hold most of, or by amount where all hold much the same. Of more than 24
    classes or groups the largest are drawn, and the others together.

    Args:
        held: who holds what; see `holdings`.
        dark: for a dark page.

    Returns:
        A figure: `picture(held).savefig("who.png")`, or svg, pdf.

    Raises:
        ModuleNotFoundError: without matplotlib; the message says what to install.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator, StrMethodFormatter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pictures are drawn by matplotlib, which is not installed: pip install 'tether[plot]'"
        ) from error
    colours = DARK if dark else LIGHT
    counts, names = largest(held.counts, held.names)
    workers, rows = counts.shape
    many = workers > BUBBLES
    if many:
        counts = counts[alike(counts)]

    height = 1.9 if rows == 1 else 1.7 + max(1.2, 0.26 * rows)
    figure = Figure(figsize=(8.4, height), dpi=160, facecolor=colours["paper"], layout="constrained")
    panels = figure.subplots(min(rows, 2), 1, sharex=True, squeeze=False, height_ratios=[1.0, height - 2][:rows])[:, 0]
    bars, last = panels[0], panels[-1]
    if many:
        bars.stairs(counts.sum(1), np.arange(workers + 1) - 0.5, fill=True, color=colours["high"])
    else:
        bars.bar(np.arange(workers), counts.sum(1), width=0.72, color=colours["high"], linewidth=0)
    bars.set_ylabel("samples")
    bars.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    bars.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    count = f"{workers:,} worker{'s' if workers > 1 else ''}"
    bars.set_title(f"{held.title}, {count}", loc="left", fontsize=10.5, color=colours["ink"])
    if rows > 1 and many:
        _shares(last, counts, colours)
    elif rows > 1:
        _bubbles(last, counts, colours)
    if rows > 1:
        last.set_yticks(range(rows), names)
        last.set_ylim(rows - 0.4, -0.6)
    last.set_xlabel("workers, ordered by what they hold" if many else "worker")
    last.set_xlim(-0.6, workers - 0.4)
    last.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    for axes in panels:
        axes.set_facecolor(colours["paper"])
        _quiet(axes, colours["ink"])
    return figure


def _shares(axes: Any, counts: np.ndarray, colours: dict[str, str]) -> None:
    """A heat map: of each worker's samples, the share in each group."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import PercentFormatter

    workers, rows = counts.shape
    shades = LinearSegmentedColormap.from_list("shares", [colours["low"], colours["high"]])
    edges = np.arange(workers + 1) - 0.5, np.arange(rows + 1) - 0.5
    shares = counts / counts.sum(1, keepdims=True)
    mesh = axes.pcolormesh(*edges, shares.T, cmap=shades, vmin=0, rasterized=True)
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.01, aspect=30, format=PercentFormatter(1, decimals=0))
    bar.outline.set_visible(False)
    bar.set_label("of a worker's samples")
    _quiet(bar.ax, colours["ink"])


def _bubbles(axes: Any, counts: np.ndarray, colours: dict[str, str]) -> None:
    worker, row = np.nonzero(counts)
    diameter = 72 * min(6.5 / len(counts), 0.23)  # in points: what a column and a row leave
    area = diameter**2 * counts[worker, row] / counts.max()
    axes.scatter(worker, row, s=area, color=colours["high"], linewidth=0)
    axes.set_axisbelow(True)
    axes.grid(color=colours["ink"], alpha=0.12, linewidth=0.6)


def _quiet(axes: Any, ink: str) -> None:
    """No frame, no ticks; text that is readable on the page."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=ink, labelsize=8.5)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=ink, size=9)


def largest(counts: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, list[str]]:
    """The columns of the largest groups in their order, and the others as one."""
    if len(names) <= ROWS:
        return counts, list(names)
    by_size = np.argsort(-counts.sum(0), kind="stable")
    shown, others = np.sort(by_size[: ROWS - 1]), by_size[ROWS - 1 :]
    rest = counts[:, others].sum(1, keepdims=True)
    return np.hstack([counts[:, shown], rest]), [*(names[i] for i in shown), f"{len(others)} others"]


def alike(counts: np.ndarray) -> np.ndarray:
    """An order in which workers who hold alike stand together: by main group, or by amount if all are mixed."""
    sizes = counts.sum(1)
    expected = np.outer(sizes, counts.sum(0)) / sizes.sum()
    # Pearson's statistic is about its degrees of freedom where mixtures differ by chance alone.
    differences = ((counts - expected) ** 2 / expected).sum()
    if differences < 2 * (counts.shape[0] - 1) * (counts.shape[1] - 1):
        return np.argsort(-sizes, kind="stable")
    return np.lexsort((-counts.max(1) / sizes, counts.argmax(1)))
