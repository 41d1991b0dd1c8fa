"""Observations as they arrive, read into the arrays that the agent's DataSpec declares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from qttdm.common.contracts import ArraySpec, DataSpec


def read_observations(sent: Any, data: DataSpec) -> dict[str, np.ndarray]:
    """Read values by name, or the value alone where there is one observation.

    A value is an array, nested lists of numbers, or little-endian bytes. ValueError, one line, names one that is
    missing, unknown, of another shape or dtype, or not finite.
    """
    if not isinstance(sent, Mapping):
        sent = {next(iter(data.observations)): sent}
    if missing := sorted(data.observations.keys() - sent.keys()):
        raise ValueError(f"there is no {missing[0]!r}; want {', '.join(data.observations)}")
    unknown = next((name for name in sent if name not in data.observations), None)
    if unknown is not None:
        raise ValueError(f"got {str(unknown)[:100]!r}, want only {', '.join(data.observations)}")
    return {name: _read(name, sent[name], spec) for name, spec in data.observations.items()}


def _check_lists(name: str, sent: Any, shape: list[int]) -> None:
    """Raise ValueError for lists of other lengths than wanted: NumPy would take seconds over some of 256 KiB."""
    level = [sent]
    for length in shape:
        for item in level:
            if isinstance(item, list | tuple) and len(item) != length:
                raise ValueError(f"{name}: got a list of {len(item)}, want {shape} numbers")
        level = [inner for item in level if isinstance(item, list | tuple) for inner in item]
    if any(isinstance(item, list | tuple) for item in level):
        raise ValueError(f"{name}: got lists in lists, want {shape} numbers")


def _read(name: str, sent: Any, spec: ArraySpec) -> np.ndarray:
    dtype, shape = np.dtype(spec.dtype), list(spec.shape)
    if isinstance(sent, bytes):
        if len(sent) != (want := dtype.itemsize * math.prod(shape)):
            raise ValueError(f"{name}: got {len(sent)} bytes, want {want}: {shape} {dtype} numbers")
        sent = np.frombuffer(sent, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    _check_lists(name, sent, shape)
    array = np.asarray(sent)
    if array is not sent and array.dtype.kind in "iuf":  # lists of Python's numbers
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(dtype)
        array = cast if dtype.kind == "f" or np.array_equal(cast, array) else array
    if array.dtype != dtype:
        raise ValueError(f"{name}: got {array.dtype} numbers, want {dtype}")
    if array.shape != spec.shape:
        raise ValueError(f"{name}: got {list(array.shape)} numbers, want {shape}")
    if not (finite := np.isfinite(array)).all():
        worst = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"{name}: number {worst} is {array.flat[worst]}, want finite ones")
    return array
