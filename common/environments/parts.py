"""Parts of an observation: as a task shows them, by name, and as numbers of the agent's vector, as Gymnasium flattens.

{"arm": {"angles": [.1, .2]}, "grip": 2} --flatten--> [.1, .2, 0, 0, 1]    arm/angles: 2 numbers; grip: one of three
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from qttdm.common.contracts import ObservationPart


def leaves(space: spaces.Space) -> dict[str, Any]:
    """List the spaces within a Dict by name, those of a Dict in it as OUTER/INNER; any other space is alone."""
    return _by_name([("", space)], spaces.Dict)


def parts_of(space: spaces.Space) -> tuple[ObservationPart, ...]:
    """List the parts of a Dict in the order in which Gymnasium flattens them; () for other spaces."""
    if not isinstance(space, spaces.Dict):
        return ()
    return tuple(ObservationPart(n, spaces.flatdim(s), s.shape, _choices(s)) for n, s in leaves(space).items())


def flatten(parts: Sequence[ObservationPart], shown: Mapping[str, Any]) -> tuple[NDArray[np.float32], bool]:
    """Flatten what a task shows, or B of it, batched in each part: float32 [B, M], and whether it was one alone.

    ValueError, one line, for parts that are missing, unknown, of another shape, or no choice.
    """
    values, names = _by_name(shown.items(), Mapping), [part.name for part in parts]
    if {*values} != {*names}:
        raise ValueError(f"got observations {sorted(values)}, want {names}")
    arrays = [_array(name, values[name]) for name in names]
    shapes = [(part.size,) if part.shape is None else part.shape for part in parts]
    one = all(array.shape == shape for array, shape in zip(arrays, shapes, strict=True))
    batches = {a.shape[:1] if a.shape[1:] == shape else () for a, shape in zip(arrays, shapes, strict=True)}
    if not one and len(batches) == 1 and () not in batches:
        ((count,),) = batches
    else:  # one, perhaps in other shapes, such as [0.5] for ()
        count, one = 1, True
        for name, array, shape in zip(names, arrays, shapes, strict=True):
            if array.size != np.prod(shape):
                raise ValueError(f"got {name} of shape {array.shape}, want {shape}, or (B, ..) in all observations")
    return np.concatenate([_numbers(p, a.reshape(count, -1)) for p, a in zip(parts, arrays, strict=True)], axis=1), one


def _by_name(items: Iterable[tuple[Any, Any]], kind: Any, outer: str = "") -> dict[str, Any]:
    """Flatten a tree whose inner nodes are of that kind."""
    found: dict[str, Any] = {}
    for key, value in items:
        name = f"{outer}/{key}" if outer else str(key)
        found |= _by_name(value.items(), kind, name) if isinstance(value, kind) else {name: value}
    return found


def _array(name: str, value: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"got {name} as a {type(value).__name__}, want numbers") from None


def _choices(space: spaces.Space) -> tuple[tuple[int, int], ...]:
    """Find the first value and the number of values of each choice in the space; () if it has none."""
    if isinstance(space, spaces.Discrete):
        return ((int(space.start), int(space.n)),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(zip(space.start.flatten().tolist(), space.nvec.flatten().tolist(), strict=True))
    return ()


def _numbers(part: ObservationPart, values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Turn a part's values, flat [B, ..], into its numbers of the vector [B, size]: each choice is one-hot."""
    if not part.choices:
        return values.astype(np.float32)
    columns = []
    for (first, count), column in zip(part.choices, values.T, strict=True):
        hot = column[:, None] == first + np.arange(count)  # [B, count]
        if not hot.any(axis=1).all():
            wrong = column[~hot.any(axis=1)][0]
            raise ValueError(f"got {wrong:g} in {part.name}, want whole numbers from {first} to {first + count - 1}")
        columns.append(hot.astype(np.float32))
    return np.concatenate(columns, axis=1)
