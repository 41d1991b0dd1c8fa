"""What is taken from a saved run: what its checkpoint says besides tensors and blobs; or its networks alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qttdm.common.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from qttdm.common.config import ConfigError
from qttdm.common.contracts import Learner
from qttdm.common.run_dir import RunDir
from qttdm.learner.counters import Counters


@dataclass(frozen=True)
class PaceState:
    """As Pace.save writes it."""

    decisions: int
    updates: int
    seed_decisions: int


@dataclass(frozen=True)
class Meta:
    """As LearningLoop.save writes it; more may be there."""

    counters: Counters
    pace: PaceState
    cursors: list[int]
    accepted_losses: list[list[int]]
    evaluated_updates: int
    due: list[dict[str, Any]]
    handed_in: list[tuple[dict[str, Any], int, int]]
    metrics_bytes: int
    finished: bool


def start_from(learner: Learner, path: Path) -> None:
    """Give a learner the networks of the newest good checkpoint of a run. ConfigError."""
    asked = f"training.start_from={path}"
    try:
        checkpoint = CheckpointStore(RunDir.open(path).checkpoints_dir).load_latest(blobs=False, check=check_weights)
    except CheckpointError as error:
        raise ConfigError(f"{asked}: {error}") from None
    if checkpoint is None or int(checkpoint.tensors["updates"]) == 0:
        raise ConfigError(f"{asked}: it has learned nothing yet; want a run with a checkpoint after its first update")
    try:
        learner.start_from(checkpoint.tensors)
    except ValueError as error:
        raise ConfigError(f"{asked}: its networks are others than this run's: {error}") from None


def check_weights(checkpoint: Checkpoint) -> None:
    """Raise ValueError, one line, unless its tensors say how much was learned."""
    updates = checkpoint.tensors.get("updates")
    if updates is None or updates.ndim > 0:
        raise ValueError("tensors.safetensors: updates: want a number of updates there")


def check_state(checkpoint: Checkpoint) -> None:
    """Raise ValueError, one line, unless a run can go on from it."""
    check_weights(checkpoint)
    meta = checkpoint.meta
    if not meta:
        raise ValueError("it has what acting needs, no optimiser and no replay; resume the run it was exported from")
    try:
        TypeAdapter(Meta).validate_python(meta)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"checkpoint.json: meta: {where}: {first['msg']}") from None
    if len(meta["accepted_losses"]) != len(meta["cursors"]):
        raise ValueError("checkpoint.json: meta: accepted_losses: want a list for each of the cursors")
    names, wanted = meta["counters"].keys(), vars(Counters()).keys()
    if not {"env_steps"} <= names <= wanted:
        raise ValueError(f"checkpoint.json: meta: counters: got {', '.join(names)}, want {', '.join(wanted)}")
