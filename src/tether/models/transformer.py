"""A small language model of bytes: a transformer that looks back.

Vaswani et al., "Attention is all you need" (2017), with the layer normalisation first, learned positions and the
initialisation of GPT-2 (Radford et al., 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tether.checks import whole


class Attention(nn.Module):
    """Causal self-attention with several heads.

    Args:
        width: numbers a position.
        heads: heads that share them.
        dropout: share of the attention that is left out at each step.
        fused: whether PyTorch's kernel computes it.
    """

    def __init__(self, width: int, heads: int, dropout: float, fused: bool):
        super().__init__()
        self.heads = heads
        self.fused = fused
        self.inward = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, length, width]` to the same, position t from positions up to t."""
        batch, length, width = x.shape
        parts = self.inward(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        if self.fused:
            left_out = self.dropout.p if self.training else 0.0
            seen = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=left_out, is_causal=True)
        else:
            scores = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads)
            ahead = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            seen = self.dropout(scores.masked_fill(ahead, -math.inf).softmax(-1)) @ value
        return self.outward(seen.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention, then two linear layers at each position, each beside a shortcut.

    Args:
        width: numbers a position.
        heads: heads of the attention.
        dropout: share of what is added to the shortcut that is left out at each step.
        fused: whether PyTorch's kernel computes the attention.
    """

    def __init__(self, width: int, heads: int, dropout: float, fused: bool):
        super().__init__()
        attention = Attention(width, heads, dropout, fused)
        self.attention = nn.Sequential(nn.LayerNorm(width), attention, nn.Dropout(dropout))
        self.positions = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, length, width]` to the same."""
        x = x + self.attention(x)
        return x + self.positions(x)


class Transformer(nn.Module):
    """A language model: after every symbol, a logit for each that may come next. See `transformer`."""

    def __init__(self, length: int, symbols: int, width: int, layers: int, heads: int, dropout: float, fused: bool):
        super().__init__()
        self.symbols = nn.Embedding(symbols, width)
        self.places = nn.Parameter(torch.empty(length, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, fused) for _ in range(layers)))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, symbols, bias=False))
        nn.init.normal_(self.places, std=0.02)
        for name, part in self.named_modules():
            if isinstance(part, (nn.Linear, nn.Embedding)):
                # What is added to the shortcut starts smaller, or the sum grows with the number of layers.
                adds = name.endswith(("outward", "positions.3"))
                nn.init.normal_(part.weight, std=0.02 / (math.sqrt(2 * layers) if adds else 1))
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)

    def forward(self, text: Tensor) -> Tensor:
        """Symbols `[batch, length]` to logits `[batch, length, symbols]`."""
        if text.is_floating_point() or text.ndim != 2 or text.shape[1] > len(self.places):
            raise ValueError(
                f"a transformer takes whole numbers of shape (batch, at most {len(self.places)}), not {text.dtype} of "
                f"shape {tuple(text.shape)}"
            )
        x = self.symbols(text.int()) + self.places[: text.shape[1]]
        return self.last(self.blocks(self.dropout(x)))


def transformer(
    shape: Sequence[int],
    classes: int,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
    fused: bool = False,
) -> Transformer:
    """A language model: from the bytes so far, logits for the next, at every position of a text.

    Args:
        shape: shape of a sample: the most bytes that it looks back on.
        classes: number of symbols; 256 for bytes.
        width: numbers a position.
        layers: blocks of attention and two linear layers.
        heads: heads of the attention; `width` is a multiple.
        dropout: share that is left out at each step.
        fused: whether attention is PyTorch's fused kernel: faster for one worker after the other, but `vmap` has no
            rule for it on a CPU, so such a model's workers are not stacked.

    Raises:
        ValueError: if samples are not sequences, or heads do not divide the width.
    """
    if len(shape) != 1:
        raise ValueError(f"a transformer takes sequences of shape (length,), not samples of shape {tuple(shape)}")
    width, layers, heads = whole("width", width, 1), whole("layers", layers, 1), whole("heads", heads, 1)
    if width % heads:
        raise ValueError(f"width={width} is not a multiple of heads={heads}")
    return Transformer(shape[0], classes, width, layers, heads, dropout, fused)
