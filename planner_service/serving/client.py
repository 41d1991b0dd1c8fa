"""A blocking client of a planner service: docs/protocol.md. This file is all; it needs websockets, msgpack and numpy.

with Client(port=7747) as client:
    episode = client.episode(seed=0)
    action = episode.act(observation)["action"]
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect
from websockets.typing import Subprotocol


class RefusedError(RuntimeError):
    """A connection, a call or a request that the service refuses; docs/protocol.md lists the codes."""

    def __init__(self, code: str, message: str, retry_ms: float | None = None) -> None:
        """retry_ms: after which it makes sense to ask again; None: it does not."""
        super().__init__(f"{code}: {message}")
        self.code, self.retry_ms = code, retry_ms


class DisconnectedError(RuntimeError):
    """The service cannot be reached, or did not answer in time; the episodes of the connection are lost."""


def leads_here(host: str) -> bool:
    """Does the address lead to this machine alone? Of names only localhost does for certain."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Client:
    """One connection; calls one after the other, so each thread needs its own."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 7747,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 30.0,
        plain_text: bool = False,
    ) -> None:
        """timeout_s: longest that a call may take. plain_text: send the token unencrypted, also to another machine.

        Raises DisconnectedError if there is no service, RefusedError; ValueError, before anything is sent, if the token
        would go to another machine unencrypted and plain_text does not say so.
        """
        if token and tls is None and not plain_text and not leads_here(host):
            raise ValueError(f"the token would go to {host} unencrypted; want tls=.., or plain_text=True")
        self.where = f"{'wss' if tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}"
        self.timeout_s, self._closing = timeout_s, ExitStack()
        try:
            opening = connect(
                self.where,
                subprotocols=[Subprotocol("qttdm.3")],
                additional_headers={"Authorization": f"Bearer {token}"} if token else {},
                ssl=tls,
                open_timeout=timeout_s,
                close_timeout=1.0,
                compression=None,
                proxy=None,
                ping_interval=None,  # the service pings
                max_size=None,
            )
            self._socket = self._closing.enter_context(opening)
        except (OSError, WebSocketException) as error:
            if isinstance(error, InvalidStatus) and (body := error.response.body or b"").startswith(b'{"error"'):
                raise RefusedError(**json.loads(body)["error"]) from None
            raise DisconnectedError(f"{self.where}: {error}") from error
        self.info = self.call("info")

    def call(self, name: str, **fields: Any) -> dict[str, Any]:
        """Make any call of the protocol: info, health, begin, act, end. Raises RefusedError, DisconnectedError."""
        try:
            self._socket.send(msgpack.packb({"call": name, **fields}))
            answer: dict[str, Any] = msgpack.unpackb(self._socket.recv(self.timeout_s))
        except (OSError, WebSocketException) as error:
            self.close()  # a late answer would be taken for the next one
            raise DisconnectedError(f"{self.where}: {name}: {error or type(error).__name__}") from error
        if "error" in answer:
            raise RefusedError(**answer["error"])
        return answer

    def begin(self, seeds: Sequence[int], exploration: float = 0.0, goal: Sequence[float] | None = None) -> list[int]:
        """Start one episode for each seed; returns their numbers. goal: observation to be reached, as it is shown."""
        wanted = {} if goal is None else {"goal": [float(number) for number in goal]}
        episodes: list[int] = self.call("begin", seeds=list(seeds), exploration=exploration, **wanted)["episodes"]
        return episodes

    def act(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Decide for each request: a map of `episode`, `step`, `observations` (arrays by name, or the only one), ..

        Returns a result for each: a map with `action`, float32 [N] in the task's units or int64 [N], or with `error`.
        """
        sent = [{**request, "observations": self._pack(request["observations"])} for request in requests]
        results: list[dict[str, Any]] = self.call("act", requests=sent)["results"]
        for result in results:
            if "action" in result:
                result["action"] = np.asarray(result["action"], self.info["action"]["dtype"])
        return results

    def episode(self, seed: int, exploration: float = 0.0, goal: Sequence[float] | None = None) -> ClientEpisode:
        """Start one episode."""
        return ClientEpisode(self, *self.begin([seed], exploration, goal))

    def close(self) -> None:
        """Hang up; the service releases what was begun."""
        self._closing.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pack(self, observations: Any) -> dict[str, bytes]:
        """Pack into little-endian bytes of the wanted dtypes. RefusedError for a wrong shape: bytes would hide it."""
        known, packed = self.info["observations"], {}
        if not isinstance(observations, Mapping):
            observations = {next(iter(known)): observations}
        for name, value in observations.items():
            array, want = np.asarray(value), known.get(name, {"shape": None, "dtype": "float32"})
            if want["shape"] not in (None, list(array.shape)):
                raise RefusedError("bad_observation", f"{name}: got {list(array.shape)} numbers, want {want['shape']}")
            packed[name] = array.astype(np.dtype(want["dtype"]).newbyteorder("<"), casting="same_kind").tobytes()
        return packed


class ClientEpisode:
    """One episode, decision after decision."""

    def __init__(self, client: Client, number: int) -> None:
        self.client, self.number, self.step = client, number, 0

    def act(self, observations: Any, **wishes: Any) -> dict[str, Any]:
        """Decide; while the service is busy, ask again when it says so. wishes: `deadline_ms`, `anytime`.

        Returns a map with `action`, and what else docs/protocol.md lists. Raises RefusedError on any other refusal.
        """
        request = {"episode": self.number, "step": self.step, "observations": observations, **wishes}
        while "error" in (result := self.client.act([request])[0]):
            if result["error"]["code"] != "busy":
                raise RefusedError(**result["error"])
            time.sleep(1e-3 * result["error"].get("retry_ms", 1.0))
        self.step += 1
        return result

    def end(self) -> None:
        """Release it."""
        self.client.call("end", episodes=[self.number])
