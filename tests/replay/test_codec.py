"""replay/codec.py: what goes in comes out, and nothing else ever does."""

import zlib
from dataclasses import fields, replace

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qttdm.common.episode import Episode
from qttdm.replay.codec import SCALARS, decode, encode, seal, unseal


def make_episode(steps: int = 3, obs_dim: int = 2, action_dim: int = 1, **scalars) -> Episode:
    rng = np.random.default_rng(steps)
    return Episode(
        observations=rng.normal(size=(steps + 1, obs_dim)).astype(np.float32),
        actions=rng.uniform(-1, 1, (steps, action_dim)).astype(np.float32),
        rewards=rng.normal(size=steps).astype(np.float32),
        **{"terminated": False, "env_steps": 2 * steps, **scalars},
    )


def assert_equal(got: Episode, want: Episode) -> None:
    assert got.arrays.keys() == want.arrays.keys()
    for name, array in want.arrays.items():
        np.testing.assert_array_equal(got.arrays[name], array)
        assert got.arrays[name].dtype == array.dtype
    for name in SCALARS:
        assert getattr(got, name) == getattr(want, name)


RECORD = encode(make_episode(success=1.0))
CONTENT = unseal(RECORD)
REWARDS = CONTENT["arrays"]["rewards"]


def arrays(**changes: object) -> dict:
    return {"arrays": {**CONTENT["arrays"], **changes}}


def test_every_field_of_an_episode_is_carried():
    assert sorted(f.name for f in fields(Episode)) == sorted(["observations", "actions", "rewards", "extra", *SCALARS])


@pytest.mark.parametrize("steps", [1, 2, 500])
@pytest.mark.parametrize("success", [None, 0.0, 1.0])
def test_round_trip(steps, success):
    episode = make_episode(
        steps, terminated=True, success=success, actor=3, number=2**40, oldest_weights=5, newest_weights=9
    )
    assert_equal(decode(encode(episode)), episode)


def test_round_trip_of_images_choices_and_further_observations():
    episode = replace(
        make_episode(3, truncated=True),
        observations=np.arange(4 * 6, dtype=np.uint8).reshape(4, 2, 3, 1),
        actions=np.array([0, 5, 2]),
        extra={"simulator_state": np.linspace(0, 1, 8).reshape(4, 2)},
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
    assert CONTENT["arrays"]["rewards"]["data"] == make_episode().rewards.astype("<f4").tobytes()


@pytest.mark.parametrize("array", [np.zeros(3, np.float16), np.zeros(3, ">f4"), np.zeros(3, object)])
def test_encode_refuses_what_would_not_come_back_the_same(array):
    with pytest.raises(ValueError, match=r"rewards: got .*, want rows of float32"):
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
        ({"version": 1}, "got version 1, want 2"),
        ({"extra": 1}, "got keys .*extra"),
        ({"terminated": 1}, "terminated: got 1, want bool"),
        ({"env_steps": 1.5}, "env_steps: got 1.5, want int"),
        ({"success": "yes"}, "success: got 'yes', want float"),
        ({"actor": None}, "actor: got None, want int"),
        ({"arrays": [1.0]}, "arrays: got .* want a map"),
        ({"arrays": {"rewards": REWARDS}}, "got arrays .*, want 'observations' too"),
        (arrays(rewards=[1.0]), "rewards: got .* want a map"),
        (arrays(rewards={**REWARDS, "dtype": "<f2"}), "rewards: got dtype '<f2', want float32"),
        (arrays(rewards={**REWARDS, "shape": [-3]}), "rewards: got shape"),
        (arrays(rewards={**REWARDS, "shape": []}), "rewards: got shape"),
        (arrays(rewards={**REWARDS, "shape": [2**62]}), "rewards: got 12 bytes, want"),
        (arrays(rewards={"dtype": "<f4", "shape": [2], "data": bytes(8)}), r"got \[4, 3\] rows for 2 rewards"),
        (arrays(state=REWARDS), r"got \[4, 3, 3\] rows for 3 rewards, want .* T\+1 of \['state'\]"),
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
