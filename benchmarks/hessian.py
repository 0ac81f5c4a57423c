"""Time and memory of the whole Hessian of the second-order paper's networks, and of its eigendecomposition.

    .venv/bin/python benchmarks/hessian.py mlp --samples 2000
    .venv/bin/python benchmarks/hessian.py cnn --samples 1000 --precision float32

The MLP has d = 7,850 on Fashion-MNIST. The CNN has d = 14,700 on images of CIFAR-10's form: where no folder of CIFAR-10
is given, those of Fashion-MNIST within a black frame, the same in three channels. Both are trained a little before.
CPU seconds are those of all threads: on a machine that does other things too, they say what it would take alone.
"""

from __future__ import annotations

import dataclasses
import resource
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

import tether
from tether.diagnostics import Landscape, Spectrum, hessian


def main(
    network: Annotated[str, typer.Argument(help="mlp or cnn")],
    samples: Annotated[int, typer.Option(help="training samples that the Hessian is of")] = 1000,
    precision: Annotated[str, typer.Option(help="float32 or float64, of the Hessian")] = "float64",
    decompose: Annotated[str, typer.Option(help="float32 or float64, of the eigendecomposition; or none")] = "float64",
    steps: Annotated[int, typer.Option(help="local steps of batch 10 that the model is trained before")] = 3000,
    cifar: Annotated[Path | None, typer.Option(help="folder of CIFAR-10's binary version")] = None,
    threads: int = 2,
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, data = {"mlp": mlp, "cnn": cnn}[network](cifar)
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.01)  # noqa: E731
    trained = tether.simulate(
        model,
        tether.LocalSGD(period=300),
        data,
        workers=1,
        objective=tether.models.cross_entropy,
        optimizer=optimizer,
        steps=steps,
        batch_size=10,
    )
    dtype = getattr(torch, precision)
    model = trained.center().to(dtype)
    landscape = Landscape(model, tether.models.cross_entropy, data.to(dtype), samples=samples, batch_size=200)
    print(f"{data.name}, {samples} samples, d = {landscape.parameters:,}, {precision}, {threads} threads", flush=True)

    watch, tenth = Watch(), 0

    def progress(done: int, of: int) -> None:
        nonlocal tenth
        if 10 * done // of > tenth:
            tenth = 10 * done // of
            print(f"  {done / of:.0%} after {watch}", flush=True)

    matrix = hessian(landscape, on_progress=progress)
    print(f"Hessian: {watch}, peak {peak():.1f} GB", flush=True)
    if decompose == "none":
        return
    matrix = matrix.to(getattr(torch, decompose))
    watch = Watch()
    spectrum = Spectrum.of(matrix)
    print(f"eigenvalues and vectors, {decompose}: {watch}, peak {peak():.1f} GB", flush=True)
    off = (matrix @ spectrum.vectors[:, -5:] - spectrum.eigenvalues[-5:] * spectrum.vectors[:, -5:]).norm(dim=0).max()
    print("range [{:.4g}, {:.5g}]".format(*spectrum.range), f"residual {off:.1e}", flush=True)
    for share in (1e-3, 1e-4, 1e-5, 1e-6):
        near = int((spectrum.eigenvalues.abs() <= share * spectrum.range[1]).sum())
        print(f"  {near:,} eigenvalues are within {share:g} of the largest from zero")


class Watch:
    """Seconds since it was started."""

    def __init__(self) -> None:
        self.began, self.worked = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        return f"{time.perf_counter() - self.began:.1f} s, {time.process_time() - self.worked:.1f} CPU s"


def mlp(cifar: Path | None) -> tuple[torch.nn.Module, tether.data.Dataset]:
    """The paper's MLP, softmax regression, on Fashion-MNIST."""
    data = dataclasses.replace(tether.data.fashion_mnist(), test=None)
    return tether.models.second_order_mlp(data.shape, 10, rectified=False), data


def cnn(cifar: Path | None) -> tuple[torch.nn.Module, tether.data.Dataset]:
    """The paper's CNN, on CIFAR-10 or what has its form."""
    if cifar is not None:
        data = tether.data.cifar10(cifar, crop=32, padding=0, flip=False)
    else:
        data = tether.data.fashion_mnist()
        images, labels = data.train
        black = float(images.min())
        framed = torch.nn.functional.pad(images[:20_000], (2, 2, 2, 2), value=black).expand(-1, 3, -1, -1).contiguous()
        data = dataclasses.replace(data, train=(framed, labels[:20_000]), name="fashion-mnist, framed, three channels")
    data = dataclasses.replace(data, test=None)
    return tether.models.second_order_cnn(data.shape, 10, rectified=False), data


def peak() -> float:
    """Gigabytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    typer.run(main)
