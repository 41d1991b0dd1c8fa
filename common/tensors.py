"""Named tensors, and the prefixes that tell the parts of a checkpoint apart."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

Tensors = Mapping[str, Tensor]


def prefixed(name: str, tensors: Tensors) -> dict[str, Tensor]:
    """Prefix all names: {"a": x} -> {"name/a": x}."""
    return {f"{name}/{key}": value for key, value in tensors.items()}


def under(name: str, tensors: Tensors) -> dict[str, Tensor]:
    """Return the entries below `name`, without it: undo `prefixed`."""
    start = f"{name}/"
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
