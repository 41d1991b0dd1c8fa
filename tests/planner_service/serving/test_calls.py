"""Calls and their messages: what is taken, what is refused and in which words."""

import asyncio
import gc
import json
import re
import time
from pathlib import Path

import msgpack
import numpy as np
import pytest

from qttdm.common.contracts import ArraySpec, DataSpec
from qttdm.planner_service.serving import calls, server
from qttdm.planner_service.serving.calls import CALLS, FIELDS, MAX_ITEMS, Session, write_outcome
from qttdm.planner_service.serving.messages import REFUSALS, Answer, Refusal, Request
from qttdm.planner_service.serving.observations import read_observations
from qttdm.planner_service.serving.service import PlannerService, ServiceConfig
from tests.fakes import tiny_data
from tests.planner_service.serving.serving import INFO, tiny_policy

ANSWER = Answer(np.array([0.5, -1.0], np.float32), 3.25, 7, 6, 0.5, 12.0, late=True)


def answers(*messages):
    """What one connection is answered."""

    async def run():
        session = Session(PlannerService(ServiceConfig(), tiny_policy(), tiny_data()), INFO, 2000)
        return [await session.answer(message) for message in messages]

    forms = {str: json.loads, bytes: msgpack.unpackb}
    return [forms[type(answer)](answer) for answer in asyncio.run(run())]


def act(**changes):
    request = {"episode": 1, "step": 0, "observations": b"\0" * 12, **changes}
    return {"call": "act", "requests": [{name: value for name, value in request.items() if value is not None}]}


def test_bytes_are_little_endian():
    got = read_observations(bytes.fromhex("0000803f000000c000000000"), tiny_data())["observations"]
    assert got.dtype == np.float32
    assert got.tolist() == [1.0, -2.0, 0.0]


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"\0" * 11, r"observations: got 11 bytes, want 12: \[3\] float32 numbers"),
        ([1.0, [2.0], 3.0], r"observations: got lists in lists, want \[3\] numbers"),
        ([[0.0]] * 3, r"observations: got lists in lists, want \[3\] numbers"),
        ([1.0, 2.0], r"observations: got a list of 2, want \[3\] numbers"),
        ("text", r"observations: got <U4 numbers, want float32"),
        ([True, False, True], "observations: got bool numbers, want float32"),
        ({"pixels": [0.5]}, "pixels: got float64 numbers, want uint8"),
        ({"pixels": [256]}, "pixels: got int64 numbers, want uint8"),
        ({"pixels": [7], "speed": [1]}, "got 'speed', want only pixels"),
    ],
)
def test_observations_that_are_none_are_named(sent, words):
    data = DataSpec({"pixels": ArraySpec((1,), "uint8")}, ArraySpec((1,)), 2, None) if isinstance(sent, dict) else None
    with pytest.raises(ValueError, match=words):
        read_observations(sent, data or tiny_data())


def test_a_value_without_a_name_is_the_only_one():
    two = DataSpec({"a": ArraySpec((3,)), "b": ArraySpec((3,))}, ArraySpec((1,)), 2, None)
    with pytest.raises(ValueError, match="there is no 'b'; want a, b"):
        read_observations([1, 2, 3], two)


@pytest.mark.parametrize("outcome", [ANSWER, Refusal("late", "waited 3 ms"), Refusal("busy", "many wait", 12.5)])
@pytest.mark.parametrize("form", [msgpack, json], ids=["msgpack", "JSON"])
def test_outcomes_arrive_as_they_were(outcome, form):
    write, read = (msgpack.packb, msgpack.unpackb) if form is msgpack else (json.dumps, json.loads)
    got = read(write(write_outcome(outcome)))
    if isinstance(outcome, Refusal):
        assert Refusal(**got["error"]) == outcome
    else:
        assert np.array_equal(np.float32(got["action"]), outcome.action)
        assert {**got, "action": None} == {**vars(outcome), "action": None}


def test_what_may_be_left_out_and_that_a_whole_number_is_a_number():
    begun, *rest = answers(
        '{"call": "begin", "seeds": [5]}', msgpack.packb(act()), msgpack.packb(act(deadline_ms=5000))
    )
    assert begun == {"episodes": [1]}
    assert all("action" in answer["results"][0] for answer in rest)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({}, "^call: got 'None', want one of info, "),
        ({"call": "fly"}, "'fly'"),
        ({"call": ["info"]}, "call"),
        ({"call": "info", "more": 1}, "^more: "),
        ({"call": "info", "self": 1}, "^self: "),
        ({"call": "info", b"more": 1}, "string keys"),
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
        (act(observations=None), "^requests.0.observations: Field required"),
        (act(step=-1), "^requests.0.step: "),
        (act(deadline_ms=-1.0), "^requests.0.deadline_ms: "),
        (act(deadline_ms=float("inf")), "^requests.0.deadline_ms: "),
        (act(anytime=1), "^requests.0.anytime: "),
        (act(speed=1), "^requests.0.speed: "),
        ({"call": "end", "episodes": 1}, "^episodes: "),
    ],
)
def test_a_message_that_is_not_as_specified_is_named(message, words):
    (answer,) = answers(msgpack.packb(message))
    assert answer["error"]["code"] == "bad_message"
    assert re.search(words, answer["error"]["message"])


@pytest.mark.parametrize(
    "message",
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
        "",
        "{",
        "[" * 5000,
        "9" * 5000,
        '"call"',
        '{"call": "\\ud800"}',
        '{"call": "' + "x" * 100_000 + '"}',
    ],
)
def test_what_is_no_call_is_refused_without_repeating_all_of_it(message):
    (answer,) = answers(message)
    assert answer["error"]["code"] == "bad_message"
    assert len(answer["error"]["message"]) <= 200


@pytest.mark.parametrize(
    "message",
    [
        {"call": "info", **{f"{i:x}": 0 for i in range(40_000)}},
        {"call": "act", "requests": [{f"{i}": 0 for i in range(50)}] * 1024},
        {"call": "act", "requests": [{f"{i:x}": 0 for i in range(40_000)}]},
        {"call": "begin", "seeds": [-1] * 1024},
        act(observations=[[0]] * 120_000),
        act(observations=[[0]] * 110_000 + [[0, 1]]),
        act(observations=[0] * 250_000),
        act(observations={f"{i:x}": 0 for i in range(40_000)}),
    ],
    ids=lambda message: f"{message['call']}-{len(msgpack.packb(message))}",
)
def test_no_message_keeps_others_waiting(message):
    """Of those that are long and wrong: some of them took seconds."""
    packed = msgpack.packb(message)
    assert len(packed) <= server.ServerConfig().max_message_bytes
    gc.freeze()  # as the service does
    began = time.process_time()
    answers('{"call": "begin", "seeds": [5]}')
    usual = time.process_time() - began
    began = time.process_time()
    _, answer = answers('{"call": "begin", "seeds": [5]}', packed)
    took = time.process_time() - began - usual
    gc.unfreeze()
    assert "error" in (answer["results"][0] if "results" in answer else answer)
    assert took < 0.5  # seconds of processor time; 0.03 here, and up to 1.9 before there were limits


class TestProtocolPage:
    """docs/protocol.md says what the code does."""

    page = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()

    def test_every_error_is_listed(self):
        listed = set(re.findall(r"^\| `(\w+)` +\|", self.page, re.MULTILINE))
        codes = {*REFUSALS, *server.HTTP_STATUS, "bad_message"}
        assert codes <= listed
        sources = "".join(Path(module.__file__).read_text() for module in (calls, server))
        assert set(re.findall(r'Refusal\("(\w+)"', sources)) <= codes
        for code, status in server.HTTP_STATUS.items():
            assert re.search(rf"^\| `{code}` +\| {status} \|", self.page, re.MULTILINE), code

    def test_every_field_is_listed(self):
        fields = [name for names in FIELDS.values() for name in names]
        (info,) = answers('{"call": "info"}')
        for field in [*CALLS, *fields, *Request.__dataclass_fields__, *vars(ANSWER), *(info.keys() - INFO.keys())]:
            assert f"`{field}`" in self.page, field

    def test_the_conversation_can_be_had(self):
        said = re.findall(r"^    > (.*)$", self.page, re.MULTILINE)
        begun, acted = answers(*said)
        assert f"\n    < {json.dumps(begun)}\n" in self.page
        assert all(f'"{field}"' in self.page.partition("## A conversation")[2] for field in acted["results"][0])

    def test_limits_are_those_of_the_code(self):
        c = server.ServerConfig()
        assert f"{c.max_message_bytes:,} bytes (`server.max_message_bytes`)" in self.page
        assert f"At most {c.max_episodes} of one connection" in self.page
        assert f"and {ServiceConfig().max_episodes} of all (`service.max_episodes`)" in self.page
        assert f"{c.client_timeout_s:g} s (`server.client_timeout_s`)" in self.page
        assert f"{c.heartbeat_s:g} s (`server.heartbeat_s`)" in self.page
        assert f"{c.max_connections} are open (`server.max_connections`)" in self.page
        assert f"{c.stop_timeout_s:g} s (`server.stop_timeout_s`)" in self.page
        assert f"{ServiceConfig().silence_s:g} s (`service.silence_s`)" in self.page
        assert f"1 to {MAX_ITEMS} maps" in self.page
