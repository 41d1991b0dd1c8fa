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


def check_fits(saved: Tensors, wanted: Tensors) -> None:
    """Raise ValueError, one line, at the first tensor that is missing, has another shape, or is not wanted."""
    for name, tensor in wanted.items():
        found = saved.get(name)
        if found is None or found.shape != tensor.shape:
            got = "nothing" if found is None else list(found.shape)
            raise ValueError(f"got {got} as {name}, want {list(tensor.shape)}")
    if unknown := [name for name in saved if name not in wanted]:
        raise ValueError(f"got {unknown[0]}, which these networks have not")
