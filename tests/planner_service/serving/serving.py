"""A planner service in a thread of its own, served over TCP, for tests that are its clients."""

import asyncio
import socket
import struct
import threading
from contextlib import contextmanager

import msgpack
import torch

from qttdm.planner_service.planners.mppi import MPPIConfig
from qttdm.planner_service.serving.client import Client
from qttdm.planner_service.serving.server import Server, ServerConfig
from qttdm.planner_service.serving.service import PlannerService, ServiceConfig
from tests.fakes import planning_policy, tiny_data, tiny_qt, tiny_tdm

CPU = torch.device("cpu")
INFO = {"task": "gym/FakePoint-v0", "agent": "qt-tdm", "obs_dim": 3, "action_dim": 2, "action_repeat": 8}


def tiny_policy(action_dim=2):
    """Plans in milliseconds."""
    config = MPPIConfig(samples=8, elites=4, qt_samples=2, iterations=2, horizon=2)
    return planning_policy(config, tiny_tdm(0, 3, action_dim), tiny_qt(1, 3, action_dim), action_dim)


class Serving:
    """A server and the loop it runs in."""

    def __init__(self, policy, service, server, info, **more):
        self.service = PlannerService(ServiceConfig(**service), policy, tiny_data())
        self.server = Server(ServerConfig(port=0, **server), self.service, info, **more)

    def run(self, coroutine):
        """In the server's loop; its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def client(self, **more):
        return Client(port=self.port, timeout_s=30.0, **more)

    def raw(self):
        return Raw(self.port)


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
    """A connection on which anything can be sent."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 30)

    def send(self, data):
        self.socket.sendall(data)

    def call(self, **message):
        """Send a message; returns the answer."""
        payload = msgpack.packb(message)
        self.send(struct.pack(">I", len(payload)) + payload)
        return self.receive()

    def hello(self):
        assert self.call(call="hello", protocol=1) == {"protocol": 1}
        return self

    def receive(self):
        """The next message; None when the connection has been closed."""
        header = self._exactly(4)
        return None if header is None else msgpack.unpackb(self._exactly(*struct.unpack(">I", header)))

    def error(self):
        """The code of the next message, which is an error."""
        return self.receive()["error"]["code"]

    def closed(self):
        """Has the server hung up, with nothing more to say?"""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def _exactly(self, count):
        data = b""
        while len(data) < count:
            try:
                piece = self.socket.recv(count - len(data))
            except ConnectionError:
                return None
            if not piece:
                return None
            data += piece
        return data
