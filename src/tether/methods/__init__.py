"""The methods: what a round between workers does, one file each."""

from tether.methods.asynchronous_elastic import AsynchronousEASGD
from tether.methods.asynchronous_outer import AsynchronousDiLoCo
from tether.methods.averaging import LocalSGD, SyncSGD
from tether.methods.base import Method, State, Step
from tether.methods.center import CenterMethod
from tether.methods.cooperative import CooperativeSGD
from tether.methods.decentralized import DecentralizedSGD
from tether.methods.downpour import Downpour
from tether.methods.elastic import EASGD
from tether.methods.federated import FedAvg
from tether.methods.generalized_elastic import GeneralizedElastic
from tether.methods.hierarchical_elastic import HierarchicalElastic
from tether.methods.leader import LSGD, MultiLeaderLSGD

METHODS: dict[str, type[Method]] = {
    "sync": SyncSGD,
    "local": LocalSGD,
    "easgd": EASGD,
    "decentralized": DecentralizedSGD,
    "cooperative": CooperativeSGD,
    "generalized-elastic": GeneralizedElastic,
    "hierarchical-elastic": HierarchicalElastic,
    "leader": LSGD,
    "multi-leader": MultiLeaderLSGD,
    "fedavg": FedAvg,
    "downpour": Downpour,
    "asynchronous-easgd": AsynchronousEASGD,
    "asynchronous-diloco": AsynchronousDiLoCo,
}
"""Every method by the name that configs and the command use."""

__all__ = [
    "EASGD",
    "LSGD",
    "METHODS",
    "AsynchronousDiLoCo",
    "AsynchronousEASGD",
    "CenterMethod",
    "CooperativeSGD",
    "DecentralizedSGD",
    "Downpour",
    "FedAvg",
    "GeneralizedElastic",
    "HierarchicalElastic",
    "LocalSGD",
    "Method",
    "MultiLeaderLSGD",
    "State",
    "Step",
    "SyncSGD",
]
