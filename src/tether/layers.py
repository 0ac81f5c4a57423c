"""Layers in forms that a compiler can stack: what `torch.func.vmap` would make a slow kernel of, written out.

A convolution of stacked workers is a grouped one, for which PyTorch's kernels are slower than one worker after the
other. As a matrix product it is one product a worker, and a compiler fuses the gathering of its columns with what is
around it. A maximum over windows likewise becomes comparisons of slices. In a linear layer the weights come first,
W Xᵀ instead of X Wᵀ: with a batch of a few samples the product then takes up to a third less.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def written_out(model: nn.Module) -> nn.Module:
    """The same module, changed in place: linear layers, two-dimensional convolutions and maxima are written out.

    Same parameters, same results but for rounding. Layers with settings that have no simple form stay as they are.
    """
    for part in model.modules():
        if type(part) is nn.Conv2d and part.groups == 1 and part.padding_mode == "zeros":
            part.__class__ = _Conv2d
        elif type(part) is nn.MaxPool2d and _plain(part):
            part.__class__ = _MaxPool2d
        elif type(part) is nn.Linear:
            part.__class__ = _Linear
    return model


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if input.ndim != 2:
            return super().forward(input)
        product = self.weight @ input.T
        return (product if self.bias is None else product + self.bias[:, None]).T


class _Conv2d(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.ndim != 4 or self.padding == "same":
            return super()._conv_forward(input, weight, bias)
        padding = self.padding if isinstance(self.padding, tuple) else (0, 0)
        return product_conv2d(input, weight, bias, self.stride, padding, self.dilation)


class _MaxPool2d(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return sliced_max_pool2d(input, _pair(self.kernel_size), _pair(self.stride))


def product_conv2d(
    images: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "o c i j"],
    bias: Float[Tensor, " o"] | None,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
    dilation: tuple[int, ...] = (1, 1),
) -> Float[Tensor, "n o y x"]:
    """A convolution as one matrix product, `[o, c i j] @ [c i j, n y x]`."""
    if any(padding):
        images = nn.functional.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    (n, _, *sides), (outputs, _, *kernel) = images.shape, weight.shape
    spans = [(size - 1) * step for size, step in zip(kernel, dilation, strict=True)]
    y, x = ((side - span - 1) // step + 1 for side, span, step in zip(sides, spans, stride, strict=True))
    # One direction after the other: the gradient of each has as many terms as the kernel is long, not wide times long.
    down = [slice(top, top + stride[0] * y, stride[0]) for top in range(0, spans[0] + 1, dilation[0])]
    across = [slice(left, left + stride[1] * x, stride[1]) for left in range(0, spans[1] + 1, dilation[1])]
    lines = torch.stack([images.transpose(0, 1)[..., part, :] for part in down], dim=1)
    columns = torch.stack([lines[..., part] for part in across], dim=2).reshape(-1, n * y * x)
    product = weight.reshape(outputs, -1) @ columns
    if bias is not None:
        product = product + bias[:, None]
    return product.view(outputs, n, y, x).transpose(0, 1)


def sliced_max_pool2d(
    images: Float[Tensor, "*n h w"], kernel: tuple[int, int], stride: tuple[int, int]
) -> Float[Tensor, "*n y x"]:
    """The maximum of each window; of equal numbers the first counts, and has the gradient, as in PyTorch's kernel."""
    y, x = ((side - size) // step + 1 for side, size, step in zip(images.shape[-2:], kernel, stride, strict=True))
    most: Tensor | None = None
    for top in range(kernel[0]):
        for left in range(kernel[1]):
            each = images[..., top : top + stride[0] * y : stride[0], left : left + stride[1] * x : stride[1]]
            most = each if most is None else torch.where((most >= each) | most.isnan(), most, each)
    assert most is not None
    return most


def _plain(pool: nn.MaxPool2d) -> bool:
    return (
        _pair(pool.padding) == (0, 0)
        and _pair(pool.dilation) == (1, 1)
        and not pool.ceil_mode
        and not pool.return_indices
    )


def _pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    first, second = size
    return first, second
