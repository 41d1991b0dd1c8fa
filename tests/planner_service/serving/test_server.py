"""The server and clients that mean no good, or that are merely broken: an error for them, nothing for the others."""

import asyncio
import hmac
import json
import shlex
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from itertools import pairwise

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from qttdm.common.config import ConfigError
from qttdm.deploy.bench.hostile import WITHOUT_TOKEN
from qttdm.planner_service.serving.calls import Session
from qttdm.planner_service.serving.client import Client, DisconnectedError, RefusedError, leads_here
from qttdm.planner_service.serving.server import DOOR_S, REST, SMALL_BYTES, Server, ServerConfig
from qttdm.planner_service.serving.service import PlannerService, ServiceConfig
from tests.fakes import Acting, tiny_data
from tests.planner_service.serving.serving import INFO, is_closed, plain_socket, serving, tiny_policy
from tests.planner_service.serving.test_service import GatedPolicy
from tests.planner_service.serving.test_service import numbers as observation

QUICK = {"client_timeout_s": 1.0}


@pytest.fixture(scope="module")
def served():
    """Impatient, and with room for few."""
    with serving(server={**QUICK, "max_message_bytes": 4096, "max_episodes": 8}) as it:
        yield it


@pytest.fixture(autouse=True)
def the_others(request):
    """A well-behaved client beside every test here, which gets the local policy's actions before, while and after."""
    if "served" not in request.fixturenames:
        yield
        return
    policy = Acting(tiny_policy())
    policy.begin([7], 0.5)
    with request.getfixturevalue("served").client() as client:
        episode = client.episode(seed=7, exploration=0.5)
        for step in range(4):
            got = episode.act(observation(step))["action"]
            assert np.allclose(got, policy.act(observation(step)[None])[0], atol=1e-5)
            if step == 1:
                yield


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def held_up(loop):
    """Hold up the event loop, so that what happens meanwhile comes to it at once."""
    go_on = threading.Event()
    loop.call_soon_threadsafe(go_on.wait, 20)
    yield
    go_on.set()


def is_open(connection):
    """Has the server not hung up on it within half a second?"""
    connection.settimeout(0.5)
    try:
        return not is_closed(connection)
    except TimeoutError:
        return True


def refusal(connecting):
    """Status and code of a connection that is refused."""
    with pytest.raises(InvalidStatus) as error:
        connecting()
    response = error.value.response
    return response.status_code, json.loads(response.body)["error"]["code"]


class TestHandshake:
    @pytest.mark.parametrize("offered", [None, ["qttdm.1"], ["qttdm.4", "token.x"]])
    def test_another_version_is_named(self, served, offered):
        assert refusal(lambda: served.raw(subprotocols=offered)) == (400, "wrong_version")

    def test_version_1_is_refused_at_once(self, served):
        with plain_socket(served.port) as old:
            hello = msgpack.packb({"call": "hello", "protocol": 1})
            old.sendall(len(hello).to_bytes(4, "big") + hello)
            assert old.recv(1000).startswith(b"HTTP/1.0 400 Bad Request")

    @pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n"])
    def test_who_sends_no_whole_request_is_hung_up_on(self, served, sent):
        with plain_socket(served.port) as silent:
            silent.sendall(sent)
            assert is_closed(silent)

    @pytest.mark.parametrize("seed", range(4))
    def test_garbage(self, served, seed, capfd):
        with plain_socket(served.port) as raw:
            raw.sendall(np.random.default_rng(seed).bytes(2000))
            assert b"400 Bad Request" in raw.recv(1000)
        with plain_socket(served.port) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\nHo\0st: x\r\n\r\n")
            assert b"400 Bad Request" in raw.recv(1000)
        assert capfd.readouterr() == ("", "")

    def test_a_request_without_an_upgrade_is_refused(self, served):
        status, text = served.get("/", **{"Sec-WebSocket-Protocol": "qttdm.3"})
        assert (status, json.loads(text)["error"]["code"]) == (400, "wrong_version")

    @pytest.mark.parametrize("key", [b"\xff", b"\xed\xa0\x80AAAA==", b"A"])
    def test_a_key_that_is_none_is_refused(self, served, key, capfd):
        with plain_socket(served.port) as raw:
            raw.sendall(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Protocol: qttdm.3\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
            )
            assert b" 400 " in raw.recv(1000)
        assert capfd.readouterr() == ("", "")


class TestOrigin:
    """A web page must not drive a robot."""

    @pytest.mark.parametrize(
        "origin", ["https://evil.example", "null", "http://127.0.0.1", "http://localhost:{port}", "http://[::1", ""]
    )
    def test_a_foreign_page_is_refused(self, served, origin):
        origin = origin.format(port=served.port)
        assert refusal(lambda: served.raw(origin=origin)) == (403, "foreign_origin")

    def test_a_page_of_a_name_that_leads_here_is_refused(self, served):
        """Once a browser has been made to believe that evil.example is 127.0.0.1, both headers say so."""
        name = f"evil.example:{served.port}"
        with plain_socket(served.port) as connection:
            lines = [f"GET / HTTP/1.1\r\nHost: {name}\r\nOrigin: http://{name}", "Upgrade: websocket"]
            lines += ["Connection: upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: " + 22 * "A" + "=="]
            connection.sendall("\r\n".join([*lines, "Sec-WebSocket-Protocol: qttdm.3\r\n\r\n"]).encode())
            assert b"foreign_origin" in connection.recv(1000)

    def test_pages_of_the_same_address_or_on_the_list_may_connect(self):
        with serving(server={"origins": ("http://localhost:8000",)}) as it:
            for origin in (f"http://127.0.0.1:{it.port}", "http://localhost:8000"):
                assert it.raw(origin=origin).call(call="info")["task"] == INFO["task"]
            assert refusal(lambda: it.raw(origin="http://localhost:8001")) == (403, "foreign_origin")
            assert it.get("/metrics", Origin="https://evil.example")[0] == 403

    def test_metrics_are_not_read_under_a_name_that_leads_here(self):
        with serving(metrics=lambda: b"up 1\n") as it:
            for host in ("evil.example", f"evil.example:{it.port}", "localhost.evil.example", "[::1", ""):
                assert it.get("/metrics", Host=host)[0] == 403, host
            for host in ("127.0.0.1", f"[::1]:{it.port}", f"localhost:{it.port}"):
                assert it.get("/metrics", Host=host) == (200, "up 1\n"), host
        with serving(metrics=lambda: b"up 1\n", token="secret") as it:
            assert it.get("/metrics", Host="robot.example", Authorization="Bearer secret") == (200, "up 1\n")


class TestMessages:
    def test_a_bad_message_is_an_error_and_the_connection_goes_on(self, served):
        raw = served.raw()
        for message in (b"\xc1", b"", "", "{", msgpack.packb([1]), '{"call": "fly"}'):
            raw.ws.send(message)
            assert raw.receive()["error"]["code"] == "bad_message"
        assert raw.call(call="info")["task"] == INFO["task"]

    def test_answers_come_in_the_calls_own_form(self, served):
        raw = served.raw()
        for as_text, kind in ((True, str), (False, bytes)):
            raw.ws.send('{"call": "info"}' if as_text else msgpack.packb({"call": "info"}))
            assert isinstance(raw.ws.recv(30), kind)

    @pytest.mark.parametrize("pieces", [1, 3])
    def test_the_longest_message_is_taken_and_a_longer_one_is_not(self, served, pieces):
        raw = served.raw()
        raw.ws.send(b"\xc1" * 4096 if pieces == 1 else [b"\xc1" * 1024] * 4)
        assert raw.receive()["error"]["code"] == "bad_message"
        with suppress(ConnectionClosed):  # already
            raw.ws.send(b"\xc1" * 4097 if pieces == 1 else [b"\xc1" * 2048] * 3)
        with pytest.raises(ConnectionClosed) as closed:
            raw.receive()
        assert closed.value.rcvd.code == 1009

    def test_calls_may_be_sent_ahead_and_are_answered_in_order(self, served):
        raw = served.raw()
        for seed in range(5):
            raw.ws.send(msgpack.packb({"call": "begin", "seeds": [seed]} if seed % 2 else {"call": "info"}))
        assert ["task" in raw.receive() for _ in range(5)] == [True, False, True, False, True]

    def test_who_hangs_up_in_the_middle_is_forgotten(self, served):
        before = len(served.server.sessions)
        for part in (b"", b"\x82", b"\x82\x7e\x00"):
            raw = served.raw()
            raw.socket.sendall(part)
            raw.socket.shutdown(2)
        wait_for(lambda: len(served.server.sessions) == before)

    @pytest.mark.parametrize("part", [b"", b"\x82\xfe\x01\x00abcdxxx"], ids=["silence", "half a message"])
    def test_who_does_not_answer_pings_is_hung_up_on(self, part):
        with serving(server={"heartbeat_s": 0.2}) as it:
            patient = it.client()
            raw = it.raw()
            raw.ws.protocol.receive_data = lambda data: None  # it takes the ping, and says nothing
            raw.socket.sendall(part)
            wait_for(lambda: len(it.server.sessions) == 1)
            assert patient.call("info")["task"] == INFO["task"]


class TestEpisodes:
    def test_belong_to_their_connection(self, served):
        with served.client() as owner, served.client() as other:
            (episode,) = owner.begin([0])
            theft = {"episode": episode, "step": 0, "observations": observation(0)}
            assert other.act([theft])[0]["error"]["code"] == "unknown_episode"
            other.call("end", episodes=[episode])
            assert "error" not in owner.act([theft])[0]

    def test_end_with_it(self, served):
        before = len(served.service._episodes)
        with served.client() as client:
            client.begin([0, 1])
            assert len(served.service._episodes) == before + 2
        wait_for(lambda: len(served.service._episodes) == before)

    def test_are_limited(self, served):
        with served.client() as client:
            episodes = client.begin(list(range(6)))
            with pytest.raises(RefusedError, match="busy: 6 episodes begun and 3 more, at most 8; end some first"):
                client.begin([0, 1, 2])
            client.call("end", episodes=episodes[:1])
            client.begin([0, 1, 2])

    def test_that_the_service_released_after_silence_do_not_count(self):
        with serving(server={"max_episodes": 2}, service={"silence_s": 0.5}) as it, it.client() as client:
            client.begin([0, 1])
            with pytest.raises(RefusedError, match="busy: 2 episodes begun") as error:
                client.begin([2])
            assert error.value.retry_ms == 500
            assert client.call("health")["refusals"] == {"busy": 1}
            time.sleep(0.6)
            client.begin([2, 3])


def test_a_flood_of_connections_is_turned_away_and_room_is_made_again():
    with serving(server={"max_connections": 3}) as it:
        client = it.client()
        episode = client.episode(0)
        others = [it.client() for _ in range(2)]
        for _ in range(50):
            assert refusal(it.raw) == (503, "too_many_connections")
        silent = [plain_socket(it.port) for _ in range(3)]
        wait_for(lambda: len(it.server.http.connections) == 6)
        assert is_closed(plain_socket(it.port))  # without a word
        episode.act(observation(0))
        for connection in silent:
            connection.close()
        others.pop().close()
        wait_for(lambda: len(it.server.http.connections) == 2)
        with it.client() as again:
            assert again.call("info")["task"] == INFO["task"]


def test_a_burst_of_connections_is_turned_away_too():
    with serving(server={"max_connections": 2}) as it:
        with held_up(it.loop):
            burst = [plain_socket(it.port) for _ in range(20)]
        assert sum(is_open(connection) for connection in burst) == 4


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/"])
def test_an_http_request_holds_no_connection(served, path):
    with plain_socket(served.port) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        answer = connection.makefile("rb").read()  # to its end
        assert answer.count(b"HTTP/1.1") == 1
        assert b"\r\nConnection: close\r\n" in answer


def test_a_client_that_takes_no_answers_is_dropped():
    with serving(server=QUICK) as it:
        raw = it.raw()
        ask = {"call": "act", "requests": 1000 * [{"episode": 9, "step": 0, "observations": []}]}
        raw.socket.settimeout(0.5)
        with pytest.raises((OSError, ConnectionClosed)):
            [raw.ws.send(msgpack.packb(ask)) for _ in range(10_000)]
        wait_for(lambda: not it.server.sessions)


@pytest.mark.parametrize("name", ["guesses of the token", "a large first message", "/healthz"])
def test_peers_that_do_not_get_in_are_taken_slowly(name):
    """However many and fast they come."""
    over = threading.Event()

    def peer():
        while not over.is_set():
            with suppress(OSError):
                WITHOUT_TOKEN[name](it.port)

    with serving(token="secret", server={"client_timeout_s": 60.0}) as it:
        client = it.client(token="secret")
        taken = it.server.http.requests_count
        began = time.monotonic()
        peers = [threading.Thread(target=peer) for _ in range(16)]
        for each in peers:
            each.start()
        episode, step = client.episode(seed=7, exploration=0.5), 0
        policy = Acting(tiny_policy())
        policy.begin([7], 0.5)
        while step < 10 or time.monotonic() - began < 2:
            got = episode.act(observation(step))["action"]
            assert np.allclose(got, policy.act(observation(step)[None])[0], atol=1e-5)
            step += 1
        taken, seconds = it.server.http.requests_count - taken, time.monotonic() - began
        over.set()
    for each in peers:
        each.join(60)
    assert 0 < taken <= seconds / DOOR_S + 2


def test_long_messages_are_read_one_after_the_other_with_rests(monkeypatch):
    """Of however many clients: reading them takes a tenth of the loop's time at most."""
    reads, answer = [], Session.answer

    def timed(session, message):
        began, worked = time.perf_counter(), time.thread_time()
        try:
            return answer(session, message)
        finally:
            if len(message) > SMALL_BYTES:
                reads.append((began, time.perf_counter(), time.thread_time() - worked))

    monkeypatch.setattr(Session, "answer", timed)
    long = msgpack.packb({"call": "begin", "seeds": [10**6] * 500})
    with serving() as it:
        raws = [it.raw() for _ in range(4)]
        for raw in 2 * raws:
            raw.ws.send(long)
        for raw in 2 * raws:
            assert raw.receive()["error"]["code"] == "busy"
    assert len(reads) == 8
    for (_, ended, worked), (next_began, _, _) in pairwise(reads):
        assert next_began - ended > 0.9 * REST * worked - 0.002


def test_an_answer_that_nobody_reads_holds_no_connection():
    with serving(server=QUICK, metrics=lambda: bytes(1 << 24)) as it, socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(("127.0.0.1", it.port))
        peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        wait_for(lambda: it.server.http.connections)
        wait_for(lambda: not it.server.http.connections)


def test_a_body_is_not_read_by_those_who_refuse_it():
    with serving(token="secret") as it, plain_socket(it.port) as peer:
        peer.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        taken = 0
        with suppress(OSError):
            while taken < 1 << 28:
                peer.sendall(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
                taken += 1 << 16
        assert taken < 1 << 27  # what fits into buffers, no more


class TestToken:
    def test_is_asked_for(self):
        with serving(token="let.me-in", metrics=lambda: b"up 1\n") as it:
            for token in (None, "let.me", "let.me-in.", "let"):
                with pytest.raises(RefusedError, match="unauthorised") as error:
                    it.client(token=token)
                assert "let.me-in" not in str(error.value)
            with it.client(token="let.me-in") as client:
                assert client.call("info")["task"] == INFO["task"]
            assert it.raw(subprotocols=["token.let.me-in", "qttdm.3"]).ws.subprotocol == "qttdm.3"
            for offered in (["qttdm.3"], ["qttdm.3", "token.let"], ["qttdm.3", "let.me-in"]):
                assert refusal(lambda o=offered: it.raw(subprotocols=o)) == (401, "unauthorised")
            assert it.get("/?token=let.me-in")[0] == 401
            assert it.get("/healthz") == (200, "ok\n")
            assert it.get("/metrics")[0] == 401
            assert it.get("/metrics", Authorization="Bearer let.me-in") == (200, "up 1\n")

    def test_is_compared_in_constant_time(self, monkeypatch):
        compared = []
        monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
        with serving(token="secret") as it:
            with pytest.raises(RefusedError):
                it.client(token="guess")
            it.client(token="secret").close()
        assert compared == [(b"secret", b"guess"), (b"secret", b"secret")]

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "no.such.host.invalid", ""])
    def test_without_one_others_cannot_be_served(self, host):
        service = PlannerService(ServiceConfig(), tiny_policy(), tiny_data())
        with pytest.raises(ConfigError, match="needs a token") as error:
            Server(ServerConfig(host=host), service, INFO)
        assert "\n" not in str(error.value)
        with pytest.raises(
            ConfigError, match=r"unencrypted; want TLS \(--tls-cert, --tls-key\), or say .*plain_text"
        ) as error:
            Server(ServerConfig(host=host), service, INFO, token="secret")
        assert "secret" not in str(error.value)
        Server(ServerConfig(host=host, plain_text=True), service, INFO, token="secret")
        Server(ServerConfig(host=host), service, INFO, token="secret", tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    def test_a_client_sends_none_unencrypted_to_another_machine(self):
        for host in ("192.0.2.1", "robot.example"):
            with pytest.raises(ValueError, match=f"the token would go to {host} unencrypted; want tls=") as error:
                Client(host, token="secret")
            assert "secret" not in str(error.value)
        with pytest.raises(DisconnectedError):
            Client("robot.invalid", token="secret", plain_text=True, timeout_s=5.0)

    def test_this_machine_is_told_from_others(self):
        assert all(map(leads_here, ["127.0.0.1", "127.3.2.1", "::1", "localhost"]))
        assert not any(map(leads_here, ["10.0.0.1", "0.0.0.0", "::", "fe80::1"]))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for this machine, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl here to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        shlex.split(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem "
            "-days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1,DNS:localhost"
        ),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder / "cert.pem", folder / "key.pem"


class TestTLS:
    @pytest.fixture
    def encrypted(self, certificate):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        with serving(tls=context, server=QUICK) as it:
            yield it

    @pytest.fixture
    def trusting(self, certificate):
        """A client's."""
        return ssl.create_default_context(cafile=certificate[0])

    def test_who_trusts_the_certificate_is_served(self, encrypted, trusting):
        with encrypted.client(tls=trusting) as client:
            episode = client.episode(seed=7)
            policy = Acting(tiny_policy())
            policy.begin([7], 0.0)
            for step in range(3):
                got = episode.act(observation(step))["action"]
                assert np.allclose(got, policy.act(observation(step)[None])[0], atol=1e-5)
            with pytest.raises(RefusedError, match="bad_message"):
                client.call("fly")

    def test_who_does_not_is_not(self, encrypted):
        with pytest.raises(DisconnectedError, match="certificate verify failed"):
            encrypted.client(tls=ssl.create_default_context())

    def test_who_is_silent_counts_until_the_handshake_has_failed(self, certificate, trusting):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        with serving(tls=context, server={"max_connections": 2, "client_timeout_s": 4.0}) as it:
            silent = [plain_socket(it.port) for _ in range(4)]
            assert not any(is_open(plain_socket(it.port)) for _ in range(3))
            assert all(is_closed(connection) for connection in silent)
            wait_for(lambda: not it.server._opening)
            with it.client(tls=trusting) as client:
                assert client.call("info")["task"] == INFO["task"]

    def test_plain_text_is_not_understood(self, encrypted, trusting):
        with pytest.raises(DisconnectedError):
            encrypted.client()
        with plain_socket(encrypted.port) as silent:  # no handshake is waited for for ever
            assert is_closed(silent)
        with encrypted.client(tls=trusting) as client:
            assert client.call("info")["task"] == INFO["task"]


class TestStop:
    def test_what_was_asked_is_answered_and_nobody_else_comes_in(self):
        policy = GatedPolicy()
        with serving(policy, service={"max_batch": 1, "max_wait_ms": 0}) as it:
            idle, answers = it.client(), []
            clients = [it.client() for _ in range(3)]
            threads = [
                threading.Thread(target=lambda c=c: answers.append(c.episode(0).act(observation(0)))) for c in clients
            ]
            for thread in threads:
                thread.start()
            wait_for(lambda: len(it.service._queue) == 2)
            stopping = asyncio.run_coroutine_threadsafe(it.server.stop(), it.loop)
            with pytest.raises(DisconnectedError, match="the service is being stopped"):
                idle.call("info")
            wait_for(lambda: all(task.done() for task in it.server._accepting))
            with pytest.raises(DisconnectedError):
                it.client()
            assert not answers
            policy.gate.set()
            assert stopping.result(20)
            for thread in threads:
                thread.join(20)
            assert len(answers) == 3
            for client in clients:
                with pytest.raises(DisconnectedError):
                    client.call("info")

    def test_a_planner_that_hangs_does_not_hold_it_up(self):
        policy = GatedPolicy()
        with serving(policy, server={"stop_timeout_s": 0.3}) as it:
            client = it.client()
            lost = []

            def drive():
                with pytest.raises(DisconnectedError):
                    client.episode(0).act(observation(0))
                lost.append(True)

            thread = threading.Thread(target=drive)
            thread.start()
            wait_for(lambda: policy.batches)
            started = time.monotonic()
            assert not it.run(it.server.stop())
            assert 0.3 <= time.monotonic() - started < 5
            thread.join(20)
            assert lost == [True]
            policy.gate.set()


def test_a_port_that_is_taken_is_one_line():
    with serving() as it:
        other = Server(ServerConfig(port=it.port), it.service, INFO)
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1 port {it.port} \(.+\)") as error:
            asyncio.run(other.start())
        assert "\n" not in str(error.value)
        assert Client(port=it.port).call("info")["task"] == INFO["task"]
