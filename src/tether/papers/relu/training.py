"""ReLU networks on fifty clients, trained by local SGD with different widths, depths and periods (section 6).

The paper prints neither learning rates, nor batches, nor how long it trained. Samples have |x| = 1, as its assumption 1
has them. Each curve is the best of a few learning rates, in units of 2d/(L m), for d outputs and L layers of m neurons:
the inverse of what one sample's gradient of an output has for a squared norm at the start. So they fall with width and
depth, as theorem 2 has them fall with width, and the same few suit all networks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tether.config import Config, validate
from tether.papers import curves
from tether.papers.experiments import Claim, Outcome, Setting, Table
from tether.papers.mnist import mnist_or_stand_in
from tether.papers.runs import carry_out
from tether.report import style
from tether.report.papers import logarithmic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLIENTS = 50

DISTRIBUTIONS: Mapping[str, Any] = {"IID": "iid", "non-IID": {"name": "classes", "classes": 2}}

PIXELS, CLASSES = 28 * 28, 10
"""Of MNIST and of Fashion-MNIST."""

LATE = 0.25
"""Ends are means over this last share of a run: batches are small."""


@dataclass(frozen=True)
class Network:
    """A network, and how often its copies meet.

    Attributes:
        width: m, neurons of each hidden layer.
        depth: L, hidden layers.
        period: τ.
    """

    width: int = 50
    depth: int = 1
    period: int = 10

    @property
    def parameters(self) -> int:
        """Of all its layers, the fixed one included."""
        return PIXELS * self.width + (self.depth - 1) * self.width**2 + self.width * CLASSES

    @property
    def rate(self) -> float:
        """The unit of its learning rates."""
        return 2 * CLASSES / (self.depth * self.width)


@dataclass(frozen=True)
class Size:
    """How long all are trained, and with what.

    Attributes:
        steps: local steps of every client.
        batch_size: of every client.
        evaluations: of each run.
        held_out: test images to evaluate on; None for all.
        rates: learning rates that each curve is the best of, in its network's unit.
    """

    steps: int
    batch_size: int
    evaluations: int
    held_out: int | None
    rates: tuple[float, ...]

    def config(self, network: Network, distribution: str, rate: float, setting: Setting) -> Config:
        """A run."""
        settings = {
            "workers": CLIENTS,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "seed": setting.seed,
            "evaluate_every": max(1, self.steps // self.evaluations),
            "data": mnist_or_stand_in(setting, self.held_out) | {"partition": DISTRIBUTIONS[distribution]},
            "model": {"name": "relu", "width": network.width, "depth": network.depth, "unit_samples": True},
            "objective": "squared-error",
            "optimizer": {"name": "SGD", "lr": rate * network.rate},
            "method": "local",
            "period": network.period,
        }
        return validate(Config, settings, _name(network, distribution, rate))


PAPER = Size(steps=10_000, batch_size=50, evaluations=100, held_out=None, rates=(16.0, 8.0, 4.0, 2.0, 1.0, 0.5))
SMALL = Size(steps=300, batch_size=10, evaluations=20, held_out=2000, rates=(16.0, 8.0, 4.0, 2.0))


def _name(network: Network, distribution: str, rate: float) -> str:
    what = f"width-{network.width}-depth-{network.depth}-period-{network.period}"
    return f"{distribution}-{what}-rate-{rate:g}"


class Found:
    """What the curves of a figure have come to.

    Args:
        networks: the curves, by what their figure calls them.
        size: how long they are trained.
        setting: where.
    """

    def __init__(self, networks: Mapping[str, Network], size: Size, setting: Setting):
        self.networks, self.size = networks, size
        self._tries = list(itertools.product(DISTRIBUTIONS, networks, size.rates))
        configs = [size.config(networks[label], how, rate, setting) for how, label, rate in self._tries]
        names = [_name(networks[label], how, rate) for how, label, rate in self._tries]
        runs = carry_out(dict(zip(names, configs, strict=True)), setting)
        self.runs = dict(zip(self._tries, runs.values(), strict=True))

    def best(self, label: str, distribution: str) -> float:
        """The learning rate of a curve: that with the least test loss at the end, if it did not diverge."""
        tries = [each for each in self._tries if each[:2] == (distribution, label)]
        return min(tries, key=lambda each: (not self.runs[each].ended, self._end(each, "loss")))[2]

    def curve(self, label: str, distribution: str, measure: str = "loss", rate: float | None = None) -> curves.Curve:
        """Local steps, and the test "loss" or "accuracy" of the mean model then; at its best learning rate."""
        run = self.runs[distribution, label, self.best(label, distribution) if rate is None else rate]
        return curves.of_center(run, measure)

    def end(self, label: str, distribution: str, measure: str = "loss", rate: float | None = None) -> float:
        """The mean of a measure in the last quarter of a run."""
        return self._end((distribution, label, self.best(label, distribution) if rate is None else rate), measure)

    def _end(self, key: tuple[str, str, float], measure: str) -> float:
        _, values = curves.of_center(self.runs[key], measure)
        late = values[-math.ceil(LATE * self.size.evaluations) :]
        return float(late.mean()) if len(late) else math.inf

    def sooner(self, label: str, than: str, distribution: str) -> float:
        """How many times fewer local steps a curve takes to the same test losses as another."""
        return curves.times_sooner(self.curve(label, distribution), self.curve(than, distribution))

    def outcome(self, claims: list[Claim], figure: str, setting: Setting) -> Outcome:
        """What the figure shows."""
        chosen = "; ".join(
            f"{how}, {label}: {self.best(label, how):g}"
            for how, label in itertools.product(DISTRIBUTIONS, self.networks)
        )
        rates = (
            f"Each curve is that of the learning rates {', '.join(f'{rate:g}' for rate in self.size.rates)} with the "
            f"least test loss at the end, the mean of the last quarter, in units of 2d/(Lm), as theorem 2 scales "
            f"them with width; the paper prints none. Taken: {chosen}."
        )
        return Outcome(claims, {figure: self.draw()}, self.tables(), [rates, self._differs(setting)])

    def _differs(self, setting: Setting) -> str:
        """What the paper leaves open, and what is not as there."""
        size = self.size
        said = (
            "The top layer is fixed, ‖x‖ = 1 (assumption 1), and the loss is the squared one of section 3. The paper "
            f"prints neither batches nor how long it trains; these are {size.steps:,} local steps with batches of "
            f"{size.batch_size}. Measured is the mean model, on "
            f"{'all' if size.held_out is None else f'{size.held_out:,}'} test images."
        )
        where = "" if setting.data else "On Fashion-MNIST instead of MNIST: the claims are about the shape only. "
        return where + said

    def tables(self) -> dict[str, Table]:
        """All tries and how they ended; the curves of all of them."""

        def who(key: tuple[str, str, float]) -> dict[str, Any]:
            how, label, rate = key
            network = self.networks[label]
            return {
                "distribution": how,
                "width": network.width,
                "depth": network.depth,
                "period": network.period,
                "rate": rate,
                "lr": rate * network.rate,
            }

        tries = [
            who(key)
            | {f"test_{measure}_at_the_end": self._end(key, measure) for measure in ("loss", "accuracy")}
            | {"shown": key[2] == self.best(key[1], key[0]), "status": self.runs[key].status}
            for key in self._tries
        ]
        points = [
            who(key) | {"local_steps": int(step), "test_loss": float(loss), "test_accuracy": float(accuracy)}
            for key in self._tries
            for step, loss, accuracy in zip(
                *self.curve(key[1], key[0], "loss", key[2]),
                self.curve(key[1], key[0], "accuracy", key[2])[1],
                strict=True,
            )
        ]
        return {"tries": tries, "curves": points}

    def draw(self) -> Figure:
        """Test loss and accuracy of the mean model over the local steps: IID on the left, non-IID on the right."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter

        figure = Figure((7.0, 4.4), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True, sharey="row")
        for column, how in enumerate(DISTRIBUTIONS):
            for row, measure in enumerate(("loss", "accuracy")):
                for number, label in enumerate(self.networks):
                    colour = style.LIGHT[number]
                    panels[row, column].plot(*self.curve(label, how, measure), color=colour, label=label)
            logarithmic(panels[0, column])
            panels[0, column].set_title(how)
            panels[1, column].set(xlabel="local steps", xlim=(0, self.size.steps))
        panels[0, 0].set_ylabel("test loss")
        panels[1, 0].set_ylabel("test accuracy")
        panels[1, 0].yaxis.set_major_formatter(PercentFormatter(xmax=1))
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(self.networks))
        return figure
