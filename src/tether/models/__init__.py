"""What to train: standard models, sized to the data they are given, and the losses to train them on."""

from collections.abc import Callable

from torch import nn

from tether.models.cifar import cnn7, resnet20, vgg16
from tether.models.classifiers import cnn, logistic, mlp, softmax
from tether.models.objectives import LOSSES, OBJECTIVES, cross_entropy, squared_error
from tether.models.relu import relu_network
from tether.models.second_order import second_order_cnn, second_order_mlp
from tether.models.transformer import transformer
from tether.models.vision import from_torchvision

MODELS: dict[str, Callable[..., nn.Module]] = {
    "softmax": softmax,
    "logistic": logistic,
    "mlp": mlp,
    "cnn": cnn,
    "relu": relu_network,
    "second-order-mlp": second_order_mlp,
    "second-order-cnn": second_order_cnn,
    "cnn7": cnn7,
    "resnet20": resnet20,
    "vgg16": vgg16,
    "transformer": transformer,
    "torchvision": from_torchvision,
}
"""Every model by the name that configs use: a function of the shape of a sample and the number of classes."""

__all__ = [
    "LOSSES",
    "MODELS",
    "OBJECTIVES",
    "cnn",
    "cnn7",
    "cross_entropy",
    "from_torchvision",
    "logistic",
    "mlp",
    "relu_network",
    "resnet20",
    "second_order_cnn",
    "second_order_mlp",
    "softmax",
    "squared_error",
    "transformer",
    "vgg16",
]
