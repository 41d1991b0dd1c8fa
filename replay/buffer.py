"""Replay: the most recent episodes in preallocated memory, and batches of windows gathered from them.

    actor --Episode--> add      evicts the oldest episodes, computes returns-to-go, copies into the rings
                       sample   sampler: decision numbers -> windows gathered by index --Batch--> learner
                       state, load   stop and go on exactly

Decisions and episodes carry running numbers that are never reused; a number's place is its remainder in a ring. An
episode's T+1 observations are rows d+e, d+e+1, .. for first decision d and episode number e, for each earlier episode
put one observation more than decisions in front of it.

Choice: the observation ring has a quarter more rows than the other rings, for the observations after the last
decisions; episodes leave when either is full. Why: it is enough for episodes of 4 decisions and more on average;
shorter ones merely leave earlier. What would change it: a task of such episodes (then: twice as many rows).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from pydantic import Field

from qttdm.common.batch import Batch
from qttdm.common.config import Config
from qttdm.common.contracts import ArraySpec, DataSpec
from qttdm.common.episode import Episode
from qttdm.replay.samplers import Balanced, Uniform

STEPS = ("actions", "rewards", "terminated", "mask", "returns_to_go", "last_observations", "left", "ends")
"""What a batch holds besides observations."""


class ReplayConfig(Config):
    """How much is kept, and how windows are chosen from it."""

    capacity: int = Field(default=500_000, gt=0)
    """decisions kept; the longest run here makes 500,000 (Meta-World: 1M simulator steps, action repeat 2)"""
    sampler: Literal["uniform", "balanced"] = "uniform"
    """how the first decision of a window is chosen (replay/samplers.py)"""
    balanced_temperature: float = Field(default=20.0, gt=0.0)
    """balanced: how many more visits make a decision e times less likely; 20 is the transformer-world-model paper's"""


class Replay:
    """Stores whole episodes up to a number of decisions, and samples windows of L consecutive ones."""

    def __init__(self, config: ReplayConfig, data: DataSpec, seed: int) -> None:
        """Reserve all memory for what `data` names."""
        assert data.window > 0, data.window
        assert data.discount is None or 0.0 <= data.discount <= 1.0, data.discount
        assert data.observations.keys().isdisjoint(STEPS), (*data.observations, "want other names than", *STEPS)
        self.config, self.data = config, data
        self._rng = np.random.default_rng(seed)
        balanced = config.sampler == "balanced"
        self._sampler = Balanced(config.capacity, config.balanced_temperature) if balanced else Uniform()
        self._stored = range(0)  # decision numbers
        self._first_episode = 0  # number of the oldest stored episode
        self.num_episodes = 0
        """episodes stored"""

        # The last row of each ring is never written: it is what windows read behind an episode's end.
        self._capacity, self._rows = config.capacity, config.capacity + config.capacity // 4 + 1
        self._observed = {name: _zeros(self._rows + 1, spec) for name, spec in data.observations.items()}
        self._actions = _zeros(self._capacity + 1, data.actions)
        self._rewards = np.zeros(self._capacity + 1, np.float32)
        self._returns_to_go = np.zeros(0 if data.discount is None else self._capacity + 1, np.float32)
        self._terminated = np.zeros(self._capacity + 1, np.bool_)
        self._end_of = np.zeros(self._capacity, np.int64)  # number after the last decision of the same episode
        self._begin_of = np.zeros(self._capacity, np.int64)  # number of the first decision of the same episode
        self._episode_of = np.zeros(self._capacity, np.int64)  # number of the episode

    @property
    def decisions(self) -> int:
        """Decisions stored, at most `capacity`."""
        return len(self._stored)

    def check(self, episode: Episode) -> None:
        """Raise ValueError, naming got and wanted, unless this episode can be stored and learned from."""
        steps = episode.decisions
        if steps > self._capacity:
            raise ValueError(f"episode: got {steps} decisions, want at most the capacity, {self._capacity}")
        data, arrays = self.data, episode.arrays
        if arrays.keys() != {*data.observations, "actions", "rewards"}:
            raise ValueError(f"episode: got arrays {sorted(arrays)}, want {sorted([*data.observations, *STEPS[:2]])}")
        for name, array in arrays.items():
            rows = steps + (name in data.observations)
            spec = data.observations.get(name, data.actions if name == "actions" else ArraySpec(()))
            if array.shape != (want := (rows, *spec.shape)) or array.dtype != spec.dtype:
                raise ValueError(f"episode {name}: got {array.dtype} {array.shape}, want {spec.dtype} {want}")
            if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
                raise ValueError(f"episode {name}: got {array[~finite][0]} among the values, want finite ones")
        if data.choices is None:
            if (largest := np.abs(episode.actions).max()) > 1.0:
                raise ValueError(f"episode actions: got a magnitude of {largest}, want actions in [-1, 1]")
        elif (lowest := episode.actions.min()) < 0 or episode.actions.max() >= data.choices:
            got = f"{lowest} to {episode.actions.max()}"
            raise ValueError(f"episode actions: got {got}, want choices 0 to {data.choices - 1}")

    def add(self, episode: Episode) -> None:
        """Copy an episode in, evicting the oldest until it fits. ValueError, and no change, if it cannot be stored."""
        self.check(episode)
        while not self._fits(episode.decisions):
            self._evict()
        span = range(self._stored.stop, self._stored.stop + episode.decisions)
        number = self._first_episode + self.num_episodes
        places, rows = self._places(span, number)

        arrays = episode.arrays
        for name, ring in self._observed.items():
            ring[rows] = arrays[name]
        self._actions[places] = episode.actions
        self._rewards[places] = episode.rewards
        if self.data.discount is not None:
            self._returns_to_go[places] = returns_to_go(episode.rewards, self.data.discount)
        self._terminated[places] = False
        self._terminated[places[-1]] = episode.terminated
        self._end_of[places] = span.stop
        self._begin_of[places] = span.start
        self._episode_of[places] = number

        self._stored = range(self._stored.start, span.stop)
        self.num_episodes += 1
        self._sampler.add(span)

    def sample(self, batch_size: int) -> Batch:
        """Draw B = batch_size windows, drawn with replacement, as fresh arrays. ValueError if nothing is stored."""
        if not self._stored or batch_size < 1:
            raise ValueError(
                f"sample: got batch_size {batch_size} of {self.decisions} decisions, want 1 or more of both"
            )
        starts = self._sampler.draw(self._stored, batch_size, self._rng)  # [B]
        first = starts % self._capacity  # [B]
        left = (self._end_of[first] - starts)[:, None]  # [B, 1] decisions from the start to the episode's end
        first_row = (starts + self._episode_of[first]) % self._rows  # [B]
        steps = np.arange(self.data.window + 1)  # [L+1]

        mask = steps[:-1] < left  # [B, L]
        places = np.where(mask, _wrap(first[:, None] + steps[:-1], self._capacity), self._capacity)  # [B, L]
        rows = np.where(steps <= left, _wrap(first_row[:, None] + steps, self._rows), self._rows)  # [B, L+1]
        batch = {name: _gather(ring, rows) for name, ring in self._observed.items()}
        if self.data.stack > 1:
            batch["observations"] = self._stacked(starts, left, first_row)
        batch["actions"] = _gather(self._actions, places)
        batch["rewards"] = _gather(self._rewards, places)
        batch["terminated"] = _gather(self._terminated, places)
        batch["mask"] = mask
        if self.data.discount is not None:
            batch["returns_to_go"] = _gather(self._returns_to_go, places)
        if self.data.ends:
            left = left[:, 0]
            batch["last_observations"] = _gather(self._observed["observations"], (first_row + left) % self._rows)
            batch["left"] = left
            batch["ends"] = _gather(self._terminated, (starts + left - 1) % self._capacity)
        return batch

    def mass(self) -> float:
        """Log of the sampling weight of all that is stored, for comparison with other shards' (samplers.shares)."""
        return self._sampler.mass(self._stored)

    def state(self) -> dict[str, Any]:
        """Return all that the stored episodes do not say: settings, numbering, random state, the sampler's counts."""
        return {
            "settings": self._settings(),
            "decisions": [self._stored.start, self._stored.stop],
            "episodes": [self._first_episode, self._first_episode + self.num_episodes],
            "rng": json.dumps(self._rng.bit_generator.state),  # 128-bit integers, too large for msgpack's own
            "sampler": self._sampler.state(),
        }

    def check_settings(self, state: dict[str, Any]) -> None:
        """Raise ValueError unless the state is of a Replay with these settings."""
        if (got := state.get("settings")) != (want := self._settings()):
            raise ValueError(f"replay state: got settings {got}, want {want}")

    def load(self, state: dict[str, Any], episodes: Iterable[Episode]) -> None:
        """Go on where another Replay's state was taken, which held these episodes: the next batches are identical.

        For a new Replay with the same settings; its own seed is forgotten. ValueError if state and episodes do not
        belong together or do not fit here; this Replay is then half loaded and of no use.
        """
        assert not self._stored.stop, self._stored
        self.check_settings(state)
        start, stop = state["decisions"]
        self._stored = range(start, start)
        self._first_episode, next_episode = state["episodes"]
        for episode in episodes:
            self.add(episode)
        got = [self._stored.start, self._stored.stop, self._first_episode + self.num_episodes]
        if got != (want := [start, stop, next_episode]):
            raise ValueError(f"replay state: got first and next decision, next episode {got}, want {want}")
        self._sampler.load(state["sampler"])
        self._rng.bit_generator.state = json.loads(state["rng"])

    def _stacked(self, starts: np.ndarray, left: np.ndarray, first_row: np.ndarray) -> np.ndarray:
        """Gather each image with those before it: [B, L+1, .., stack * C].

        starts [B], left [B, 1] and first_row [B] as in `sample`. Padded places are blank.
        """
        stack, ring = self.data.stack, self._observed["observations"]
        steps = np.arange(1 - stack, self.data.window + 1)  # from the first image that is shown
        before = starts - self._begin_of[starts % self._capacity]  # [B] decisions of the episode before the window
        kept = np.maximum(steps, -before[:, None])  # the episode's first image stands for those before it
        rows = np.where(steps <= left, (first_row[:, None] + kept) % self._rows, self._rows)  # [B, stack + L]
        images = _gather(ring, rows)
        count = self.data.window + 1
        shown = np.concatenate([images[:, i : i + count] for i in range(stack)], axis=-1)
        shown[(steps > left)[:, stack - 1 :]] = 0
        return shown

    def _fits(self, steps: int) -> bool:
        decisions = self.decisions + steps
        return decisions <= self._capacity and decisions + self.num_episodes + 1 <= self._rows

    def _evict(self) -> None:
        """Forget the oldest episode; its rows are overwritten in time."""
        start = self._stored.start
        span = range(start, int(self._end_of[start % self._capacity]))
        self._sampler.evict(span)
        self.num_episodes -= 1
        self._first_episode += 1
        self._stored = range(span.stop, self._stored.stop)

    def _places(self, span: range, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the places of an episode's decisions [T] and observations [T+1] in their rings."""
        steps = np.arange(len(span) + 1)
        return (span.start + steps[:-1]) % self._capacity, (span.start + number + steps) % self._rows

    def _settings(self) -> dict[str, Any]:
        return {**self.config.model_dump(), "data": str(self.data)}


def returns_to_go(rewards: np.ndarray, discount: float) -> np.ndarray:
    """Compute discounted sum of rewards from each step to the end: [T] -> float64 [T].

    Backwards and in float64: each value is then the next one and a reward. Forward recursion subtracts rewards from a
    total and divides by the discount, which magnifies rounding errors by discount^-T.
    """
    backwards = accumulate(rewards[::-1].tolist(), lambda later, reward: reward + discount * later)
    return np.fromiter(backwards, np.float64, len(rewards))[::-1]


def _wrap(indices: np.ndarray, size: int) -> np.ndarray:
    """Wrap indices below 2 * size into a ring, in place; several times as fast as the remainder."""
    return np.subtract(indices, size, out=indices, where=indices >= size)


def _gather(ring: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Take ring[indices]; mode="clip" only because numpy is then spared the checks and a buffer."""
    return np.take(ring, indices, axis=0, mode="clip")


def _zeros(rows: int, spec: ArraySpec) -> np.ndarray:
    return np.zeros((rows, *spec.shape), spec.dtype)
