"""Thousands of mutated messages and requests: none stops a server, costs another client anything, or leaves memory.

Deterministic: they are a function of the seed; QTTDM_MESSAGES=100_000 are more. (What is wrong with a WebSocket's
frames is aiohttp's to find.)
"""

import copy
import json
import math
import os
import random
import socket
import struct
import threading
from pathlib import Path

import msgpack
import numpy as np
import pytest

from qttdm.deploy.monitoring.exporter import Exporter, serve
from qttdm.planner_service.planners.mppi import MPPIConfig
from qttdm.planner_service.serving.messages import REFUSALS
from tests.fakes import Acting, planning_policy, tiny_qt, tiny_tdm
from tests.planner_service.serving.serving import serving
from tests.planner_service.serving.test_service import numbers as observation

MESSAGES, BURST = int(os.environ.get("QTTDM_MESSAGES", "6_000")), 100
MAX_BYTES = 4096
ODD_VALUES = [
    *(None, True, False, 0, -1, 1, 127, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)),
    *(0.0, -0.0, 0.5, 1e308, math.nan, math.inf, -math.inf),
    *("", "act", "x" * 300, "é\0", b"", b"\0", b"\xff" * 12, [], [[]], [None], {}, {"": {}}, {"call": "act"}),
    *(
        [0] * 1500,
        msgpack.Timestamp(1, 2),
        msgpack.ExtType(5, b"x"),
        [1e308] * 3,
        [[1], [2, 3]],
        {"observations": [9] * 3},
    ),
    *(struct.pack("<3f", *numbers) for numbers in ((0, math.nan, 0), (math.inf, 0, 0), (3.4e38, -3.4e38, 1e-45))),
]


def minimal_policy():
    """Real networks and a real plan, as small as they come."""
    config = MPPIConfig(samples=4, elites=2, qt_samples=1, iterations=2, horizon=1)
    return planning_policy(config, tiny_tdm(0), tiny_qt(1))


def messages(episode):
    """One of each call, all of them valid."""
    request = {"episode": episode, "step": 0, "observations": observation(0).tobytes()}
    return [
        {"call": "info"},
        {"call": "health"},
        {"call": "begin", "seeds": [1, 2], "exploration": 0.5},
        {"call": "act", "requests": [request]},
        {"call": "act", "requests": [{**request, "deadline_ms": 5.0, "anytime": True}, {**request, "step": 1}]},
        {"call": "end", "episodes": [episode]},
    ]


def slots(value, path=()):
    """The paths of everything inside a message."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from slots(inner, (*path, key))


def mutate_fields(rng, message):
    """Something in it is replaced, removed or added."""
    message = copy.deepcopy(message)
    for _ in range(rng.choice((1, 1, 2))):
        *inner, key = rng.choice([*slots(message), ("call",)])
        place = message
        for step in inner:
            place = place[step]
        match rng.randrange(3):
            case 0 if isinstance(place, dict):
                place.pop(key, None)
            case 1 if isinstance(place, dict):
                place[rng.choice(("call", "more", "", "seeds", "id"))] = copy.deepcopy(rng.choice(ODD_VALUES))
            case _:
                place[key] = copy.deepcopy(rng.choice(ODD_VALUES))
        if not message:
            break
    return msgpack.packb(message)


def mutate_bytes(rng, payload):
    """Bits flipped, and bytes cut out, repeated or put in."""
    data = bytearray(payload)
    for _ in range(rng.choice((1, 1, 1, 3, 10))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 16))
        if rng.random() < 0.4:
            data[at : at + 1] = [rng.randrange(256)]
        else:
            data[at : at + rng.choice((0, length))] = rng.choice((b"", data[at : at + length], rng.randbytes(length)))
    return bytes(data[:MAX_BYTES])


def mutated_message(rng, corpus):
    """One of the corpus, wrong in one way or several: msgpack, or now and then JSON."""
    message = rng.choice(corpus)
    if rng.random() < 0.3:
        text = json.dumps(message, default=lambda value: [0.5] * 3).encode()
        return mutate_bytes(rng, text).decode(errors="replace")
    payload = mutate_fields(rng, message)
    return mutate_bytes(rng, payload) if rng.random() < 0.5 else payload


def check_answer(answer):
    """Whatever was sent, what comes back is as specified."""
    errors = [answer["error"]] if "error" in answer else [r["error"] for r in answer.get("results", ()) if "error" in r]
    for error in errors:
        assert error["code"] in {*REFUSALS, "bad_message"}, error
        assert len(error["message"]) <= 300
    for result in answer.get("results", ()):
        if "error" not in result:
            action = np.array(result["action"])
            assert action.shape == (2,)
            assert np.abs(action).max() <= 1
    return len(errors)


def resident_megabytes():
    """Of this process, in which the server runs as well."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def local_actions(seed):
    """An episode's, [10, N]."""
    policy = Acting(minimal_policy())
    policy.begin([seed], 0.5)
    return np.stack([policy.act(observation(step)[None])[0] for step in range(10)])


class GoodClient(threading.Thread):
    """Episode after episode, each action held against the local policy's."""

    def __init__(self, client):
        super().__init__()
        self.client, self.done, self.decisions, self.wrong = client, threading.Event(), 0, []
        self.wanted = [local_actions(seed) for seed in range(5)]

    def run(self):
        try:
            while not self.done.is_set():
                self._episode(self.decisions // 10 % len(self.wanted))
        except Exception as error:  # the test reports it
            self.wrong.append(error)

    def _episode(self, seed):
        episode = self.client.episode(seed, exploration=0.5)
        for step, want in enumerate(self.wanted[seed]):
            got = episode.act(observation(step))["action"]
            if not np.allclose(got, want, atol=1e-5):
                self.wrong.append((seed, step, got, want))
            self.decisions += 1
            self.done.wait(0.02)
        episode.end()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_thousands_of_mutated_messages():
    rng, surprises = random.Random(0), []
    limits = {"max_message_bytes": MAX_BYTES, "max_episodes": 16}
    with serving(minimal_policy(), server=limits, service={"max_wait_ms": 0.1}) as it, it.client() as client:
        it.loop.set_exception_handler(lambda _, context: surprises.append(context))
        good = GoodClient(client)
        good.start()
        refused, memory, answered_good = 0, [], []
        for sent in range(0, MESSAGES, BURST):
            raw = it.raw(max_queue=None)
            (episode, _) = raw.call(call="begin", seeds=[1, 2])["episodes"]
            corpus = messages(episode)
            for _ in range(BURST):
                raw.ws.send(mutated_message(rng, corpus))
            refused += sum(check_answer(raw.receive()) for _ in range(BURST))
            raw.ws.close()
            if sent % (MESSAGES // 10) == 0:
                memory.append(resident_megabytes())
                answered_good.append(good.decisions)
        good.done.set()
        good.join(60)
        health = client.call("health")
    assert good.wrong == []
    assert surprises == []
    assert refused > 0.7 * MESSAGES  # they were read, one by one
    assert np.diff(answered_good).min() > 0  # throughout
    assert health["refusals"].keys() <= REFUSALS.keys()
    assert health["answers"] > good.decisions  # some did reach the planner
    assert health["episodes"] <= 2 + 1
    growth = max(memory[2:]) - memory[1]
    print(f"{MESSAGES:,} messages: {refused:,} errors answered, {good.decisions:,} right actions for the other client,")
    print(f"resident memory {memory[1]:.1f} MiB after the first tenth, at most {growth:+.1f} MiB from then on")
    assert growth < 8, memory


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: qttdm.3\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SCRAPE = (
    b"GET /metrics?name[]=a HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: gzip\r\n"
    b"Accept: application/openmetrics-text; version=1.0.0\r\n\r\n"
)


def answer_to(request, port):
    """All that comes back, until the server hangs up."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), 30) as peer:
        try:
            peer.sendall(request)
            peer.shutdown(socket.SHUT_WR)
            while piece := peer.recv(65536):
                answer += piece
        except ConnectionError:
            pass
    return answer


def test_mutated_requests_to_both_servers(capfd):
    """Fewer to the service, which takes those that do not get in slowly."""
    rng = random.Random(1)
    server, thread = serve(Exporter(), "127.0.0.1", 0)
    with serving(minimal_policy()) as it:
        for port, corpus, number in (
            (it.port, (UPGRADE, SCRAPE, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"), MESSAGES // 100),
            (server.server_address[1], (SCRAPE,), MESSAGES // 20),
        ):
            for _ in range(number):
                answer = answer_to(mutate_bytes(rng, rng.choice(corpus)), port)
                assert b" 500 " not in answer[:20], answer[:200]
        with it.client() as client:
            assert client.call("health")["episodes"] == 0
    assert answer_to(SCRAPE, server.server_address[1]).startswith(b"HTTP/1.0 200 OK")
    server.shutdown()
    server.server_close()
    thread.join(60)
    assert capfd.readouterr() == ("", "")
