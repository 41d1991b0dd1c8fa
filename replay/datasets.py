"""Logged episodes: any Minari data set whose observations are numbers and whose actions are a bounded Box.

    $MINARI_DATASETS_PATH/ID or a folder --open_dataset--> Dataset --check(task)--> fits, or one line
                                                                   --episodes()---> Episode, one in memory at a time
    episodes of our own                  --write_dataset--> the same

What is wrong with a data set ends in one line. Two things are counted instead: an episode with a value that is not
finite is dropped, and an action beyond the box is clipped to it, which is what the environment did.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from qttdm.common.config import ConfigError
from qttdm.common.contracts import TaskSpec
from qttdm.common.disk import writing
from qttdm.common.environments.make import check_spaces
from qttdm.common.environments.parts import flatten, parts_of
from qttdm.common.episode import Episode
from qttdm.common.extras import need

OURS = "qttdm"
"""key of Minari's metadata under which `write_dataset` says what only we want to know"""
ROUNDING = 1e-5
"""how far beyond [-1, 1] an action may be without being counted"""


class Dataset:
    """A data set on disk. M and N are the lengths of its observations and actions, flattened."""

    def __init__(self, name: str, stored: Any) -> None:
        """stored: minari.MinariDataset. ConfigError if its spaces are not for us, or it has no episodes."""
        self.name, self._storage = name, stored.storage
        observations, actions = stored.observation_space, stored.action_space
        check_spaces(f"data set {name}", observations, actions)
        if isinstance(actions, spaces.Discrete) or len(observations.shape or ()) > 2:
            raise ConfigError(f"data set {name} has discrete actions or images; want vectors and a Box of actions")
        self.parts, self.box = parts_of(observations), actions
        self.obs_dim, self.action_dim = spaces.flatdim(observations), spaces.flatdim(actions)
        self.metadata: dict[str, Any] = self._storage.metadata
        self.stored_episodes, self.decisions = int(self._storage.total_episodes), int(self._storage.total_steps)
        """as it says itself: those that are dropped too"""
        self.dropped = 0
        """episodes left out by the last pass of `episodes`, since a value was not finite"""
        self.clipped = 0
        """actions, of the same pass, with a number beyond the box"""
        if not self.stored_episodes:
            raise ConfigError(f"data set {name} has no episodes")
        self._chosen: Sequence[int] = range(self.stored_episodes)

    @property
    def observed(self) -> list[str]:
        """Name each number of an observation: by its part of a Dict, of its task too, else by its place."""
        parts = [(p.name, p.size) for p in self.parts] or self._ours.get("observed") or [("observation", self.obs_dim)]
        return [name if size == 1 else f"{name}[{i}]" for name, size in parts for i in range(size)]

    @property
    def references(self) -> dict[str, float] | None:
        """Mean returns of random actions and of an expert, in the task's own unit; None if it does not say."""
        low, high = (self.metadata.get(key) for key in ("ref_min_score", "ref_max_score"))
        return None if low is None or high is None else {"random": float(low), "expert": float(high)}

    @property
    def task(self) -> str | None:
        """The task that it was collected on; None if it does not say."""
        return self._ours.get("task")

    @property
    def action_repeat(self) -> int | None:
        """Simulator steps of one decision; None if it does not say."""
        return self._ours.get("action_repeat")

    @property
    def task_spec(self) -> TaskSpec:
        """Describe the task as far as the logs tell, for a task without a simulator; reads each episode's length."""
        lengths = (int(m["total_steps"]) for m in self._storage.get_episode_metadata(self._chosen))
        low, high = (tuple(map(float, end.flat)) for end in (self.box.low, self.box.high))
        shape = None if len(self.box.shape) == 1 else self.box.shape
        return TaskSpec(
            obs_dim=self.obs_dim,
            action_dim=self.action_dim,
            action_repeat=1,
            episode_steps=max(lengths),
            terminates=True,
            name=self.name,
            action_bounds=(low, high),
            action_shape=shape,
            observation_parts=self.parts,
        )

    def choose(self, episodes: int, seed: int) -> None:
        """Be so many of its episodes alone, drawn by that seed. ConfigError if there are fewer."""
        if episodes > self.stored_episodes:
            raise ConfigError(f"data set {self.name} has {self.stored_episodes} episodes; want at most as many of it")
        order = np.random.default_rng(seed).permutation(self.stored_episodes)
        self._chosen = sorted(order[:episodes].tolist())
        self.stored_episodes = episodes
        self.decisions = sum(int(m["total_steps"]) for m in self._storage.get_episode_metadata(self._chosen))

    def check(self, task: TaskSpec) -> None:
        """Raise ConfigError, one line, unless its numbers mean what the task's do."""
        for what, ours, theirs in (
            ("numbers observed", self.obs_dim, task.obs_dim),
            ("numbers acted", self.action_dim, task.action_dim),
            ("simulator steps a decision", self.action_repeat, task.action_repeat),
        ):
            if ours not in (None, theirs):
                raise ConfigError(f"data set {self.name} does not fit {task.name}: {what}: got {ours}, want {theirs}")
        box = np.stack([self.box.low.ravel(), self.box.high.ravel()])  # [2, N]
        want = np.array(
            [[-1.0] * task.action_dim, [1.0] * task.action_dim] if task.action_bounds is None else task.action_bounds
        )
        if not np.allclose(box, want):
            raise ConfigError(
                f"data set {self.name} does not fit {task.name}: actions: got a box from {_few(box[0])} to "
                f"{_few(box[1])}, want from {_few(want[0])} to {_few(want[1])}"
            )

    def episodes(self, actor: int = 0) -> Iterator[Episode]:
        """Read the episodes in order, actions in [-1, 1], named (actor, 0), (actor, 1), ..; `env_steps` is 0.

        ConfigError, naming the episode, where the file is damaged or is no episode; also if all were dropped.
        """
        self.dropped = self.clipped = number = 0
        stored = iter(self._storage.get_episodes(self._chosen))
        for index in self._chosen:
            try:
                episode, clipped = self._episode(next(stored), actor, number)
            except Exception as error:  # of a damaged file HDF5 says anything
                raise ConfigError(f"data set {self.name}: episode {index} cannot be read: {_why(error)}") from None
            if episode is None:
                self.dropped += 1
                continue
            self.clipped += clipped
            number += 1
            yield episode
        if number == 0:
            raise ConfigError(f"data set {self.name}: none of its {self.dropped} episodes has only finite values")

    def _episode(self, raw: Mapping[str, Any], actor: int, number: int) -> tuple[Episode | None, int]:
        """Convert one of Minari's; None if a value is not finite. Returns how many of its actions were clipped too."""
        rewards = np.asarray(raw["rewards"], np.float32)
        steps, shown = len(rewards), raw["observations"]
        seen = flatten(self.parts, shown)[0] if self.parts else np.asarray(shown, np.float32)
        rows = (len(seen), len(raw["actions"]))
        if not steps or rows != (steps + 1, steps):
            raise ValueError(f"got {rows[0]} observations, {rows[1]} actions and {steps} rewards, want T+1, T and T")
        if raw["terminations"][:-1].any():
            raise ValueError("it terminates and goes on; want an episode for each termination")
        low, high = (end.ravel().astype(np.float64) for end in (self.box.low, self.box.high))
        scaled = (raw["actions"].reshape(steps, -1) - (high + low) / 2) / ((high - low) / 2)  # [T, N]
        if not all(np.isfinite(array).all() for array in (seen, rewards, scaled)):
            return None, 0
        success = (raw.get("infos") or {}).get("success")
        episode = Episode(
            observations=seen.reshape(steps + 1, self.obs_dim),
            actions=scaled.clip(-1.0, 1.0).astype(np.float32),
            rewards=rewards,
            terminated=(terminated := bool(raw["terminations"][-1])),
            truncated=not terminated,
            env_steps=0,
            success=None if success is None else float(success[-1]),
            actor=actor,
            number=number,
        )
        return episode, int((np.abs(scaled).max(axis=1) > 1.0 + ROUNDING).sum())

    @property
    def _ours(self) -> Mapping[str, Any]:
        return self.metadata.get(OURS, {})


def open_dataset(name: str) -> Dataset:
    """Open a data set by Minari's id, or by its folder. ConfigError, one line; nothing is written."""
    need("offline", f"data set {name}")
    from minari import MinariDataset

    folder = next((path for path in (Path(name), _root() / name) if (path / "data" / "metadata.json").is_file()), None)
    if folder is None:
        raise ConfigError(f"there is no data set {name!r}, neither as a folder nor in {_root()}; {_known(name)}")
    try:
        stored = MinariDataset(folder / "data")
        ends = {0, max(stored.storage.total_episodes - 1, 0)} if stored.storage.total_episodes else ()
        list(stored.storage.get_episode_metadata(ends))  # opens the file: one that was cut short is refused by it
    except Exception as error:  # JSON's, HDF5's, Minari's and Gymnasium's
        raise ConfigError(f"data set {name} cannot be read: {_why(error)}") from None
    return Dataset(name, stored)


def folder_of(name: str) -> Path:
    """Return where a data set, or a group of them, is: that folder, or the one of that id."""
    return (Path(name) if Path(name).is_dir() else _root() / name).resolve()


def open_all(name: str) -> list[Dataset]:
    """Open a data set, or all of a group of them (GROUP of ids GROUP/NAME-v0, or their folder). ConfigError."""
    folders = (Path(name), _root() / name)
    group = next((f for f in folders if f.is_dir() and not (f / "data" / "metadata.json").is_file()), None)
    members = sorted(path.parents[1].name for path in group.glob("*/data/metadata.json")) if group else []
    return [open_dataset(f"{name.rstrip('/')}/{member}") for member in members] or [open_dataset(name)]


def check_id(name: str) -> None:
    """Raise ConfigError unless a data set may have that id."""
    need("offline", f"data set {name}")
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(name)
    except (ValueError, TypeError):
        raise ConfigError(f"{name!r} is no id of a data set; want NAME-v0, or GROUP/NAME-v0") from None


def check_new(name: str) -> None:
    """Raise ConfigError unless a data set of that id can be written."""
    check_id(name)
    if (_root() / name).exists():
        raise ConfigError(f"data set {name} exists, in {_root()}; choose another id")


def is_written(name: str) -> bool:
    """Is there a whole data set of that id, of `write_dataset`'s? What a kill has left of one is removed."""
    folder = _root() / name
    path = folder / "data" / "metadata.json"
    try:
        if OURS in json.loads(path.read_text()):  # which is written last
            return True
    except (OSError, ValueError):
        pass
    if path.parent.exists():
        shutil.rmtree(folder)
    return False


def write_dataset(
    name: str,
    episodes: Sequence[Episode],
    task: TaskSpec,
    references: Mapping[str, float] | None = None,
    **about: Any,
) -> Path:
    """Write a new Minari data set with that id, actions in the task's own units; returns its folder.

    references: as Dataset has it, under the names that Minari's `get_normalized_score` reads. about: what else to keep
    of how the episodes were made, as JSON. ConfigError as `check_new`, DiskError.
    """
    check_new(name)
    from minari import create_dataset_from_buffers

    shape = task.action_shape or (task.action_dim,)
    low, high = np.array(task.action_bounds or [[-1.0] * task.action_dim, [1.0] * task.action_dim], np.float32)
    ours = {"task": task.name, "action_repeat": task.action_repeat, **about}
    if task.observation_parts:
        ours["observed"] = [(part.name, part.size) for part in task.observation_parts]
    metadata: dict[str, Any] = {OURS: ours}
    if references is not None:
        metadata |= {"ref_min_score": references["random"], "ref_max_score": references["expert"]}
    folder = _root() / name
    try:
        with writing(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for author, address and permanent link
            create_dataset_from_buffers(
                name,
                [_buffer(episode, task, shape) for episode in episodes],
                observation_space=spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32),
                action_space=spaces.Box(low.reshape(shape), high.reshape(shape), dtype=np.float32),
            ).storage.update_metadata(metadata)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # half of it could be read as a whole one
        raise
    return folder


def _buffer(episode: Episode, task: TaskSpec, shape: tuple[int, ...]) -> Any:
    from minari.data_collector import EpisodeBuffer

    steps = episode.decisions
    last = np.arange(steps) == steps - 1
    succeeded = None if episode.success is None else np.r_[np.zeros(steps), episode.success].astype(np.float32)
    return EpisodeBuffer(
        observations=episode.observations,
        actions=task.in_units(episode.actions).reshape(steps, *shape),
        rewards=episode.rewards,
        terminations=last & episode.terminated,
        truncations=last & (not episode.terminated),
        infos=None if succeeded is None else {"success": succeeded},
    )


def _root() -> Path:
    """Return where Minari keeps its data sets; its own function would also make the folder."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def _known(name: str) -> str:
    """Say which data sets there are, the most similar first."""
    files = _root().rglob("data/metadata.json")
    known = sorted(str(path.parent.parent.relative_to(_root())) for path in files)
    nearest = get_close_matches(name, known, 5, cutoff=0.0)
    return f"there are {', '.join(nearest)}{', ..' if len(known) > 5 else ''}" if known else "there is none yet"


def _why(error: Exception) -> str:
    return " ".join(f"{error}".split()) or type(error).__name__


def _few(numbers: np.ndarray) -> str:
    """Show the first few numbers."""
    return str([float(f"{n:.3g}") for n in numbers[:4]]).replace("]", ", ..]" if len(numbers) > 4 else "]")
