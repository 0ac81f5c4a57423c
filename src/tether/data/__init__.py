"""What to train on, and who holds what of it."""

from collections.abc import Callable

from tether.data.augmentation import Augmentation, CropAndFlip
from tether.data.cifar import cifar10
from tether.data.dataset import Dataset
from tether.data.digits import digits
from tether.data.evaluation import classification, language, regression
from tether.data.feed import Feed
from tether.data.holdings import Holdings, holdings, picture
from tether.data.images import Photographs, image_folder
from tether.data.libsvm import libsvm
from tether.data.mnist import fashion_mnist, mnist
from tether.data.partition import (
    IID,
    PARTITIONS,
    Assigned,
    Classes,
    Contiguous,
    Dirichlet,
    Groups,
    Partition,
    PowerLaw,
    Quantity,
    Reshuffled,
)
from tether.data.shards import Batches, FixedShards, ReshuffledShards, Shards
from tether.data.text import python_source, text

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "mnist": mnist,
    "cifar10": cifar10,
    "image-folder": image_folder,
    "python-source": python_source,
    "text": text,
    "libsvm": libsvm,
}
"""The data sets that have a name."""

__all__ = [
    "DATASETS",
    "IID",
    "PARTITIONS",
    "Assigned",
    "Augmentation",
    "Batches",
    "Classes",
    "Contiguous",
    "CropAndFlip",
    "Dataset",
    "Dirichlet",
    "Feed",
    "FixedShards",
    "Groups",
    "Holdings",
    "Partition",
    "Photographs",
    "PowerLaw",
    "Quantity",
    "Reshuffled",
    "ReshuffledShards",
    "Shards",
    "cifar10",
    "classification",
    "digits",
    "fashion_mnist",
    "holdings",
    "image_folder",
    "language",
    "libsvm",
    "mnist",
    "picture",
    "python_source",
    "regression",
    "text",
]
