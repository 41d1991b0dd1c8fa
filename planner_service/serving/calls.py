"""The calls of a client and their messages: docs/protocol.md, version 3.

A message is one map: msgpack in a binary WebSocket message, JSON in a text one. The fields of a call are the arguments
of a method of Session; they are checked one by one before it runs. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, replace
from inspect import signature
from typing import Annotated, Any

import msgpack
import numpy as np
from pydantic import BeforeValidator, ConfigDict, FailFast, Field, TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs

from qttdm.planner_service.serving.messages import Answer, Natural, Refusal, Request, ServiceError
from qttdm.planner_service.serving.service import PlannerService

MAX_ITEMS = 1024
"""Longest list in a call: reading one may not keep others waiting."""

Naturals = Annotated[list[Natural], Field(max_length=MAX_ITEMS), FailFast()]
STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def few(request: Any) -> Any:
    """Refuse a request of more fields than there are: pydantic would name each."""
    if isinstance(request, dict) and len(request) > len(Request.__dataclass_fields__):
        raise ValueError(f"got {len(request)} fields, want at most {len(Request.__dataclass_fields__)}")
    return request


InUnits = Callable[[np.ndarray], np.ndarray]
"""Brings an action [N] from the agent's units to the task's."""


def same(action: np.ndarray) -> np.ndarray:
    """Leave an action as it is: the agent's units are the task's."""
    return action


class Session:
    """What one client has begun, and what it may call."""

    def __init__(
        self,
        service: PlannerService,
        description: Mapping[str, Any],
        max_episodes: int,
        in_units: InUnits = same,
    ) -> None:
        """description: what `info` says beside data and weights. max_episodes: at once. in_units: as Server's."""
        self.service, self.description, self.max_episodes = service, description, max_episodes
        self.in_units = in_units
        self.episodes: set[int] = set()

    def answer(self, message: bytes | str) -> Coroutine[Any, Any, bytes | str]:
        """Read a call, all at once; awaiting what is returned answers it, in the form in which it came."""
        try:
            name, fields = read_call(message)
            call = CALLS[name].validate_python(ArgsKwargs((self,), fields))
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            call = refuse(bad_message(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"))
        except ServiceError as error:
            call = refuse(error)
        return in_form_of(message, call)

    async def info(self) -> dict[str, Any]:
        """Describe what is served."""
        data = self.service.data
        return {
            **self.description,
            "observations": {name: asdict(spec) for name, spec in data.observations.items()},
            "action": asdict(data.actions),
            "choices": data.choices,
            "weights_version": self.service.policy.weights_version,
        }

    async def health(self) -> dict[str, Any]:
        """Say how the service is doing."""
        return self.service.status()

    async def begin(
        self,
        seeds: Annotated[Naturals, Field(min_length=1)],
        exploration: Annotated[float, Field(ge=0, le=1)] = 0.0,
        goal: Annotated[list[float], Field(max_length=MAX_ITEMS)] | None = None,
    ) -> dict[str, Any]:
        """Start one episode for each seed, with the same goal if there is one."""
        self.episodes.intersection_update(self.service.release_silent())
        if len(self.episodes) + len(seeds) > self.max_episodes:
            begun = f"{len(self.episodes)} episodes begun and {len(seeds)} more"
            raise ServiceError(self.service.refuse_episodes(f"{begun}, at most {self.max_episodes}; end some first"))
        try:
            episodes = await self.service.begin(seeds, exploration, goal)
        except ValueError as error:
            raise bad_message(str(error)) from None
        self.episodes.update(episodes)
        return {"episodes": episodes}

    async def act(
        self,
        requests: Annotated[
            list[Annotated[Request, BeforeValidator(few)]], Field(min_length=1, max_length=MAX_ITEMS), FailFast()
        ],
    ) -> dict[str, Any]:
        """Decide for each request; another connection's episode has number 0, which no episode has."""
        own = [r if r.episode in self.episodes else replace(r, episode=0) for r in requests]
        outcomes = await self.service.act(own)
        return {"results": [write_outcome(outcome, self.in_units) for outcome in outcomes]}

    async def end(self, episodes: Naturals) -> dict[str, Any]:
        """Release episodes."""
        await self.service.end([episode for episode in episodes if episode in self.episodes])
        self.episodes.difference_update(episodes)
        return {}


METHODS: tuple[Any, ...] = (Session.info, Session.health, Session.begin, Session.act, Session.end)
CALLS: dict[str, TypeAdapter[Coroutine[Any, Any, dict[str, Any]]]] = {
    method.__name__: TypeAdapter(method, config=STRICT) for method in METHODS
}
"""Each checks the fields of a call and then begins it."""
FIELDS = {method.__name__: signature(method).parameters.keys() - {"self"} for method in METHODS}


async def refuse(error: ServiceError) -> dict[str, Any]:
    """Raise it, as the answer to a call that cannot be read."""
    raise error


async def in_form_of(message: bytes | str, call: Coroutine[Any, Any, dict[str, Any]]) -> bytes | str:
    """Write what a call answers, or why it is refused, as JSON or msgpack."""
    try:
        answer = await call
    except ServiceError as error:
        answer = write_error(error.refusal)
    return json.dumps(answer) if isinstance(message, str) else msgpack.packb(answer)


def read_call(message: bytes | str) -> tuple[str, dict[str, Any]]:
    """Read the name and the fields of a call. ServiceError `bad_message`."""
    try:
        fields = json.loads(message) if isinstance(message, str) else msgpack.unpackb(message)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if isinstance(message, str) else "msgpack"
        raise bad_message(f"not one {kind} value ({error or type(error).__name__})") from None
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise bad_message(f"got a {type(fields).__name__}, want a map with string keys")
    name = fields.pop("call", None)
    if not isinstance(name, str) or name not in CALLS:
        raise bad_message(f"call: got {str(name)[:50]!r}, want one of {', '.join(CALLS)}")
    unknown = next((field for field in fields if field not in FIELDS[name]), None)
    if unknown is not None:  # pydantic would name each; before 2.14 it takes `self` for the session
        raise bad_message(f"{unknown[:50]}: {name} has no such field")
    return name, fields


def bad_message(text: str) -> ServiceError:
    """Make the error for a message that is no call, without all that the client sent."""
    return ServiceError(Refusal("bad_message", text[:200]))


def write_outcome(outcome: Answer | Refusal, in_units: InUnits = same) -> dict[str, Any]:
    """Write what an act's results carry."""
    if isinstance(outcome, Refusal):
        return write_error(outcome)
    return {**vars(outcome), "action": in_units(outcome.action).tolist()}


def write_error(refusal: Refusal) -> dict[str, Any]:
    """Write a refusal, without what it does not say."""
    return {"error": {name: value for name, value in vars(refusal).items() if value is not None}}
