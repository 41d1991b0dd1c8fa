"""Requests to the planner service and its answers: plain data, the same within a cluster and over WebSockets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, StrictBool
from pydantic.dataclasses import dataclass as checked_dataclass

Natural = Annotated[int, Field(strict=True, ge=0, lt=2**63)]

REFUSALS = {
    "bad_observation": "an observation is missing, unknown, of another shape or dtype, or holds a NaN or an infinity",
    "unknown_episode": "no such episode: never begun, ended, or released after its client's silence",
    "wrong_step": "the episode is at another step, or still waits for an answer",
    "busy": "too many requests or episodes at once; ask again after `retry_ms`",
    "late": "the deadline passed before planning began; the episode has not moved on",
    "failed": "planning failed, or gave no finite action; the episode has not moved on",
    "stopping": "the service is being stopped",
}
"""Why a request is not answered with an action; codes and meanings."""


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Request:
    """One decision that is wanted. ValidationError if a client sends it with other fields or types."""

    episode: Natural
    """as `begin` numbered it"""
    step: Natural
    """decisions answered in this episode so far; one that was answered last is answered again, from memory"""
    observations: Any
    """as `read_observations` takes them"""
    deadline_ms: Annotated[float, Field(strict=True, ge=0)] | None = None
    """ms after its arrival at the service by which the answer is wanted; None: whenever"""
    anytime: StrictBool = False
    """with a deadline: the best found after as many planning iterations as fit"""


@dataclass(frozen=True)
class Answer:
    """One decision."""

    action: np.ndarray
    """float32 [N] in [-1, 1]"""
    value: float
    """discounted return that the agent expects from here on"""
    weights_version: int
    """of the networks that decided; the learner's update count"""
    iterations: int
    """of planning; 0 for an agent that does not plan"""
    queue_ms: float
    """from arrival until the planning of its batch began"""
    plan_ms: float
    """what that took, for the whole batch"""
    late: bool
    """decided only after the deadline"""


@dataclass(frozen=True)
class Refusal:
    """No decision, and why."""

    code: str
    """a key of REFUSALS, or another error that docs/protocol.md lists"""
    message: str
    retry_ms: float | None = None
    """after which it makes sense to ask again; None: it does not"""


class ServiceError(RuntimeError):
    """A call, or a connection, that was refused as a whole."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.code}: {refusal.message}")
        self.refusal = refusal
