"""replay/buffer.py against a plain list of episodes."""

from dataclasses import replace

import numpy as np
import pytest

from qttdm.common.batch import Batch
from qttdm.common.config import ConfigError, validate
from qttdm.common.contracts import ArraySpec, DataSpec, vector_data
from qttdm.common.episode import Episode
from qttdm.replay.buffer import Replay, ReplayConfig, returns_to_go
from qttdm.replay.codec import decode, encode, seal, unseal

OBS_DIM, ACTION_DIM, DISCOUNT = 3, 2, 0.9
SAMPLERS = ["uniform", "balanced"]


def make_replay(capacity: int = 20, sampler: str = "uniform", window: int = 4, seed: int = 0, **config) -> Replay:
    settings = ReplayConfig(capacity=capacity, sampler=sampler, **config)
    return Replay(settings, vector_data(OBS_DIM, ACTION_DIM, window, DISCOUNT), seed)


def make_episode(steps: int, number: int = 0, terminated: bool = False, seed: int = 0) -> Episode:
    """Random, but the first observation entry says episode and step, so that a window can be recognised."""
    rng = np.random.default_rng([seed, number])
    observations = rng.normal(size=(steps + 1, OBS_DIM)).astype(np.float32)
    observations[:, 0] = 1000 * (number + 1) + np.arange(steps + 1)
    return Episode(
        observations=observations,
        actions=rng.uniform(-1, 1, (steps, ACTION_DIM)).astype(np.float32),
        rewards=rng.normal(size=steps).astype(np.float32),
        terminated=terminated,
        env_steps=2 * steps,
        success=float(number % 2) if number % 3 else None,
        actor=number % 4,
        number=number,
        oldest_weights=number,
        newest_weights=number + 1,
    )


def slow_returns(rewards: np.ndarray, discount: float) -> list[float]:
    """Brute force, each from its own sum."""
    return [sum(float(r) * discount**k for k, r in enumerate(rewards[t:])) for t in range(len(rewards))]


def slow_window(episode: Episode, start: int, window: int) -> Batch:
    """The one window [1, L] of an episode, copied entry by entry onto zeros."""
    want = Batch(
        observations=np.zeros((1, window + 1, OBS_DIM), np.float32),
        actions=np.zeros((1, window, ACTION_DIM), np.float32),
        rewards=np.zeros((1, window), np.float32),
        terminated=np.zeros((1, window), bool),
        mask=np.zeros((1, window), bool),
        returns_to_go=np.zeros((1, window), np.float32),
    )
    returns = slow_returns(episode.rewards, DISCOUNT)
    for step in range(min(window, episode.decisions - start)):
        t = start + step
        want["observations"][0, step] = episode.observations[t]
        want["observations"][0, step + 1] = episode.observations[t + 1]
        want["actions"][0, step] = episode.actions[t]
        want["rewards"][0, step] = episode.rewards[t]
        want["terminated"][0, step] = episode.terminated and t == episode.decisions - 1
        want["mask"][0, step] = True
        want["returns_to_go"][0, step] = returns[t]
    return want


def start_of(observation: np.ndarray) -> tuple[int, int]:
    """(episode number, step) of an observation from `make_episode`."""
    number, step = divmod(int(observation[0]), 1000)
    return number - 1, step


def assert_windows_are_slices(batch: Batch, model: list[Episode], window: int) -> None:
    """Every window equals a slice of an episode that is stored now."""
    for b in range(len(batch["mask"])):
        number, step = start_of(batch["observations"][b, 0])
        (episode,) = [e for e in model if e.number == number]
        want = slow_window(episode, step, window)
        for name in ("observations", "actions", "rewards", "terminated", "mask"):
            got, expected = batch[name][b], want[name][0]
            np.testing.assert_array_equal(got, expected, err_msg=name)
            assert got.dtype == expected.dtype
        np.testing.assert_allclose(batch["returns_to_go"][b], want["returns_to_go"][0], rtol=1e-5, atol=1e-6)
        assert batch["returns_to_go"].dtype == np.float32


def evict_slowly(model: list[Episode], capacity: int) -> None:
    """Drop the oldest until decisions, and decisions plus final observations, fit."""
    rows = capacity + capacity // 4 + 1
    while (
        sum(e.decisions for e in model) > capacity or sum(e.decisions + 1 for e in model) > rows
    ):  # the newest always fits
        model.pop(0)


def batches_equal(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("window", [1, 4, 9])
@pytest.mark.parametrize(("capacity", "lengths"), [(1, (1, 1)), (7, (1, 3)), (20, (5, 5)), (23, (1, 23)), (40, (6, 9))])
def test_equals_a_list_of_episodes(sampler, window, capacity, lengths):
    replay = make_replay(capacity, sampler, window)
    rng = np.random.default_rng(capacity)
    model: list[Episode] = []
    inserted = 0
    for number in range(25):
        episode = make_episode(
            int(rng.integers(lengths[0], lengths[1] + 1)), number, terminated=bool(rng.random() < 0.5)
        )
        replay.add(episode)
        model.append(episode)
        evict_slowly(model, capacity)
        inserted += episode.decisions
        assert replay.decisions == sum(e.decisions for e in model) <= capacity
        assert replay.num_episodes == len(model)
        assert_windows_are_slices(replay.sample(8), model, window)
    assert inserted > 2 * capacity  # the rings went round

    drawable = {start_of(observations[0]) for observations in replay.sample(2000)["observations"]}
    assert drawable == {(e.number, step) for e in model for step in range(e.decisions)}


def test_the_final_observation_follows_the_last_decision():
    replay = make_replay(window=3)
    episode = make_episode(5)
    replay.add(episode)
    batch = replay.sample(100)
    last = batch["observations"][:, 0, 0] == episode.observations[4, 0]
    assert last.any()
    np.testing.assert_array_equal(batch["observations"][last][0, 1], episode.observations[5])
    assert (batch["observations"][last][:, 2:] == 0).all()


def test_batches_are_fresh_arrays():
    replay = make_replay()
    replay.add(make_episode(6))
    batch = replay.sample(50)
    for array in batch.values():
        array[...] = 1
    assert_windows_are_slices(replay.sample(50), [make_episode(6)], 4)  # the padding row is still zeros, too


def test_added_arrays_are_copied():
    replay, episode = make_replay(), make_episode(6)
    replay.add(episode)
    for array in (episode.observations, episode.actions, episode.rewards):
        array[...] = 0.5
    assert_windows_are_slices(replay.sample(50), [make_episode(6)], 4)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.98, 0.997, 1.0])
def test_returns_to_go_equal_brute_force_for_500_steps(discount):
    rewards = np.random.default_rng(0).uniform(0, 2, 500).astype(np.float32)
    np.testing.assert_allclose(returns_to_go(rewards, discount), slow_returns(rewards, discount), rtol=1e-12)


def test_stored_returns_to_go_are_accurate_to_float32():
    replay, episode = (
        Replay(ReplayConfig(capacity=600), vector_data(OBS_DIM, ACTION_DIM, 500, 0.98), 0),
        make_episode(500),
    )
    episode.rewards[:] = np.abs(episode.rewards)
    replay.add(episode)
    batch = replay.sample(20)
    want = np.array(slow_returns(episode.rewards, 0.98))
    for b, start in enumerate(batch["observations"][:, 0, 0].astype(int) - 1000):
        np.testing.assert_allclose(batch["returns_to_go"][b, : 500 - start], want[start:], rtol=1e-7)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_episodes", [0, 1, 4, 40])
def test_load_goes_on_with_the_same_batches(sampler, num_episodes):
    replay, model = make_replay(50, sampler, balanced_temperature=0.5), []
    for number in range(num_episodes):
        model.append(make_episode(3 + number % 11, number, terminated=number % 2 == 0))
        replay.add(model[-1])
        replay.sample(7)  # random state and visit counts
    evict_slowly(model, 50)

    loaded, state = make_replay(50, sampler, balanced_temperature=0.5, seed=99), replay.state()
    loaded.load(state, model)
    assert loaded.state() == state
    for number in range(num_episodes, num_episodes + 30):
        for each in (replay, loaded):
            each.add(make_episode(3 + number % 11, number))
        assert batches_equal(replay.sample(16), loaded.sample(16))
        assert replay.state() == loaded.state()


def test_load_is_exact_after_the_visit_counts_were_rebased():
    replay, loaded = (make_replay(20, "balanced", balanced_temperature=0.05) for _ in range(2))
    replay.add(make_episode(9))
    for _ in range(20):
        replay.sample(16)
    assert replay.state()["sampler"]["base"] > 0
    loaded.load(replay.state(), [make_episode(9)])
    assert loaded.state() == replay.state()
    assert batches_equal(replay.sample(100), loaded.sample(100))


def test_same_seed_same_batches_other_seed_other_batches():
    one, same, other = (make_replay(seed=seed) for seed in (1, 1, 2))
    for replay in (one, same, other):
        replay.add(make_episode(15))
    batch = one.sample(32)
    assert batches_equal(batch, same.sample(32))
    assert not batches_equal(batch, other.sample(32))


def test_load_refuses_what_does_not_belong_together():
    replay, episodes = make_replay(), [make_episode(5, number) for number in range(3)]
    for episode in episodes:
        replay.add(episode)
    state = replay.state()
    for wrong in (episodes[:2], [*episodes, make_episode(5, 3)], [*episodes[:2], make_episode(4, 2)]):
        with pytest.raises(ValueError, match=r"next episode \[.*\], want \[0, 15, 3\]"):
            make_replay().load(state, wrong)
    with pytest.raises(ValueError, match=r"'capacity': 20.* want .*'capacity': 21"):
        make_replay(21).load(state, episodes)
    with pytest.raises(ValueError, match="got settings None"):
        make_replay().load({}, episodes)


def test_state_is_small():
    """Episodes are saved apart from it; without visit counts it is settings and random state."""
    replay = make_replay(1000)
    replay.add(make_episode(900))
    assert len(seal(replay.state())) < 1000
    assert unseal(seal(replay.state())) == replay.state()


def with_value(name: str, value: float) -> Episode:
    episode = make_episode(5)
    getattr(episode, name).flat[3] = value
    return episode


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (make_episode(21), "got 21 decisions, want at most the capacity, 20"),
        (replace(make_episode(5), observations=np.zeros((6, 4), np.float32)), r"got float32 \(6, 4\), want .*\(6, 3\)"),
        (replace(make_episode(5), actions=np.zeros((5, 1), np.float32)), r"got float32 \(5, 1\), want .*\(5, 2\)"),
        (replace(make_episode(5), rewards=np.zeros((5, 1), np.float32)), r"got float32 \(5, 1\), want .*\(5,\)"),
        (replace(make_episode(5), rewards=np.zeros(5)), "got float64"),
        (with_value("observations", np.nan), "observations: got nan .* want finite"),
        (with_value("actions", np.nan), "actions: got nan .* want finite"),
        (with_value("rewards", -np.inf), "rewards: got -inf .* want finite"),
        (with_value("actions", 1.01), r"got a magnitude of 1.0.* want actions in \[-1, 1\]"),
    ],
)
def test_add_refuses_and_changes_nothing(episode, message):
    replay = make_replay()
    for number in range(4):
        replay.add(make_episode(5, number))
    state = replay.state()
    with pytest.raises(ValueError, match=message):
        replay.add(episode)
    assert replay.state() == state


def test_sample_refuses_nothing():
    replay = make_replay()
    with pytest.raises(ValueError, match="got batch_size 4 of 0 decisions"):
        replay.sample(4)
    replay.add(make_episode(5))
    with pytest.raises(ValueError, match="got batch_size 0 of 5 decisions"):
        replay.sample(0)


def test_config_names_what_it_wants():
    for raw in ({"capacity": 0}, {"sampler": "prioritised"}, {"balanced_temperature": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(raw))):
            validate(ReplayConfig, raw, "preset.yaml")


IMAGES = DataSpec(
    {"observations": ArraySpec((4, 5, 1), "uint8"), "simulator_state": ArraySpec((7,), "float64")},
    ArraySpec((), "int64"),
    window=3,
    discount=None,
    choices=6,
)


def image_episode(steps: int, number: int = 0, truncated: bool = False) -> Episode:
    """Pictures, a discrete action and the state of a simulator."""
    rng = np.random.default_rng(number)
    return Episode(
        observations=rng.integers(0, 256, (steps + 1, 4, 5, 1), np.uint8),
        actions=rng.integers(0, 6, steps),
        rewards=rng.normal(size=steps).astype(np.float32),
        terminated=not truncated,
        truncated=truncated,
        env_steps=steps,
        number=number,
        extra={"simulator_state": 1000.0 * (number + 1) + np.arange(steps + 1)[:, None] + np.zeros(7)},
    )


def test_images_discrete_actions_and_further_observations():
    replay = Replay(ReplayConfig(capacity=30), IMAGES, 0)
    model = {number: image_episode(4 + number % 5, number, truncated=number % 2 == 0) for number in range(12)}
    for episode in model.values():
        replay.add(decode(encode(episode)))
    batch = replay.sample(200)
    assert list(batch) == ["observations", "simulator_state", "actions", "rewards", "terminated", "mask"]
    shapes = {name: (array.shape[1:], array.dtype) for name, array in batch.items()}
    assert shapes["observations"] == ((4, 4, 5, 1), np.uint8)
    assert shapes["simulator_state"] == ((4, 7), np.float64)
    assert shapes["actions"] == ((3,), np.int64)
    for b in range(200):
        number, step = divmod(int(batch["simulator_state"][b, 0, 0]), 1000)
        episode = model[number - 1]
        steps = min(3, episode.decisions - step)
        for name in ("observations", "simulator_state"):
            np.testing.assert_array_equal(batch[name][b, : steps + 1], episode.arrays[name][step : step + steps + 1])
            assert not batch[name][b, steps + 1 :].any()
        np.testing.assert_array_equal(batch["actions"][b, :steps], episode.actions[step : step + steps])
        assert batch["terminated"][b].any() == (episode.terminated and step + steps == episode.decisions)

    loaded = Replay(ReplayConfig(capacity=30), IMAGES, 1)
    loaded.load(replay.state(), list(model.values())[-replay.num_episodes :])
    assert batches_equal(replay.sample(50), loaded.sample(50))


@pytest.mark.parametrize("stack", [2, 4])
def test_stacks_of_images_are_those_before_each_step(stack: int):
    """Stored once each: an episode's first image stands for those before it, and nothing of another episode shows."""
    replay = Replay(ReplayConfig(capacity=30), replace(IMAGES, stack=stack), 0)
    model = {number: image_episode(1 + number % 7, number) for number in range(12)}
    for episode in model.values():
        replay.add(episode)
    assert replay._observed["observations"].nbytes == (30 + 30 // 4 + 2) * 4 * 5
    batch = replay.sample(300)
    assert batch["observations"].shape == (300, 4, 4, 5, stack)
    seen = set()
    for b in range(300):
        number, step = divmod(int(batch["simulator_state"][b, 0, 0]), 1000)
        episode = model[number - 1]
        seen.add(step)
        for t in range(4):
            if step + t > episode.decisions:
                assert not batch["observations"][b, t].any()
                continue
            want = [episode.observations[max(0, step + t - back)] for back in range(stack - 1, -1, -1)]
            np.testing.assert_array_equal(batch["observations"][b, t], np.concatenate(want, axis=-1))
    assert seen == set(range(7))


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (replace(image_episode(3), actions=np.array([0, 6, 1])), "actions: got 0 to 6, want choices 0 to 5"),
        (replace(image_episode(3), actions=np.array([0, -1, 1])), "actions: got -1 to 1, want choices 0 to 5"),
        (replace(image_episode(3), extra={}), r"got arrays \['actions', 'observations', 'rewards'\], want .*simulator"),
        (replace(image_episode(3), observations=np.zeros((4, 4, 5, 1), np.float32)), r"got float32 .*, want uint8"),
        (replace(image_episode(3), extra={"simulator_state": np.full((4, 7), np.nan)}), "simulator_state: got nan"),
    ],
)
def test_other_data_than_the_agents_is_refused(episode, message):
    with pytest.raises(ValueError, match=message):
        Replay(ReplayConfig(capacity=30), IMAGES, 0).add(episode)
