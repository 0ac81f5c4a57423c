"""Local SGD with Hugging Face's Accelerate: everything is prepared but the model's gradients.

    torchrun --nproc-per-node 2 examples/with_accelerate.py        # or accelerate launch

Needs Accelerate: pip install accelerate. The lines that are there for tether are marked so.
"""

import argparse
import hashlib

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tether  # tether


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--period", type=int, default=10, help="local steps between rounds")
    parser.add_argument("--overlap", type=int, default=0, help="local steps that a round's message may travel")
    parser.add_argument("--accumulate", type=int, default=1, help="batches whose gradients make one local step")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    args = parser.parse_args()

    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        gradient_accumulation_steps=args.accumulate,
        mixed_precision=args.precision,
    )
    data = tether.data.digits()
    loader = DataLoader(TensorDataset(*data.train), 32 // args.accumulate, shuffle=True)
    accuracy = tether.data.classification(data.test)

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, data.classes))
    # `prepare` would wrap the model in DistributedDataParallel; for evaluation it does all else.
    model = accelerator.prepare_model(model, evaluation_mode=True)  # tether
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)
    # On the optimizer itself; what `prepare` makes of it calls it, or does not while gradients accumulate.
    rounds = tether.attach(model, optimizer, tether.LocalSGD(args.period), overlap=args.overlap)  # tether
    optimizer, loader = accelerator.prepare(optimizer, loader)

    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            total += loss.item()

        with rounds.center():  # tether
            center = accuracy(model)
        accelerator.print(f"epoch {epoch}: loss {total / len(loader):.3f}, center's accuracy {center['accuracy']:.1%}")

    rounds.close()  # tether
    row = nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    digest = hashlib.sha256(row.numpy().tobytes()).hexdigest()[:12]
    print(
        f"process {accelerator.process_index} of {accelerator.num_processes}: {rounds.count} local steps, "
        f"{sum(rounds.rounds.rounds)} rounds, parameters {digest}, a {type(model).__name__}"
    )
    accelerator.end_training()


if __name__ == "__main__":
    main()
