"""Evaluations: planned, handed in when their updates are made, results read in any order.

    plan(counts) -- learner has the updates --> hand_in --> desk --> results: (counts, values)

An evaluation belongs to the environment steps it was planned at, and is of the weights with all the updates that these
steps ask for, so its line is the same however fast actors and learner are. What is planned or under way is in the
checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from qttdm.common.contracts import Learner
from qttdm.common.weights import Weights


class EvaluationDesk(Protocol):
    """Evaluates snapshots of weights."""

    def submit(self, key: int, weights: Weights) -> None:
        """Evaluate these weights; results are told apart by `key`."""

    def results(self) -> list[tuple[int, list[float], float | None, float]]:
        """Return (key, returns, success, seconds) of each ended since the last call; without returns: given up."""


class Evaluations:
    """The evaluations of one run."""

    def __init__(self, desk: EvaluationDesk) -> None:
        self.desk = desk
        self.last_updates = -1
        """the updates of the newest weights that were handed in"""
        self._due: deque[dict[str, Any]] = deque()  # counters then, with the updates they ask for
        self._under_way: dict[int, tuple[dict[str, Any], Weights]] = {}  # by a key

    def __len__(self) -> int:
        """Count evaluations handed in that have no result yet."""
        return len(self._under_way)

    def plan(self, counts: dict[str, Any]) -> None:
        """Plan one for these counters, of the weights after `counts["updates"]` updates."""
        self._due.append(counts)

    def hand_in_due(self, learner: Learner) -> None:
        """Hand in the planned ones whose updates are made."""
        while self._due and learner.updates >= self._due[0]["updates"]:
            self.hand_in(self._due.popleft(), learner)

    def hand_in(self, counts: dict[str, Any], learner: Learner) -> None:
        """Have the learner's weights evaluated, for these counters."""
        self.last_updates = learner.updates
        self._submit(counts, learner.weights())

    def results(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Return counters and values of the evaluations that have ended since the last call, without those given up."""
        for key, returns, success, seconds in self.desk.results():
            counts, _ = self._under_way.pop(key)
            if not returns:
                continue
            yield (
                counts,
                {
                    "episode_return": float(np.mean(returns)),
                    "episode_returns": returns,
                    "success": success,
                    "episodes_evaluated": len(returns),
                    "eval_seconds": seconds,
                },
            )

    def save(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Return what a checkpoint keeps: plain data, and the weights being evaluated as blobs."""
        under_way = self._under_way.values()
        meta = {
            "evaluated_updates": self.last_updates,
            "due": list(self._due),
            "handed_in": [[counts, w.version, w.checksum] for counts, w in under_way],
        }
        return meta, {f"weights-{w.version}": w.values.tobytes() for _, w in under_way}

    def load(self, meta: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
        """Undo `save`: evaluations that had no result yet are handed in again."""
        self.last_updates = meta["evaluated_updates"]
        self._due.extend(meta["due"])
        for counts, version, checksum in meta["handed_in"]:
            values = np.frombuffer(blobs[f"weights-{version}"], np.float32)
            self._submit(counts, Weights(values, version, checksum))

    def _submit(self, counts: dict[str, Any], weights: Weights) -> None:
        key = counts["env_steps"] or -counts["updates"]  # offline the steps stay 0
        self._under_way[key] = counts, weights
        self.desk.submit(key, weights)
