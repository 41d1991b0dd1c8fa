"""The messages between a planner service and its clients: docs/protocol.md, version 2.

A message is one map: msgpack in a binary WebSocket message, JSON in a text one. Calls are checked here, field by field,
before anything else sees them. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import asdict
from typing import Annotated, Any, Literal

import msgpack
from pydantic import Field, TypeAdapter, ValidationError

from qttdm.common.config import Config
from qttdm.common.contracts import DataSpec
from qttdm.planner_service.serving.messages import Answer, Refusal, Request, ServiceError

PROTOCOL = "qttdm.2"
"""The WebSocket subprotocol. Its number changes when a client of the version before would misunderstand."""

PORT = 7747

HTTP_STATUS = {
    "wrong_version": 400,
    "unauthorised": 401,
    "foreign_origin": 403,
    "too_many_connections": 503,
}
"""Why a connection does not become a WebSocket: the error's code and the HTTP status."""

Natural = Annotated[int, Field(ge=0, lt=2**63)]

MAX_ITEMS = 1024
"""Longest list in a call: reading one may not keep others waiting."""


class Ask(Config):
    """What is served, or how the service is doing."""

    call: Literal["info", "health"]


class Begin(Config):
    """Episodes to start, one for each seed."""

    call: Literal["begin"]
    seeds: Annotated[list[Natural], Field(min_length=1, max_length=MAX_ITEMS)]
    exploration: float = Field(default=0.0, ge=0, le=1)


class WireRequest(Config):
    """One decision that is wanted."""

    episode: Natural
    step: Natural
    observations: Any
    """by name, or the only one; each as nested lists or as little-endian bytes"""
    deadline_ms: float | None = Field(default=None, ge=0)
    anytime: bool = False


class Act(Config):
    """Decisions that are wanted."""

    call: Literal["act"]
    requests: Annotated[list[WireRequest], Field(min_length=1, max_length=MAX_ITEMS)]


class End(Config):
    """Episodes to release."""

    call: Literal["end"]
    episodes: Annotated[list[Natural], Field(max_length=MAX_ITEMS)]


Call = Ask | Begin | Act | End
_CALLS: TypeAdapter[Call] = TypeAdapter(Annotated[Call, Field(discriminator="call")])


def read_call(data: bytes | str) -> Call:
    """Read what a client wants. ServiceError `bad_message`, naming the field, unless it is exactly as specified."""
    try:
        message = json.loads(data) if isinstance(data, str) else msgpack.unpackb(data)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if isinstance(data, str) else "msgpack"
        raise bad_message(f"not one {kind} value ({error or type(error).__name__})") from None
    if not isinstance(message, dict):
        raise bad_message(f"got a {type(message).__name__}, want a map")
    try:
        return _CALLS.validate_python(message)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"][1:])
        raise bad_message(f"{where}: {problem['msg']}" if where else problem["msg"]) from None


def bad_message(text: str) -> ServiceError:
    """The error of a message that is no call: not the whole of what a client sent."""
    return ServiceError(Refusal("bad_message", text[:200]))


def read_request(wire: WireRequest, own: Set[int]) -> Request:
    """Read a request; own: the connection's episodes. One for another's has a number that no episode has."""
    return Request(**{**dict(wire), "episode": wire.episode if wire.episode in own else 0})


def write_outcome(outcome: Answer | Refusal) -> dict[str, Any]:
    """Write what an act's results carry."""
    if isinstance(outcome, Refusal):
        return {"error": write_refusal(outcome)}
    return {**vars(outcome), "action": outcome.action.tolist()}


def write_refusal(refusal: Refusal) -> dict[str, Any]:
    """Write an error, without what it does not say."""
    return {name: value for name, value in vars(refusal).items() if value is not None}


def write_data(data: DataSpec) -> dict[str, Any]:
    """Write what `info` says of observations and actions."""
    observations = {name: asdict(spec) for name, spec in data.observations.items()}
    return {"observations": observations, "action": asdict(data.actions), "choices": data.choices}
