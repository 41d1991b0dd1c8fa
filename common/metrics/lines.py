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
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qttdm.common.config import ConfigError
from qttdm.common.disk import write_all, writing

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
OF_EPISODES = declare(
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
"""on lines of episodes, `train` and `eval`; there are no others"""


Sink = Callable[[dict[str, Any]], object]
"""Takes each line as well: common/metrics/sinks.py."""


class MetricsWriter:
    """Append lines to metrics.jsonl; each is handed to the operating system before `write` returns.

    `keep_bytes`, a checkpoint's `sync()`, cuts off what an interrupted run wrote after that checkpoint, so that the
    resumed run's file equals an uninterrupted one's (times and speeds apart). None keeps every complete line.
    """

    def __init__(
        self, path: Path, keep_bytes: int | None = None, sinks: Sequence[Sink] = (), accept_losses: bool = False
    ) -> None:
        """accept_losses: keep the whole lines there are, where the file has fewer than `keep_bytes` bytes of them.

        ConfigError if it has fewer otherwise, or cannot be opened.
        """
        written = path.read_bytes() if path.exists() else b""
        keep = written.rfind(b"\n", 0, keep_bytes) + 1
        if keep_bytes not in (None, keep) and not accept_losses:
            raise ConfigError(
                f"{path}: has {len(written)} bytes and no line ends at {keep_bytes}, where the checkpoint was; bring "
                f"back the file that belongs to it, or go on with the lines that are left: --accept-losses"
            )
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(f"{path}: cannot write metrics ({error.strerror})") from None
        self.path = path
        self._file.truncate(keep)
        self.sinks: list[Sink] = [*sinks]
        """may grow: common/metrics/sinks.py"""

    def write(self, kind: str, **values: Any) -> None:
        """Append one line; non-finite floats become null. ValueError for an undeclared name or a missing counter.

        DiskError if the disk refuses; a part of the line may be there then.
        """
        if kind not in KINDS:
            raise ValueError(f"metrics kind: got {kind!r}, want one of {', '.join(KINDS)}")
        if unknown := sorted(values.keys() - NUMBERS.keys()):
            raise ValueError(f"{kind} line: {', '.join(unknown)} not declared; see common/metrics/lines.py")
        if missing := [name for name in COUNTERS if name not in values]:
            raise ValueError(f"{kind} line: {', '.join(missing)} missing")
        line = {"kind": kind, **{name: values[name] for name in COUNTERS}, **values}
        plain = {name: _plain(value) for name, value in line.items()}
        text = json.dumps(plain, allow_nan=False).encode() + b"\n"
        with writing(self.path, len(text)):
            write_all(self._file, text)
        for sink in self.sinks:
            sink(plain)

    def sync(self) -> int:
        """Flush to disk and return the file's length in bytes, which a checkpoint stores as `keep_bytes`."""
        with writing(self.path):
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

    So is a line that is not one of `write`'s, and stderr says how many those are. ConfigError if the file cannot be
    read. A digit that is another than was written is not noticed.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise ConfigError(f"{path}: cannot read metrics ({error.strerror})") from None
    records = [record for line in lines if (record := _parsed(line))]
    if damaged := len(lines) - len(records):
        print(f"{path}: left out {damaged} damaged of {len(lines)} lines", file=sys.stderr, flush=True)
    return records


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Parse a line; None unless `write` may have written it: a known kind, all counters, and nothing but numbers."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or (kind := record.pop("kind", None)) not in KINDS:
        return None
    if kind != "update" and not ("episode_return" in record and record.keys() <= {*COUNTERS, *OF_EPISODES}):
        return None
    if not all(type(record.get(name)) in (int, float) for name in COUNTERS):
        return None
    numbers = [element for value in record.values() for element in (value if isinstance(value, list) else [value])]
    if not all(isinstance(number, int | float | None) and _plain(number) == number for number in numbers):
        return None  # also NaN and Infinity, which Python reads
    return {"kind": kind, **record}
