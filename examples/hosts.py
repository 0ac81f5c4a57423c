"""DistributedDataParallel within each host, rounds between hosts: fast links at every step, slow ones rarely.

On each of two hosts, N = 0 and 1, with as many processes as it has GPUs:

    torchrun --nnodes 2 --node-rank N --nproc-per-node 2 --master-addr 10.0.0.1 --master-port 29400 examples/hosts.py
"""

import argparse
import hashlib
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import tether


def groups():
    """The processes of this host, and those of all hosts with the same number in theirs."""
    of_a_host = int(os.environ["LOCAL_WORLD_SIZE"])
    ranks = range(dist.get_world_size())
    within, _ = dist.new_subgroups(of_a_host)
    between, _ = dist.new_subgroups_by_enumeration([list(ranks[number::of_a_host]) for number in range(of_a_host)])
    return within, between


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--period", type=int, default=10, help="local steps between rounds")
    args = parser.parse_args()

    dist.init_process_group()
    rank, processes = dist.get_rank(), dist.get_world_size()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    within, between = groups()

    data = tether.data.digits()
    mine = TensorDataset(*(part[rank::processes] for part in data.train))
    loader = DataLoader(mine, 32, shuffle=True, drop_last=True)
    accuracy = tether.data.classification(data.test)

    torch.manual_seed(0)  # `attach` gives one start to those that meet in rounds; this gives all the same
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, data.classes)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)

    rounds = tether.attach(model, optimizer, tether.LocalSGD(args.period), group=between)
    net = DistributedDataParallel(model, process_group=within, device_ids=[device] if cuda else None)

    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x.to(device)), y.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()

        with rounds.center():
            center = accuracy(model)
        if rank == 0:
            print(f"epoch {epoch}: loss {total / len(loader):.3f}, center's accuracy {center['accuracy']:.1%}")

    rounds.close()
    row = nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    digest = hashlib.sha256(row.numpy().tobytes()).hexdigest()[:12]
    print(
        f"process {rank} of {processes}: {rounds.count} local steps, {sum(rounds.rounds.rounds)} rounds, "
        f"parameters {digest}, a {type(net).__name__} of {dist.get_world_size(within)}"
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
