"""Trees of tensors, the environment first: what planners carry from decision to decision, and their random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

TensorTree = Mapping[str, Tensor]


def join(trees: Sequence[TensorTree]) -> dict[str, Tensor]:
    """Concatenate trees of the same names along the environments: [E_1, ..], [E_2, ..] -> [E_1 + E_2, ..]."""
    return {name: torch.cat([tree[name] for tree in trees]) for name in trees[0]}


def split(tree: TensorTree) -> list[dict[str, Tensor]]:
    """Cut a tree into one of each environment, [1, ..]: undoes `join`."""
    parts = {name: tensor.split(1) for name, tensor in tree.items()}
    count = len(next(iter(parts.values())))
    return [{name: tensors[e] for name, tensors in parts.items()} for e in range(count)]


def take(tree: TensorTree, index: Tensor) -> dict[str, Tensor]:
    """Select environments by number: index int64 [R], [E, ..] -> [R, ..]."""
    return {name: tensor[index] for name, tensor in tree.items()}
