"""Who talks to whom: graphs, mixing matrices, and how fast they mix."""

from tether.topology.elastic import best_elasticity, check_elasticity, elastic_limit, elastic_zeta
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
    "best_elasticity",
    "check_elasticity",
    "check_mixing_matrix",
    "check_present",
    "elastic_limit",
    "elastic_zeta",
    "metropolis_hastings",
    "zeta",
]
