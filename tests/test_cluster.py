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

JOB = re.search(r"```sh\n(#!/bin/bash\n#SBATCH.*?)```", PAGE, re.DOTALL)[1]
"""What to submit to SLURM."""

# What SLURM has that the job calls: it is told of the hosts, and runs a command on each of them at once.
SCONTROL = """#!/bin/sh
[ "$*" = "show hostnames node[1-2]" ] && printf 'node1\\nnode2\\n'
"""
SRUN = """#!/bin/sh
number=0
for host in $HOSTS; do
  number=$((number + 1))
  ip netns exec "$host" unshare --uts sh -c 'hostname "$0" && exec "$@"' "node$number" "$@" &
  tasks="$tasks $!"
done
for task in $tasks; do wait "$task" || exit 1; done
"""

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


@pytest.fixture
def names(hosts):
    """Each host knows the other by its name."""
    files = [Path("/etc/netns", host) for host in hosts]
    for folder in files:
        folder.mkdir(parents=True)
        (folder / "hosts").write_text("".join(f"{address} node{n}\n" for n, address in enumerate(COMMANDS, 1)))
    yield hosts
    for folder in files:
        shutil.rmtree(folder)


def test_slurm(names, tmp_path):
    """The job as it stands on the page, on two hosts that have names."""
    for command, script in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / command).write_text(script)
        (tmp_path / command).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": re.search(r"#SBATCH --nodes=(\d+)", JOB)[1],
        "SLURM_CPUS_PER_TASK": re.search(r"#SBATCH --cpus-per-task=(\d+)", JOB)[1],
        "HOSTS": " ".join(names),
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    job = subprocess.Popen(
        ["bash", "-e", "-c", JOB],
        cwd=ROOT,
        env=os.environ | slurm,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = job.communicate(timeout=240)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGTERM)
            job.wait(30)
    assert job.returncode == 0, output[-3000:]
    found = ends(output)
    assert sorted(rank for rank, *_ in found) == ["0", "1", "2", "3"]
    assert {taken for _, taken, _ in found} == {ends(PAGE)[0][1]}
    assert len({parameters for *_, parameters in found}) == 1


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
