"""Runs to report about."""

import sys

import numpy as np
import pandas as pd
import pytest

from tether import cli
from tether.config import Config, load
from tether.result import NonFiniteLossError
from tether.run import load_data, run
from tether.run_folder import RunFolder

METHODS = ("sync", "local", "leader", "fleet")
CONFIG = """
workers = 4
steps = 60
batch_size = 16
period = 5
evaluate_every = 20
data = { name = "digits", partition = { name = "classes", classes = 3 } }
model = { name = "mlp", hidden = [12] }
optimizer = { name = "SGD", lr = 0.1 }

[methods.fleet]
name = "multi-leader"
groups = 2
global_period = 10
"""


def config(**changes):
    small = {
        "workers": 4,
        "steps": 4,
        "period": 2,
        "data": "digits",
        "model": {"name": "mlp", "hidden": [4]},
        "optimizer": {"name": "SGD", "lr": 0.1},
    }
    return Config(**(small | changes))


def train(folder, **changes):
    run(config(**changes), folder=RunFolder(folder))
    return folder


def give_holdings(folder, counts, names, title):
    folder = RunFolder(folder)
    folder.begin(folder.config, {"counts": counts, "names": names, "title": title})


def interrupt(record):
    raise KeyboardInterrupt


def metrics(folder):
    """The metrics as anyone reads them, losses and drift a column a worker."""
    return pd.read_json(folder / "metrics.jsonl", lines=True)


def make(place):
    """Runs of four methods by the command, one that was stopped, and one that diverged."""
    (place / "digits.toml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        names = ",".join(METHODS)
        arguments = ["tether", "compare", str(place / "digits.toml"), "--methods", names, "--out", str(place / "four")]
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert not stopped.value.code
    settings = load(place / "digits.toml")
    data = load_data(settings)
    labels, shards = data.train[1].numpy(), data.shards(4, settings.seed)
    counts = [np.bincount(labels[shards.whole(worker, 0)], minlength=10).tolist() for worker in range(4)]
    for name in METHODS:
        give_holdings(place / "four" / name, counts, [str(digit) for digit in range(10)], "digits, 3 classes a worker")
    with pytest.raises(KeyboardInterrupt):
        run(config(steps=40), folder=RunFolder(place / "broken" / "stopped"), on_record=interrupt)
    with pytest.raises(NonFiniteLossError):
        train(place / "broken" / "diverged", steps=40, optimizer={"name": "SGD", "lr": 1e30}, method="easgd")
    return place
