"""Observations as they arrive: read into the arrays that the agent's DataSpec declares, and checked against it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qttdm.common.contracts import ArraySpec, ArrayTree, DataSpec


def read_observations(sent: Any, data: DataSpec) -> dict[str, np.ndarray]:
    """Read a map from name to value, or the value alone where there is one observation. ValueError, one line."""
    if not isinstance(sent, dict):
        if len(data.observations) > 1:
            raise ValueError(f"want a map with {', '.join(data.observations)}")
        sent = dict.fromkeys(data.observations, sent)
    unknown = np.empty(0)  # `observation_problem` names it
    return {
        name: read_array(name, value, data.observations[name]) if name in data.observations else unknown
        for name, value in sent.items()
    }


def read_array(name: str, sent: Any, spec: ArraySpec) -> np.ndarray:
    """Read little-endian bytes, or nested lists of numbers, as an array of that dtype. ValueError, one line."""
    dtype = np.dtype(spec.dtype)
    if isinstance(sent, bytes):
        want = dtype.itemsize * math.prod(spec.shape)
        if len(sent) != want:
            raise ValueError(f"{name}: got {len(sent)} bytes, want {want} ({spec.dtype} {list(spec.shape)})")
        return np.frombuffer(sent, dtype.newbyteorder("<")).astype(dtype).reshape(spec.shape)
    try:
        numbers = np.asarray(sent)
    except ValueError:
        raise ValueError(f"{name}: want lists of equal length, {list(spec.shape)}") from None
    if numbers.dtype.kind not in "iuf":
        raise ValueError(f"{name}: want {list(spec.shape)} numbers, or their bytes")
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is infinite, and refused below or as that
        array = numbers.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(array, numbers):
        raise ValueError(f"{name}: want {spec.dtype} numbers, got others")
    return array


def observation_problem(observations: ArrayTree, data: DataSpec) -> str | None:
    """What is wrong with observations, which must be as `data` says and finite; None if nothing is."""
    if missing := sorted(data.observations.keys() - observations.keys()):
        return f"there is no {missing[0]!r}; want {', '.join(data.observations)}"
    if unknown := sorted(observations.keys() - data.observations.keys()):
        return f"got {unknown[0]!r}, want only {', '.join(data.observations)}"
    for name, want in data.observations.items():
        got = observations[name]
        if got.dtype != np.dtype(want.dtype):
            return f"{name}: got {got.dtype} numbers, want {want.dtype}"
        if got.shape != want.shape:
            return f"{name}: got {list(got.shape)} numbers, want {list(want.shape)}"
        if not (finite := np.isfinite(got)).all():
            worst = int(np.flatnonzero(~finite)[0])
            return f"{name}: number {worst} is {got.flat[worst]}, want finite ones"
    return None
