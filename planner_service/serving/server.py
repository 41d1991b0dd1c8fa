"""A planner service over WebSockets, one call at a time on each (docs/protocol.md).

    clients ----------HTTP----------> Server: origin, token, version --upgrade--> calls --> PlannerService
    Prometheus --GET /metrics, /healthz--^

Whatever one client sends, or does not send, ends in an error on its own connection. Episodes belong to the connection
that began them, and end with it.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import msgpack
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.http import HttpProcessingError
from pydantic import Field

from qttdm.common.config import Config, ConfigError
from qttdm.planner_service.serving import wire
from qttdm.planner_service.serving.messages import Refusal, ServiceError
from qttdm.planner_service.serving.service import PlannerService

CLOSE_S = 1.0
"""how long a client may take to hang up in turn"""

LOG = logging.getLogger(__name__)
LOG.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))  # garbage


class ServerConfig(Config):
    """Where it listens, and what a client may take of it."""

    host: str = "127.0.0.1"
    """address to listen on; any but this machine's own needs a token"""
    port: int = Field(default=wire.PORT, ge=0, le=65535)
    """0: any that is free"""
    origins: tuple[str, ...] = ()
    """web pages that may connect, such as `http://localhost:8000`; others may not"""
    max_connections: int = Field(default=64, gt=0)
    """WebSockets at once; as many more connections may be open that are none yet"""
    max_episodes: int = Field(default=256, gt=0)
    """episodes of one connection"""
    max_message_bytes: int = Field(default=1 << 18, ge=1 << 10)
    """longest message taken from a client"""
    client_timeout_s: float = Field(default=5.0, gt=0)
    """for a client's TLS handshake, for its HTTP request, and for taking an answer"""
    heartbeat_s: float = Field(default=30.0, gt=0)
    """silence after which a client is pinged; it has half as long to answer"""
    stop_timeout_s: float = Field(default=5.0, gt=0)
    """for the answers that are due when the service is stopped"""


@dataclass
class _Session:
    """One client's WebSocket, and the episodes that it has begun."""

    socket: web.WebSocketResponse
    episodes: set[int] = field(default_factory=set)
    answering: bool = False


class _HangUp(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.abort()  # type: ignore[attr-defined]


class Server:
    """Connections to one planner service."""

    def __init__(
        self,
        config: ServerConfig,
        service: PlannerService,
        info: Mapping[str, Any],
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        metrics: Callable[[], bytes] = bytes,
    ) -> None:
        """info: what `info` says beside data and weights. token: wanted of each client. metrics: Prometheus text.

        ConfigError on an address that others reach without a token, and on a token that cannot be a subprotocol.
        """
        if token is None and not is_loopback(config.host):
            raise ConfigError(f"host {config.host} can be reached from elsewhere: it needs a token (--token-file)")
        if token is not None and not re.fullmatch(r"[A-Za-z0-9_.~+-]+", token):
            raise ConfigError("the token may have letters, digits and _ . ~ + - only, and has others; make another")
        self.config, self.service, self.info, self.token, self.tls = config, service, info, token, tls
        self.metrics, self._scraping = metrics, asyncio.Lock()
        self.sessions: dict[asyncio.Task[Any], _Session] = {}
        self.stopping = False

    async def start(self) -> int:
        """Listen; returns the port. ConfigError if it cannot."""
        c = self.config
        self.http = web.Server(
            self._respond, access_log=None, logger=LOG, keepalive_timeout=c.client_timeout_s, lingering_time=CLOSE_S
        )
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._admit,
                c.host,
                c.port,
                ssl=self.tls,
                ssl_handshake_timeout=c.client_timeout_s if self.tls else None,
                ssl_shutdown_timeout=CLOSE_S if self.tls else None,
            )
        except OSError as error:
            raise ConfigError(f"cannot listen on {c.host} port {c.port} ({error.strerror or error})") from None
        return int(self._listener.sockets[0].getsockname()[1])

    async def stop(self) -> bool:
        """Accept nobody else, answer what has been asked, hang up; over after `stop_timeout_s` whatever happens.

        True if all was answered by then.
        """
        self.stopping = True
        self._listener.close()
        due: list[asyncio.Task[Any]] = [asyncio.create_task(self.service.stop())]
        for task, session in self.sessions.items():
            if session.answering:
                due.append(task)
            else:
                task.cancel()
        _, unanswered = await asyncio.wait(due, timeout=self.config.stop_timeout_s)
        for task in unanswered:
            task.cancel()
        if self.sessions:
            await asyncio.wait(self.sessions, timeout=2 * CLOSE_S)
        self.http.pre_shutdown()
        await self.http.shutdown(CLOSE_S)
        return not unanswered

    # --- HTTP ---

    def _admit(self) -> asyncio.Protocol:
        full = len(self.http.connections) >= 2 * self.config.max_connections
        return _HangUp() if full or self.stopping else self.http()

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            if request.path == "/healthz":
                return web.Response(text="ok\n")
            self._check(request)
            if request.path == "/metrics":
                async with self._scraping:
                    text = await asyncio.to_thread(self.metrics)
                return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4"})
            return await self._converse(request)
        except ServiceError as error:
            status = wire.HTTP_STATUS[error.refusal.code]
            return web.json_response({"error": wire.write_refusal(error.refusal)}, status=status)

    def _check(self, request: web.BaseRequest) -> None:
        """ServiceError if a web page sent it that may not, or if it has not the token."""
        for origin in request.headers.getall("Origin", ()):
            if origin not in self.config.origins and not is_same_origin(origin, request.headers.get("Host", "")):
                raise ServiceError(Refusal("foreign_origin", "this web page may not connect (server.origins)"))
        if self.token is not None:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                token = next((p[6:] for p in subprotocols(request) if p.startswith("token.")), "")
            if not hmac.compare_digest(self.token.encode(), token.encode(errors="surrogateescape")):
                raise ServiceError(Refusal("unauthorised", "the token is missing or wrong"))

    # --- WebSockets ---

    async def _converse(self, request: web.BaseRequest) -> web.WebSocketResponse:
        """Upgrade to a WebSocket and serve it to its end. ServiceError if it does not become one."""
        c, task, transport = self.config, asyncio.current_task(), request.transport
        if wire.PROTOCOL not in subprotocols(request):
            raise ServiceError(Refusal("wrong_version", f"want a WebSocket with the subprotocol {wire.PROTOCOL}"))
        if len(self.sessions) >= c.max_connections:
            raise ServiceError(Refusal("too_many_connections", f"there are {c.max_connections} already"))
        socket = web.WebSocketResponse(
            protocols=[wire.PROTOCOL],
            timeout=CLOSE_S,
            heartbeat=c.heartbeat_s,
            compress=False,
            max_msg_size=c.max_message_bytes + 1,  # aiohttp refuses one of exactly that size
            writer_limit=0,  # so that what is sent waits while the client does not read
        )
        assert task is not None
        assert transport is not None
        session = self.sessions[task] = _Session(socket)
        try:
            await socket.prepare(request)
            while not self.stopping and (await self._answer_next(session)):
                pass
        except (ConnectionError, TimeoutError):
            transport.abort()  # the client has gone, or takes no answers: it would not take a farewell either
        except asyncio.CancelledError:
            pass  # the server stops
        finally:
            await self.service.end(list(session.episodes))
            asyncio.get_running_loop().call_later(2 * CLOSE_S, transport.abort)  # aiohttp waits for ever to be read
            try:
                if socket.prepared:
                    await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the service is being stopped")
            finally:
                del self.sessions[task]
        return socket

    async def _answer_next(self, session: _Session) -> bool:
        """Wait for a call and answer it; False if there are no more. TimeoutError if the client takes no answer."""
        message = await session.socket.receive()
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            return False  # closed by the client, or by aiohttp on a client that breaks the rules
        session.answering = True
        try:
            answer = await self._result(wire.read_call(message.data), session.episodes)
        except ServiceError as error:
            answer = {"error": wire.write_refusal(error.refusal)}
        async with asyncio.timeout(self.config.client_timeout_s):
            if message.type is WSMsgType.TEXT:
                await session.socket.send_str(json.dumps(answer))
            else:
                await session.socket.send_bytes(msgpack.packb(answer))
        session.answering = False
        return True

    async def _result(self, call: wire.Call, own: set[int]) -> dict[str, Any]:
        """What the call returns; own: the connection's episodes. ServiceError if it is refused."""
        match call:
            case wire.Act():
                outcomes = await self.service.act([wire.read_request(request, own) for request in call.requests])
                return {"results": [wire.write_outcome(outcome) for outcome in outcomes]}
            case wire.Begin():
                if len(own) + len(call.seeds) > self.config.max_episodes:
                    begun = f"{len(own)} episodes begun and {len(call.seeds)} more"
                    raise ServiceError(Refusal("busy", f"{begun}, at most {self.config.max_episodes}; end some first"))
                episodes = await self.service.begin(call.seeds, call.exploration)
                own.update(episodes)
                return {"episodes": episodes}
            case wire.End():
                await self.service.end([episode for episode in call.episodes if episode in own])
                own.difference_update(call.episodes)
                return {}
            case wire.Ask(call="info"):
                version = self.service.policy.weights_version
                return {**self.info, **wire.write_data(self.service.data), "weights_version": version}
            case wire.Ask():
                return asdict(await self.service.status())


def subprotocols(request: web.BaseRequest) -> list[str]:
    """The WebSocket subprotocols that a client offers."""
    return [p.strip() for line in request.headers.getall("Sec-WebSocket-Protocol", ()) for p in line.split(",")]


def is_same_origin(origin: str, host: str) -> bool:
    """Was the web page served at the address it connects to, an IP address or localhost?

    A name does not count: evil.example can be made to lead to this machine, and is then in both headers.
    """
    try:
        url = urlsplit(origin)
        return url.netloc == host and (url.hostname == "localhost" or bool(ip_address(url.hostname or "")))
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Does the address lead to this machine alone? Of names only localhost does for certain."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
