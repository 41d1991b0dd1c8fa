"""replay/shard.py against a plain list of episodes; restarts are real ones, and one is a real SIGKILL."""

import random
import resource
import shutil
import subprocess
import sys
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qttdm.common.batch import Batch
from qttdm.common.contracts import vector_data
from qttdm.common.episode import Episode
from qttdm.replay.buffer import ReplayConfig
from qttdm.replay.codec import decode, encode, seal, unseal
from qttdm.replay.feed import PAGE_EPISODES, StoredEpisode, Totals
from qttdm.replay.samplers import shares
from qttdm.replay.shard import ReplayShard, ShardConfig

ROOT = Path(__file__).parents[2]
OBS_DIM, ACTION_DIM = 3, 2
DATA = vector_data(OBS_DIM, ACTION_DIM, window=4, discount=0.9)
SAMPLERS = ["uniform", "balanced"]


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """A file holds some five episodes, the memory some eight."""
    monkeypatch.setattr("qttdm.replay.log.FILE_BYTES", 1500)


def open_shard(directory: Path, seed: int = 0, capacity: int = 40, keep_states: int = 3, **replay) -> ReplayShard:
    config = ShardConfig(replay=ReplayConfig(capacity=capacity, **replay), keep_states=keep_states)
    return ReplayShard(directory, config, DATA, seed)


def make_episode(number: int, steps: int = 5, actor: int = 0, reward: float = 0.0) -> Episode:
    """The first observation entry says 1000 * number + step."""
    rng = np.random.default_rng([actor, number])
    observations = rng.normal(size=(steps + 1, OBS_DIM)).astype(np.float32)
    observations[:, 0] = 1000 * number + np.arange(steps + 1)
    actions = rng.uniform(-1, 1, (steps, ACTION_DIM)).astype(np.float32)
    rewards = np.full(steps, reward, np.float32)
    return Episode(observations, actions, rewards, False, 2 * steps, actor=actor, number=number)


def stored(shard: ReplayShard) -> list[bytes]:
    """The episodes in memory, which are those on disk."""
    replay = shard._replay
    records = [record for _, record in shard._log.read(shard._oldest())]
    assert len(records) == replay.num_episodes
    first = replay._stored.start
    for number, record in enumerate(records, replay._first_episode):
        episode = decode(record)
        places, rows = replay._places(range(first, first + episode.decisions), number)
        np.testing.assert_array_equal(replay._observed["observations"][rows], episode.observations)
        np.testing.assert_array_equal(replay._actions[places], episode.actions)
        np.testing.assert_array_equal(replay._rewards[places], episode.rewards)
        first += episode.decisions
    return records


def names(shard: ReplayShard) -> list[tuple[int, int]]:
    return [(episode.actor, episode.number) for episode in map(decode, stored(shard))]


def newest_that_fit(model: list[bytes], capacity: int) -> list[bytes]:
    """What a buffer holds after all these."""
    kept, decisions = [], 0
    for record in reversed(model):
        decisions += decode(record).decisions
        if decisions > capacity:
            break
        kept.insert(0, record)
    return kept


def totals_of(model: list[bytes]) -> Totals:
    """Sums over all these."""
    episodes = [decode(record) for record in model]
    return Totals(len(model), sum(e.decisions for e in episodes), sum(e.env_steps for e in episodes))


def totals(shard: ReplayShard) -> Totals:
    return shard.episodes_since(0).totals


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.log"))


def assert_same_batches(one: ReplayShard, other: ReplayShard, batches: int = 3) -> None:
    for _ in range(batches):
        a, b = one.sample(8), other.sample(8)
        assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("seed", range(4))
def test_equals_a_list_of_episodes(tmp_path, sampler, seed):
    """Inserts, repeated inserts, restarts, torn tails, saved and loaded states, pages read, in any order."""
    rng, config = random.Random(seed), {"sampler": sampler, "capacity": 60}
    shard = open_shard(tmp_path, **config)
    model: list[bytes] = []  # every record ever inserted
    saved: list[tuple[bytes, int, int]] = []  # states, how long the model was, the cursor
    inserts, rewound, told = 0, 0, 0
    for _ in range(140):
        match rng.choice(["insert"] * 6 + ["again"] * 2 + ["restart", "torn", "sample", "save", "load", "page"]):
            case "insert":
                actor = rng.randrange(3)
                number = shard.next_number(actor) + rng.choice([0, 0, 0, 2])
                model.append(encode(make_episode(number, rng.randint(4, 15), actor)))
                assert shard.insert(model[-1])
                inserts += 1
            case "again" if model:
                assert not shard.insert(rng.choice(model))
            case "restart":
                del shard
                shard = open_shard(tmp_path, **config)
            case "torn":  # a record begun and not acknowledged
                del shard
                with files(tmp_path)[-1].open("ab") as file:
                    file.write(b"\xf5SEG" + rng.randbytes(rng.randrange(60)))
                shard = open_shard(tmp_path, **config)
            case "sample" if model:
                shard.sample(16)
            case "save":
                saved = [*saved, (shard.save_state(), len(model), told)][-3:]
            case "load" if saved:
                saved = saved[: rng.randint(1, len(saved))]
                state, count, told = saved[-1]
                shard.load_state(state)
                rewound += len(model) - count
                del model[count:]
            case "page":
                page, kept = shard.episodes_since(told), newest_that_fit(model, 60)
                want = list(enumerate(model))[max(told, len(model) - len(kept)) :]
                assert page.episodes == [StoredEpisode.of(n, record, decode(record)) for n, record in want]
                told = page.cursor
                assert told == len(model)
        assert stored(shard) == newest_that_fit(model, 60)
        assert shard.episodes_since(told).totals == totals_of(model)
        assert shard.episodes_since(told).lost == []
        assert shard.decisions == sum(decode(record).decisions for record in stored(shard))
        assert shard.bytes_on_disk == sum(path.stat().st_size for path in files(tmp_path))
    assert inserts > 40
    assert rewound > 5
    assert not any(shard.insert(record) for record in model)


def test_disk_use_is_bounded_and_names_outlive_their_episodes(tmp_path):
    shard, largest = open_shard(tmp_path), 0
    for number in range(150):
        assert shard.insert(encode(make_episode(number, actor=number % 2)))
        largest = max(largest, shard.bytes_on_disk)
    record_bytes = len(encode(make_episode(0))) + 20
    assert largest <= 8 * record_bytes + 2 * 1500  # what is in memory, and two segments not quite full
    assert len(files(tmp_path)) <= 5
    for _ in range(2):
        assert not any(shard.insert(encode(make_episode(number, actor=number % 2))) for number in range(150))
        assert (shard.next_number(0), shard.next_number(1), shard.next_number(2)) == (149, 150, 0)
        assert totals(shard).decisions == 750
        shard.close()
        shard = open_shard(tmp_path)


def test_what_cannot_be_stored_does_not_reach_the_disk(tmp_path):
    shard, good = open_shard(tmp_path), make_episode(0)
    too_long, not_finite = make_episode(1, 41), replace(good, rewards=np.full(5, np.nan, np.float32))
    for record in (encode(too_long), encode(not_finite), encode(good)[:-1]):
        with pytest.raises(ValueError, match=r"capacity|finite|damaged"):
            shard.insert(record)
    assert shard.bytes_on_disk == 0
    assert shard.insert(encode(good))  # its name was not taken


def test_a_restart_after_a_save_keeps_the_visit_counts(tmp_path):
    """A shard that forgot them would take nearly all draws from the others."""
    shard = open_shard(tmp_path, sampler="balanced", balanced_temperature=1.0)
    for number in range(6):
        shard.insert(encode(make_episode(number)))
    for _ in range(50):
        shard.sample(30)
    shard.save_state()
    shard.insert(encode(make_episode(6)))
    before = shard.mass()
    del shard
    assert open_shard(tmp_path, sampler="balanced", balanced_temperature=1.0).mass() == before


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("reopen", [False, True])
def test_load_state_goes_back_exactly(tmp_path, sampler, reopen):
    shard = open_shard(tmp_path / "a", sampler=sampler)
    for number in range(20):
        shard.insert(encode(make_episode(number, reward=number % 3)))
        shard.sample(4)
    state = shard.save_state()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for number in range(20, 50):  # far beyond the capacity: every episode of the state is evicted
        shard.insert(encode(make_episode(number)))
        shard.sample(4)
    if reopen:
        del shard
        shard = open_shard(tmp_path / "a", sampler=sampler, seed=1)
    shard.load_state(state)

    other = open_shard(tmp_path / "b", sampler=sampler, seed=2)
    other.load_state(state)
    assert stored(shard) == stored(other)
    assert [number for _, number in names(shard)] == list(range(12, 20))
    assert_same_batches(shard, other)
    for number in range(15, 30):
        is_new = [each.insert(encode(make_episode(number, reward=number % 2))) for each in (shard, other)]
        assert is_new == [number >= 20] * 2  # forgotten, so it may come again
    assert_same_batches(shard, other)
    del shard
    assert stored(open_shard(tmp_path / "a", sampler=sampler)) == stored(other)


def test_only_the_newest_states_can_be_gone_back_to_and_hold_disk_space(tmp_path):
    shard, states, sizes = open_shard(tmp_path, keep_states=2), [], []
    for number in range(400):
        shard.insert(encode(make_episode(number)))
        if number % 20 == 19:
            states.append(shard.save_state())
            if number == 199:
                del shard  # what the states need is remembered across restarts
                shard = open_shard(tmp_path, keep_states=2)
        sizes.append(shard.bytes_on_disk)
    record_bytes = len(encode(make_episode(0))) + 20
    assert max(sizes) <= (8 + 2 * 20) * record_bytes + 2 * 1500
    with pytest.raises(ValueError, match="another history, want"):
        shard.load_state(states[-5])
    assert totals(shard).episodes == 400
    for state, count in ((states[-1], 400), (states[-2], 380)):
        shard.load_state(state)
        assert totals(shard).episodes == count


def test_a_save_that_is_retried_costs_no_older_state(tmp_path):
    shard = open_shard(tmp_path, keep_states=2)
    for number in range(60):
        shard.insert(encode(make_episode(number)))
        if number == 19:
            older = shard.save_state()
        if number == 39:
            newer = [shard.save_state() for _ in range(3)]
    for state, count in ((newer[0], 40), (older, 20)):
        shard.load_state(state)
        assert totals(shard).episodes == count


def test_an_index_that_is_lost_before_anything_was_deleted_costs_no_episode(tmp_path):
    shard = open_shard(tmp_path)
    for number in range(3):
        shard.insert(encode(make_episode(number)))
    shard.close()
    (tmp_path / "index").unlink()
    again = open_shard(tmp_path)
    assert totals(again).episodes == 3
    assert again.episodes_since(0).lost == []


def test_a_state_of_another_history_is_refused(tmp_path):
    shard = open_shard(tmp_path)
    early = shard.save_state()
    shard.insert(encode(make_episode(0, reward=1.0)))
    late = shard.save_state()
    shard.load_state(early)
    with pytest.raises(ValueError, match="got episodes 0 to 1 of another history, want 0 to 0"):
        shard.load_state(late)
    shard.insert(encode(make_episode(0, reward=2.0)))  # the same name and length
    with pytest.raises(ValueError, match="got episodes 0 to 1 of another history"):
        shard.load_state(late)
    assert names(shard) == [(0, 0)]


def test_a_directory_of_other_settings_is_refused(tmp_path):
    shard = open_shard(tmp_path)
    shard.insert(encode(make_episode(0)))
    shard.close()
    with pytest.raises(ValueError, match=r"replay state: got settings .*, want .*"):
        ReplayShard(tmp_path, ShardConfig(), vector_data(4, ACTION_DIM, 4, 0.9), 0)
    shard = open_shard(tmp_path)
    state = shard.save_state()
    shard.close()
    with pytest.raises(ValueError, match=f"{tmp_path}: replay state: got settings"):
        open_shard(tmp_path, capacity=50)
    with pytest.raises(ValueError, match="got version 9, want 4"):
        open_shard(tmp_path).load_state(seal({**unseal(state), "version": 9}))


CHILD = """
import sys
from pathlib import Path
from qttdm.replay.codec import encode
from tests.replay.test_shard import make_episode, open_shard
shard = open_shard(Path(sys.argv[1]), capacity=int(sys.argv[2]))
for number in range(1_000_000):
    assert shard.insert(encode(make_episode(number, actor=number % 3)))
    print(number, flush=True)
"""


def test_pages_are_what_was_stored_and_plain_numbers(tmp_path):
    shard = open_shard(tmp_path)
    assert shard.episodes_since(0).cursor == 0
    first = replace(make_episode(4, actor=2, reward=0.5), success=1.0, oldest_weights=7, newest_weights=9)
    shard.insert(encode(first))
    shard.insert(encode(make_episode(5, actor=2)))
    page = shard.episodes_since(0)
    assert vars(page.episodes[0]) == {
        "sequence": 0,
        "actor": 2,
        "number": 4,
        "decisions": 5,
        "env_steps": 10,
        "episode_return": 2.5,
        "success": 1.0,
        "oldest_weights": 7,
        "newest_weights": 9,
        "checksum": zlib.crc32(encode(first)[4:]),
    }
    assert page.episodes[1].success is None
    assert {type(value) for value in vars(page.episodes[0]).values()} == {int, float}
    assert (page.cursor, page.totals) == (2, Totals(2, 10, 20))
    assert shard.episodes_since(page.cursor).episodes == []
    assert shard.episodes_since(page.cursor).cursor == page.cursor


def test_a_page_is_limited(tmp_path):
    shard, cursor, told = open_shard(tmp_path, capacity=10_000), 0, []
    for number in range(2 * PAGE_EPISODES + 1):
        shard.insert(encode(make_episode(number, 1)))
    for want in (PAGE_EPISODES, PAGE_EPISODES, 1, 0):
        page = shard.episodes_since(cursor)
        assert len(page.episodes) == want
        assert page.totals.episodes == 2 * PAGE_EPISODES + 1
        told, cursor = told + [episode.number for episode in page.episodes], page.cursor
    assert told == list(range(2 * PAGE_EPISODES + 1))


def test_evicted_episodes_are_only_in_the_totals(tmp_path):
    shard = open_shard(tmp_path)
    for number in range(30):
        shard.insert(encode(make_episode(number)))
    page = shard.episodes_since(3)
    assert [episode.number for episode in page.episodes] == list(range(22, 30))
    assert (page.cursor, page.totals) == (30, Totals(30, 150, 300))


def test_pages_have_every_episode_once_while_several_threads_insert(tmp_path):
    shard, told, cursor, errors = open_shard(tmp_path, capacity=10_000), [], 0, []

    def insert(actor: int) -> None:
        try:
            for number in range(150):
                shard.insert(encode(make_episode(number, 1 + number % 3, actor)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=insert, args=(actor,)) for actor in range(4)]
    for thread in threads:
        thread.start()
    running = True
    while running:
        running = any(thread.is_alive() for thread in threads)  # looked at before asking, so the last answer has all
        page = shard.episodes_since(cursor)
        told, cursor = told + page.episodes, page.cursor
        assert page.totals.episodes == len(told)
        assert page.totals.env_steps == sum(episode.env_steps for episode in told)
        if told:
            shard.sample(8)
    assert not errors
    assert sorted((e.actor, e.number) for e in told) == [(a, n) for a in range(4) for n in range(150)]
    assert [e.sequence for e in told] == list(range(600))


@pytest.mark.parametrize("capacity", [50_000, 40])
def test_no_acknowledged_episode_is_lost_by_sigkill(tmp_path, capacity):
    for lines in (1, 200):
        directory = tmp_path / str(lines)
        command = [sys.executable, "-c", CHILD, str(directory), str(capacity)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            acknowledged = [int(child.stdout.readline()) for _ in range(lines)]
            child.kill()
            rest = child.stdout.read()
        acknowledged += [int(line) for line in rest.split("\n")[:-1]]
        assert child.returncode == -9
        assert acknowledged == list(range(len(acknowledged)))

        shard = open_shard(directory, capacity=capacity)
        total = totals(shard).episodes
        assert total - len(acknowledged) in (0, 1)  # the last may be stored and its acknowledgement not out yet
        kept = [(number % 3, number) for number in range(total)][-(capacity // 5) :]
        assert names(shard) == kept
        assert not any(shard.insert(encode(make_episode(n, actor=n % 3))) for n in acknowledged)
        assert names(shard) == kept


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_memory_does_not_creep_once_the_buffer_is_full(tmp_path, sampler):
    shard, page = open_shard(tmp_path, capacity=5000, sampler=sampler), resource.getpagesize()

    def resident_after(numbers: range) -> int:
        """Bytes of memory that the process has."""
        for number in numbers:
            shard.insert(encode(make_episode(number, 1000, actor=number % 4)))
            shard.sample(64)
            shard.episodes_since(max(number - 10, 0))
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    full = resident_after(range(200))
    slope = (resident_after(range(200, 1200)) - full) / 1000
    record_bytes = len(encode(make_episode(0, 1000)))
    assert shard._replay.num_episodes == 5
    assert slope < record_bytes / 10, f"{slope:.0f} bytes for every episode of {record_bytes}"


def test_inserts_and_samples_from_two_threads(tmp_path):
    shard, errors = open_shard(tmp_path, sampler="balanced"), []
    shard.insert(encode(make_episode(0)))

    def insert() -> None:
        try:
            for number in range(1, 150):
                shard.insert(encode(make_episode(number)))
                shard.episodes_since(0)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=insert)
    thread.start()
    while thread.is_alive():
        batch = shard.sample(16)
        first = batch["observations"][:, 0, 0]
        following = np.where(batch["mask"][:, 1], batch["observations"][:, 1, 0], first + 1)
        np.testing.assert_array_equal(following, first + 1)  # consecutive steps of one episode
    thread.join()
    assert not errors
    assert totals(shard).episodes == 150


# Three shards against the formula of one buffer that holds everything.

DRAWS, LENGTHS = 200_000, [3, 9, 5, 4, 12, 6, 2, 8]
RETURNS = [-5.0, 2.0, 40.0, 1.0, 7.5, -3.0, 12.0, 0.5]


def three_shards(directory: Path, counts: tuple[int, int, int], **config) -> list[ReplayShard]:
    """That many of the eight episodes to each."""
    shards = [open_shard(directory / str(index), seed=index, **config) for index in range(3)]
    homes = [index for index, count in enumerate(counts) for _ in range(count)]
    for number, home in enumerate(homes):
        reward = RETURNS[number] / LENGTHS[number]
        shards[home].insert(encode(make_episode(number, LENGTHS[number], reward=reward)))
    return shards


def draw_from_all(shards: list[ReplayShard], batch_size: int, rng: np.random.Generator) -> list[Batch]:
    """The client's rule."""
    fractions = shares([shard.mass() for shard in shards])
    counts = rng.multinomial(batch_size, fractions)
    return [shard.sample(int(n)) for shard, n in zip(shards, counts, strict=True) if n]


def starts(batches: list[Batch]) -> np.ndarray:
    """Draws of each of the 49 decisions, in the order of LENGTHS."""
    offsets = np.cumsum([0, *LENGTHS])
    seen = np.concatenate([batch["observations"][:, 0, 0] for batch in batches]).astype(int)
    return np.bincount(offsets[seen // 1000] + seen % 1000, minlength=offsets[-1])


def assert_frequencies(got: np.ndarray, weights: np.ndarray) -> None:
    """No frequency is further than 5 standard deviations from its probability."""
    want = weights / weights.sum()
    tolerance = 5 * np.sqrt(want * (1 - want) / got.sum()) + 1e-12
    assert (np.abs(got / got.sum() - want) <= tolerance).all(), np.abs((got / got.sum() - want) / tolerance).max()


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_three_balanced_shards_draw_like_one_buffer(tmp_path, temperature):
    """After 300 draws or so of every decision, which moves the shards' bases apart."""
    config = {"capacity": 60, "sampler": "balanced", "balanced_temperature": temperature}
    shards = three_shards(tmp_path, (2, 2, 4), **config)
    rng, visits = np.random.default_rng(0), np.zeros(sum(LENGTHS), int)
    for shard in shards[:2]:
        for _ in range(10 * shard.decisions):
            visits += starts([shard.sample(30)])
    for _ in range(900):  # the third has never been drawn from and catches up
        visits += starts(draw_from_all(shards, 16, rng))
    if temperature == 1.0:
        assert len({shard._replay._sampler._base for shard in shards} - {0}) > 1
    got = starts(draw_from_all(shards, DRAWS, rng))
    assert_frequencies(got, np.exp((visits.min() - visits) / temperature))


def test_shares_of_what():
    with pytest.raises(ValueError, match="2 samplers that hold nothing"):
        shares([-np.inf] * 2)
    np.testing.assert_allclose(shares([-1e9, -1e9 + np.log(3.0), -np.inf]), [0.25, 0.75, 0.0], rtol=1e-6)


@pytest.mark.parametrize("counts", [(2, 2, 4), (1, 6, 1), (8, 0, 0)])
def test_three_shards_draw_like_one_buffer(tmp_path, counts):
    shards = three_shards(tmp_path, counts, capacity=60)
    assert_frequencies(starts(draw_from_all(shards, DRAWS, np.random.default_rng(0))), np.ones(sum(LENGTHS)))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_evicted_episodes_weigh_nothing(tmp_path, sampler):
    shard = open_shard(tmp_path, sampler=sampler, capacity=18)  # places for 2 decisions still hold an old episode
    for number, steps in enumerate([4, 3, 9, 2, 5]):  # the last three are stored
        shard.insert(encode(make_episode(number, steps)))
    assert shard.mass() == pytest.approx(np.log(16))


# Damage: whatever is done to any file, what is left is right, and what is gone is told.


def damaged(path: Path, how: str, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
        return
    if how == "truncate":
        del data[rng.randrange(len(data)) :]
    else:
        data[rng.randrange(len(data))] ^= rng.randint(1, 255)
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("episodes", [7, 40])
def test_nothing_is_lost_silently(tmp_path, how, save, episodes):
    """The learner's books: what it has counted up to its cursor is there, or told of as lost, or its cursor is beyond
    the end; whatever is stored afterwards."""
    rng, whole = random.Random(0), tmp_path / "whole"
    shard = open_shard(whole, capacity=60, sampler="balanced")
    model = [encode(make_episode(number, 4 + number % 7, number % 2)) for number in range(episodes)]
    for record in model[:-2]:
        shard.insert(record)
        shard.sample(4)
    state = shard.save_state() if save else None
    for record in model[-2:]:
        shard.insert(record)
    cursor, kept = shard.episodes_since(0).cursor, stored(shard)
    assert cursor == episodes
    shard.close()
    targets = [path for path in sorted(whole.iterdir()) if path.name != "lock" and path.stat().st_size]
    assert len(targets) > 2
    for target in targets:
        for attempt in range(1 if how == "delete" else 12):
            directory = tmp_path / f"{target.name}-{attempt}"
            shutil.copytree(whole, directory)
            damaged(directory / target.name, how, rng)
            for _ in range(2):  # it is told again as long as it is so
                shard = open_shard(directory, capacity=60, sampler="balanced")
                page, left = shard.episodes_since(cursor), stored(shard)
                lost = [sequence for sequence, _ in page.lost if sequence < cursor]
                same = page.totals == totals_of(model) and left == kept
                assert lost or page.cursor < cursor or same
                assert set(left) <= set(model)
                shard.close()
            shard = open_shard(directory, capacity=60, sampler="balanced")
            if state is not None:
                try:
                    shard.load_state(state)
                except ValueError as error:
                    assert "whole" in str(error) or "history" in str(error)  # noqa: PT017
                    assert stored(shard) == left
                else:
                    assert stored(shard) == newest_that_fit(model[:-2], 60)
            again = encode(make_episode(1000, actor=5))
            assert shard.insert(again)
            assert shard.episodes_since(0).episodes[-1].number == 1000
            shard.save_state()
            shard.close()
            shard = open_shard(directory, capacity=60, sampler="balanced")
            assert stored(shard)[-1] == again
            shard.close()
            shutil.rmtree(directory)


def test_a_lost_file_is_named_and_not_taken_for_an_eviction(tmp_path):
    shard = open_shard(tmp_path)
    for number in range(60):
        shard.insert(encode(make_episode(number)))
    state = shard.save_state()
    shard.close()
    oldest = files(tmp_path)[0]
    first, following = (int(path.stem) for path in files(tmp_path)[:2])
    assert first > 0
    oldest.unlink()
    shard = open_shard(tmp_path)
    assert shard.episodes_since(0).lost == [(n, f"number {n}") for n in range(first, following)]
    assert totals(shard).episodes == 60 - (following - first)
    files(tmp_path)[-1].unlink()
    shard.close()
    shard = open_shard(tmp_path)
    with pytest.raises(ValueError, match=r"replay state: got no whole number \d+"):
        shard.load_state(state)


def test_what_was_lost_after_a_state_is_forgotten_with_it(tmp_path):
    shard = open_shard(tmp_path)
    shard.insert(encode(make_episode(0)))
    state = shard.save_state()
    for number in range(1, 15):
        shard.insert(encode(make_episode(number)))
    shard.save_state()
    shard.close()
    files(tmp_path)[-1].unlink()
    shard = open_shard(tmp_path)
    assert shard.episodes_since(0).lost
    for _ in range(2):
        shard.load_state(state)
        shard.insert(encode(make_episode(1)))
        assert shard.episodes_since(0).lost == []
        shard.close()
        shard = open_shard(tmp_path)
        assert shard.episodes_since(0).lost == []


def test_a_late_retry_of_a_deleted_episode_is_stored_once_also_after_a_kill(tmp_path):
    """A kill between the new index and the deletion leaves both: the files go, the totals count them once."""
    shard = open_shard(tmp_path)
    for number in range(20):
        shard.insert(encode(make_episode(number)))
    before = {path.name: path.read_bytes() for path in files(tmp_path)}
    while files(tmp_path)[0].name in before:
        shard.insert(encode(make_episode(shard.next_number(0))))
    count = shard.next_number(0)
    del shard
    for name, data in before.items():
        (tmp_path / name).exists() or (tmp_path / name).write_bytes(data)
    shard = open_shard(tmp_path)
    assert totals(shard).episodes == count
    assert shard.episodes_since(0).lost == []
    assert not any(shard.insert(encode(make_episode(number))) for number in range(count))


def test_concurrent_inserts_of_one_episode_store_it_once(tmp_path):
    shard, answers = ReplayShard(tmp_path, ShardConfig(fsync="always"), DATA, 0), []
    records = [encode(make_episode(number)) for number in range(30)]
    threads = [
        threading.Thread(target=lambda: answers.extend(shard.insert(record) for record in records)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(answers) == 30
    assert sorted(names(shard)) == [(0, number) for number in range(30)]


@pytest.mark.parametrize("slow_method", ["_log.sync", "_write_index"])
def test_batches_are_drawn_while_a_slow_disk_saves(tmp_path, monkeypatch, slow_method):
    shard = open_shard(tmp_path)
    for number in range(3):
        shard.insert(encode(make_episode(number)))
    started, may_end = threading.Event(), threading.Event()
    owner, name = (shard._log, "sync") if slow_method == "_log.sync" else (shard, slow_method)
    save = getattr(owner, name)

    def slow(*arguments) -> None:
        started.set()
        assert may_end.wait(60)
        save(*arguments)

    monkeypatch.setattr(owner, name, slow)
    saving = threading.Thread(target=shard.save_state)
    saving.start()
    try:
        assert started.wait(60)
        drawing = threading.Thread(target=shard.sample, args=(4,), daemon=True)
        drawing.start()
        drawing.join(60)
        assert not drawing.is_alive()
    finally:
        may_end.set()
        saving.join()


def test_a_shards_process_does_without_torch():
    """It holds no tensors; torch would be most of its memory and of its time to start."""
    code = "import sys, qttdm.replay.remote; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
