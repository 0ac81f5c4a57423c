"""Compiled runs, in a process in which no types are checked at run time: the compiler does not follow those checks."""

import json
import logging
import sys
import tempfile

import torch
from torch import nn

import tether
from test_stepping import train


def apart(one: tether.Result, other: tether.Result) -> float:
    pairs = zip(
        [one.rows, one.losses, *one.center().buffers()],
        [other.rows, other.losses, *other.center().buffers()],
        strict=True,
    )
    return max(float((a - b).abs().max()) for a, b in pairs)


def stops_the_compiler(model, batch):
    print(end="")
    return tether.models.cross_entropy(model, batch)


def main() -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("tether").addHandler(handler)
    rows = train(stepping="rows")
    found: dict[str, object] = {}
    result = train(stepping="compiled", block=4)
    found["blocks"] = [apart(result, rows), result.stepping, list(said)]
    found["impossible"] = [apart(train(stepping="compiled", objective=stops_the_compiler), rows), said[-1:]]

    dropout = nn.Sequential(nn.Flatten(), nn.Linear(180, 4), nn.Dropout(0.3), nn.Linear(4, 3)).double()
    whole = train(dropout, stepping="compiled", steps=9)
    found["dropout moved"] = float((whole.rows[0] - whole.rows[1]).abs().max())
    found["again"] = torch.equal(train(dropout, stepping="compiled", steps=9).rows, whole.rows)
    with tempfile.TemporaryDirectory() as folder:
        train(dropout, stepping="compiled", steps=4, checkpoints=tether.Checkpoints(folder))
        resumed = train(dropout, stepping="compiled", steps=9, checkpoints=tether.Checkpoints(folder))
    found["resumed"] = torch.equal(resumed.rows, whole.rows)

    tether.gradients.LONG = 1e4
    found["long"] = train(dropout).stepping

    linear = nn.Sequential(nn.Flatten(), nn.Linear(180, 3)).double()
    shared = train(linear, stepping="compiled", processes=2)
    found["processes"] = [apart(shared, train(linear, stepping="rows")), shared.stepping]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
