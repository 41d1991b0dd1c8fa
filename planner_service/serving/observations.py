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
    if unknown := sorted(map(str, sent.keys() - data.observations.keys())):
        raise ValueError(f"got {unknown[0][:100]!r}, want only {', '.join(data.observations)}")
    return {name: _read(name, sent[name], spec) for name, spec in data.observations.items()}


def _read(name: str, sent: Any, spec: ArraySpec) -> np.ndarray:
    dtype, shape = np.dtype(spec.dtype), list(spec.shape)
    if isinstance(sent, bytes):
        if len(sent) != (want := dtype.itemsize * math.prod(shape)):
            raise ValueError(f"{name}: got {len(sent)} bytes, want {want}: {shape} {dtype} numbers")
        sent = np.frombuffer(sent, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    try:
        array = np.asarray(sent)
    except ValueError:
        raise ValueError(f"{name}: got lists of unequal lengths, want {shape} numbers") from None
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
