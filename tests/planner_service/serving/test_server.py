"""The server and clients that mean no good, or that are merely broken: an error for them, nothing for the others."""

import asyncio
import hmac
import shlex
import shutil
import ssl
import struct
import subprocess
import threading
import time

import msgpack
import numpy as np
import pytest

from qttdm.common.config import ConfigError
from qttdm.planner_service.serving import server
from qttdm.planner_service.serving.client import Client
from qttdm.planner_service.serving.messages import ServiceError, ServiceLost
from qttdm.planner_service.serving.server import Server, ServerConfig, is_loopback
from qttdm.planner_service.serving.service import PlannerService, ServiceConfig
from qttdm.planner_service.serving.wire import frame
from tests.fakes import Acting
from tests.planner_service.serving.serving import INFO, Raw, serving, tiny_policy
from tests.planner_service.serving.test_service import GatedPolicy
from tests.planner_service.serving.test_service import numbers as observation

QUICK = {"frame_timeout_s": 0.3}


@pytest.fixture(scope="module")
def served():
    """Impatient, and with room for few."""
    with serving(server={**QUICK, "max_frame_bytes": 4096, "max_episodes": 8}) as it:
        yield it


@pytest.fixture(autouse=True)
def the_others(request):
    """A well-behaved client beside every test here, which gets the local policy's actions before, while and after."""
    if "served" not in request.fixturenames:
        yield
        return
    policy = tiny_policy()
    policy = Acting(policy)
    policy.begin([7], 0.5)
    with request.getfixturevalue("served").client() as client:
        episode = client.episode(seed=7, exploration=0.5)
        for step in range(4):
            got = episode.act(observation(step)).action
            assert np.allclose(got, policy.act(observation(step)[None])[0], atol=1e-5)
            if step == 1:
                yield


class TestGreeting:
    @pytest.mark.parametrize("protocol", [0, 2, 2**31])
    def test_another_version_is_named_and_hung_up_on(self, served, protocol):
        raw = served.raw()
        answer = raw.call(call="hello", protocol=protocol)
        assert answer == {"error": {"code": "wrong_version", "message": f"got protocol {protocol}, want 1"}}
        assert raw.closed()

    def test_the_first_call_is_hello(self, served):
        raw = served.raw()
        assert raw.call(call="info")["error"]["code"] == "bad_message"
        assert raw.closed()

    def test_hello_comes_once(self, served):
        raw = served.raw().hello()
        assert raw.call(call="hello", protocol=1)["error"]["code"] == "bad_message"
        assert raw.call(call="info")["obs_dim"] == 3

    def test_who_says_nothing_is_hung_up_on(self, served):
        raw = served.raw()
        assert raw.error() == "timeout"
        assert raw.closed()


class TestFrames:
    def test_a_bad_message_is_an_error_and_the_connection_goes_on(self, served):
        raw = served.raw().hello()
        for payload in (b"\xc1", b"", msgpack.packb([1]), msgpack.packb({"call": "fly"})):
            raw.send(struct.pack(">I", len(payload)) + payload)
            assert raw.error() == "bad_message"
        assert raw.call(call="info")["obs_dim"] == 3

    @pytest.mark.parametrize("length", [4097, 2**31, 2**32 - 1])
    def test_a_frame_that_is_too_long_is_not_waited_for(self, served, length):
        raw = served.raw().hello()
        raw.send(struct.pack(">I", length) + b"x" * 5000)
        assert raw.error() == "too_large"
        assert raw.closed()

    def test_the_longest_frame_is_taken(self, served):
        raw = served.raw().hello()
        raw.send(struct.pack(">I", 4096) + b"\xc1" * 4096)
        assert raw.error() == "bad_message"

    @pytest.mark.parametrize("part", [b"\0", b"\0\0\0", struct.pack(">I", 100), struct.pack(">I", 100) + b"x" * 99])
    def test_half_a_frame_and_silence_is_a_timeout(self, served, part):
        raw = served.raw().hello()
        started = time.monotonic()
        raw.send(part)
        assert raw.error() == "timeout"
        assert time.monotonic() - started >= 0.25
        assert raw.closed()

    def test_a_frame_may_come_in_pieces(self, served):
        raw = served.raw().hello()
        payload = msgpack.packb({"call": "info"})
        for byte in struct.pack(">I", len(payload)) + payload:
            raw.send(bytes([byte]))
            time.sleep(0.002)
        assert raw.receive()["obs_dim"] == 3

    def test_calls_may_be_sent_ahead_and_are_answered_in_order(self, served):
        raw = served.raw().hello()
        frames = b""
        for seed in range(5):
            payload = msgpack.packb(
                {"call": "begin" if seed % 2 else "info", **({"seeds": [seed]} if seed % 2 else {})}
            )
            frames += struct.pack(">I", len(payload)) + payload
        raw.send(frames)
        assert [set(raw.receive()) >= {"obs_dim"} for _ in range(5)] == [True, False, True, False, True]

    @pytest.mark.parametrize("seed", range(8))
    def test_garbage(self, served, seed):
        raw = served.raw()
        raw.send(np.random.default_rng(seed).bytes(2000))
        assert raw.error() in ("too_large", "bad_message", "timeout")

    def test_who_hangs_up_in_the_middle_is_forgotten(self, served):
        before = len(served.server._connections)
        for part in (b"", b"\0\0", struct.pack(">I", 100) + b"x"):
            raw = served.raw().hello()
            raw.send(part)
            raw.socket.close()
        wait_for(lambda: len(served.server._connections) == before)


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class TestEpisodes:
    def test_belong_to_their_connection(self, served):
        with served.client() as owner, served.client() as other:
            (episode,) = owner.begin([0])
            theft = {"episode": episode, "step": 0, "observation": observation(0).tobytes()}
            (result,) = other.call("act", requests=[theft])["results"]
            assert result["error"]["code"] == "unknown_episode"
            other.end([episode])
            assert "error" not in owner.call("act", requests=[theft])["results"][0]

    def test_end_with_it(self, served):
        before = len(served.service._episodes)
        with served.client() as client:
            client.begin([0, 1])
            assert len(served.service._episodes) == before + 2
        wait_for(lambda: len(served.service._episodes) == before)

    def test_are_limited(self, served):
        with served.client() as client:
            episodes = client.begin(list(range(6)))
            with pytest.raises(ServiceError, match="busy: 6 episodes begun and 3 more, at most 8; end some first"):
                client.begin([0, 1, 2])
            client.end(episodes[:1])
            client.begin([0, 1, 2])


def test_a_flood_of_connections_is_turned_away_and_room_is_made_again():
    with serving(server={"max_connections": 3}) as it:
        client = it.client()
        episode = client.episode(0)
        others = [it.client() for _ in range(2)]
        for _ in range(50):
            raw = it.raw()
            assert raw.error() == "too_many_connections"
            assert raw.closed()
            raw.socket.close()
            check_turned_away(it)
        episode.act(observation(0))
        others.pop().close()
        wait_for(lambda: len(it.server._connections) == 2)
        with it.client() as again:
            assert again.info()["obs_dim"] == 3


def check_turned_away(it, **more):
    """A client is told why it is not served."""
    with pytest.raises(ServiceError) as error:
        it.client(**more)
    assert error.value.refusal.code == "too_many_connections"


def test_what_a_client_that_is_turned_away_still_says_does_not_take_the_answer_back(monkeypatch):
    monkeypatch.setattr(server, "LINGER_S", 3.0)
    with serving(server={"max_connections": 1}) as it, it.client():
        raw = it.raw()
        wait_for(lambda: len(it.server._connections) == 2)
        for _ in range(3):  # on a connection that is gone the first would be answered with a reset, the next fail
            raw.send(b"hello")
            time.sleep(0.05)
        assert raw.error() == "too_many_connections"
        wait_for(lambda: len(it.server._connections) == 1)  # it does not hang up, and is not waited for for ever


def test_those_who_are_turned_away_are_limited_as_well(monkeypatch):
    monkeypatch.setattr(server, "LINGER_S", 20.0)
    with serving(server={"max_connections": 2}) as it, it.client(), it.client():
        told = [it.raw() for _ in range(2)]
        wait_for(lambda: len(it.server._connections) == 4)
        assert it.raw().receive() is None
        assert [raw.error() for raw in told] == 2 * ["too_many_connections"]


def test_a_client_that_takes_no_answers_is_dropped():
    with serving(server=QUICK) as it:
        raw = it.raw().hello()
        payload = msgpack.packb({"call": "act", "requests": 1000 * [{"episode": 9, "step": 0, "observation": b""}]})
        raw.socket.settimeout(0.5)
        ask = struct.pack(">I", len(payload)) + payload
        with pytest.raises(OSError, match=r"timed out|reset|Broken pipe"):
            [raw.send(ask) for _ in range(10_000)]
        wait_for(lambda: not it.server._connections)


class TestToken:
    def test_is_asked_for(self):
        with serving(token="let me in") as it:
            for token in (None, "", "let me", "let me in ", "lét me in"):
                with pytest.raises(ServiceError, match="unauthorised") as error:
                    it.client(token=token)
                assert "let me in" not in str(error.value)
            with it.client(token="let me in") as client:
                assert client.info()["obs_dim"] == 3

    def test_is_compared_in_constant_time(self, monkeypatch):
        compared = []
        monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
        with serving(token="secret") as it:
            with pytest.raises(ServiceError):
                it.client(token="guess")
            it.client(token="secret").close()
        assert compared == [(b"secret", b"guess"), (b"secret", b"secret")]

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "no.such.host.invalid", ""])
    def test_without_one_others_cannot_be_served(self, host):
        with pytest.raises(ConfigError, match="needs a token") as error:
            Server(ServerConfig(host=host), PlannerService(ServiceConfig(), tiny_policy(), 3), INFO)
        assert "\n" not in str(error.value)
        Server(ServerConfig(host=host), PlannerService(ServiceConfig(), tiny_policy(), 3), INFO, token="secret")

    def test_this_machine_is_told_from_others(self):
        assert all(map(is_loopback, ["127.0.0.1", "127.3.2.1", "::1", "localhost"]))
        assert not any(map(is_loopback, ["10.0.0.1", "0.0.0.0", "::", "fe80::1"]))


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
    def context(self, certificate):
        """The server's."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        return context

    @pytest.fixture
    def encrypted(self, context):
        with serving(tls=context, server=QUICK) as it:
            yield it

    @pytest.fixture
    def trusting(self, certificate):
        """A client's."""
        return ssl.create_default_context(cafile=certificate[0])

    def test_who_trusts_the_certificate_is_served(self, encrypted, trusting):
        with encrypted.client(tls=trusting) as client:
            episode = client.episode(seed=7)
            policy = tiny_policy()
            policy = Acting(policy)
            policy.begin([7], 0.0)
            for step in range(3):
                got = episode.act(observation(step)).action
                assert np.allclose(got, policy.act(observation(step)[None])[0], atol=1e-5)
            with pytest.raises(ServiceError, match="bad_message"):
                client.call("fly")

    def test_what_comes_right_behind_the_handshake_is_read(self, encrypted, trusting):
        for _ in range(20):
            with trusting.wrap_socket(Raw(encrypted.port).socket, server_hostname="127.0.0.1") as tls:
                tls.sendall(frame({"call": "hello", "protocol": 1}) + frame({"call": "info"}))
                received = b""
                while b"obs_dim" not in received and (piece := tls.recv(1000)):
                    received += piece
                assert b"obs_dim" in received

    def test_who_does_not_is_not(self, encrypted):
        with pytest.raises(ServiceLost, match="certificate verify failed"):
            encrypted.client(tls=ssl.create_default_context())

    def test_plain_text_is_not_understood(self, encrypted, trusting):
        with pytest.raises(ServiceLost):
            encrypted.client()
        raw = Raw(encrypted.port)  # says nothing: no handshake is waited for for ever
        assert raw.closed()
        with encrypted.client(tls=trusting) as client:
            assert client.info()["obs_dim"] == 3

    def test_handshakes_that_do_not_end_are_limited_like_connections(self, context, trusting):
        with serving(tls=context, server={"max_connections": 2, "frame_timeout_s": 60.0}) as it:
            half_open = [it.raw() for _ in range(2)]
            check_turned_away(it, tls=trusting)
            half_open += [it.raw() for _ in range(2)]
            assert it.raw().closed()  # at once, or this fails
            for raw in half_open:
                raw.socket.close()
            wait_for(lambda: not it.server._connections)
            with it.client(tls=trusting) as client:
                assert client.info()["obs_dim"] == 3

    def test_handshakes_that_do_not_end_hold_up_no_stop(self, context):
        with serving(tls=context, server={"frame_timeout_s": 60.0}) as it:
            raw = it.raw()
            wait_for(lambda: it.server._connections)
            assert it.run(it.server.stop())
            assert raw.closed()


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
            with pytest.raises(ServiceLost):
                idle.info()
            wait_for(lambda: it.server._listener.sockets == ())
            with pytest.raises(ServiceLost):
                it.client()
            assert not answers
            policy.gate.set()
            assert stopping.result(20)
            for thread in threads:
                thread.join(20)
            assert len(answers) == 3
            for client in clients:
                with pytest.raises(ServiceLost):
                    client.info()

    def test_a_planner_that_hangs_does_not_hold_it_up(self):
        policy = GatedPolicy()
        with serving(policy, server={"stop_timeout_s": 0.3}) as it:
            client = it.client()
            lost = []

            def drive():
                with pytest.raises(ServiceLost):
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
        assert Client(port=it.port).info()["obs_dim"] == 3
