"""A planner service in a thread of its own, served over WebSockets, for tests that are its clients."""

import asyncio
import json
import socket
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import msgpack
import torch
from websockets.sync.client import connect

from qttdm.planner_service.planners.mppi import MPPIConfig
from qttdm.planner_service.serving.client import Client
from qttdm.planner_service.serving.server import Server, ServerConfig
from qttdm.planner_service.serving.service import PlannerService, ServiceConfig
from tests.fakes import planning_policy, tiny_data, tiny_qt, tiny_tdm

CPU = torch.device("cpu")
INFO = {"task": "gym/FakePoint-v0", "agent": "qt-tdm", "action_repeat": 8, "episode_steps": 80}


def tiny_policy(action_dim=2):
    """Plans in milliseconds."""
    config = MPPIConfig(samples=8, elites=4, qt_samples=2, iterations=2, horizon=2)
    return planning_policy(config, tiny_tdm(0, 3, action_dim), tiny_qt(1, 3, action_dim), action_dim)


class Serving:
    """A server and the loop it runs in."""

    def __init__(self, policy, service, server, info, data=None, **more):
        self.service = PlannerService(ServiceConfig(**service), policy, data or tiny_data())
        self.server = Server(ServerConfig(port=0, **server), self.service, info, **more)

    def run(self, coroutine):
        """In the server's loop; its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def client(self, **more):
        return Client(port=self.port, timeout_s=30.0, **more)

    def raw(self, **more):
        return Raw(self.port, **more)

    def get(self, path, **headers):
        """Status and text of an HTTP answer."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@contextmanager
def serving(policy=None, service=None, server=None, info=INFO, **more):
    """Started, and stopped at the end."""
    it = Serving(policy or tiny_policy(), service or {}, server or {}, info, **more)
    it.loop = asyncio.new_event_loop()
    thread = threading.Thread(target=it.loop.run_forever)
    thread.start()
    try:
        it.port = it.run(it.server.start())
        yield it
    finally:
        it.run(it.server.stop())
        it.loop.call_soon_threadsafe(it.loop.stop)
        thread.join(30)
        it.loop.close()


class Raw:
    """A WebSocket on which any message can be sent."""

    def __init__(self, port, subprotocols=("qttdm.3",), **more):
        more = {"compression": None, "ping_interval": None, "proxy": None, "close_timeout": 1, **more}
        self.ws = connect(f"ws://127.0.0.1:{port}", subprotocols=subprotocols, **more).__enter__()
        self.socket = self.ws.socket

    def call(self, as_text=False, **message):
        """Send a message; returns the answer."""
        self.ws.send(json.dumps(message) if as_text else msgpack.packb(message))
        return self.receive()

    def receive(self):
        """The next answer."""
        answer = self.ws.recv(30)
        return json.loads(answer) if isinstance(answer, str) else msgpack.unpackb(answer)


def plain_socket(port):
    """A connection that says nothing yet."""
    return socket.create_connection(("127.0.0.1", port), 30)


def is_closed(connection):
    """Has the server hung up, with nothing more to say?"""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
