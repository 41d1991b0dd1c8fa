"""metrics.jsonl: one object per line, whose every number is declared once, by the file that computes it.

    declare(("loss_q", "1", "smooth L1 to the targets"))      # beside the loss; nothing more is needed

Each line starts with `kind` and the counters. `train` is one collected episode, `update` the averages over the updates
since the last such line, `eval` one evaluation. What a learner's parts compute stands in `update` lines and is passed
on to Prometheus as qttdm_learner{name="loss_q"} (learner/metrics.py).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qttdm.common.config import ConfigError

KINDS = ("train", "update", "eval")


@dataclass(frozen=True)
class Number:
    """A number's name in metrics.jsonl, its unit, and what it means."""

    name: str
    unit: str
    meaning: str


NUMBERS: dict[str, Number] = {}
"""By name, all that the modules imported so far declare."""


def declare(*numbers: tuple[str, str, str]) -> tuple[str, ...]:
    """Declare numbers by name, unit and meaning; return the names. ValueError if a name is taken or no plain word."""
    for name, unit, meaning in numbers:
        if not re.fullmatch(r"\w{1,64}", name):  # which Prometheus' label takes
            raise ValueError(f"{name}: want a name of at most 64 letters, digits and underscores")
        if NUMBERS.setdefault(name, number := Number(name, unit, meaning)) != number:
            raise ValueError(f"{name}: declared twice")
    return tuple(name for name, _, _ in numbers)


COUNTERS = declare(
    ("env_steps", "environment steps", "simulator steps collected so far, action repeats counted"),
    ("decisions", "decisions", "decisions collected so far, the random ones at the start included"),
    ("updates", "updates", "learner updates so far"),
    ("episodes", "episodes", "training episodes collected so far"),
    ("wall_seconds", "s", "time spent so far, earlier parts of a resumed run included"),
)
"""on every line"""
declare(
    ("episode_return", "reward", "undiscounted sum of rewards of the episode; eval: mean over the episodes"),
    (
        "success",
        "fraction",
        "what an episode's steps said last of success (eval: mean over the episodes); null: nothing",
    ),
    ("episode_length", "decisions", "length of the episode"),
    ("actor", "1", "which actor collected it (cluster)"),
    ("staleness", "updates", "made between the oldest weights of the episode and its arrival (cluster)"),
    ("episode_returns", "reward", "return of each evaluation episode, a list"),
    ("episodes_evaluated", "episodes", "episodes in this evaluation"),
    ("eval_seconds", "s", "time this evaluation took"),
)


Sink = Callable[[dict[str, Any]], object]
"""Takes each line as well: common/metrics/sinks.py."""


class MetricsWriter:
    """Append lines to metrics.jsonl; each is handed to the operating system before `write` returns.

    `keep_bytes`, a checkpoint's `sync()`, cuts off what an interrupted run wrote after that checkpoint, so that the
    resumed run's file equals an uninterrupted one's (times and speeds apart). None keeps every complete line.
    """

    def __init__(self, path: Path, keep_bytes: int | None = None, sinks: Sequence[Sink] = ()) -> None:
        """ConfigError if the file cannot be opened or does not hold `keep_bytes` bytes of whole lines."""
        written = path.read_bytes() if path.exists() else b""
        keep = written.rfind(b"\n") + 1 if keep_bytes is None else keep_bytes
        if keep > len(written) or (keep > 0 and written[keep - 1 : keep] != b"\n"):
            raise ConfigError(f"{path}: has {len(written)} bytes and no line ends at {keep}, where the checkpoint was")
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise ConfigError(f"{path}: cannot write metrics ({error.strerror})") from None
        self._file.truncate(keep)
        self.sinks: list[Sink] = [*sinks]
        """may grow: common/metrics/sinks.py"""

    def write(self, kind: str, **values: Any) -> None:
        """Append one line; non-finite floats become null. ValueError for an undeclared name or a missing counter."""
        if kind not in KINDS:
            raise ValueError(f"metrics kind: got {kind!r}, want one of {', '.join(KINDS)}")
        if unknown := sorted(values.keys() - NUMBERS.keys()):
            raise ValueError(f"{kind} line: {', '.join(unknown)} not declared; see common/metrics/lines.py")
        if missing := [name for name in COUNTERS if name not in values]:
            raise ValueError(f"{kind} line: {', '.join(missing)} missing")
        line = {"kind": kind, **{name: values[name] for name in COUNTERS}, **values}
        plain = {name: _plain(value) for name, value in line.items()}
        self._file.write(json.dumps(plain, allow_nan=False).encode() + b"\n")
        self._file.flush()
        for sink in self.sinks:
            sink(plain)

    def sync(self) -> int:
        """Flush to disk and return the file's length in bytes, which a checkpoint stores as `keep_bytes`."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()


def _plain(value: Any) -> Any:
    """Convert a number of numpy or torch to Python's own, a non-finite one to None; lists element by element."""
    if isinstance(value, list | tuple):
        return [_plain(element) for element in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read every line of metrics.jsonl, oldest first. A last line without a newline is still being written: left out.

    Raises ConfigError when the file cannot be read or a line before the last is not a JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise ConfigError(f"{path}: cannot read metrics ({error.strerror})") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ConfigError(f"{path}, line {number}: not a JSON object; the file is damaged")
        records.append(record)
    return records
