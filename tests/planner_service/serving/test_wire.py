"""The protocol's messages: what is taken, what is refused and in which words."""

import re
import struct
from pathlib import Path

import msgpack
import numpy as np
import pytest

from qttdm.planner_service.serving import server, wire
from qttdm.planner_service.serving.messages import REFUSALS, Answer, Refusal, Request
from qttdm.planner_service.serving.service import ServiceConfig
from qttdm.planner_service.serving.wire import Act, Begin, ProtocolError, frame, read_call

ANSWER = Answer(np.array([0.5, -1.0], np.float32), 3.25, 7, 6, 0.5, 12.0, late=True)


def call(**fields):
    return read_call(msgpack.packb(fields))


def act(**changes):
    request = {"episode": 1, "step": 0, "observation": b"\0" * 12, **changes}
    return {"call": "act", "requests": [{name: value for name, value in request.items() if value is not None}]}


def test_a_frame_is_its_length_and_one_map():
    data = frame({"call": "info"})
    assert data == struct.pack(">I", len(data) - 4) + msgpack.packb({"call": "info"})


@pytest.mark.parametrize(
    "request_",
    [
        Request(1, 2, {"observations": np.array([1, -2.5], np.float32)}),
        Request(3, 0, {"observations": np.zeros(3, np.float32)}, 12.5, True),
    ],
)
def test_requests_arrive_as_they_were(request_):
    (wired,) = call(call="act", requests=[wire.write_request(request_)]).requests
    got = wire.read_request(wired)
    observation = got.observations["observations"]
    assert observation.dtype == np.float32
    assert np.array_equal(observation, request_.observations["observations"])
    assert (got.episode, got.step, got.deadline_ms, got.anytime) == (
        request_.episode,
        request_.step,
        request_.deadline_ms,
        request_.anytime,
    )


def test_observations_are_little_endian_float32():
    request = wire.write_request(Request(1, 0, {"observations": np.array([1.0, -2.0])}))
    assert request["observation"] == bytes.fromhex("0000803f000000c0")
    assert set(request) == {"episode", "step", "observation", "anytime"}


@pytest.mark.parametrize("outcome", [ANSWER, Refusal("late", "waited 3 ms"), Refusal("busy", "many wait", 12.5)])
def test_outcomes_arrive_as_they_were(outcome):
    got = wire.read_outcome(msgpack.unpackb(msgpack.packb(wire.write_outcome(outcome))))
    if isinstance(outcome, Refusal):
        assert got == outcome
    else:
        assert np.array_equal(got.action, outcome.action)
        assert {**vars(got), "action": None} == {**vars(outcome), "action": None}


def test_what_may_be_left_out():
    assert call(call="begin", seeds=[5]) == Begin(call="begin", seeds=[5], exploration=0.0)
    (request,) = call(**act()).requests
    assert (request.deadline_ms, request.anytime) == (None, False)
    assert isinstance(call(**act(deadline_ms=5)), Act)  # a whole number is a number


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({}, "Unable to extract tag"),
        ({"call": "fly"}, "'fly'"),
        ({"call": 5}, "call"),
        ({"call": "info", "more": 1}, "^more: "),
        ({"call": "hello"}, "^protocol: Field required"),
        ({"call": "hello", "protocol": "1"}, "^protocol: .*integer"),
        ({"call": "hello", "protocol": True}, "^protocol: .*integer"),
        ({"call": "hello", "protocol": 1, "token": b"x"}, "^token: .*string"),
        ({"call": "begin", "seeds": []}, "^seeds: "),
        ({"call": "begin", "seeds": [1] * 1025}, "^seeds: "),
        ({"call": "begin", "seeds": [-1]}, "^seeds.0: "),
        ({"call": "begin", "seeds": [2**63]}, "^seeds.0: "),
        ({"call": "begin", "seeds": [1.0]}, "^seeds.0: "),
        ({"call": "begin", "seeds": [1], "exploration": float("nan")}, "^exploration: "),
        ({"call": "begin", "seeds": [1], "exploration": 1.5}, "^exploration: "),
        ({"call": "act", "requests": []}, "^requests: "),
        ({"call": "act", "requests": [5]}, "^requests.0: "),
        ({"call": "act", "requests": [{}] * 1025}, "^requests"),
        (act(observation="text"), "^requests.0.observation: .*bytes"),
        (act(observation=[0.0, 0.0, 0.0]), "^requests.0.observation: .*bytes"),
        (act(observation=None), "^requests.0.observation: Field required"),
        (act(step=-1), "^requests.0.step: "),
        (act(deadline_ms=-1.0), "^requests.0.deadline_ms: "),
        (act(deadline_ms=float("inf")), "^requests.0.deadline_ms: "),
        (act(anytime=1), "^requests.0.anytime: "),
        (act(speed=1), "^requests.0.speed: "),
        ({"call": "end", "episodes": 1}, "^episodes: "),
    ],
)
def test_a_message_that_is_not_as_specified_is_named(message, words):
    with pytest.raises(ProtocolError) as error:
        call(**message)
    assert error.value.refusal.code == "bad_message"
    assert re.search(words, error.value.refusal.message)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",  # no msgpack
        b"\x81\xa4call",  # half a map
        b"\x91" * 5000,  # lists in lists
        b"\xdd\xff\xff\xff\xff",  # a list of 4 billion
        b"\xa1\xff",  # no UTF-8
        b"\x81\x01\x02",  # a key that is a number
        b"\x80\x80",  # two values
        b"\x93\x01\x02\x03",  # no map
        b"\xc0",
        b"\xd7\xff" + b"\xff" * 8,  # a timestamp that is none
    ],
)
def test_what_is_no_map_is_refused(payload):
    with pytest.raises(ProtocolError) as error:
        read_call(payload)
    assert error.value.refusal.code == "bad_message"


def test_errors_do_not_repeat_what_was_sent():
    with pytest.raises(ProtocolError) as error:
        call(call="x" * 100_000)
    assert len(error.value.refusal.message) <= 200


def test_bytes_that_are_no_numbers_are_an_empty_observation():
    (request,) = call(**act(observation=b"\0" * 11)).requests
    assert wire.read_request(request).observations["observations"].shape == (0,)


class TestProtocolPage:
    """docs/protocol.md says what the code does."""

    page = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()

    def test_every_error_is_listed(self):
        listed = set(re.findall(r"^\| `(\w+)` +\|", self.page, re.MULTILINE))
        assert {*REFUSALS, *wire.ERRORS} <= listed
        sources = "".join(Path(module.__file__).read_text() for module in (wire, server))
        raised = set(re.findall(r'(?:ProtocolError|Refusal)\(\s*"(\w+)"', sources))
        assert raised <= {*REFUSALS, *wire.ERRORS}

    @pytest.mark.parametrize("name", ["Hello", "Info", "Health", "Begin", "Act", "End", "WireRequest"])
    def test_every_field_is_listed(self, name):
        for field in getattr(wire, name).model_fields:
            assert re.search(rf"`{field}`", self.page), field

    @pytest.mark.parametrize("field", ANSWER.__dict__)
    def test_every_field_of_an_answer_is_listed(self, field):
        assert f"`{field}`" in self.page

    def test_the_example_is_byte_for_byte_what_travels(self):
        lines = re.findall(r"^    ((?:[0-9a-f]{2} +)+[0-9a-f]{2})$", self.page, re.MULTILINE)
        messages = [
            {"call": "hello", "protocol": 1},
            {"protocol": 1},
            {"call": "begin", "seeds": [5]},
            {"episodes": [1]},
        ]
        assert [bytes.fromhex(line) for line in lines] == [frame(message) for message in messages]

    def test_limits_are_those_of_the_code(self):
        c = server.ServerConfig()
        assert f"{c.max_frame_bytes:,} bytes (`server.max_frame_bytes`)" in self.page
        assert f"At most {c.max_episodes} of one connection" in self.page
        assert f"and {ServiceConfig().max_episodes} of all (`service.max_episodes`)" in self.page
        assert f"within {c.frame_timeout_s:g} s" in self.page
        assert f"no frame for {c.idle_timeout_s:g} s" in self.page
        assert f"{c.max_connections} are open" in self.page
        assert f"{c.stop_timeout_s:g} s (`server.stop_timeout_s`)" in self.page
        assert f"{ServiceConfig().silence_s:g} s (`service.silence_s`)" in self.page
        assert f"1 to {wire.MAX_ITEMS} maps" in self.page
