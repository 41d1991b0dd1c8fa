"""Shards as Ray actors: one buffer in sum, and nothing lost or doubled when one is killed."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray._private.internal_api import memory_summary

from qttdm.common.contracts import vector_data
from qttdm.common.episode import Episode
from qttdm.replay.buffer import ReplayConfig
from qttdm.replay.feed import Totals
from qttdm.replay.remote import RemoteReplay, ReplaySettings, ShardActor, start_shards
from qttdm.replay.shard import ShardConfig
from tests.remote.live import PATIENCE

pytestmark = pytest.mark.ray

OBS, ACTION, WINDOW = 3, 2, 4


def episode(actor: int, number: int, decisions: int = 10) -> Episode:
    """Every observation names its episode and step, so that a window tells where it is from."""
    observations = np.zeros((decisions + 1, OBS), np.float32)
    observations[:, 0], observations[:, 1], observations[:, 2] = actor, number, np.arange(decisions + 1)
    return Episode(
        observations=observations,
        actions=np.zeros((decisions, ACTION), np.float32),
        rewards=np.ones(decisions, np.float32),
        terminated=False,
        env_steps=decisions,
        actor=actor,
        number=number,
    )


SETTINGS = ReplaySettings(ShardConfig(replay=ReplayConfig(capacity=10_000)), vector_data(OBS, ACTION, WINDOW, 0.9))


def started(name: str, directory: Path) -> Iterator[list[Any]]:
    """Two shards, which end when the caller does."""
    shards = start_shards(name, directory, SETTINGS, seed=0, shards=2)
    yield shards
    for shard in shards:
        ray.kill(shard)


def client(shards: list[Any]) -> RemoteReplay:
    return RemoteReplay(shards, seed=0, batch_size=64, prefetch=2, timeout_s=PATIENCE)


@pytest.fixture(scope="module")
def processes(cluster, tmp_path_factory):
    """Those of two shards, for all tests that kill none."""
    yield from started("shared", tmp_path_factory.mktemp("shards"))


@pytest.fixture
def replay(processes, tmp_path):
    """Empty."""
    for i, shard in enumerate(processes):
        ray.get(shard.__ray_call__.remote(begin_anew, tmp_path / f"shard-{i}", i), timeout=PATIENCE)
    replay = client(processes)
    yield replay
    replay.timeout_s = PATIENCE
    for answers in replay._under_way:  # nothing of this test comes to the next one's shards
        ray.get(answers, timeout=PATIENCE)


def begin_anew(shard: ShardActor, directory: Path, index: int) -> None:
    """Runs in an actor: it is a shard of another directory now."""
    shard.close()
    ShardActor.__init__(shard, directory, SETTINGS, seed=index, index=index)


@pytest.fixture
def mortal(cluster, tmp_path):
    """An empty one, with processes of its own."""
    for shards in started("mortal", tmp_path):
        yield client(shards)


def process_of(shard) -> int:
    """The operating system's number of the process that an actor runs in."""
    return ray.get(shard.__ray_call__.remote(lambda self: os.getpid()), timeout=PATIENCE)


def objects_stored() -> int:
    """In the object stores of all nodes."""
    text = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    return int(re.search(r"Plasma memory usage .*, (\d+) objects", text)[1])


def inserted(replay: RemoteReplay) -> Totals:
    """Of all shards."""
    pages = replay.episodes_since([0] * len(replay.shards))
    return Totals(*(sum(getattr(p.totals, name) for p in pages) for name in ("episodes", "decisions", "env_steps")))


def seen_in(replay: RemoteReplay, batches: int) -> set[tuple[int, int]]:
    """(actor, number) of the episodes that some batches are from."""
    names = set()
    for _ in range(batches):
        first = replay.next()["observations"][:, 0]  # [B, M]
        names |= {(int(a), int(n)) for a, n in first[:, :2]}
    return names


def test_the_union_of_shards_is_sampled_as_one_buffer(replay):
    for number in range(12):
        assert replay.insert(episode(1, number, decisions=5 + 3 * number))
    counts = np.zeros(12)
    for _ in range(200):
        batch = replay.next()
        assert batch["observations"].shape == (64, WINDOW + 1, OBS)
        numbers, starts = batch["observations"][:, 0, 1].astype(int), batch["observations"][:, 0, 2].astype(int)
        counts += np.bincount(numbers, minlength=12)
        # Windows are what was inserted: consecutive steps of one episode, masked behind its end.
        left = (5 + 3 * numbers) - starts
        assert (batch["mask"].sum(axis=1) == np.minimum(left, WINDOW)).all()
    want = np.array([5 + 3 * n for n in range(12)], float)
    want *= counts.sum() / want.sum()
    assert (((counts - want) ** 2) / want).sum() < 31.3  # chi-square, 11 degrees of freedom, p = 0.001


def test_an_empty_replay_is_refused_and_may_fill(replay):
    for _ in range(2):
        with pytest.raises(ValueError, match="want at least one decision"):
            replay.next()
    replay.insert(episode(0, 0))
    assert seen_in(replay, 1) == {(0, 0)}


def test_a_shard_that_was_not_drawn_from_is_noticed_when_it_grows(replay):
    replay.insert(episode(0, 0))
    assert seen_in(replay, 10) == {(0, 0)}
    replay.insert(episode(0, 1))  # into the other shard
    seen_in(replay, 3 * replay.per_request)  # drawn before it was known: what was under way, and by its masses
    assert seen_in(replay, 3) == {(0, 0), (0, 1)}


def test_a_batch_is_copied_once_on_the_learners_side_and_pins_nothing(replay):
    for number in range(4):
        replay.insert(episode(0, number))
    [part, nothing], _ = ray.get(replay.shards[0].draw.remote([4096, 0]))
    assert not any(array.flags.owndata for array in part.values())  # views of the object store
    assert nothing == {}
    batch = replay.next()
    assert all(array.flags.owndata and array.flags.writeable for array in batch.values())


def test_a_save_has_what_one_machine_goes_back_to(replay, tmp_path):
    for number in range(4):
        replay.insert(episode(0, number))
    saved = replay.save()
    assert sorted(saved) == [f"replay-{i}" for i in range(len(replay.shards))]
    replay.insert(episode(0, 4))
    replay.load(saved)
    assert inserted(replay).episodes == 5  # on a cluster the actors have gone on


def test_closed_it_holds_no_batches(replay):
    replay.insert(episode(0, 0))
    for _ in range(3):  # of the four that the first request brought: the next request is out
        replay.next()
    assert replay._under_way
    assert replay._arrived
    replay.close()
    assert not replay._under_way
    assert not replay._arrived
    assert len(replay.next()["mask"]) == 64  # and may go on


def test_shards_start_where_and_how_the_caller_says(cluster, tmp_path):
    shards = start_shards("run/seed-3", tmp_path, SETTINGS, seed=0, shards=2, namespace="elsewhere", num_cpus=0.5)
    try:
        for i in range(2):
            found = ray.get_actor(f"run/seed-3/replay-{i}", namespace="elsewhere")
            assert ray.get(found.next_number.remote(0), timeout=PATIENCE) == 0
            visible = found.__ray_call__.remote(lambda self: os.environ["CUDA_VISIBLE_DEVICES"])
            assert ray.get(visible, timeout=PATIENCE) == ""  # Ray would show it all GPUs
        with pytest.raises(ValueError, match="Failed to look up actor"):
            ray.get_actor("run/seed-3/replay-0")
    finally:
        for shard in shards:
            ray.kill(shard)


def test_as_many_batches_are_under_way_as_asked_for(replay):
    replay.insert(episode(0, 0))
    for prefetch, per_request in itertools.product([0, 1, 7], [1, 3]):
        replay.close()
        replay.prefetch, replay.per_request = prefetch, per_request
        for taken in range(1, 10):
            replay.next()
            ahead = len(replay._arrived) + per_request * len(replay._under_way)
            assert prefetch <= ahead < prefetch + per_request
            assert (taken + ahead) % per_request == 0


def test_a_retried_insert_is_stored_once(replay):
    assert replay.insert(episode(3, 0))
    assert not replay.insert(episode(3, 0))
    assert inserted(replay) == Totals(1, 10, 10)


def test_killed_in_the_middle_nothing_acknowledged_is_lost_or_doubled(mortal):
    for number in range(20):
        mortal.insert(episode(0, number))
    assert len(seen_in(mortal, 30)) == 20
    pids = [process_of(shard) for shard in mortal.shards]
    os.kill(pids[0], signal.SIGKILL)
    for number in range(20, 40):  # goes on while the shard restarts: Ray sends again, the shard knows what it has
        mortal.insert(episode(0, number))
    names = seen_in(mortal, 60)
    assert process_of(mortal.shards[0]) != pids[0]
    assert names == {(0, number) for number in range(40)}
    assert inserted(mortal) == Totals(40, 400, 400)


def test_batches_under_way_come_all_the_same_when_a_shard_is_killed(mortal):
    for number in range(20):
        mortal.insert(episode(0, number))
    mortal.prefetch, mortal.per_request = 6, 2
    mortal.next()
    pids = [process_of(shard) for shard in mortal.shards]
    os.kill(pids[1], signal.SIGSTOP)  # so that its answers are surely not there yet
    for _ in range(3):
        mortal._under_way.append(mortal._request())
    os.kill(pids[1], signal.SIGKILL)
    asked = list(mortal._under_way)
    assert len(asked) == 6
    for _ in range(len(mortal._arrived) + 2 * len(asked)):
        batch = mortal.next()
        assert len(batch["mask"]) == 64
        assert batch["mask"][:, 0].all()
    assert not any(old is new for old in asked for new in mortal._under_way)  # each of them was used
    assert not mortal._arrived
    assert len(seen_in(mortal, 30)) == 20
    assert process_of(mortal.shards[1]) != pids[1]


def test_episodes_are_read_once_across_a_kill(mortal):
    told, cursors = [], [0, 0]

    def listen() -> int:
        pages = mortal.episodes_since(cursors)
        for i, page in enumerate(pages):
            told.extend((e.actor, e.number, e.decisions, e.episode_return, e.success) for e in page.episodes)
            cursors[i] = page.cursor
        return sum(page.totals.env_steps for page in pages)

    for number in range(10):
        mortal.insert(episode(0, number))
    assert listen() == 100
    os.kill(process_of(mortal.shards[0]), signal.SIGKILL)
    for number in range(10, 20):
        mortal.insert(episode(0, number))
    assert listen() == 200
    assert listen() == 200
    assert sorted(told) == [(0, number, 10, 10.0, None) for number in range(20)]


def test_a_batch_that_does_not_come_says_who_waits_for_what(replay):
    replay.insert(episode(0, 0))
    replay.insert(episode(0, 1))
    replay.timeout_s = 0.5
    pids = [process_of(shard) for shard in replay.shards]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=r"waited 0.5 s for the replay shards' masses"):
            replay.next()
        assert time.monotonic() - started < 10
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    replay.timeout_s = PATIENCE
    assert len(replay.next()["mask"]) == 64


def test_a_batch_that_was_late_is_the_next_one(replay):
    replay.insert(episode(0, 0))
    replay.prefetch, replay.per_request = 0, 1
    replay.next()
    replay.timeout_s = 0.2
    pid = process_of(replay.shards[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError, match=r"waited 0.2 s for the replay shards for a batch"):
            replay.next()
    finally:
        os.kill(pid, signal.SIGCONT)
    [late] = replay._under_way
    replay.timeout_s = PATIENCE
    assert len(replay.next()["mask"]) == 64
    assert late not in replay._under_way


def test_nothing_stored_or_drawn_stays_in_the_object_store(replay):
    """Episodes are copied into the shards' own arrays and batches into the learner's, though it keeps them all."""
    replay.batch_size = 4096  # of 230 kB and more: not so small that they would not go through the store
    before, kept, most = objects_stored(), [], 0
    for number in range(20):
        replay.insert(episode(0, number, decisions=4000))
        kept.append(replay.next())
        most = max(most, objects_stored())
    assert most > before
    replay.close()
    deadline = time.monotonic() + 30
    while objects_stored() > before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert objects_stored() <= before
    assert len(kept) == 20
