"""replay/codec.py: what goes in comes out, and nothing else ever does."""

import zlib
from dataclasses import fields, replace

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qttdm.common.episode import Episode
from qttdm.replay.codec import ARRAYS, SCALARS, decode, encode, seal, unseal


def make_episode(steps: int = 3, obs_dim: int = 2, action_dim: int = 1, **scalars) -> Episode:
    rng = np.random.default_rng(steps)
    return Episode(
        observations=rng.normal(size=(steps + 1, obs_dim)).astype(np.float32),
        actions=rng.uniform(-1, 1, (steps, action_dim)).astype(np.float32),
        rewards=rng.normal(size=steps).astype(np.float32),
        **{"terminated": False, "env_steps": 2 * steps, **scalars},
    )


def assert_equal(got: Episode, want: Episode) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
        assert getattr(got, name).dtype == np.float32
    for name in SCALARS:
        assert getattr(got, name) == getattr(want, name)


RECORD = encode(make_episode(success=1.0))
CONTENT = unseal(RECORD)


def test_every_field_of_an_episode_is_carried():
    assert [f.name for f in fields(Episode)] == [*ARRAYS, *SCALARS]


@pytest.mark.parametrize("steps", [1, 2, 500])
@pytest.mark.parametrize("success", [None, 0.0, 1.0])
def test_round_trip(steps, success):
    episode = make_episode(
        steps, terminated=True, success=success, actor=3, number=2**40, oldest_weights=5, newest_weights=9
    )
    assert_equal(decode(encode(episode)), episode)


def test_round_trip_keeps_values_that_replay_would_refuse():
    episode = make_episode()
    episode.rewards[:] = [np.nan, np.inf, -0.0]
    assert_equal(decode(encode(episode)), episode)


def test_scalars_may_be_numpys_and_arrays_strided():
    episode = make_episode(4, terminated=np.bool_(True), success=np.float32(1), number=np.int64(7))
    episode = replace(episode, rewards=np.arange(8, dtype=np.float32)[::2])
    got = decode(encode(episode))
    assert_equal(got, episode)
    assert type(got.terminated) is bool
    assert type(got.number) is int


def test_arrays_are_little_endian_bytes():
    assert CONTENT["rewards"]["data"] == make_episode().rewards.astype("<f4").tobytes()


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((3, 1), np.float32), np.zeros(3, object)])
def test_encode_refuses_what_would_not_come_back_the_same(array):
    with pytest.raises(ValueError, match=r"rewards: got .*, want float32 of 1"):
        encode(replace(make_episode(), rewards=array))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(RECORD) - 1), st.integers(1, 255))
def test_a_changed_byte_is_noticed(position, change):
    damaged = bytearray(RECORD)
    damaged[position] ^= change
    with pytest.raises(ValueError, match="damaged record"):
        decode(bytes(damaged))


def test_a_truncated_record_is_noticed():
    for length in range(len(RECORD)):
        with pytest.raises(ValueError, match="damaged record"):
            decode(RECORD[:length])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage):
    with pytest.raises(ValueError):  # noqa: PT011 - any of several messages
        decode(garbage)
    with pytest.raises(ValueError):  # noqa: PT011 - the checksum is right here, so the content must be looked at
        decode(seal_bytes(garbage))


@settings(max_examples=500, deadline=None)
@given(st.integers(4, len(RECORD) - 1), st.integers(1, 255))
def test_a_wrong_content_with_a_right_checksum_is_an_episode_or_a_value_error(position, change):
    damaged = bytearray(RECORD)
    damaged[position] ^= change
    try:
        episode = decode(seal_bytes(bytes(damaged[4:])))
    except ValueError:
        return
    assert len(episode.observations) == episode.decisions + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "got version 2, want 1"),
        ({"extra": 1}, "got keys .*extra"),
        ({"terminated": 1}, "terminated: got 1, want bool"),
        ({"env_steps": 1.5}, "env_steps: got 1.5, want int"),
        ({"success": "yes"}, "success: got 'yes', want float"),
        ({"actor": None}, "actor: got None, want int"),
        ({"rewards": [1.0]}, "rewards: got .* want a map"),
        ({"rewards": {**CONTENT["rewards"], "dtype": "<f8"}}, "rewards: got dtype '<f8', want '<f4'"),
        ({"rewards": {**CONTENT["rewards"], "shape": [-3]}}, "rewards: got shape"),
        ({"rewards": {**CONTENT["rewards"], "shape": [3, 1]}}, "rewards: got shape"),
        ({"rewards": {**CONTENT["rewards"], "shape": [2**62]}}, "rewards: got 12 bytes, want"),
        ({"rewards": {"dtype": "<f4", "shape": [2], "data": bytes(8)}}, r"got \(4, 3, 2\) rows"),
    ],
)
def test_the_error_says_what_was_got_and_what_is_wanted(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode(seal({**CONTENT, **changes}))
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_refused():
    with pytest.raises(ValueError, match="got keys"):
        decode(seal({key: value for key, value in CONTENT.items() if key != "actor"}))


def test_unseal_wants_a_map():
    with pytest.raises(ValueError, match="got a list, want a map"):
        unseal(seal_bytes(msgpack.packb([1, 2])))


def seal_bytes(payload: bytes) -> bytes:
    """A record with a right checksum around anything."""
    return zlib.crc32(payload).to_bytes(4, "little") + payload
