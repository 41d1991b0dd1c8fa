"""What 16 hostile peers cost an honest client of the planner service, one attack after the other.

    this process: the honest client  --loopback-->  a server process, one planner  <--  a process of 16 hostile peers

    python -m qttdm.deploy.bench.hostile [ATTACK ..]

Each is measured in turns with none. Peers on the same machine also take its processors' time
from the service, which those on others would not. Attacks of a peer without the token are of a service that wants one;
those with messages of one that wants none, as on loopback.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import msgpack
import numpy as np

from qttdm.deploy.bench.models import SHAPES
from qttdm.deploy.bench.service import planner, running
from qttdm.planner_service.serving.client import Client
from qttdm.planner_service.serving.server import Server, ServerConfig
from qttdm.planner_service.serving.service import PlannerService, ServiceConfig

PEERS = 16
TURNS = 6  # with and without an attack
SETTLE, SECONDS = 0.5, 1.5  # of each turn, before and while it is measured
LARGE = 1 << 18
UPGRADE = (
    "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: qttdm.3{token}\r\n{more}\r\n"
)


def request(token: str = "", more: str = "") -> bytes:
    """Write a request to become a WebSocket."""
    return UPGRADE.format(token=token, more=more).encode()


def one_shot(data: bytes) -> Callable[[int], None]:
    """Connect, send, read to the end."""

    def attack(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), 10) as peer:
            peer.sendall(data)
            while peer.recv(1 << 16):
                pass

    return attack


def endless_body(port: int) -> None:
    """Send a body for as long as it is taken."""
    with socket.create_connection(("127.0.0.1", port), 10) as peer:
        peer.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            peer.sendall(b"10000\r\n" + bytes(1 << 16) + b"\r\n")


def half_request(port: int) -> None:
    """Send half a request, and wait to be hung up on."""
    with socket.create_connection(("127.0.0.1", port), 30) as peer:
        peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        peer.recv(1)


def frame(message: bytes) -> bytes:
    """Write a WebSocket's binary message, masked with zeros."""
    return b"\x82\xff" + len(message).to_bytes(8, "big") + bytes(4) + message


def messages(message: bytes) -> Callable[[int], None]:
    """Send the message again and again, each when the one before has been answered."""

    def attack(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), 30) as peer:
            peer.sendall(request())
            peer.recv(1 << 16)
            while True:
                peer.sendall(frame(message))
                if not peer.recv(1 << 16):
                    return

    return attack


NESTED = msgpack.packb({"call": "act", "requests": [{"episode": 1, "step": 0, "observations": [[0]] * 120_000}]})
UNKNOWN = msgpack.packb({"call": "info", **{f"{i:x}": 0 for i in range(40_000)}})
MANY = msgpack.packb({"call": "act", "requests": [{"episode": 1, "step": 0, "observations": [0]}] * 1024})
WITHOUT_TOKEN: dict[str, Callable[[int], None]] = {
    "guesses of the token": one_shot(request(", token.guess")),
    "a large first message": one_shot(frame(UNKNOWN)),
    "an upgrade and a large message": one_shot(request(", token.guess") + frame(UNKNOWN)),
    "large headers": one_shot(request(more="".join(f"X{i}: {8000 * 'a'}\r\n" for i in range(100)))),
    "an endless body": endless_body,
    "half requests": half_request,
    "/healthz": one_shot(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
}
WITH_MESSAGES: dict[str, Callable[[int], None]] = {
    "messages: unknown fields": messages(UNKNOWN),
    "messages: lists in lists": messages(NESTED),
    "messages: 1024 requests": messages(MANY),
    "messages: info": messages(msgpack.packb({"call": "info"})),
}


def serve(token: str | None, port: Connection) -> None:
    """Serve a fresh agent of the laptop's size, in a process of its own, until the parent ends it."""
    policy, data = planner(SHAPES[0], ["device=cpu"], 1)

    async def run() -> None:
        server = Server(ServerConfig(port=0), PlannerService(ServiceConfig(), policy, data), {}, token)
        gc.freeze()
        port.send(await server.start())
        await asyncio.Event().wait()

    asyncio.run(run())


def attack(what: Callable[[int], None], port: int) -> None:
    """Be hostile peers, until the parent ends this process."""

    def again_and_again() -> None:
        while True:
            try:
                what(port)
            except OSError:
                time.sleep(0.001)

    for _ in range(PEERS):
        threading.Thread(target=again_and_again).start()


def honest(client: Client, seconds: float) -> np.ndarray:
    """Act for so long; returns the ms that each answer took."""
    episode, observation, took = client.episode(0), np.zeros(SHAPES[0].obs_dim, np.float32), []
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        began = time.perf_counter()
        episode.act(observation)
        took.append(1e3 * (time.perf_counter() - began))
    episode.end()
    return np.array(took)


def measure(attacks: dict[str, Callable[[int], None]], token: str | None) -> None:
    """Print a row for each attack, which is stopped and goes on in turns: what else the machine does meets both."""
    context = multiprocessing.get_context("fork")
    with running(partial(serve, token)) as port, Client(port=port, token=token, timeout_s=120.0) as client:
        honest(client, 2.0)
        for name, what in attacks.items():
            peers = context.Process(target=attack, args=(what, port))
            peers.start()
            without: list[np.ndarray] = []
            under: list[np.ndarray] = []
            for number, took in ((signal.SIGSTOP, without), (signal.SIGCONT, under)) * TURNS:
                os.kill(peers.pid or 0, number)
                honest(client, SETTLE)
                took.append(honest(client, SECONDS))
            peers.kill()
            peers.join()
            row = [f(np.concatenate(took)) for took in (without, under) for f in (np.median, p99)]
            print(f"{name:34}" + "".join(f"{ms:9.1f}" for ms in row) + f"{row[2] / row[0]:8.2f}", flush=True)


def p99(took: np.ndarray) -> np.floating:
    """The 99th percentile."""
    return np.percentile(took, 99)


if __name__ == "__main__":
    wanted = sys.argv[1:]
    print(f"{PEERS} hostile peers; an honest client's ms, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}")
    print(f"{'attack':34}{'p50':>9}{'p99':>9}{'p50':>9}{'p99':>9}{'ratio':>8}\n{'':34}{'without':>18}{'under it':>18}")
    for attacks, token in ((WITHOUT_TOKEN, "secret"), (WITH_MESSAGES, None)):
        measure({name: what for name, what in attacks.items() if not wanted or name in wanted}, token)
