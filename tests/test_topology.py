"""Graphs, mixing matrices, and how fast they mix."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods_table import elastic_matrix, random_mixing_matrix
from tether import topology
from tether.topology import TOPOLOGIES, as_topology, check_mixing_matrix, metropolis_hastings, zeta

STATIC = [name for name in TOPOLOGIES if name != "one-peer-exponential"]


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("m", [1, 2, 4, 8, 12, 16])
def test_weights_satisfy_the_assumptions(name, m):
    if (name == "hypercube" and m == 12) or (name == "random-regular" and m < 4):
        with pytest.raises(ValueError, match=r"power of two|degree"):
            as_topology(name).weights(m)
        return
    W = as_topology(name).weights(m)
    check_mixing_matrix(W)
    assert (W.to_dense().numpy() >= -1e-15).all()
    neighbours = as_topology(name).graph(m)
    off = W.to_dense().numpy() * (1 - np.eye(m))
    assert {tuple(e) for e in np.argwhere(off)} == {e for i, j in neighbours.edges for e in ((i, j), (j, i))}


@pytest.mark.parametrize("m", [3, 5, 8])
def test_a_ring_has_a_third_each(m):
    W = topology.Ring().weights(m).to_dense().numpy()
    np.testing.assert_allclose(W, (np.eye(m) + np.roll(np.eye(m), 1, 0) + np.roll(np.eye(m), -1, 0)) / 3)


def test_metropolis_hastings_of_a_path():
    W = metropolis_hastings(nx.path_graph(3)).to_dense().numpy()
    np.testing.assert_allclose(W, np.array([[2, 1, 0], [1, 1, 1], [0, 1, 2]]) / 3)


@pytest.mark.parametrize(
    ("name", "m", "edges"),
    [
        ("complete", 6, 15),
        ("ring", 6, 6),
        ("ring", 2, 1),
        ("star", 6, 5),
        ("grid", 6, 7),
        ("torus", 6, 9),
        ("torus", 9, 18),
        ("hypercube", 8, 12),
        ("exponential", 8, 20),
        ("random-regular", 8, 12),
    ],
)
def test_edges(name, m, edges):
    assert as_topology(name).graph(m).number_of_edges() == edges


def test_lazy_keeps_a_share_of_ones_own():
    W, lazy = (topology.Ring(lazy=share).weights(6).to_dense().numpy() for share in (0.0, 0.25))
    np.testing.assert_allclose(lazy, 0.75 * W + 0.25 * np.eye(6))
    check_mixing_matrix(lazy)


@pytest.mark.parametrize("m", [2, 3, 6, 8])
def test_one_peer_rows_and_columns_sum_to_one(m):
    for round_ in range(5):
        W = topology.OnePeerExponential().weights(m, round_).to_dense().numpy()
        np.testing.assert_allclose(W.sum(0), 1)
        np.testing.assert_allclose(W.sum(1), 1)
        assert (np.count_nonzero(W, axis=1) == 2).all()


def test_a_graph_of_the_users_own():
    graph = nx.petersen_graph()
    assert zeta(as_topology(graph).weights(10)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="10 nodes for 8 workers"):
        as_topology(graph).weights(8)
    with pytest.raises(ValueError, match="2 parts"):
        as_topology(nx.Graph([(0, 1), (2, 3)])).weights(4)
    with pytest.raises(ValueError, match="undirected"):
        as_topology(nx.DiGraph([(0, 1)])).weights(2)
    loop = nx.Graph([(0, 1), (1, 1)])
    np.testing.assert_allclose(as_topology(loop).weights(2).to_dense(), 0.5)


def test_random_graphs_depend_on_their_seed_only():
    for make in (lambda s: topology.RandomRegular(seed=s), lambda s: topology.ErdosRenyi(0.4, seed=s)):
        assert nx.utils.edges_equal(make(1).graph(12).edges, make(1).graph(12).edges)
        assert not nx.utils.edges_equal(make(1).graph(12).edges, make(2).graph(12).edges)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: as_topology("rign"), "no topology is called 'rign'; did you mean 'ring'"),
        (lambda: topology.Ring(lazy=1.0), r"lazy=1.0.*\[0, 1\)"),
        (lambda: topology.OnePeerExponential(lazy=0.5), "lazy=0.5"),
        (lambda: topology.Hypercube().weights(6), "power of two, such as 4 or 8"),
        (lambda: topology.Torus().weights(7), "torus of 7 workers would be a line.*such as 4"),
        (lambda: topology.RandomRegular(degree=3).weights(5), "degree x workers even"),
        (lambda: topology.RandomRegular(degree=1).weights(6), "raise the degree"),
        (lambda: topology.ErdosRenyi(0.01).weights(20), "probability=0.01 leaves 20 workers unconnected"),
        (lambda: topology.ErdosRenyi(1.5).weights(4), "probability=1.5"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_zeta_projects_consensus_out():
    """SPEC section 2: sorting |eigenvalues| is wrong where one lies below -1."""
    assert zeta(elastic_matrix(0.23)) == pytest.approx(1.07)
    assert zeta(elastic_matrix(0.2)) == pytest.approx(8 / 10)
    assert zeta(np.ones((5, 5)) / 5) == pytest.approx(0, abs=1e-12)
    assert zeta(np.eye(5)) == pytest.approx(1)
    assert zeta(np.ones((1, 1))) == 0


@settings(deadline=None, max_examples=50)
@given(m=st.integers(2, 10), seed=st.integers(0, 10**6))
def test_zeta_is_the_second_eigenvalue(m, seed):
    W = random_mixing_matrix(m, seed)
    check_mixing_matrix(W)
    assert zeta(W) == pytest.approx(np.sort(np.abs(np.linalg.eigvalsh(W)))[-2], abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(m=st.integers(2, 12), probability=st.floats(0.3, 1.0), seed=st.integers(0, 1000))
def test_any_connected_graph_mixes(m, probability, seed):
    graph = nx.gnp_random_graph(m, probability, seed=seed)
    if nx.is_connected(graph):
        check_mixing_matrix(as_topology(graph).weights(m))
    else:
        with pytest.raises(ValueError, match="parts"):
            as_topology(graph).weights(m)
