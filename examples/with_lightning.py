"""Local SGD with Lightning: a strategy for the Trainer, the module as it is.

    torchrun --nproc-per-node 2 examples/with_lightning.py

Needs Lightning: pip install 'tether[lightning]'. The lines that are there for tether are marked so.
"""

import argparse
import hashlib
import os

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tether  # tether
from tether.integrations.lightning import RoundsStrategy  # tether


class Digits(pl.LightningModule):
    def __init__(self, classes):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.5)

    def training_step(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch):
        x, y = batch
        right = (self.net(x).argmax(1) == y).float().mean()
        self.log("center's accuracy", right, sync_dist=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--period", type=int, default=10, help="local steps between rounds")
    parser.add_argument("--overlap", type=int, default=0, help="local steps that a round's message may travel")
    args = parser.parse_args()

    data = tether.data.digits()
    train = DataLoader(TensorDataset(*data.train), 32, shuffle=True)
    test = DataLoader(TensorDataset(*data.test), 512)
    strategy = RoundsStrategy(tether.LocalSGD(args.period), overlap=args.overlap)  # tether: instead of "ddp"
    trainer = pl.Trainer(
        strategy=strategy,
        accelerator="auto",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        max_epochs=args.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Digits(data.classes)
    trainer.fit(module, train, test)

    row = nn.utils.parameters_to_vector(module.parameters()).detach().cpu()
    digest = hashlib.sha256(row.numpy().tobytes()).hexdigest()[:12]
    rounds = strategy.rounds
    accuracy = trainer.callback_metrics["center's accuracy"]
    print(
        f"process {trainer.global_rank} of {trainer.world_size}: {rounds.count} local steps, "
        f"{sum(rounds.rounds.rounds)} rounds, parameters {digest}, center's accuracy {accuracy:.1%}"
    )


if __name__ == "__main__":
    main()
