"""The papers' figures of what diagnostics measure, by matplotlib (the extra `plot`).

Each takes what is to be compared by name, and returns a figure: `figure.savefig("cpdf.svg")`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.diagnostics.curvature import Spectrum
from tether.diagnostics.estimates import Estimate
from tether.diagnostics.relu import SemiLipschitz, Stage
from tether.diagnostics.runs import Drift
from tether.diagnostics.spectral import Energy
from tether.diagnostics.taylor import Residue
from tether.look import LIGHT, LOOK, SIZE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def cpdf(energies: Mapping[str, Energy], ylabel: str = "CPDF") -> Figure:
    """The share of each vector's energy on eigenvalues up to each (SecondOrder, figures 3 to 8).

    With `spectral_density` and another label: the share of eigenvalues.
    """
    return _figure(lambda axes: draw_cpdf(axes, energies, ylabel), energies)


def draw_cpdf(axes: Axes, energies: Mapping[str, Energy], ylabel: str = "CPDF") -> None:
    """The same on axes of a figure that has others."""
    for (name, energy), colour in zip(energies.items(), _colours(), strict=False):
        first, last = energy.eigenvalues[0], energy.eigenvalues[-1]
        x = np.concatenate([[first], energy.eigenvalues, [last]])
        y = np.concatenate([[0.0], energy.cumulative, [1.0]])
        axes.step(x, y, where="post", color=colour, label=name)
    _eigenvalue_axis(axes, [energy.eigenvalues for energy in energies.values()])
    axes.set(ylabel=ylabel, ylim=(-0.02, 1.02))


def eigenvalues(spectra: Mapping[str, Spectrum]) -> Figure:
    """All eigenvalues in descending order, their range in the legend (SecondOrder, table 2)."""
    labels = {f"{name} [{s.range[0]:.3g}, {s.range[1]:.4g}]": s for name, s in spectra.items()}

    def draw(axes: Axes) -> None:
        for (name, spectrum), colour in zip(labels.items(), _colours(), strict=False):
            values = spectrum.eigenvalues.double().cpu().numpy()[::-1]
            axes.plot(np.arange(1, len(values) + 1), values, color=colour, label=name)
        axes.set_xscale("log")
        ends = [end for spectrum in spectra.values() for end in spectrum.range]
        threshold = 1e-4 * max(map(abs, ends))
        axes.set_yscale("symlog", linthresh=threshold)
        axes.set_ylim(min(2 * min(ends), -threshold), 2 * max(ends))
        axes.set(xlabel="rank", ylabel="eigenvalue")

    return _figure(draw, labels, always=True)


def contributions(spectrum: Spectrum, shares: Mapping[str, np.ndarray]) -> Figure:
    """u_SOE as it adds up over eigen-directions, those of small eigenvalues first (SecondOrder, eq. 31 and 32)."""
    values = spectrum.eigenvalues.double().cpu().numpy()

    def draw(axes: Axes) -> None:
        for (name, each), colour in zip(shares.items(), _colours(), strict=False):
            axes.step(values, np.cumsum(each), where="post", color=colour, label=name)
        _eigenvalue_axis(axes, [values])
        axes.set_ylabel("change of the loss\nfrom eigenvalues up to here")

    return _figure(draw, shares)


def residues(found: Mapping[str, Sequence[Residue]]) -> Figure:
    """Norm of the gradient over that of the mean residue, against local steps (SecondOrder, table 3)."""

    def draw(axes: Axes) -> None:
        for (name, each), colour in zip(found.items(), _colours(), strict=False):
            _whiskers(axes, np.array([r.steps for r in each]), [r.ratio for r in each], colour, name)
        axes.axhline(1, color="black", linewidth=0.6, linestyle=":")
        axes.set_xscale("log")
        axes.set_yscale("log")
        looked_at = sorted({r.steps for each in found.values() for r in each})
        axes.set_xticks(looked_at, list(map(str, looked_at)))
        axes.set_xticks([], minor=True)
        axes.set(xlabel="local steps k", ylabel=r"$\|\nabla f\| \,/\, \|\mathrm{E}\, n^s\|$")

    return _figure(draw, found)


def angles(found: Mapping[str, Sequence[float]], against: Sequence[float], xlabel: str) -> Figure:
    """Angles to the Newton direction, in degrees (Leader SGD, section 3.3).

    Args:
        found: by direction, its angle at each of several points.
        against: what tells the points apart, such as rounds, or pulls.
        xlabel: what that is.
    """

    def draw(axes: Axes) -> None:
        for (name, each), colour in zip(found.items(), _colours(), strict=False):
            axes.plot(against, each, color=colour, marker="o", markersize=3, label=name)
        axes.axhline(90, color="black", linewidth=0.6, linestyle=":")
        axes.set(xlabel=xlabel, ylabel="angle to Newton (°)")

    return _figure(draw, found)


def estimates(found: Mapping[str, Estimate]) -> Figure:
    """Numbers with their intervals, each in a row."""

    def draw(axes: Axes) -> None:
        for row, estimate in enumerate(found.values()):
            axes.hlines(row, estimate.low, estimate.high, color=LIGHT[0], linewidth=2, alpha=0.5)
            axes.plot(estimate.value, row, "o", color=LIGHT[0], markersize=4)
            axes.annotate(
                f"{estimate.value:.3g}", (estimate.value, row), (0, 5), textcoords="offset points", ha="center"
            )
        axes.set_yticks(range(len(found)), list(found))
        axes.set_ylim(len(found) - 0.4, -0.7)
        if all(each.low > 0 for each in found.values()):
            axes.set_xscale("log")

    return _figure(draw, {})


def drift(runs: Mapping[str, Drift]) -> Figure:
    """Consensus distance and drift of the workers, median and 10th to 90th percentile, against local steps."""

    def draw(axes: Sequence[Axes]) -> None:
        for (name, run), colour in zip(runs.items(), _colours(), strict=False):
            known = np.isfinite(run.consensus)
            axes[0].plot(run.steps[known], run.consensus[known], color=colour, label=name)
            low, median, high = np.nanpercentile(run.drift, [10, 50, 90], axis=1)
            axes[1].plot(run.steps, median, color=colour, label=name)
            axes[1].fill_between(run.steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes[0].set(xlabel="local steps", ylabel="consensus distance")
        axes[1].set(xlabel="local steps", ylabel="drift since the last round")

    return _figure(draw, runs, panels=2)


def semi_lipschitz(found: Mapping[str, SemiLipschitz]) -> Figure:
    """The Lipschitz constant that gradients need at each distance, without and with a share of the loss (ReLU, 5.1)."""

    def draw(axes: Axes) -> None:
        for (name, each), colour in zip(found.items(), _colours(), strict=False):
            order = np.argsort(each.distances)
            x = np.sqrt(each.distances[order])
            axes.loglog(x, each.lipschitz[order], color=colour, marker="o", markersize=3, label=f"{name}, Lipschitz")
            axes.loglog(x, each.ratio[order], color=colour, marker="s", markersize=3, ls="--", label=f"{name}, semi")
        axes.set(xlabel=r"$\|W - \tilde W\|_2$", ylabel="constant needed")

    return _figure(draw, found, always=True)


def shrinkage(stages: Mapping[str, Stage]) -> Figure:
    """Workers' own losses against what they were at the round, median and range of the workers (ReLU, 5.1)."""

    def draw(axes: Axes) -> None:
        for (name, stage), colour in zip(stages.items(), _colours(), strict=False):
            axes.plot(stage.steps, np.median(stage.shrinkage, 1), color=colour, label=name)
            low, high = stage.shrinkage.min(1), stage.shrinkage.max(1)
            axes.fill_between(stage.steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(1, color="black", linewidth=0.6, linestyle=":")
        axes.set(xlabel="local steps since the round", ylabel=r"$L_i(W_i(t)) \,/\, L_i(W(t_c))$")

    return _figure(draw, stages)


def deviation(stages: Mapping[str, Stage]) -> Figure:
    """Deviation of local models against lr^2 steps^2 L; dotted, as the longest stage has it (ReLU, 5.1)."""

    def draw(axes: Axes) -> None:
        for (name, stage), colour in zip(stages.items(), _colours(), strict=False):
            x = stage.deviation / stage.constant
            axes.loglog(x, stage.deviation, color=colour, marker="o", markersize=3, label=name)
            axes.loglog(x, x * stage.constant[-1], color=colour, linewidth=0.8, linestyle=":")
        axes.set(xlabel=r"$\eta^2 \tau^2 L(W(t_c))$", ylabel=r"mean $\|W_i(t) - W(t_c)\|_F^2$")

    return _figure(draw, stages)


def _figure(draw: Callable[[Any], None], names: Mapping[str, Any], panels: int = 1, always: bool = False) -> Figure:
    with _style() as new:
        figure: Figure = new((panels * SIZE[0], SIZE[1]), layout="constrained")
        axes = figure.subplots(1, panels)
        draw(axes)
        if len(names) > 1 or always:
            (axes if panels == 1 else axes[0]).legend()
    return figure


@contextmanager
def _style() -> Iterator[Any]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "figures are drawn by matplotlib, which is not installed: pip install 'tether[plot]'"
        ) from error
    with matplotlib.rc_context(LOOK):
        yield Figure


def _colours() -> Iterator[str]:
    while True:
        yield from LIGHT


def _eigenvalue_axis(axes: Axes, values: Sequence[np.ndarray]) -> None:
    """Eigenvalues of either sign over many orders of magnitude: logarithmic but around zero."""
    largest = max(float(np.abs(each).max()) for each in values)
    axes.set_xscale("symlog", linthresh=1e-5 * largest)
    axes.set_xlabel("eigenvalue")


def _whiskers(axes: Axes, x: np.ndarray, found: Sequence[Estimate], colour: str, name: str) -> None:
    y = np.array([each.value for each in found])
    sides = np.array([[each.value - each.low, each.high - each.value] for each in found]).T
    axes.errorbar(x, y, yerr=sides, color=colour, marker="o", markersize=3, capsize=2, linewidth=1, label=name)
