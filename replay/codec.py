"""An episode as bytes, and back: one self-checking record, for sending between machines and for keeping on disk.

record = CRC32 of the rest (4 bytes, little-endian) + a msgpack map. Arrays are raw little-endian bytes with their dtype
and shape. No pickle: what is read can only ever become numbers. Replay checks them against the agent's DataSpec.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import msgpack
import numpy as np

from qttdm.common.episode import Episode

VERSION = 2
"""Format of the episode map; raised whenever its keys or their meaning change."""

DTYPES = {np.dtype(dtype): dtype for dtype in ("<f4", "<i8", "|u1", "<f8")}
"""Dtypes of arrays, and their names in a record; float64 for the state of a simulator."""
SCALARS: dict[str, type] = {
    "terminated": bool,
    "truncated": bool,
    "env_steps": int,
    "success": float,  # or None
    "actor": int,
    "number": int,
    "oldest_weights": int,
    "newest_weights": int,
}
"""An episode's fields besides its arrays."""

_CRC_BYTES = 4


def encode(episode: Episode) -> bytes:
    """Encode an episode as one record. ValueError if an array has a dtype that is not in DTYPES."""
    arrays = {}
    for name, array in episode.arrays.items():
        if array.dtype not in DTYPES or array.ndim == 0:
            raise ValueError(f"{name}: got {array.dtype} of {array.ndim} dimensions, want rows of {_wanted()}")
        dtype = DTYPES[array.dtype]
        arrays[name] = {"dtype": dtype, "shape": list(array.shape), "data": array.astype(dtype, order="C").tobytes()}
    values = {name: getattr(episode, name) for name in SCALARS}  # environments like to return numpy's
    plain = {name: None if value is None else SCALARS[name](value) for name, value in values.items()}
    return seal({"version": VERSION, **plain, "arrays": arrays})


def decode(record: bytes) -> Episode:
    """Decode a record; the arrays are read-only. ValueError, one line, for anything `encode` did not write."""
    content = unseal(record)
    if (version := content.get("version")) != VERSION:
        raise ValueError(f"episode record: got version {version!r}, want {VERSION}")
    if content.keys() != {"version", *SCALARS, "arrays"}:
        raise ValueError(f"episode record: got keys {sorted(content)}, want version, {', '.join(SCALARS)}, arrays")
    for name, kind in SCALARS.items():
        value = content[name]
        if type(value) is not kind and not (name == "success" and value is None):
            raise ValueError(f"episode record: {name}: got {value!r:.60}, want {kind.__name__}")
    if not isinstance(content["arrays"], dict):
        raise ValueError(f"episode record: arrays: got {content['arrays']!r:.60}, want a map")
    extra = {name: _array(name, stored) for name, stored in content["arrays"].items()}
    try:
        observations, actions, rewards = (extra.pop(name) for name in ("observations", "actions", "rewards"))
    except KeyError as error:
        raise ValueError(f"episode record: got arrays {sorted(extra)}, want {error} too") from None
    rows, steps = [len(array) for array in (observations, actions, *extra.values())], len(rewards)
    if rows != [steps + 1, steps] + [steps + 1] * len(extra):
        raise ValueError(f"episode record: got {rows} rows for {steps} rewards, want T+1, T, then T+1 of {[*extra]}")
    return Episode(observations, actions, rewards, extra=extra, **{name: content[name] for name in SCALARS})


def seal(content: dict[str, Any]) -> bytes:
    """Pack a map of plain values and bytes as a record with a checksum."""
    payload: bytes = msgpack.packb(content)
    return zlib.crc32(payload).to_bytes(_CRC_BYTES, "little") + payload


def checksum_of(record: bytes) -> int:
    """Return the CRC32 that a record begins with."""
    return int.from_bytes(record[:_CRC_BYTES], "little")


def unseal(record: bytes) -> dict[str, Any]:
    """Unpack a record. ValueError if it was cut short or changed, or holds no map."""
    expected, payload = checksum_of(record), record[_CRC_BYTES:]
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


def _array(name: Any, stored: Any) -> np.ndarray:
    """Read one array of a record, as a view of its bytes."""
    if not isinstance(name, str) or not isinstance(stored, dict) or stored.keys() != {"dtype", "shape", "data"}:
        raise ValueError(f"episode record: {name}: got {stored!r:.60}, want a map of dtype, shape and data")
    dtype, shape, data = stored["dtype"], stored["shape"], stored["data"]
    if dtype not in DTYPES.values() or not isinstance(data, bytes):
        raise ValueError(f"episode record: {name}: got dtype {dtype!r:.60}, want {_wanted()} and bytes")
    if not isinstance(shape, list) or not shape or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"episode record: {name}: got shape {shape!r:.60}, want sizes above 0")
    if len(data) != (want := np.dtype(dtype).itemsize * math.prod(shape)):
        raise ValueError(f"episode record: {name}: got {len(data)} bytes, want {want} for shape {shape}")
    return np.frombuffer(data, dtype).reshape(shape)


def _wanted() -> str:
    return ", ".join(str(dtype) for dtype in DTYPES)
