"""The protocol between a planner service and clients that have nothing but a socket: docs/protocol.md, version 1.

A frame is its length (4 bytes, big-endian) and that many bytes, one msgpack map. What a client sends is checked here,
field by field, before anything else sees it. Nothing is ever unpickled.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Literal

import msgpack
import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from qttdm.common.config import Config
from qttdm.planner_service.serving.messages import Answer, Refusal, Request

PROTOCOL = 1
"""Changes when a client written for the version before would misunderstand or be misunderstood."""

PORT = 7747

HEADER = struct.Struct(">I")

ERRORS = {
    "bad_message": "the frame is not one msgpack map with the fields of a call; the connection goes on",
    "wrong_version": "the client speaks another protocol; the connection ends",
    "unauthorised": "the token is missing or wrong; the connection ends",
    "too_large": "the frame is longer than the service takes; the connection ends",
    "timeout": "a frame did not come, or not whole, in time; the connection ends",
    "too_many_connections": "others hold all there are; the connection ends",
}
"""Beside REFUSALS: what can be wrong with a frame or a connection; codes and meanings."""

Natural = Annotated[int, Field(ge=0, lt=2**63)]

MAX_ITEMS = 1024
"""Longest list in a call: reading one may not keep others waiting."""


class Hello(Config):
    """The first call of a connection."""

    call: Literal["hello"]
    protocol: int
    token: str | None = None


class Info(Config):
    """What is served."""

    call: Literal["info"]


class Health(Config):
    """How the service is doing."""

    call: Literal["health"]


class Begin(Config):
    """Episodes to start, one for each seed."""

    call: Literal["begin"]
    seeds: Annotated[list[Natural], Field(min_length=1, max_length=MAX_ITEMS)]
    exploration: float = Field(default=0.0, ge=0, le=1)


class WireRequest(Config):
    """One decision that is wanted."""

    episode: Natural
    step: Natural
    observation: bytes
    """float32 [M], little-endian"""
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


Call = Hello | Info | Health | Begin | Act | End
_CALLS: TypeAdapter[Call] = TypeAdapter(Annotated[Call, Field(discriminator="call")])


class ProtocolError(ValueError):
    """What arrived is not understood, or not taken."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.refusal = Refusal(code, message)


def frame(message: dict[str, Any]) -> bytes:
    """A message as it travels."""
    payload = msgpack.packb(message)
    return HEADER.pack(len(payload)) + payload


def read_call(payload: bytes) -> Call:
    """What a client wants. ProtocolError `bad_message`, naming the field, unless it is exactly as specified."""
    try:
        message = msgpack.unpackb(payload)
    except ValueError as error:
        raise ProtocolError("bad_message", f"not one msgpack value ({error or type(error).__name__})") from None
    if not isinstance(message, dict):
        raise ProtocolError("bad_message", f"got a {type(message).__name__}, want a map")
    try:
        return _CALLS.validate_python(message)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"][1:])
        text = f"{where}: {problem['msg']}" if where else problem["msg"]
        raise ProtocolError("bad_message", text[:200]) from None  # not the whole of what a client sent


def write_request(request: Request) -> dict[str, Any]:
    """As an act carries it."""
    fields = {
        **{k: v for k, v in vars(request).items() if k != "observations"},
        "observation": np.asarray(request.observations["observations"], "<f4").tobytes(),
    }
    return {name: value for name, value in fields.items() if value is not None}


def read_request(wire: WireRequest) -> Request:
    """Undo `write_request`. An observation whose bytes are no float32 numbers comes back empty: nobody has M = 0."""
    whole = len(wire.observation) % 4 == 0
    observation = np.frombuffer(wire.observation if whole else b"", "<f4").astype(np.float32, copy=False)
    return Request(wire.episode, wire.step, {"observations": observation}, wire.deadline_ms, wire.anytime)


def write_outcome(outcome: Answer | Refusal) -> dict[str, Any]:
    """As an act's results carry it."""
    if isinstance(outcome, Refusal):
        return {"error": write_refusal(outcome)}
    return {**vars(outcome), "action": outcome.action.astype("<f4", copy=False).tobytes()}


def read_outcome(wire: dict[str, Any]) -> Answer | Refusal:
    """Undo `write_outcome`."""
    if "error" in wire:
        return Refusal(**wire["error"])
    return Answer(**{**wire, "action": np.frombuffer(wire["action"], "<f4").astype(np.float32)})


def write_refusal(refusal: Refusal) -> dict[str, Any]:
    """Without what it does not say."""
    return {name: value for name, value in vars(refusal).items() if value is not None}
