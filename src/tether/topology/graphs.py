"""Who talks to whom: the graphs.

A topology is a rule that gives a graph for any number of workers. Its mixing matrix W has Metropolis-Hastings weights,

    w_ij = 1 / (1 + max(deg i, deg j)) for neighbours,    w_ii = 1 - sum of the others,

(Xiao & Boyd, "Fast linear iterations for distributed averaging", 2004), so W is symmetric with unit row sums whatever
the graph: the mean of the workers is preserved. A `lazy` topology keeps a share of each worker's own model on top:
W <- (1 - lazy) W + lazy I.

The rate at which differences between workers shrink is zeta(W), the second largest absolute eigenvalue.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
from jaxtyping import Float
from torch import Tensor

from tether.checks import nearest
from tether.topology.mixing import metropolis_hastings, sparse, zeta


@dataclass(frozen=True)
class Topology:
    """A graph for any number of workers. Subclasses say which; `lazy` is how much each worker keeps of its own model.

    Raises:
        ValueError: if lazy is outside [0, 1), or (from `weights`) there is no such graph for the number of workers.
    """

    lazy: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.lazy < 1:
            raise ValueError(f"lazy={self.lazy}: the share each worker keeps of its own model lies in [0, 1)")

    def graph(self, workers: int) -> nx.Graph:
        """The undirected graph, nodes 0 to m-1."""
        raise TypeError(f"{type(self).__name__} says no graph")

    def weights(self, workers: int, round: int = 0) -> Float[Tensor, "m m"]:
        """The mixing matrix W of a round, sparse (CSR), float64.

        Args:
            workers: number of workers m.
            round: number of the round, from 0; only time-varying topologies ask.
        """
        return _weights(self, workers)

    def zeta(self, workers: int) -> float:
        """The second largest absolute eigenvalue of W."""
        return zeta(self.weights(workers))


@dataclass(frozen=True)
class Complete(Topology):
    """Everyone with everyone: W is the matrix J of ones over m, one round is the exact mean."""

    def graph(self, workers: int) -> nx.Graph:  # noqa: D102
        return nx.complete_graph(workers)


@dataclass(frozen=True)
class Ring(Topology):
    """Each worker with the one before and the one after: weights of 1/3 from three workers on."""

    def graph(self, workers: int) -> nx.Graph:  # noqa: D102
        # networkx's cycle of one or two nodes has loops.
        return nx.cycle_graph(workers) if workers > 2 else nx.path_graph(workers)


@dataclass(frozen=True)
class Star(Topology):
    """Worker 0 with everyone else."""

    def graph(self, workers: int) -> nx.Graph:  # noqa: D102
        return nx.star_graph(workers - 1)


@dataclass(frozen=True)
class Grid(Topology):
    """A rectangle, as near to square as the number of workers allows; each worker with up to four neighbours."""

    def graph(self, workers: int) -> nx.Graph:  # noqa: D102
        return _numbered(nx.grid_2d_graph(*_sides(workers, "grid")))


@dataclass(frozen=True)
class Torus(Topology):
    """A grid whose opposite edges are joined: each worker with four neighbours."""

    def graph(self, workers: int) -> nx.Graph:  # noqa: D102
        rows, columns = _sides(workers, "torus")
        return _numbered(nx.grid_2d_graph(rows, columns, periodic=(rows > 2, columns > 2)))


@dataclass(frozen=True)
class Hypercube(Topology):
    """Workers whose numbers differ in one bit are neighbours; m must be a power of two."""

    def graph(self, workers: int) -> nx.Graph:  # noqa: D102
        dimension = workers.bit_length() - 1
        if workers != 2**dimension:
            raise ValueError(
                f"a hypercube of {workers} workers: the number must be a power of two, "
                f"such as {2**dimension} or {2 ** (dimension + 1)}"
            )
        graph = nx.empty_graph(workers)
        graph.add_edges_from((i, i ^ (1 << bit)) for i in range(workers) for bit in range(dimension))
        return graph


@dataclass(frozen=True)
class Exponential(Topology):
    """Static exponential graph, both ways: worker i with i +- 1, 2, 4, 8, ... (mod m)."""

    def graph(self, workers: int) -> nx.Graph:  # noqa: D102
        graph = nx.circulant_graph(workers, [2**k for k in range(_hops(workers))])
        graph.remove_edges_from(list(nx.selfloop_edges(graph)))
        return graph


@dataclass(frozen=True)
class OnePeerExponential(Topology):
    """Time-varying: in round k, worker i averages with worker i + 2^(k mod log2 m) and no one else.

    W_k = (I + P^(2^k)) / 2 with P the cyclic shift: not symmetric, but rows and columns sum to one. If m is a power of
    two, any log2(m) consecutive rounds are the exact mean (Ying et al., "Exponential graph is provably efficient for
    decentralized deep training", 2021, theorem 2).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lazy:
            raise ValueError(f"lazy={self.lazy}: one-peer exponential is exact only without; leave it at 0")

    def weights(self, workers: int, round: int = 0) -> Float[Tensor, "m m"]:  # noqa: D102
        hops = _hops(workers)
        return _one_peer(workers, 2 ** (round % hops) if hops else 0)

    def zeta(self, workers: int) -> float:
        """Undefined: W changes from round to round.

        Raises:
            ValueError: always.
        """
        raise ValueError("the one-peer exponential graph changes every round: no single zeta describes it")


@dataclass(frozen=True)
class RandomRegular(Topology):
    """A random graph in which everyone has `degree` neighbours; redrawn from `seed` until it is connected."""

    degree: int = 3
    seed: int = 0

    def graph(self, workers: int) -> nx.Graph:  # noqa: D102
        if not 0 < self.degree < workers or self.degree * workers % 2:
            raise ValueError(
                f"a random regular graph of degree {self.degree} on {workers} workers: the degree must be between "
                f"1 and {workers - 1}, and degree x workers even"
            )
        return _connected(
            lambda seed: nx.random_regular_graph(self.degree, workers, seed=seed),
            self.seed,
            f"degree={self.degree} leaves {workers} workers unconnected; raise the degree",
        )


@dataclass(frozen=True)
class ErdosRenyi(Topology):
    """A random graph with each edge present with `probability`; redrawn from `seed` until it is connected."""

    probability: float = 0.5
    seed: int = 0

    def graph(self, workers: int) -> nx.Graph:  # noqa: D102
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability={self.probability}: an edge's probability lies in (0, 1]")
        return _connected(
            lambda seed: nx.gnp_random_graph(workers, self.probability, seed=seed),
            self.seed,
            f"probability={self.probability} leaves {workers} workers unconnected; it takes more than about "
            f"log(m)/m = {math.log(max(workers, 2)) / workers:.2g}",
        )


@dataclass(frozen=True)
class FromGraph(Topology):
    """Any undirected networkx graph; its nodes, in their order, are workers 0 to m-1."""

    given: nx.Graph | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.given, nx.Graph) or self.given.is_directed():
            raise ValueError("FromGraph takes an undirected networkx graph: FromGraph(graph)")
        # What the user does to the graph later must not change the topology of a run, nor miss its matrix's cache.
        object.__setattr__(self, "given", nx.freeze(self.given.copy()))

    def graph(self, workers: int) -> nx.Graph:  # noqa: D102
        assert self.given is not None
        if len(self.given) != workers:
            raise ValueError(f"the graph has {len(self.given)} nodes for {workers} workers: it needs one a worker")
        graph = _numbered(self.given)
        graph.remove_edges_from(list(nx.selfloop_edges(graph)))
        return graph


TOPOLOGIES: dict[str, type[Topology]] = {
    "complete": Complete,
    "ring": Ring,
    "star": Star,
    "grid": Grid,
    "torus": Torus,
    "hypercube": Hypercube,
    "exponential": Exponential,
    "one-peer-exponential": OnePeerExponential,
    "random-regular": RandomRegular,
    "erdos-renyi": ErdosRenyi,
}
"""The topologies that have a name."""


def as_topology(topology: str | Topology | nx.Graph) -> Topology:
    """A topology from its name, from a networkx graph, or as it is.

    Raises:
        ValueError: if there is none of that name; the message has the nearest.
    """
    if isinstance(topology, Topology):
        return topology
    if isinstance(topology, nx.Graph):
        return FromGraph(topology)
    if not isinstance(topology, str):
        raise ValueError(f"topology={topology!r}: give a name, a Topology or a networkx graph")
    if topology in TOPOLOGIES:
        return TOPOLOGIES[topology]()
    raise ValueError(f"no topology is called {topology!r}; {nearest(topology, TOPOLOGIES)}")


@functools.lru_cache(maxsize=64)
def _weights(topology: Topology, workers: int) -> Float[Tensor, "m m"]:
    graph = topology.graph(workers)
    if not nx.is_connected(graph):
        parts = nx.number_connected_components(graph)
        raise ValueError(f"the graph falls into {parts} parts; workers in different ones would never agree")
    W = metropolis_hastings(graph)
    if topology.lazy:
        everyone = np.arange(workers)
        identity = sparse(everyone, everyone, np.ones(workers), workers)
        W = W * (1 - topology.lazy) + identity * topology.lazy
    return W


@functools.lru_cache(maxsize=64)
def _one_peer(workers: int, hop: int) -> Float[Tensor, "m m"]:
    if not hop:
        return sparse([0], [0], np.ones(1), 1)
    everyone = np.arange(workers)
    peers = (everyone + hop) % workers
    return sparse(
        np.concatenate([everyone, everyone]),
        np.concatenate([everyone, peers]),
        np.full(2 * workers, 0.5),
        workers,
    )


def _numbered(graph: nx.Graph) -> nx.Graph:
    return nx.convert_node_labels_to_integers(graph, ordering="default")


def _hops(workers: int) -> int:
    """How many powers of two lie below m: 1, 2, 4, ..."""
    return math.ceil(math.log2(workers))


def _sides(workers: int, name: str) -> tuple[int, int]:
    short = next(side for side in range(math.isqrt(workers), 0, -1) if workers % side == 0)
    if short == 1 and workers > 3:
        raise ValueError(
            f"a {name} of {workers} workers would be a line: choose a number with a factor near its square root, "
            f"such as {math.isqrt(workers) ** 2}, or topology='ring'"
        )
    return short, workers // short


def _connected(draw, seed: int, remedy: str, tries: int = 100) -> nx.Graph:  # type: ignore[no-untyped-def]
    for attempt in range(tries):
        graph = draw(np.random.RandomState((seed * tries + attempt) % 2**32))
        if nx.is_connected(graph):
            return graph
    raise ValueError(f"{remedy} (tried {tries} draws)")
