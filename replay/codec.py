"""An episode as bytes, and back: one self-checking record, for sending between machines and for keeping on disk.

record = CRC32 of the rest (4 bytes, little-endian) + a msgpack map. Arrays are raw little-endian bytes with their dtype
and shape. No pickle: what is read can only ever become numbers.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import msgpack
import numpy as np

from qttdm.common.episode import Episode

VERSION = 1
"""Format of the episode map; raised whenever its keys or their meaning change."""

ARRAYS = {"observations": 2, "actions": 2, "rewards": 1}
"""Episode's arrays and their number of dimensions."""
SCALARS: dict[str, type] = {
    "terminated": bool,
    "env_steps": int,
    "success": float,  # or None
    "actor": int,
    "number": int,
    "oldest_weights": int,
    "newest_weights": int,
}
"""Everything else in an Episode."""

_CRC_BYTES = 4
_DTYPE = "<f4"


def encode(episode: Episode) -> bytes:
    """The episode as one record. ValueError if one of its arrays is not float32 or has a wrong number of dimensions."""
    arrays = {}
    for name, ndim in ARRAYS.items():
        array = getattr(episode, name)
        if array.dtype != np.float32 or array.ndim != ndim:
            raise ValueError(f"{name}: got {array.dtype} of {array.ndim} dimensions, want float32 of {ndim}")
        arrays[name] = {"dtype": _DTYPE, "shape": list(array.shape), "data": array.astype(_DTYPE, order="C").tobytes()}
    return seal({"version": VERSION, **scalars(episode), **arrays})


def decode(record: bytes) -> Episode:
    """The episode of a record; its arrays are read-only. ValueError, one line, for anything `encode` did not write."""
    content = unseal(record)
    if (version := content.get("version")) != VERSION:
        raise ValueError(f"episode record: got version {version!r}, want {VERSION}")
    if content.keys() != {"version", *SCALARS, *ARRAYS}:
        raise ValueError(f"episode record: got keys {sorted(content)}, want version, {', '.join([*SCALARS, *ARRAYS])}")
    for name, kind in SCALARS.items():
        value = content[name]
        if type(value) is not kind and not (name == "success" and value is None):
            raise ValueError(f"episode record: {name}: got {value!r:.60}, want {kind.__name__}")
    arrays: dict[str, Any] = {name: _array(name, content[name], ndim) for name, ndim in ARRAYS.items()}
    rows = tuple(len(array) for array in arrays.values())
    if rows != (rows[2] + 1, rows[2], rows[2]):
        raise ValueError(f"episode record: got {rows} rows of {', '.join(ARRAYS)}, want T+1, T, T")
    return Episode(**arrays, **{name: content[name] for name in SCALARS})


def scalars(episode: Episode) -> dict[str, Any]:
    """What an episode is besides its arrays, as plain Python values (environments like to return numpy's)."""
    values = {name: getattr(episode, name) for name in SCALARS}
    return {name: None if value is None else SCALARS[name](value) for name, value in values.items()}


def seal(content: dict[str, Any]) -> bytes:
    """A map of plain values and bytes as one record that knows when it has been damaged."""
    payload: bytes = msgpack.packb(content)
    return zlib.crc32(payload).to_bytes(_CRC_BYTES, "little") + payload


def unseal(record: bytes) -> dict[str, Any]:
    """The map inside a record. ValueError if the record was cut short or changed, or holds something else."""
    expected, payload = int.from_bytes(record[:_CRC_BYTES], "little"), record[_CRC_BYTES:]
    if len(record) <= _CRC_BYTES or (got := zlib.crc32(payload)) != expected:
        found = f"{len(record)} bytes" if len(record) <= _CRC_BYTES else f"CRC32 {got:08x}"
        raise ValueError(f"damaged record: got {found}, want CRC32 {expected:08x} and what it was computed from")
    try:
        content = msgpack.unpackb(payload)
    except ValueError as error:
        raise ValueError(f"record is not msgpack: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"record: got a {type(content).__name__}, want a map with text keys")
    return content


def _array(name: str, stored: Any, ndim: int) -> np.ndarray:
    """One array of a record, a view of its bytes."""
    if not isinstance(stored, dict) or stored.keys() != {"dtype", "shape", "data"}:
        raise ValueError(f"episode record: {name}: got {stored!r:.60}, want a map of dtype, shape and data")
    shape, data = stored["shape"], stored["data"]
    if stored["dtype"] != _DTYPE or not isinstance(data, bytes):
        raise ValueError(f"episode record: {name}: got dtype {stored['dtype']!r:.60}, want {_DTYPE!r} and bytes")
    if not isinstance(shape, list) or len(shape) != ndim or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"episode record: {name}: got shape {shape!r:.60}, want {ndim} sizes above 0")
    if len(data) != (want := np.dtype(_DTYPE).itemsize * math.prod(shape)):
        raise ValueError(f"episode record: {name}: got {len(data)} bytes, want {want} for shape {shape}")
    return np.frombuffer(data, _DTYPE).reshape(shape)
