"""A planner service over WebSockets, one call at a time on each (docs/protocol.md).

    clients ----------HTTP----------> Server: origin, token, version --upgrade--> calls --> PlannerService
    Prometheus --GET /metrics, /healthz--^

Whatever one client sends, or does not send, ends in an error on its own connection. Episodes belong to the connection
that began them, and end with it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.http import HttpProcessingError
from pydantic import Field

from qttdm.common.config import Config, ConfigError
from qttdm.planner_service.serving.calls import InUnits, Session, same, write_error
from qttdm.planner_service.serving.client import leads_here
from qttdm.planner_service.serving.messages import Refusal, ServiceError
from qttdm.planner_service.serving.service import PlannerService

PORT = 7747
PROTOCOL = "qttdm.3"
"""The WebSocket subprotocol. Its number changes when a client of the version before would misunderstand."""

HTTP_STATUS = {"wrong_version": 400, "unauthorised": 401, "foreign_origin": 403, "too_many_connections": 503}
"""Why a connection does not become a WebSocket."""

CLOSE_S = 1.0
"""how long a client may take to hang up in turn"""
DOOR_S = 0.05
"""for a connection to become a WebSocket before the next is accepted: of those that do not, 20 a second are taken"""
SMALL_BYTES = 1024
"""up to which messages are read at once; of longer ones one after the other"""
REST = 9.0
"""seconds between the longer ones for each that reading the last took: together they fill a tenth of the loop"""

LOG = logging.getLogger(__name__)
LOG.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))  # garbage


class ServerConfig(Config):
    """Where it listens, and what a client may take of it."""

    host: str = "127.0.0.1"
    """address to listen on; any but this machine's own needs a token, and TLS unless `plain_text`"""
    port: int = Field(default=PORT, ge=0, le=65535)
    """0: any that is free"""
    plain_text: bool = False
    """take the token unencrypted from other machines too: whoever reads the network on the way then has it"""
    origins: tuple[str, ...] = ()
    """of web pages that may connect, such as `http://localhost:8000`; others only from the same IP address and port"""
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
        in_units: InUnits = same,
    ) -> None:
        """info: what `info` says beside data and weights. token: wanted of each client. metrics: Prometheus text.

        ConfigError on an address that others reach without a token, or with one that goes there unencrypted.
        """
        if token is None and not leads_here(config.host):
            raise ConfigError(f"host {config.host} can be reached from elsewhere: it needs a token (--token-file)")
        if tls is None and not config.plain_text and not leads_here(config.host):
            raise ConfigError(
                f"host {config.host} can be reached from elsewhere, and its token would go there unencrypted; want TLS "
                f"(--tls-cert, --tls-key), or say that the network is trusted: --set server.plain_text=true"
            )
        self.in_units = in_units
        self.config, self.service, self.info, self.token, self.tls = config, service, info, token, tls
        self.metrics, self._scraping = metrics, asyncio.Lock()
        self.sessions: dict[asyncio.Task[Any], Session] = {}
        self._answering: set[asyncio.Task[Any]] = set()
        self._opening: dict[asyncio.BaseProtocol, asyncio.Task[None]] = {}  # connections until TLS is agreed on
        self._entered = asyncio.Event()
        self._turn = asyncio.Lock()  # to read a message that is not small
        self.stopping = False

    async def start(self) -> int:
        """Listen; returns the port. ConfigError if it cannot."""
        c, loop = self.config, asyncio.get_running_loop()
        self.http = web.Server(
            self._respond, access_log=None, logger=LOG, keepalive_timeout=c.client_timeout_s, lingering_time=0
        )
        try:
            found = await loop.getaddrinfo(c.host or None, c.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            addresses = sorted({(family, address) for family, *_, address in found})
            listening = [socket.create_server(address, family=family) for family, address in addresses]
        except OSError as error:
            raise ConfigError(f"cannot listen on {c.host} port {c.port} ({error.strerror or error})") from None
        self._accepting = [loop.create_task(self._accept(each)) for each in listening]
        return int(listening[0].getsockname()[1])

    async def stop(self) -> bool:
        """Accept nobody else, answer what has been asked, hang up; over after `stop_timeout_s` whatever happens.

        True if all was answered by then.
        """
        self.stopping = True
        for opening in (*self._accepting, *self._opening.values()):
            opening.cancel()
        for task in self.sessions.keys() - self._answering:
            task.cancel()
        due = {asyncio.create_task(self.service.stop()), *self._answering}
        _, unanswered = await asyncio.wait(due, timeout=self.config.stop_timeout_s)
        for task in unanswered:
            task.cancel()
        if self.sessions:
            await asyncio.wait(self.sessions, timeout=2 * CLOSE_S)
        self.http.pre_shutdown()
        await self.http.shutdown(CLOSE_S)
        return not unanswered

    # --- connections ---

    async def _accept(self, listening: socket.socket) -> None:
        """Accept connections until cancelled; close those above the limit at once, before any TLS handshake."""
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        with listening:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listening)
                except OSError:  # no file descriptors left
                    await asyncio.sleep(CLOSE_S)
                    continue
                if len(self._opening.keys() | self.http.connections) < 2 * self.config.max_connections:
                    handler = self.http()
                    self._opening[handler] = loop.create_task(self._open(connection, handler))
                    self._entered.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._entered.wait(), DOOR_S)
                else:
                    connection.close()
                    await asyncio.sleep(0)  # sock_accept does not let others run while more connections are waiting

    async def _open(self, connection: socket.socket, handler: asyncio.BaseProtocol) -> None:
        """Agree on TLS if wanted, and leave the connection to its handler, which is in `http.connections` then."""
        c, tls = self.config, self.tls
        limits = {"ssl_handshake_timeout": c.client_timeout_s, "ssl_shutdown_timeout": CLOSE_S} if tls else {}
        try:
            with suppress(OSError):  # no TLS, or not in time
                await asyncio.get_running_loop().connect_accepted_socket(lambda: handler, connection, ssl=tls, **limits)
        finally:
            del self._opening[handler]

    # --- HTTP ---

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            response = await self._answer(request)
        except ServiceError as error:
            response = web.json_response(write_error(error.refusal), status=HTTP_STATUS[error.refusal.code])
        response.force_close()  # a connection that is kept alive would hold its place without a token
        if request.transport is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(self.config.client_timeout_s, request.transport.abort)  # who does not read it would hold it
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Raise ServiceError if it is refused."""
        if request.path == "/healthz":
            return web.Response(text="ok\n")
        self._check(request)
        if request.path == "/metrics":
            async with self._scraping:
                text = await asyncio.to_thread(self.metrics)
            return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4"})
        return await self._converse(request)

    def _check(self, request: web.BaseRequest) -> None:
        """Raise ServiceError if a web page sent it that may not, or if it has not the token."""
        if self.token is None and request.path == "/metrics" and not is_address(request.headers.get("Host", "")):
            raise ServiceError(
                Refusal("foreign_origin", "Host: want an IP address or localhost, or serve with a token")
            )
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

    async def _converse(self, request: web.BaseRequest) -> web.StreamResponse:
        """Upgrade to a WebSocket and serve it to its end. ServiceError if it does not become one."""
        c, task, transport = self.config, asyncio.current_task(), request.transport
        websocket = web.WebSocketResponse(
            protocols=[PROTOCOL],
            timeout=CLOSE_S,
            heartbeat=c.heartbeat_s,
            compress=False,
            max_msg_size=c.max_message_bytes + 1,  # aiohttp refuses one of exactly that size
            writer_limit=0,  # so that what is sent waits while the client does not read
        )
        try:
            upgrades = PROTOCOL in subprotocols(request) and bool(websocket.can_prepare(request))
        except ValueError:  # headers that aiohttp cannot read
            upgrades = False
        if not upgrades:
            raise ServiceError(Refusal("wrong_version", f"want a WebSocket with the subprotocol {PROTOCOL}"))
        self._entered.set()
        if len(self.sessions) >= c.max_connections:
            raise ServiceError(Refusal("too_many_connections", f"there are {c.max_connections} already"))
        if task is None or transport is None:
            raise web.HTTPBadRequest  # the client has gone
        session = self.sessions[task] = Session(self.service, self.info, c.max_episodes, self.in_units)
        try:
            await websocket.prepare(request)
            while not self.stopping:
                message = await websocket.receive()
                if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                    break  # closed by the client, or by aiohttp on a client that breaks the rules
                self._answering.add(task)
                answer = await (await self._read(session, message.data))
                async with asyncio.timeout(c.client_timeout_s):
                    await (websocket.send_str(answer) if isinstance(answer, str) else websocket.send_bytes(answer))
                self._answering.remove(task)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass  # the client has gone, or takes no answers, or the server stops
        finally:
            self._answering.discard(task)
            await self.service.end(list(session.episodes))
            asyncio.get_running_loop().call_later(2 * CLOSE_S, transport.abort)  # aiohttp waits for ever to be read
            try:
                if websocket.prepared:
                    await websocket.close(code=WSCloseCode.GOING_AWAY, message=b"the service is being stopped")
            finally:
                del self.sessions[task]
        return websocket if websocket.prepared else web.Response()  # the client went before it was

    async def _read(self, session: Session, message: bytes | str) -> Coroutine[Any, Any, bytes | str]:
        """Read a call when it is its turn: long ones, of however many clients, may not keep the others waiting."""
        if len(message) <= SMALL_BYTES:
            return session.answer(message)
        await self._turn.acquire()
        began = time.thread_time()  # not what other processes and threads took meanwhile
        try:
            return session.answer(message)
        finally:
            rest = REST * (time.thread_time() - began)
            asyncio.get_running_loop().call_later(rest, self._turn.release)


def subprotocols(request: web.BaseRequest) -> list[str]:
    """List the WebSocket subprotocols that a client offers."""
    return [p.strip() for line in request.headers.getall("Sec-WebSocket-Protocol", ()) for p in line.split(",")]


def is_same_origin(origin: str, host: str) -> bool:
    """Was the web page served at the address it connects to, an IP address or localhost?"""
    return origin.partition("://")[2] == host and is_address(host)


def is_address(host: str) -> bool:
    """Is a request's `Host` an IP address or localhost, with or without a port?

    A name does not count: evil.example can be made to lead to this machine, and its pages may then read the answers.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False
