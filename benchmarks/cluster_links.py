"""What a link between two hosts does: latency and bandwidth, measured with messages of PyTorch's own; prints JSON.

sudo .venv/bin/python benchmarks/cluster_script.py --mbit 100 benchmarks/cluster_links.py
"""

from __future__ import annotations

import json
import statistics
from time import monotonic

import torch
import torch.distributed as dist

PARAMETERS = 1_000_000
"""Of a long message, 4 bytes each."""

SHORT, LONG = 50, 5
"""How many of each."""


def round_trip(parameters: int) -> float:
    """Seconds until the second host has a message of the first, and the first a number of the second."""
    message, answer = torch.zeros(parameters), torch.zeros(1)
    began = monotonic()
    if dist.get_rank() == 0:
        dist.send(message, 1)
        dist.recv(answer, 1)
    else:
        dist.recv(message, 0)
        dist.send(answer, 0)
    return monotonic() - began


def main() -> None:
    """Send short and long messages; medians are of each kind."""
    dist.init_process_group("gloo")
    if dist.get_rank() < 2:
        short = statistics.median(round_trip(1) for _ in range(SHORT))
        long = statistics.median(round_trip(PARAMETERS) for _ in range(LONG))
        if dist.get_rank() == 0:
            print(json.dumps({"latency": short / 2, "bandwidth": 8 * 4 * PARAMETERS / (long - short)}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
