"""Hosts with real, shaped links on this one machine: Linux network namespaces.

Each host is a namespace. A bridge in a namespace of its own joins them by veth pairs, both ends of which are shaped by
`tc ... tbf`: a link that is slow in either direction.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

INTERFACE = "eth0"
"""The interface of every host, in its own namespace."""

PREFIX = "tether-bench"
"""How the names of this benchmark's namespaces begin; the number of its process follows."""

HOSTS_FILES = Path("/etc/netns")
"""Where `ip netns exec` looks for files that a namespace has instead of those in /etc."""

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end."""


def command(*words: object) -> str:
    """The output of a command; if it fails, an error with what it complained of."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(map(str, words))}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


class Cluster:
    """Hosts on links of so many Mbit/s in each direction; a context manager.

    Args:
        hosts: number of hosts m.
        mbit: what each link carries, in Mbit/s.
    """

    def __init__(self, hosts: int, mbit: float):
        self.hosts = range(hosts)
        self.mbit = mbit
        self._prefix = f"{PREFIX}-{os.getpid()}"

    def __enter__(self) -> Cluster:
        remove_namespaces(self._prefix)
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with undisturbed():
            remove_namespaces(self._prefix)

    def address(self, host: int) -> str:
        """The address of a host; there is no such network outside the namespaces."""
        return f"10.77.0.{host + 1}"

    def on(self, host: int, *words: object) -> list[str]:
        """A command line that runs a command on a host, under the host's own name, and not longer than this process."""
        script = 'hostname "$0" && exec "$@"'
        inside = ["unshare", "--uts", "sh", "-c", script, f"host{host}", *map(str, words)]
        return ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self._name(host), *inside]

    def _name(self, host: int | Literal["switch"]) -> str:
        return f"{self._prefix}-{host}"

    def _build(self) -> None:
        switch = self._name("switch")
        command("ip", "netns", "add", switch)
        command("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        command("ip", "-n", switch, "link", "set", "bridge", "up")
        for host in self.hosts:
            self._add_host(host)

    def _add_host(self, host: int) -> None:
        name, switch, port = self._name(host), self._name("switch"), f"port{host}"
        command("ip", "netns", "add", name)
        files = HOSTS_FILES / name
        files.mkdir(parents=True)
        names = [f"{self.address(other)} host{other}\n" for other in self.hosts]
        (files / "hosts").write_text("127.0.0.1 localhost\n" + "".join(names))

        command("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", INTERFACE, "netns", name)
        command("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
        command("ip", "-n", name, "address", "add", f"{self.address(host)}/24", "dev", INTERFACE)
        command("ip", "-n", name, "link", "set", "lo", "up")
        command("ip", "-n", name, "link", "set", INTERFACE, "up")
        self._shape(name, INTERFACE)
        self._shape(switch, port)

    def _shape(self, namespace: str, interface: str) -> None:
        """Let an interface send no faster than the link. The bucket holds what the link carries in two milliseconds."""
        burst = max(16_000, int(self.mbit * 1e6 / 8 * 0.002))
        shape = ("tbf", "rate", f"{self.mbit:g}mbit", "burst", burst, "latency", "400ms")
        command("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", *shape)


def namespaces(prefix: str) -> list[str]:
    """The names of existing namespaces that begin with a prefix."""
    lines = command("ip", "netns", "list").splitlines()
    return [name for name in (line.split()[0] for line in lines) if name.startswith(f"{prefix}-")]


def remove_namespaces(prefix: str) -> None:
    """Delete namespaces by prefix, and with them all that is in them: interfaces, shaping, the bridge."""
    for name in namespaces(prefix):
        command("ip", "netns", "delete", name)
    for files in HOSTS_FILES.glob(f"{prefix}-*"):
        shutil.rmtree(files)
    with suppress(OSError):  # others' files are there, or the folder never was
        HOSTS_FILES.rmdir()


def clean() -> list[str]:
    """Remove what benchmarks that were killed have left. Returns the names of those that still run, left alone."""
    names = {*namespaces(PREFIX), *(files.name for files in HOSTS_FILES.glob(f"{PREFIX}-*"))}
    owners = {match[0] for match in (re.match(rf"{PREFIX}-\d+", name) for name in names) if match}
    alive = {owner for owner in owners if Path("/proc", owner.rpartition("-")[2]).exists()}
    for owner in owners - alive:
        remove_namespaces(owner)
    return sorted(alive)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within, signals that would end this process have no effect, nor on processes that it starts."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
