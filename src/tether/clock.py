"""Virtual time: how long local steps and messages take on a cluster that need not exist.

A simulated worker has a time of its own. Its local steps move it by durations that are drawn, and it waits for
messages until they have arrived. Nothing here depends on what is trained: the same seed gives the same times to the
bit.

The model of a network is that of bottlenecks: a message takes the latency of its link, and its bytes times 8 over the
bandwidth of whatever is narrowest on its way, shared with what else goes through there at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float, Int

from tether.traffic import AllReduce, Broadcast, Exchange, Gather, Traffic

Noise = Literal["none", "lognormal", "exponential"]

End: TypeAlias = "tuple[str, int, bool]"
"""Where a message shares a link with others: "out" of or "in" to which worker, or node if true."""

Link: TypeAlias = "tuple[float, float, float, tuple[End, End]]"
"""Seconds of latency, bits a second between these two, and at either end for all that goes through it; the ends."""

PIECES = 32
"""In so many pieces a leader's row goes down the chain of workers, as real ones hand it on (`tether.Ranks`)."""

DRAWN = 256
"""Durations drawn at a time. Which they are is a function of (seed, worker, step) whatever is asked for."""


@dataclass(frozen=True)
class Clock:
    """How long local steps and messages take.

    A local step of worker i takes step / speeds[i] seconds, times a random number of mean 1 and standard deviation
    `spread`. Workers live on nodes; the workers of a node share its link to the others.

    Args:
        step: seconds a local step takes, on average, at a speed of 1.
        speeds: how fast each worker is, such as (1, 1, 1, 0.25) with a last worker that takes four times as long.
            Default: all at 1.
        noise: "lognormal"; "exponential", which is (1 - spread) + spread times an exponential variable; or "none".
        spread: standard deviation of a step's duration over its mean; at most 1 for "exponential".
        pauses: (worker, step, seconds): so long this worker pauses before this local step, counted from 0.
        latency: seconds until the first byte of a message to another node arrives.
        bandwidth: bits a second of each node's link to the others, in each direction.
        nodes: the number of nodes, of equally many consecutive workers. Default: each worker is one.
        node_latency: seconds, between workers of a node.
        node_bandwidth: bits a second of each worker's link within its node, in each direction.
        links: (node, node, latency, bandwidth): what is different between these two, in both directions.
        round: seconds that a round costs each worker besides its messages: what the software does. Of rounds in which
            workers meet; not of visits to a center.

    Raises:
        ValueError: if a number is not possible; by `simulate`, if it does not suit the number of workers.
    """

    step: float
    speeds: tuple[float, ...] | None = None
    noise: Noise = "none"
    spread: float = 0.0
    pauses: tuple[tuple[int, int, float], ...] = ()
    latency: float = 0.0
    bandwidth: float = float("inf")
    nodes: int | None = None
    node_latency: float = 0.0
    node_bandwidth: float = float("inf")
    links: tuple[tuple[int, int, float, float], ...] = ()
    round: float = 0.0

    def __post_init__(self) -> None:
        if self.noise not in get_args(Noise):
            raise ValueError(f"noise={self.noise!r}: choose one of {', '.join(get_args(Noise))}")
        if (self.spread > 0) != (self.noise != "none"):
            raise ValueError(
                f"noise={self.noise!r} with spread={self.spread:g}: noise has a spread, and only noise has"
            )
        if self.noise == "exponential" and self.spread > 1:
            raise ValueError(
                f"spread={self.spread:g}: of an exponential variable at most 1, or steps end before they begin"
            )
        for name in ("bandwidth", "node_bandwidth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: bits a second, more than 0")
        for name in ("step", "spread", "latency", "node_latency", "round"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: give a number, at least 0")
        if self.speeds is not None and not all(0 < speed < float("inf") for speed in self.speeds):
            raise ValueError(f"speeds={self.speeds}: each must be more than 0")
        if not all(seconds >= 0 for _, _, seconds in self.pauses):
            raise ValueError(f"pauses={self.pauses}: seconds must be at least 0")
        if not all(latency >= 0 and bandwidth > 0 for _, _, latency, bandwidth in self.links):
            raise ValueError(f"links={self.links}: give (node, node, latency, bandwidth), the last more than 0")

    def check(self, workers: int) -> None:
        """Raise `ValueError` unless the clock is one of so many workers."""
        if self.speeds is not None and len(self.speeds) != workers:
            raise ValueError(f"{len(self.speeds)} speeds for {workers} workers: give one a worker")
        if self.nodes is not None and (self.nodes < 1 or workers % self.nodes):
            raise ValueError(f"nodes={self.nodes}: {workers} workers do not divide into so many nodes of equal size")
        for worker, _, _ in self.pauses:
            if not 0 <= worker < workers:
                raise ValueError(f"pauses: there is no worker {worker} among {workers}")
        nodes = self.nodes or workers
        for a, b, _, _ in self.links:
            if not (0 <= a < nodes and 0 <= b < nodes) or a == b:
                raise ValueError(f"links: there are no two nodes {a} and {b} among {nodes}")


class Cluster:
    """The clock of so many workers: when steps end and messages arrive.

    Args:
        clock: how long things take.
        workers: number of workers m.
        seed: of the noise.
    """

    def __init__(self, clock: Clock, workers: int, seed: int):
        clock.check(workers)
        self.clock = clock
        self.workers = workers
        self._seed = seed
        self._node = np.arange(workers) // (workers // (clock.nodes or workers))
        self._drawn: dict[int, tuple[int, np.ndarray]] = {}
        self._known: dict[tuple[type, int, bytes], float] = {}
        self._pairs: dict[tuple[int, int], Link] = {}

    def steps(self, worker: int, first: int, count: int) -> Float[np.ndarray, " count"]:
        """Seconds that so many local steps of a worker take, from step number `first` on."""
        speed = 1.0 if self.clock.speeds is None else self.clock.speeds[worker]
        seconds = self.clock.step / speed * self._noise(worker, first, count)
        for _, step, pause in self._pauses.get(worker, ()):
            if first <= step < first + count:
                seconds[step - first] += pause
        return seconds

    def arrivals(self, traffic: Traffic, ready: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """When what workers send has arrived: for each of them the time from which it has what it waits for.

        Args:
            traffic: what they send.
            ready: when each of them begins; whoever takes no part is done at once.
        """
        done = ready.copy()
        if isinstance(traffic, Exchange):
            ends = traffic.receivers, traffic.senders
            np.maximum.at(done, ends[0], ready[ends[1]] + self._seconds(*ends, traffic.size))
        else:
            members = traffic.members
            done[members] = ready[members].max() + self._together(traffic)
        return done

    def link(self, sender: int, receiver: int) -> Link:
        """Between two workers: latency, bandwidth, what its ends carry for all, and by what names these are known.

        Workers of a node have their ends in common where they talk to other nodes.
        """
        if (sender, receiver) not in self._pairs:
            self._pairs[sender, receiver] = self._find_link(sender, receiver)
        return self._pairs[sender, receiver]

    def _find_link(self, sender: int, receiver: int) -> Link:
        latency, bandwidth = (float(each[0]) for each in self._links(np.array([receiver]), np.array([sender])))
        outside = bool(self._node[sender] != self._node[receiver])
        if not outside:
            return latency, bandwidth, self.clock.node_bandwidth, (("out", sender, False), ("in", receiver, False))
        ends = (("out", int(self._node[sender]), True), ("in", int(self._node[receiver]), True))
        return latency, bandwidth, self.clock.bandwidth, ends

    def _together(self, traffic: AllReduce | Gather | Broadcast) -> float:
        """How long it takes all members, from when the last of them is there."""
        # A thousand workers have a million pairs, and send the same in every round.
        key = (type(traffic), traffic.size, traffic.members.tobytes())
        if key not in self._known:
            self._known[key] = float(self._measure(traffic))
        return self._known[key]

    def _measure(self, traffic: AllReduce | Gather | Broadcast) -> float:
        members, size = traffic.members, traffic.size
        match traffic:
            case AllReduce(how="ring"):
                hop = self._seconds(np.roll(members, -1), members, size / len(members)).max(initial=0)
                return 2 * (len(members) - 1) * hop
            case AllReduce():
                hub, others = np.broadcast_to(members[:1], len(members) - 1), members[1:]
                there, back = (self._seconds(*ends, size) for ends in ((hub, others), (others, hub)))
                return there.max(initial=0) + back.max(initial=0)
            case Gather():
                receivers, senders = (each.ravel() for each in np.meshgrid(members, members))
                different = receivers != senders
                return self._seconds(receivers[different], senders[different], size).max(initial=0)
            case Broadcast():
                # The first piece goes all the way; the others follow it, as fast as the slowest link lets them.
                ends = members[1:], members[:-1]
                piece = self._seconds(*ends, size / PIECES)
                return piece.sum() + (PIECES - 1) * (piece - self._links(*ends)[0]).max(initial=0)

    def _seconds(
        self, receivers: Int[np.ndarray, " k"], senders: Int[np.ndarray, " k"], size: float
    ) -> Float[np.ndarray, " k"]:
        """How long each of these messages takes, all of `size` bytes and under way at the same time."""
        latency, bandwidth = self._links(receivers, senders)
        outside = self._node[receivers] != self._node[senders]
        # What goes out of a node, or into one, shares its link; what stays within shares the links of the two workers.
        out = np.where(outside, self._node[senders], self.workers + senders)
        into = np.where(outside, self._node[receivers], self.workers + receivers)
        shared = np.maximum(np.bincount(out)[out], np.bincount(into)[into]) if len(out) else np.ones(0)
        width = np.where(outside, self.clock.bandwidth, self.clock.node_bandwidth)
        return latency + 8 * size * np.maximum(shared / width, 1 / bandwidth)

    def _links(
        self, receivers: Int[np.ndarray, " k"], senders: Int[np.ndarray, " k"]
    ) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Latency and bandwidth of the links between these."""
        here, there = self._node[receivers], self._node[senders]
        latency = np.where(here == there, self.clock.node_latency, self.clock.latency)
        bandwidth = np.where(here == there, self.clock.node_bandwidth, self.clock.bandwidth)
        for a, b, seconds, bits in self.clock.links:
            these = ((here == a) & (there == b)) | ((here == b) & (there == a))
            latency[these], bandwidth[these] = seconds, bits
        return latency, bandwidth

    @cached_property
    def _pauses(self) -> dict[int, list[tuple[int, int, float]]]:
        pauses: dict[int, list[tuple[int, int, float]]] = {}
        for pause in self.clock.pauses:
            pauses.setdefault(pause[0], []).append(pause)
        return pauses

    def _noise(self, worker: int, first: int, count: int) -> Float[np.ndarray, " count"]:
        """Durations of local steps over their mean."""
        if self.clock.noise == "none":
            return np.ones(count)
        blocks = range(first // DRAWN, (first + count - 1) // DRAWN + 1)
        drawn = np.concatenate([self._draw(worker, block) for block in blocks]) if count else np.empty(0)
        return drawn[first - blocks.start * DRAWN :][:count]

    def _draw(self, worker: int, block: int) -> Float[np.ndarray, " drawn"]:
        cached, values = self._drawn.get(worker, (-1, np.empty(0)))
        if cached != block:
            random = np.random.default_rng((self._seed, worker, block, 0xC10C))
            spread = self.clock.spread
            if self.clock.noise == "lognormal":
                variance = np.log1p(spread**2)
                values = random.lognormal(-variance / 2, np.sqrt(variance), DRAWN)
            else:
                values = 1 - spread + spread * random.exponential(size=DRAWN)
            self._drawn[worker] = (block, values)
        return values
