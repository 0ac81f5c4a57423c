"""The paper's two networks, trained by local SGD, and what is looked at on their way (section 4.1).

The mean model is kept at every round: so x_t, the gradient and the Hessian there, and the update x_t - x_{t+1} of the
next round are those of the run itself.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import tether
from tether.config import ConfigError
from tether.data import Dataset, cifar10, fashion_mnist, mnist
from tether.diagnostics import Landscape
from tether.methods import State
from tether.models import cross_entropy, second_order_cnn, second_order_mlp
from tether.papers.experiments import Setting
from tether.result import Result

DATA = "MNIST, its four files, and beside them cifar-10-batches-bin, CIFAR-10's binary version"
STAND_IN = "Fashion-MNIST"

CLIENTS, RATE, BATCH_SIZE = 100, 0.01, 10
"""Of L-SGD."""

SGD_BATCH_SIZE = 1000


@dataclass(frozen=True)
class Network:
    """A network of the paper, and how it is trained.

    Attributes:
        name: of the network.
        images: what it is trained on in the paper.
        model: makes it, sized to the data.
        period: K, local steps between rounds.
        rounds: how many the paper trains.
        precision: of its whole Hessian, which is decomposed in float64 in any case.
    """

    name: str
    images: str
    model: Callable[..., nn.Module]
    period: int
    rounds: int
    precision: torch.dtype

    def is_on_its_own(self, setting: Setting) -> bool:
        """Whether it is trained on the data that it is trained on in the paper."""
        if setting.data is None:
            return False
        return setting.paper or self.images == "MNIST" or (setting.data / "cifar-10-batches-bin").is_dir()

    def data(self, setting: Setting, held_out: int | None = None) -> Dataset:
        """The data, or what stands in for it, every pixel in [0, 1].

        Raises:
            ConfigError: if the folder has not the files that it should.
        """
        try:
            found = self._read(setting.data) if setting.data and self.is_on_its_own(setting) else fashion_mnist()
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError(f"{self.name}: {error}") from error
        found = _in_unit_range(found)
        return found if held_out is None else found.tested_on(held_out)

    def _read(self, folder: Path) -> Dataset:
        return mnist(folder) if self.images == "MNIST" else cifar10(folder, crop=32, padding=0, flip=False)

    def start(self, data: Dataset, seed: int) -> nn.Module:
        """The network before it is trained."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return self.model(data.shape, data.outputs)


MLP = Network("MLP", "MNIST", second_order_mlp, period=300, rounds=300, precision=torch.float64)
CNN = Network("CNN", "CIFAR-10", second_order_cnn, period=200, rounds=120, precision=torch.float32)


def _in_unit_range(data: Dataset) -> Dataset:
    """The same images with pixels from 0, black, to 1 in each channel, both of which occur."""
    images = data.train[0]
    low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)

    def scaled(samples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return ((samples[0] - low) / (high - low), *samples[1:])

    return dataclasses.replace(data, train=scaled(data.train), test=data.test and scaled(data.test))


@dataclass(frozen=True)
class Kept(tether.LocalSGD):
    """Local SGD whose mean model is kept at every round.

    Args:
        period: as of local SGD.
        means: where the means are put, `[d]` each.
    """

    means: list[Tensor] = field(default_factory=list)

    def receive(self, x: Float[Tensor, "r d"], state: State, message: Any) -> None:
        """As local SGD does, once the mean has been copied."""
        self.means.append(message[0].clone())
        super().receive(x, state, message)


@dataclass(frozen=True)
class Trained:
    """A network that was trained by local SGD.

    Attributes:
        network: which.
        data: on what.
        clients: by how many.
        start: before the first round.
        centers: `[rounds + 1, d]`, x_t: the mean model after t rounds.
        result: of the run.
        seed: of who holds what.
    """

    network: Network
    data: Dataset
    clients: int
    start: nn.Module
    centers: Float[Tensor, "n d"]
    result: Result
    seed: int

    def landscape(self, samples: int | None, precision: torch.dtype = torch.float64) -> Landscape:
        """The loss as a function of the parameters.

        Args:
            samples: how many of each client's samples to look at; None for all.
            precision: of all that is computed.
        """
        model, data = copy.deepcopy(self.start).to(precision), dataclasses.replace(self.data, test=None).to(precision)
        return Landscape(model, cross_entropy, data, self.clients, self.seed, samples, batch_size=2000)

    def gradient(self, round: int, samples: int | None = None) -> Float[Tensor, " d"]:
        """∇f(x_t), of all training samples, or of so many: then it is mostly noise once the gradient is small."""
        return self.landscape(samples and samples // self.clients).gradient(self.centers[round])

    def update(self, round: int) -> Float[Tensor, " d"]:
        """Δ_t = x_t - x_{t+1} of a round (eq. 9)."""
        return self.centers[round].double() - self.centers[round + 1].double()


def train(
    network: Network,
    setting: Setting,
    rounds: int,
    clients: int = CLIENTS,
    on_progress: Callable[[float], None] = lambda share: None,
    **evaluation: Any,
) -> Trained:
    """Train a network on IID clients.

    Args:
        network: which.
        setting: where the data is.
        rounds: how many.
        clients: how many.
        on_progress: told the share of it that is done.
        evaluation: `held_out`, the number of test images to evaluate on after every round. Default: none is done.
    """
    data = network.data(setting, **evaluation)
    model = network.start(data, setting.seed)
    method = Kept(network.period)
    measures: Mapping[str, Any] = {"evaluate": data.evaluation(), "evaluate_every": network.period}
    steps = rounds * network.period
    result = tether.simulate(
        model,
        method,
        data,
        workers=clients,
        objective=cross_entropy,
        optimizer=sgd(RATE),
        steps=steps,
        batch_size=BATCH_SIZE,
        seed=setting.seed,
        on_progress=lambda count, loss: on_progress(count / steps),
        **(measures if evaluation else {}),
    )
    first = nn.utils.parameters_to_vector(model.parameters()).detach()
    return Trained(network, data, clients, model, torch.stack([first, *method.means]), result, setting.seed)


def sgd(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    """Plain SGD, as `simulate` takes it."""
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


def about(networks: Mapping[Network, int], setting: Setting) -> list[str]:
    """What the paper leaves open, and what is not as there.

    Args:
        networks: each with its number of clients.
        setting: what there is.
    """
    said = []
    for network, clients in networks.items():
        if not network.is_on_its_own(setting):
            said.append(
                f"{network.name}: on Fashion-MNIST instead of {network.images}, so claims are about the shape only"
                + (f"; {clients} clients instead of {CLIENTS}." if clients != CLIENTS else ".")
            )
    said.append(
        "Pixels are in [0, 1]: the paper does not say how it scales them, on which eigenvalues depend as their square. "
        f"As its table 4 has it, outputs pass through a ReLU. L-SGD: η = {RATE}, batches of {BATCH_SIZE}, "
        f"K = {', '.join(f'{each.period} ({each.name})' for each in networks)}."
    )
    return said
