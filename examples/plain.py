"""Local SGD in an ordinary training script: a small network, handwritten digits, each process with a share of its own.

    torchrun --nproc-per-node 4 examples/plain.py --epochs 40 --period 20
    python examples/plain.py        # one process, which has no others to meet

The lines that are there for tether are marked so; all others are what the script would be without it.
"""

import argparse
import hashlib
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tether  # tether

DATA = {"digits": tether.data.digits, "fashion-mnist": tether.data.fashion_mnist}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32, help="samples a batch of each process")
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--period", type=int, default=20, help="local steps between rounds")
    parser.add_argument("--overlap", type=int, default=0, help="local steps that a round's message may travel")
    parser.add_argument("--checkpoints", help="folder to save to after every epoch, and to go on from after a crash")
    return parser.parse_args()


def join():
    """Meet the other processes that torchrun has started; without torchrun this one is alone."""
    if "RANK" in os.environ:
        dist.init_process_group()
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    cuda = torch.cuda.is_available()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")


def main():
    args = arguments()
    device = join()
    rank, processes = dist.get_rank(), dist.get_world_size()

    data = DATA[args.data]()
    mine = TensorDataset(*(part[rank::processes] for part in data.train))
    loader = DataLoader(mine, args.batch_size, shuffle=True, drop_last=True)
    accuracy = tether.data.classification(data.test)

    torch.manual_seed(rank)
    inputs = data.train[0][0].numel()
    model = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, data.classes)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(loader))

    checkpoints = tether.Checkpoints(args.checkpoints) if args.checkpoints else None  # tether
    method = tether.LocalSGD(args.period)  # tether
    rounds = tether.attach(model, optimizer, method, overlap=args.overlap, checkpoints=checkpoints)  # tether
    saved = rounds.load() if checkpoints else {}  # tether: empty at the first start
    if saved:
        scheduler.load_state_dict(saved["scheduler"])

    for epoch in range(saved.get("epoch", 0) + 1, args.epochs + 1):
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item()

        with rounds.center():  # tether
            center = accuracy(model)
        if rank == 0:
            print(f"epoch {epoch}: loss {total / len(loader):.3f}, center's accuracy {center['accuracy']:.1%}")

        if checkpoints:
            rounds.save({"epoch": epoch, "scheduler": scheduler.state_dict()})  # tether

    rounds.close()  # tether
    row = nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    digest = hashlib.sha256(row.numpy().tobytes()).hexdigest()[:12]
    print(
        f"process {rank} of {processes}: {rounds.count} local steps, {sum(rounds.rounds.rounds)} rounds, "
        f"parameters {digest}"
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
