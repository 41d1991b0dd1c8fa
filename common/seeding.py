"""Every random stream of a run is derived from the run's seed and the stream's name, so none disturbs another."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *stream: str | int) -> int:
    """Derive a 63-bit seed for the named stream: `derive_seed(0, "episode", 12)`.

    Hashing (not seed + number) keeps neighbouring seeds' streams apart: run 0's episode 1 is not run 1's episode 0.
    """
    name = repr((seed, *stream)).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1
