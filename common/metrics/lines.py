"""Every number that a run reports, declared once, and the file it is written to: metrics.jsonl, one object per line.

Each line starts with `kind` and the counters. `train` is one collected episode, `update` the averages over the updates
since the last such line, `eval` one evaluation.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qttdm.common.config import ConfigError

KINDS = ("train", "update", "eval")
COUNTERS = ("env_steps", "decisions", "updates", "episodes", "wall_seconds")


@dataclass(frozen=True)
class Metric:
    """A number's name in metrics.jsonl, its unit, and what it means."""

    name: str
    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in [
        # counters, on every line
        Metric("env_steps", "environment steps", "simulator steps collected so far, action repeats counted"),
        Metric("decisions", "decisions", "decisions collected so far, the random ones at the start included"),
        Metric("updates", "updates", "learner updates so far"),
        Metric("episodes", "episodes", "training episodes collected so far"),
        Metric("wall_seconds", "s", "time spent so far, earlier parts of a resumed run included"),
        # train and eval
        Metric("episode_return", "reward", "undiscounted sum of rewards of the episode; eval: mean over the episodes"),
        Metric(
            "success", "fraction", "success at the last step (eval: mean over the episodes); null: task does not say"
        ),
        # train
        Metric("episode_length", "decisions", "length of the episode"),
        Metric("actor", "1", "which actor collected it"),
        Metric(
            "staleness", "updates", "made between the oldest weights of the episode and its being heard of (cluster)"
        ),
        Metric("decisions_per_second", "1/s", "speed of collecting"),
        # update
        Metric(
            "loss_state", "observation unit^2", "mean squared error per dimension of the next state, dynamics model"
        ),
        Metric("loss_reward", "nats", "-log p(scaled reward) under Normal(prediction, 1), so at least 0.919"),
        Metric("loss_continuation", "nats", "binary cross-entropy of going on; 0 for a task that cannot terminate"),
        Metric("loss_q", "1", "smooth L1 to the targets, mean over action dimensions, sum over the two heads"),
        Metric("grad_norm_tdm", "1", "dynamics model's gradient norm before clipping"),
        Metric("grad_norm_qt", "1", "Q-Transformer's gradient norm before clipping"),
        Metric("q_mean", "scaled return", "Q of the bins taken, mean over action dimensions and heads"),
        Metric("q_target_mean", "scaled return", "its targets: discounted sums of rewards times learner.reward_scale"),
        Metric("q_max", "scaled return", "largest Q of a batch, of the bins taken, mean over heads"),
        Metric(
            "replayed_return",
            "scaled return",
            "what followed the same states in the stored episodes: discounted rewards to the end",
        ),
        Metric("target_drift", "fraction", "distance of the target network from the network, over the network's norm"),
        Metric("lr_tdm", "1", "learning rate of the dynamics model"),
        Metric("lr_qt", "1", "learning rate of the Q-Transformer"),
        Metric("updates_per_second", "1/s", "speed of learning"),
        Metric(
            "share_waiting_for_decisions", "fraction", "of the learner's time: the pace allowed no update (cluster)"
        ),
        Metric("share_waiting_for_batches", "fraction", "of its time: no batch had come yet (cluster)"),
        Metric("share_copying", "fraction", "of its time: bringing batches on their way to the device (cluster)"),
        Metric("share_updating", "fraction", "of its time: updates (cluster)"),
        Metric("share_publishing", "fraction", "of its time: sending weights (cluster)"),
        Metric("share_saving", "fraction", "of its time: checkpoints (cluster)"),
        # eval
        Metric("episode_returns", "reward", "return of each evaluation episode, a list"),
        Metric("episodes_evaluated", "episodes", "episodes in this evaluation"),
        Metric("eval_seconds", "s", "time this evaluation took"),
    ]
}


Sink = Callable[[dict[str, Any]], object]
"""Is told of each line too."""


class MetricsWriter:
    """Appends lines to metrics.jsonl, each one on its way to disk before `write` returns.

    `keep_bytes`, a checkpoint's `sync()`, cuts off what an interrupted run wrote after that checkpoint, so that the
    resumed run's file equals an uninterrupted one's (times and speeds apart). None keeps every complete line.
    """

    def __init__(self, path: Path, keep_bytes: int | None = None, sinks: Sequence[Sink] = ()) -> None:
        """Raises ConfigError when the file cannot be opened or does not hold `keep_bytes` bytes of whole lines."""
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
        """Append one line; non-finite floats become null. ValueError for a name nobody declared, or a lost counter."""
        if kind not in KINDS:
            raise ValueError(f"metrics kind: got {kind!r}, want one of {', '.join(KINDS)}")
        if unknown := sorted(values.keys() - METRICS.keys()):
            raise ValueError(f"{kind} line: {', '.join(unknown)} not declared in common/metrics/lines.py")
        if missing := [name for name in COUNTERS if name not in values]:
            raise ValueError(f"{kind} line: {', '.join(missing)} missing")
        line = {"kind": kind, **{name: values[name] for name in COUNTERS}, **values}
        plain = {name: _plain(value) for name, value in line.items()}
        self._file.write(json.dumps(plain, allow_nan=False).encode() + b"\n")
        self._file.flush()
        for sink in self.sinks:
            sink(plain)

    def sync(self) -> int:
        """The file's length in bytes, once that much is safely on disk: what a checkpoint stores as `keep_bytes`."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _plain(value: Any) -> Any:
    """A number from numpy or torch as Python's own, and a non-finite one as None; lists element by element."""
    if isinstance(value, list | tuple):
        return [_plain(element) for element in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl, oldest first; a last line without its newline is still being written: left out.

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
