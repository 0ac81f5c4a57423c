"""What to train on, and who holds what of it."""

from tether.data.dataset import Dataset, classification
from tether.data.digits import digits
from tether.data.feed import Feed
from tether.data.mnist import fashion_mnist, mnist
from tether.data.partition import IID, PARTITIONS, Assigned, Classes, Dirichlet, Partition, Reshuffled
from tether.data.shards import Batches, FixedShards, ReshuffledShards, Shards

__all__ = [
    "IID",
    "PARTITIONS",
    "Assigned",
    "Batches",
    "Classes",
    "Dataset",
    "Dirichlet",
    "Feed",
    "FixedShards",
    "Partition",
    "Reshuffled",
    "ReshuffledShards",
    "Shards",
    "classification",
    "digits",
    "fashion_mnist",
    "mnist",
]
