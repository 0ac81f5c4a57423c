"""Runs of real processes over a link that is as slow as asked: for what experiments say of time that is not virtual.

The processes are this machine's. They talk over the loopback interface of a network namespace of their own, which `tc`
lets carry no more than so many bits a second, all messages together: a bus. That takes no root where the kernel lets
users have namespaces (`unshare --user`), and is gone with the last process. A local step is made to last a given time,
by waiting, as it would on an accelerator of each worker's own: so the machine's few cores are not what is measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tether.config import Config, ConfigError
from tether.methods import LocalSGD
from tether.papers.experiments import Setting
from tether.run import check, load_data, load_model
from tether.theory import round_costs

STEP_SECONDS = 0.05
"""What a local step lasts: long beside what eight processes compute in it on two cores, some 10 ms."""

WARM_UP = 10
"""Local steps before the clock starts: the first of them also connect processes and allocate memory."""

TOOLS = {"unshare": "util-linux", "ip": "iproute2", "tc": "iproute2"}
"""Commands that a slow link takes, and the packages that bring them."""


@dataclass(frozen=True, eq=False)
class RealRun:
    """What real workers took.

    Attributes:
        seconds: `[steps]`, wall-clock time at which the slowest worker had taken each local step.
        losses: `[steps, m]`, the training loss of each.
    """

    seconds: Float[np.ndarray, " steps"]
    losses: Float[np.ndarray, "steps m"]

    @property
    def pace(self) -> float:
        """Seconds a local step, the first ones left out."""
        return float((self.seconds[-1] - self.seconds[WARM_UP - 1]) / (len(self.seconds) - WARM_UP))


@dataclass(frozen=True)
class Link:
    """What processes talk over.

    Attributes:
        mbit: Mbit/s that it carries, of all messages together; None if nothing limits it.
        why: why nothing does.
    """

    mbit: float | None
    why: str = ""

    @classmethod
    def of(cls, config: Config, steps_a_mean: float) -> Link:
        """One on which a mean of all workers takes so many local steps, if this machine can make one."""
        why = _why_not()
        if why:
            return cls(None, why)
        return cls(_bits_a_mean(config) / (steps_a_mean * STEP_SECONDS) / 1e6)

    def on(self, *words: str) -> list[str]:
        """A command line, run where loopback is this link."""
        return list(words) if self.mbit is None else [*_within(self.mbit), *words]


def carry_out_real(configs: Mapping[str, Config], link: Link, setting: Setting) -> dict[str, RealRun]:
    """Carry out runs with a process a worker, those that are not done yet.

    Args:
        configs: the runs, by name, of as many workers each; their clocks are left aside.
        link: what the processes talk over.
        setting: where what they took is kept, and who is told.

    Raises:
        ConfigError: if a config is not possible, or another run is in its place.
        RuntimeError: if a process fails; with its last words.
    """
    for config in configs.values():
        check(config, config.method)
    folder = setting.folder / "runs" / "real"
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.json" for name in configs}
    asked = {
        name: {"config": config.model_dump(mode="json"), "link": dataclasses.asdict(link)}
        for name, config in configs.items()
    }
    missing = [name for name, file in files.items() if not file.exists()]
    if missing:
        job = folder / "job"
        job.write_text(json.dumps({str(files[name]): asked[name] for name in missing}))
        _launch(job, next(iter(configs.values())).workers, link, [files[name] for name in missing], setting)
    found = {name: json.loads(file.read_text()) for name, file in files.items()}
    for name, run in found.items():
        if {key: run[key] for key in asked[name]} != asked[name]:
            raise ConfigError(
                f"{files[name]} holds another run, or one over another link: give another folder by --out"
            )
    return {name: RealRun(np.array(run["seconds"]), np.array(run["losses"])) for name, run in found.items()}


def _launch(job: Path, workers: int, link: Link, files: list[Path], setting: Setting) -> None:
    """Run `real_worker` in a process a worker, by torchrun."""
    torchrun = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", f"--nproc-per-node={workers}"]
    line = link.on(sys.executable, "-m", *torchrun, "--module", "tether.papers.real_worker", str(job))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    log = job.with_name("log")
    with _terminated_as_interrupted(), log.open("wb") as output:
        process = subprocess.Popen(line, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            while process.poll() is None:
                setting.progress("real processes", sum(file.exists() for file in files) / len(files))
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    if process.returncode:
        said = log.read_text(errors="replace").strip()
        raise RuntimeError(f"real processes ended with status {process.returncode}; {log} ends with:\n{said[-8000:]}")


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Whoever ends this process ends what it has started: a signal that only killed it would leave workers behind."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _within(mbit: float) -> list[str]:
    """What runs a command in a network of its own with a slow loopback; packets as on Ethernet, 2 ms worth at once."""
    burst = max(16_000, int(mbit * 1e6 / 8 * 0.002))
    slow = f"tc qdisc add dev lo root tbf rate {mbit:.0f}mbit burst {burst} latency 400ms"
    script = f'ip link set lo up mtu 1500 && {slow} && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script, "sh"]


def _why_not() -> str:
    """Why there can be no slow link here; nothing if there can."""
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if missing:
        return f"that takes the package{'s' if len(missing) > 1 else ''} {' and '.join(missing)}"
    tried = subprocess.run([*_within(100), "true"], capture_output=True, text=True)
    return f"the system refuses it: {tried.stderr.strip()}" if tried.returncode else ""


def _bits_a_mean(config: Config) -> float:
    """What a mean of all workers sends, all together."""
    size = sum(parameter.numel() for parameter in load_model(config, load_data(config)).parameters())
    (cost,) = round_costs(LocalSGD(period=1), config.workers, size)
    return 8.0 * cost.bytes
