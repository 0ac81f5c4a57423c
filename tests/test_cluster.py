"""The commands of docs/cluster.md as they stand there, on two hosts: network namespaces joined by a cable."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "cluster.md").read_text()
COMMANDS = dict(re.findall(r"```sh\n# on (\S+)\n(.*?)```", PAGE, re.DOTALL))
"""What to run on a host, by its address."""

INTERFACE = re.search(r"GLOO_SOCKET_IFNAME=(\w+)", PAGE)[1]

pytestmark = pytest.mark.xdist_group("real")


@pytest.fixture
def hosts():
    """The names of two namespaces that have the addresses of the page on its interface."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root, and `ip` (Debian: iproute2)")
    first, second = names = [f"tether-page-{os.getpid()}-{address}" for address in COMMANDS]
    with ExitStack() as undo:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            undo.callback(subprocess.run, ["ip", "netns", "delete", name], check=True)
        cable = ["link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", second]
        subprocess.run(["ip", "-n", first, *cable], check=True)
        for name, address in zip(names, COMMANDS, strict=True):
            subprocess.run(["ip", "-n", name, "address", "add", f"{address}/24", "dev", INTERFACE], check=True)
            for interface in ("lo", INTERFACE):
                subprocess.run(["ip", "-n", name, "link", "set", interface, "up"], check=True)
        yield names


def on_both(hosts, change=lambda command: command, timeout=240):
    """Run the page's commands, each on its host, with the environment activated; what they print and return."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            ["ip", "netns", "exec", host, "sh", "-c", f"set -e\n{change(command)}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for host, command in zip(hosts, COMMANDS.values(), strict=True)
    ]
    try:
        return [(process.communicate(timeout=timeout)[0], process.returncode) for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)  # the shell and torchrun, which ends its processes
                process.wait(30)


def ends(text):
    return re.findall(r"process (\d) of 4: (\d+ local steps, \d+ rounds), parameters (\w{12})", text)


def test_two_hosts(hosts):
    outputs = on_both(hosts)
    assert [code for _, code in outputs] == [0, 0], "\n".join(text[-2000:] for text, _ in outputs)
    per_host = [ends(text) for text, _ in outputs]
    assert [sorted(rank for rank, *_ in host) for host in per_host] == [["0", "1"], ["2", "3"]]
    promised = ends(PAGE)[0][1]
    assert {taken for host in per_host for _, taken, _ in host} == {promised}
    assert len({parameters for host in per_host for *_, parameters in host}) == 1


def test_hosts_of_two(hosts):
    """DistributedDataParallel within each host, rounds between them."""
    outputs = on_both(hosts, lambda command: command.replace("examples/plain.py", "examples/hosts.py --epochs 5"))
    assert [code for _, code in outputs] == [0, 0], "\n".join(text[-2000:] for text, _ in outputs)
    found = [end for text, _ in outputs for end in ends(text)]
    assert {taken for _, taken, _ in found} == {"55 local steps, 5 rounds"}
    assert len(found) == 4
    assert len({parameters for *_, parameters in found}) == 1
    assert all(text.count("a DistributedDataParallel of 2") == 2 for text, _ in outputs)
    assert float(re.findall(r"accuracy ([\d.]+)%", outputs[0][0])[-1]) > 80
