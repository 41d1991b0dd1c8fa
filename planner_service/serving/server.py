"""A planner service over TCP: framed msgpack, one call at a time on each connection (docs/protocol.md).

    client --frame--> connection --> wire.read_call --> PlannerService --> frame --> client

Whatever one client sends, or does not send, ends in an error on its own connection. Episodes belong to the connection
that began them, and end with it.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from ipaddress import ip_address
from typing import Any

from pydantic import Field

from qttdm.common.config import Config, ConfigError
from qttdm.planner_service.serving.messages import ServiceError
from qttdm.planner_service.serving.service import PlannerService
from qttdm.planner_service.serving.wire import (
    HEADER,
    PORT,
    PROTOCOL,
    Act,
    Begin,
    Call,
    End,
    Health,
    Hello,
    Info,
    ProtocolError,
    frame,
    read_call,
    read_request,
    write_outcome,
    write_refusal,
)

LINGER_S = 1.0
"""how long a client may go on sending after an error that ends its connection"""

NOBODYS = 0
"""a number that no episode has"""


class ServerConfig(Config):
    """Where it listens, and what a client may take of it."""

    host: str = "127.0.0.1"
    """address to listen on; any but this machine's own needs a token"""
    port: int = Field(default=PORT, ge=0, le=65535)
    """0: any that is free"""
    max_connections: int = Field(default=64, gt=0)
    """from the moment they are accepted; as many more may be waiting to hear that there are too many, no others"""
    max_episodes: int = Field(default=256, gt=0)
    """episodes of one connection"""
    max_frame_bytes: int = Field(default=1 << 18, ge=1 << 10)
    """longest frame taken from a client"""
    frame_timeout_s: float = Field(default=5.0, gt=0)
    """for the first frame of a connection, for the rest of one that has begun, and for a client to take an answer"""
    idle_timeout_s: float = Field(default=600.0, gt=0)
    """for the next frame to begin"""
    stop_timeout_s: float = Field(default=5.0, gt=0)
    """for the answers that are due when the service is stopped"""


class Server:
    """Connections to one planner service."""

    def __init__(
        self,
        config: ServerConfig,
        service: PlannerService,
        info: Mapping[str, Any],
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """info: what `info` tells beside the weights' version. token: what every client has to say first.

        ConfigError on an address that others reach without a token.
        """
        if token is None and not is_loopback(config.host):
            raise ConfigError(f"host {config.host} can be reached from elsewhere: it needs a token (--token-file)")
        self.config, self.service, self.info, self.token, self.tls = config, service, info, token, tls
        self.stopping = False
        self._connections: dict[asyncio.Task[None], _Connection] = {}

    async def start(self) -> int:
        """Listen; returns the port. ConfigError if it cannot."""
        c = self.config
        try:
            self._listener = await asyncio.start_server(self._connected, c.host, c.port)
        except OSError as error:
            raise ConfigError(f"cannot listen on {c.host} port {c.port} ({error.strerror or error})") from None
        return int(self._listener.sockets[0].getsockname()[1])

    async def stop(self) -> bool:
        """Accept nobody else, answer what has been asked, hang up; over after `stop_timeout_s` whatever happens.

        True if all was answered by then.
        """
        self.stopping = True
        self._listener.close()
        due: list[asyncio.Task[None]] = [asyncio.create_task(self.service.stop())]
        for task, connection in self._connections.items():
            if connection.answering:
                due.append(task)
            else:
                task.cancel()
        _, unanswered = await asyncio.wait(due, timeout=self.config.stop_timeout_s)
        for task in self._connections:
            task.cancel()
        while self._connections:
            await asyncio.wait(self._connections)
        return not unanswered

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from beginning to end; asyncio runs it as a task of its own.

        Choice: TLS begins here, not in asyncio's accepting. Why: a handshake counts as a connection, so that those who
        never end theirs take nobody's file descriptors. Before it nothing may be awaited: the loop would read its
        first bytes as ours.
        """
        task = asyncio.current_task()
        assert task is not None
        most, refused = self.config.max_connections, sum(c.one_too_many for c in self._connections.values())
        full = len(self._connections) - refused >= most
        if self.stopping or (full and refused >= most):
            writer.transport.abort()
            return
        connection = self._connections[task] = _Connection(self, reader, writer, one_too_many=full)
        try:
            writer.transport.set_write_buffer_limits(high=0)  # so that what is drained is out
            if self.tls is not None:
                await writer.start_tls(self.tls, ssl_handshake_timeout=self.config.frame_timeout_s)
                writer.transport.set_write_buffer_limits(high=1)  # at 0 asyncio's TLS takes an empty one for full
            await connection.serve()
        except (OSError, EOFError, TimeoutError, asyncio.CancelledError):
            pass  # the client has gone, takes no answer, or the server stops; asyncio would print the last one
        finally:
            del self._connections[task]
            writer.transport.abort()
            await self.service.end(list(connection.episodes))


class _Connection:
    """What one client may do, and what it has begun."""

    def __init__(
        self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, one_too_many: bool
    ) -> None:
        """one_too_many: to be told so, and nothing else."""
        self.server, self.config, self.service = server, server.config, server.service
        self.reader, self.writer, self.one_too_many = reader, writer, one_too_many
        self.episodes: set[int] = set()
        self.answering = False

    async def serve(self) -> None:
        """Greet, then answer call after call. OSError, EOFError or TimeoutError when the client has gone."""
        try:
            if self.one_too_many:
                raise ProtocolError("too_many_connections", f"there are {self.config.max_connections} already")
            await self.write(self._welcome(await self._read(self.config.frame_timeout_s)))
            while not self.server.stopping:
                payload = await self._read(self.config.idle_timeout_s)
                self.answering = True
                await self.write(await self._answer(payload))
                self.answering = False
        except ProtocolError as error:
            await self.write({"error": write_refusal(error.refusal)})
            if self.writer.can_write_eof():
                self.writer.write_eof()
            with suppress(TimeoutError):  # hanging up with bytes unread would take the answer back
                async with asyncio.timeout(LINGER_S):
                    while await self.reader.read(1 << 16):
                        pass

    async def _read(self, patience: float) -> bytes:
        """The next frame, which has to begin within so many seconds. ProtocolError `too_large`, `timeout`."""
        try:
            async with asyncio.timeout(patience) as limit:
                begun = await self.reader.readexactly(1)
                limit.reschedule(asyncio.get_running_loop().time() + self.config.frame_timeout_s)
                (length,) = HEADER.unpack(begun + await self.reader.readexactly(HEADER.size - 1))
                if length > self.config.max_frame_bytes:
                    raise ProtocolError("too_large", f"got {length} bytes, at most {self.config.max_frame_bytes}")
                return await self.reader.readexactly(length)
        except TimeoutError:
            raise ProtocolError("timeout", "no frame, or only a part of one") from None

    async def write(self, message: dict[str, Any]) -> None:
        """Send a message. TimeoutError if the client does not take it."""
        self.writer.write(frame(message))
        async with asyncio.timeout(self.config.frame_timeout_s):
            await self.writer.drain()

    def _welcome(self, payload: bytes) -> dict[str, Any]:
        """The answer to the first frame. ProtocolError for whom we do not talk to."""
        hello = read_call(payload)
        if not isinstance(hello, Hello):
            raise ProtocolError("bad_message", "the first call has to be hello")
        if hello.protocol != PROTOCOL:
            raise ProtocolError("wrong_version", f"got protocol {hello.protocol}, want {PROTOCOL}")
        token = self.server.token
        if token is not None and not hmac.compare_digest(token.encode(), (hello.token or "").encode()):
            raise ProtocolError("unauthorised", "the token is missing or wrong")
        return {"protocol": PROTOCOL}

    async def _answer(self, payload: bytes) -> dict[str, Any]:
        try:
            return await self._result(read_call(payload))
        except (ProtocolError, ServiceError) as error:
            return {"error": write_refusal(error.refusal)}

    async def _result(self, call: Call) -> dict[str, Any]:
        """What the call returns. ProtocolError or ServiceError when it is refused as a whole."""
        match call:
            case Act():
                requests = [read_request(wire) for wire in call.requests]
                own = [r if r.episode in self.episodes else replace(r, episode=NOBODYS) for r in requests]
                return {"results": [write_outcome(outcome) for outcome in await self.service.act(own)]}
            case Begin():
                if len(self.episodes) + len(call.seeds) > self.config.max_episodes:
                    begun = f"{len(self.episodes)} episodes begun and {len(call.seeds)} more"
                    raise ProtocolError("busy", f"{begun}, at most {self.config.max_episodes}; end some first")
                episodes = await self.service.begin(call.seeds, call.exploration)
                self.episodes.update(episodes)
                return {"episodes": episodes}
            case End():
                await self.service.end([episode for episode in call.episodes if episode in self.episodes])
                self.episodes.difference_update(call.episodes)
                return {}
            case Info():
                return {**self.server.info, "weights_version": self.service.policy.weights_version}
            case Health():
                return asdict(await self.service.status())
            case Hello():
                raise ProtocolError("bad_message", "hello is for the first frame only")


def is_loopback(host: str) -> bool:
    """Does the address, or everything that the name stands for, lead to this machine alone?"""
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, None)]
    except OSError:
        return False
    return all(ip_address(address.partition("%")[0]).is_loopback for address in found)
