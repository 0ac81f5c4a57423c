"""States as trees: dicts, lists and tuples of tensors, numbers, texts, booleans and None; taken apart for a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Tree: TypeAlias = Any


def take_apart(tree: Tree, place: str = "state") -> tuple[Tree, dict[str, Tensor]]:
    """A tree as something that JSON can hold, and its tensors by name; copies, on the CPU.

    Raises:
        ValueError: if there is anything else in the tree; says where.
    """
    tensors: dict[str, Tensor] = {}

    def visit(tree: Tree, place: str) -> Tree:
        if isinstance(tree, Tensor):
            if tree.layout != torch.strided:
                raise ValueError(f"{place} is a tensor of layout {tree.layout}, which a checkpoint cannot hold")
            name = place if place not in tensors else f"{place} {len(tensors)}"
            tensors[name] = tree.detach().to("cpu", copy=True).contiguous()
            return {"tensor": name}
        if isinstance(tree, dict):
            # Pairs, because the keys of JSON are texts and those of an optimizer's state are not.
            return {"dict": [[visit(key, place), visit(value, f"{place}.{key}")] for key, value in tree.items()]}
        if isinstance(tree, (list, tuple)):
            kind = "list" if isinstance(tree, list) else "tuple"
            return {kind: [visit(value, f"{place}.{number}") for number, value in enumerate(tree)]}
        if tree is None or type(tree) in (bool, int, float, str):
            return tree
        raise ValueError(
            f"{place} is a {type(tree).__name__}: a checkpoint holds dicts, lists and tuples of tensors, numbers, "
            "texts, booleans and None"
        )

    return visit(tree, place), tensors


def put_together(structure: Tree, tensor: Callable[[str], Tensor]) -> Tree:
    """What `take_apart` took apart; `tensor` gives the tensors by name."""
    if not isinstance(structure, dict):
        return structure
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensor(content)
    if kind == "dict":
        return {put_together(key, tensor): put_together(value, tensor) for key, value in content}
    values = [put_together(value, tensor) for value in content]
    return values if kind == "list" else tuple(values)


def mean_of(trees: Sequence[Tree], weights: Sequence[float]) -> Tree:
    """The weighted mean of real tensors in trees of the same form; all else is the first tree's.

    Args:
        trees: at least one; all with the same keys, and tensors of the same shapes.
        weights: one a tree, not all zero.
    """
    first = trees[0]
    if isinstance(first, Tensor) and first.is_floating_point():
        shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        pairs = zip(shares.tolist(), trees, strict=True)
        # A tree that does not count may hold NaN.
        return sum(share * tree.double() for share, tree in pairs if share).to(first.dtype)
    if isinstance(first, dict):
        return {key: mean_of([tree[key] for tree in trees], weights) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(mean_of(list(values), weights) for values in zip(*trees, strict=True))
    return first
