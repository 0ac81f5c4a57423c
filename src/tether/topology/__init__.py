"""Who talks to whom: graphs, mixing matrices, and how fast they mix."""

from tether.topology.graphs import (
    TOPOLOGIES,
    Complete,
    ErdosRenyi,
    Exponential,
    FromGraph,
    Grid,
    Hypercube,
    OnePeerExponential,
    RandomRegular,
    Ring,
    Star,
    Topology,
    Torus,
    as_topology,
)
from tether.topology.mixing import check_mixing_matrix, check_present, metropolis_hastings, zeta

__all__ = [
    "TOPOLOGIES",
    "Complete",
    "ErdosRenyi",
    "Exponential",
    "FromGraph",
    "Grid",
    "Hypercube",
    "OnePeerExponential",
    "RandomRegular",
    "Ring",
    "Star",
    "Topology",
    "Torus",
    "as_topology",
    "check_mixing_matrix",
    "check_present",
    "metropolis_hastings",
    "zeta",
]
