"""A surface of rings, on which averaging gets stuck and a leader does not (section 6 of the supplement)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import tether
from tether.papers.experiments import Claim, Outcome, Setting, experiment
from tether.papers.leader.descent import Descent, descend
from tether.papers.watched import Uncoupled
from tether.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STARTS = ((-6.0, -4.0), (-15.0, -18.0), (20.0, 11.0), (17.0, 8.0))
LEARNING_RATE = 0.1
ITERATIONS = 100
CONVERGED = 300
"""Iterations after which no worker of EAGD or LGD moves any more; a note says how far they moved in the last one."""

METHODS = {
    "EAGD": tether.EASGD(period=1, beta=0.43),
    "LGD": tether.LSGD(period=1, pull=0.1, window=1),
    "uncoupled GD": Uncoupled(period=1),
}


def height(points: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n"]:
    """L(x, y) = sin(πr) / (πr), r² = x² + y²."""
    return torch.sinc(points.norm(dim=-1))


@experiment("leader/sinc", shows="table 1, figure 7")
def sinc(setting: Setting) -> Outcome:
    """Four workers on a surface of rings: elastic averaging gets stuck, the leader's pull finds the global minimum."""
    converged = {}
    for number, (name, method) in enumerate(METHODS.items()):
        setting.progress(name, number / len(METHODS))
        converged[name] = descend(height, method, STARTS, LEARNING_RATE, CONVERGED)
    found = {name: each.until(ITERATIONS) for name, each in converged.items()}
    lowest = _global_minimum()
    best = {name: float(height(each.rows[-1]).min()) for name, each in found.items()}
    center = {name: float(height(each.center[-1])) for name, each in found.items()}
    moved = max(converged[name].moved for name in ("EAGD", "LGD"))
    claims = [
        Claim.number("EAGD recovers L = -0.0912", "-0.0912", center["EAGD"], "its center after 100 iterations"),
        Claim.number("LGD recovers L = -0.2172", "-0.2172", best["LGD"], "its best worker after 100 iterations"),
        Claim(
            "LGD's solution is close to the global optimum",
            best["LGD"] - lowest < 1e-4,
            best["LGD"] - lowest,
            remark=f"above the global minimum, {lowest:.7f}; holds below 0.0001",
        ),
        Claim(
            "EAGD suffers from averaging",
            center["EAGD"] > best["LGD"],
            center["EAGD"] - best["LGD"],
            remark="EAGD's center above LGD's best worker; holds above 0",
        ),
    ]
    notes = [
        f"Converged, EAGD's center is at {float(height(converged['EAGD'].center[-1])):.7f} and LGD's best worker at "
        f"{float(height(converged['LGD'].rows[-1]).min()):.7f}: in the last of {CONVERGED} iterations no "
        f"worker moved by more than {moved:.0e}.",
        f"Uncoupled gradient descent from the same points: the best worker is at {best['uncoupled GD']:.4f} after "
        f"{ITERATIONS} iterations.",
        "The paper leaves open what reproduces its numbers: pull and gradient at the old point, α = β/m = 0.1075, the "
        "center starting at the workers' mean, λ not multiplied by η.",
    ]
    table = [
        {
            "method": name,
            "iterations": len(each.rows) - 1,
            "best_worker": float(height(each.rows[-1]).min()),
            "center": float(height(each.center[-1])),
        }
        | {f"worker_{number}": float(value) for number, value in enumerate(height(each.rows[-1]))}
        for runs in (found, converged)
        for name, each in runs.items()
    ]
    return Outcome(claims, {"figure-7": _draw(found)}, {"table-1": table}, notes)


def _global_minimum() -> float:
    """The least L there is: on the first ring, between r = 1 and r = 2."""
    radii = torch.linspace(1, 2, 1_000_001, dtype=torch.float64)
    return float(torch.sinc(radii).min())


def _draw(found: dict[str, Descent]) -> Figure:
    """Figure 7: the workers' ways over the contours, and the objective of each; a row for each of both methods."""
    from matplotlib.figure import Figure

    figure = Figure((7.0, 5.4), layout="constrained")
    rows = figure.subplots(2, 2, width_ratios=(1.15, 1))
    for (ways, values), name in zip(rows, ("EAGD", "LGD"), strict=True):
        _contours(ways)
        for number, way in enumerate(found[name].rows.unbind(1)):
            ways.plot(*way.T.numpy(), color=style.LIGHT[number + 2], linewidth=1.4)
            values.plot(
                height(found[name].rows[:, number]).numpy(), color=style.LIGHT[number + 2], label=f"worker {number}"
            )
        ways.scatter(*found[name].rows[0].T, s=22, color=style.LIGHT[1], label="start", zorder=3)
        ways.scatter(*found[name].rows[-1].T, s=22, color=style.LIGHT[0], label="end", zorder=3)
        ways.set(title=f"{name}: trajectories", ylabel="y", aspect="equal", xlim=(-24, 24), ylim=(-20, 14))
        values.set(title=f"{name}: objective", ylabel="L(x, y)", xlim=(0, ITERATIONS), ylim=(-0.24, 0.14))
    rows[0, 0].legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")
    rows[0, 1].legend(loc="lower left", ncols=2)
    rows[1, 0].set_xlabel("x")
    rows[1, 1].set_xlabel("iterations")
    return figure


def _contours(axes: Axes) -> None:
    """The surface in grey; dashed, the rings on which it has its local minima."""
    x, y = np.meshgrid(np.linspace(-24, 24, 481), np.linspace(-20, 14, 341))
    radius = np.hypot(x, y)
    # L falls off as 1/r: its root shows the outer rings beside the inner ones.
    surface = np.sinc(radius)
    levels = np.sign(surface) * np.abs(surface) ** 0.5
    axes.contourf(x, y, levels, levels=16, cmap="Greys_r", vmin=-1, vmax=0.7, zorder=-1)
    axes.set_rasterization_zorder(0)  # tens of megabytes as paths
    fine = np.linspace(1, 32, 310_001)
    height = np.sinc(fine)
    minima = fine[1:-1][(height[1:-1] < height[:-2]) & (height[1:-1] < height[2:])]
    axes.contour(x, y, radius, levels=minima, colors="white", linewidths=0.5, linestyles="dashed")
    axes.grid(False)
