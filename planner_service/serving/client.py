"""A blocking client of a planner service over TCP. It needs numpy and msgpack, no torch and no Ray.

with Client(port=7747) as client:
    episode = client.episode(seed=0)
    action = episode.act(observation).action
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from qttdm.planner_service.serving.messages import Answer, Refusal, Request, ServiceError, ServiceLost
from qttdm.planner_service.serving.wire import HEADER, PORT, PROTOCOL, frame, read_outcome, write_request


class Client:
    """One connection; calls one after the other, so each thread needs its own."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = PORT,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        """timeout_s: longest that a call may take.

        Raises ServiceLost if there is no service, ServiceError if it refuses: `unauthorised`, `wrong_version`,
        `too_many_connections`.
        """
        self.where = f"planner service at {host}:{port}"
        try:
            plain = socket.create_connection((host, port), timeout_s)
            self._socket = tls.wrap_socket(plain, server_hostname=host) if tls else plain
        except OSError as error:
            raise ServiceLost(f"{self.where}: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.call("hello", protocol=PROTOCOL, **({} if token is None else {"token": token}))
        except ServiceError:
            self.close()
            raise

    def call(self, name: str, **fields: Any) -> dict[str, Any]:
        """Any call of the protocol; returns its result. Raises ServiceError if it is refused, ServiceLost."""
        try:
            self._socket.sendall(frame({"call": name, **fields}))
            (length,) = HEADER.unpack(self._receive(HEADER.size))
            answer = msgpack.unpackb(self._receive(length))
        except OSError as error:
            self.close()  # a late answer would be taken for the next one
            raise ServiceLost(f"{self.where}: {name}: {error or type(error).__name__}") from error
        if "error" in answer:
            raise ServiceError(Refusal(**answer["error"]))
        return answer

    def _receive(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            if not (piece := self._socket.recv(count - len(data))):
                raise ConnectionError("the connection was closed")
            data += piece
        return bytes(data)

    def info(self) -> dict[str, Any]:
        """What is served: docs/protocol.md."""
        return self.call("info")

    def health(self) -> dict[str, Any]:
        """How the service is doing: docs/protocol.md."""
        return self.call("health")

    def begin(self, seeds: Sequence[int], exploration: float = 0.0) -> list[int]:
        """Start one episode for each seed; returns their numbers."""
        return self.call("begin", seeds=list(seeds), exploration=exploration)["episodes"]

    def act(self, requests: Sequence[Request]) -> list[Answer | Refusal]:
        """One decision for each request, in one batch if there is room, or why there is none."""
        results = self.call("act", requests=[write_request(request) for request in requests])["results"]
        return [read_outcome(result) for result in results]

    def end(self, episodes: Sequence[int]) -> None:
        """Release them."""
        self.call("end", episodes=list(episodes))

    def episode(self, seed: int, exploration: float = 0.0) -> ClientEpisode:
        """Start one."""
        return ClientEpisode(self, *self.begin([seed], exploration))

    def close(self) -> None:
        """Hang up; the service releases what was begun."""
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ClientEpisode:
    """One episode, decision after decision."""

    def __init__(self, client: Client, number: int) -> None:
        self.client, self.number, self.step = client, number, 0

    def act(self, observation: np.ndarray, deadline_ms: float | None = None, anytime: bool = False) -> Answer:
        """The decision for an observation [M]; while the service is busy, asks again when it says so.

        Raises ServiceError on any other refusal.
        """
        request = Request(
            self.number, self.step, {"observations": np.asarray(observation, np.float32)}, deadline_ms, anytime
        )
        while True:
            (outcome,) = self.client.act([request])
            if isinstance(outcome, Answer):
                self.step += 1
                return outcome
            if outcome.code != "busy":
                raise ServiceError(outcome)
            time.sleep(1e-3 * (outcome.retry_ms or 1.0))

    def end(self) -> None:
        """Release it."""
        self.client.end([self.number])
