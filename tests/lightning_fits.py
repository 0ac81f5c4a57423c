"""Under torchrun: Lightning fits, each beside the same training in a loop by hand; raises where they differ."""

import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import tether
from tether.integrations.lightning import RoundsStrategy

STEPS, BATCH, WORKERS = 10, 8, 2


def make():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))


def dataset():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(STEPS * BATCH * WORKERS, 5, generator=generator)
    return TensorDataset(x, x.sin().sum(1, keepdim=True))


class Module(pl.LightningModule):
    """Every validation notes what it was of."""

    def __init__(self, optimizer):
        super().__init__()
        self.net, self._make_optimizer, self.seen = make(), optimizer, []

    def configure_optimizers(self):
        return self._make_optimizer(self.net.parameters())

    def training_step(self, batch):
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        # A collective of the user's own between the rounds'.
        self.log("loss", loss, sync_dist=True, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch):
        self.seen.append(parameters_to_vector(self.net.parameters()).clone())


def by_hand(optimizer, method, **options):
    """Two epochs; the parameters at the end, and the center after each."""
    net, data = make(), dataset()
    mine = range(dist.get_rank(), len(data), WORKERS)
    optimizer = optimizer(net.parameters())
    rounds = tether.attach(net, optimizer, method, **options)
    centers = []
    for _ in range(2):
        for step in range(STEPS):
            x, y = data[list(mine)[step * BATCH : (step + 1) * BATCH]]
            optimizer.zero_grad()
            loss = (net(x) - y).square().mean()
            loss.backward()
            rounds.report(loss)
            optimizer.step()
        with rounds.center():
            centers.append(parameters_to_vector(net.parameters()).clone())
    rounds.close()
    return parameters_to_vector(net.parameters()).detach(), centers


def trainer(folder, strategy, epochs=2, callbacks=()):
    return pl.Trainer(
        default_root_dir=folder,
        strategy=strategy,
        accelerator="cpu",
        devices=WORKERS,
        max_epochs=epochs,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(folder, optimizer, method, **options):
    module, strategy = Module(optimizer), RoundsStrategy(method, **options)
    saves = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1, save_weights_only=True)
    data = dataset()
    # Lightning's own choice of samples would be shuffled.
    mine = DistributedSampler(data, WORKERS, int(os.environ["RANK"]), shuffle=False)
    loader = DataLoader(data, BATCH, sampler=mine)
    trainer(folder, strategy, callbacks=[saves]).fit(module, loader, DataLoader(TensorDataset(*data[:2]), 2))
    saved = [torch.load(Path(folder) / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"] for epoch in range(2)]
    names = [name for name, _ in module.named_parameters()]
    rows = [torch.cat([each[name].flatten() for name in names]) for each in saved]
    return parameters_to_vector(module.net.parameters()).detach(), module.seen, rows


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


CASES = {
    "local": (sgd, tether.LocalSGD(3), {}),
    "overlap": (sgd, tether.LocalSGD(4), {"overlap": 2}),
    "mix-then-step": (sgd, tether.LocalSGD(3), {"order": "mix-then-step"}),
    "leader": (sgd, tether.LSGD(period=3, pull=0.2), {}),
    "moments": (adam, tether.LocalSGD(3), {"optimizer_state": "average"}),
    "moments, mixed first": (adam, tether.LocalSGD(3), {"optimizer_state": "average", "order": "mix-then-step"}),
}


def main(folder):
    for name, (optimizer, method, options) in CASES.items():
        row, seen, saved = fit(Path(folder) / name, optimizer, method, **options)
        wanted, centers = by_hand(optimizer, method, **options)
        torch.testing.assert_close(row, wanted, rtol=0, atol=0, msg=name)
        for of in (seen, saved):
            torch.testing.assert_close(torch.stack(of), torch.stack(centers), rtol=0, atol=0, msg=name)
    two = Module(lambda _: None)
    two.configure_optimizers = lambda: [sgd(two.net[0].parameters()), sgd(two.net[3].parameters())]
    two.automatic_optimization = False
    try:
        trainer(folder, RoundsStrategy(tether.LocalSGD(3))).fit(two, DataLoader(dataset(), BATCH))
    except ValueError as error:
        print(error)
    print(f"{len(CASES)} fits agree")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
