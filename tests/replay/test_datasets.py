"""replay/datasets.py with real Minari; golden_dataset/ was written by Minari 0.5.3 alone, from the formulas below."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from gymnasium import spaces

from qttdm.common.config import ConfigError
from qttdm.common.contracts import ObservationPart, TaskSpec
from qttdm.common.episode import Episode
from qttdm.replay.datasets import check_new, open_dataset, write_dataset

GOLDEN = Path(__file__).parent / "golden_dataset"
TASK = TaskSpec(3, 2, action_repeat=4, episode_steps=40, terminates=True, name="own/Toy")
UNITS = replace(TASK, action_bounds=((-2.0, 1.0), (2.0, 5.0)))


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    return tmp_path / "data"


def make_episode(number: int, steps: int = 5, **fields) -> Episode:
    rng = np.random.default_rng(number)
    return Episode(
        observations=rng.normal(size=(steps + 1, 3)).astype(np.float32),
        actions=rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        rewards=rng.normal(size=steps).astype(np.float32),
        number=number,
        **{"terminated": False, "truncated": True, "env_steps": 0, **fields},
    )


def write(*episodes: Episode, task: TaskSpec = TASK, name: str = "toy-v0", **more) -> Path:
    return write_dataset(name, episodes, task, **more)


def spoil(folder: Path, episode: int, array: str, row: int, value: float) -> None:
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file[f"episode_{episode}/{array}"][row] = value


def edit(folder: Path, **metadata) -> None:
    path = folder / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | metadata))


def assert_same(got: Episode, want: Episode, exact: bool = True) -> None:
    for name in ("terminated", "truncated", "env_steps", "success", "actor", "number"):
        assert getattr(got, name) == getattr(want, name), name
    for name, array in want.arrays.items():
        assert got.arrays[name].dtype == array.dtype == np.float32
        np.testing.assert_allclose(got.arrays[name], array, rtol=0, atol=0 if exact else 2e-7)


def test_what_minari_wrote():
    dataset = open_dataset(str(GOLDEN))
    assert (dataset.stored_episodes, dataset.decisions, dataset.obs_dim, dataset.action_dim) == (3, 11, 3, 2)
    assert dataset.references == {"random": 1.5, "expert": 20.0}
    for number, (got, steps) in enumerate(zip(dataset.episodes(actor=7), (4, 6, 1), strict=True)):
        t = np.arange(steps + 1)
        # place (two numbers), then speed; the box of actions is from (-2, 1) to (2, 5)
        seen = np.stack([t + 100 * number, -t, 0.5 * t], axis=1).astype(np.float32)
        acted = np.stack([np.linspace(-1, 1, steps), np.zeros(steps)], axis=1).astype(np.float32)
        paid = (np.arange(steps) + 0.25).astype(np.float32)
        ended = {"terminated": number == 0, "truncated": number > 0, "success": 1.0 if number == 0 else None}
        assert_same(got, Episode(seen, acted, paid, env_steps=0, actor=7, number=number, **ended))
    assert (dataset.dropped, dataset.clipped) == (0, 0)


def test_a_task_without_a_simulator_is_described_by_its_logs():
    spec = open_dataset(str(GOLDEN)).task_spec
    assert (spec.obs_dim, spec.action_dim, spec.episode_decisions) == (3, 2, 6)
    assert spec.action_bounds == ((-2.0, 1.0), (2.0, 5.0))
    assert spec.observation_parts == (ObservationPart("place", 2, (2,)), ObservationPart("speed", 1, (1,)))
    dataset = open_dataset(str(GOLDEN))
    dataset.check(spec)
    assert dataset.observed == ["place[0]", "place[1]", "speed"]
    write(make_episode(0), task=spec)
    assert open_dataset("toy-v0").observed == dataset.observed


@pytest.mark.parametrize("task", [TASK, UNITS, replace(UNITS, action_shape=(2, 1))], ids=["unit box", "units", "shape"])
def test_what_is_written_is_read(task):
    episodes = [
        make_episode(0, success=1.0),
        make_episode(1, steps=1, terminated=True, truncated=False),
        make_episode(2, success=0.0),
    ]
    folder = write(*episodes, task=task, references={"random": -1.0, "expert": 3.5}, kind="medium")
    for name in ("toy-v0", str(folder)):
        dataset = open_dataset(name)
        dataset.check(task)
        for got, want in zip(dataset.episodes(), episodes, strict=True):
            assert_same(got, want, exact=task is TASK)
    assert dataset.references == {"random": -1.0, "expert": 3.5}
    assert dataset.metadata["qttdm"] == {"task": "own/Toy", "action_repeat": 4, "kind": "medium"}
    assert open_dataset("toy-v0").decisions == 11


def test_episodes_that_are_not_finite_are_dropped_and_actions_beyond_the_box_clipped_both_counted():
    folder = write(*map(make_episode, range(4)), task=UNITS)
    spoil(folder, 0, "observations", 3, np.nan)
    spoil(folder, 2, "rewards", 1, np.inf)
    spoil(folder, 3, "actions", 2, 50.0)
    dataset = open_dataset("toy-v0")
    for _ in range(2):  # each pass counts anew
        episodes = list(dataset.episodes())
        assert (dataset.dropped, dataset.clipped) == (2, 1)
    assert [e.number for e in episodes] == [0, 1]
    np.testing.assert_allclose(episodes[0].observations, make_episode(1).observations)
    assert episodes[1].actions[2].tolist() == [1.0, 1.0]
    spoil(folder, 1, "actions", 0, np.nan)
    spoil(folder, 3, "actions", 0, np.nan)
    with pytest.raises(ConfigError, match="data set toy-v0: none of its 4 episodes has only finite values"):
        list(dataset.episodes())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"obs_dim": 4}, "own/Toy: numbers observed: got 3, want 4"),
        ({"action_dim": 1, "action_bounds": None}, "own/Toy: numbers acted: got 2, want 1"),
        ({"action_repeat": 2}, "own/Toy: simulator steps a decision: got 4, want 2"),
        ({"action_bounds": None}, r"own/Toy: actions: got a box from \[-2.0, 1.0\] to \[2.0, 5.0\], want from \[-1.0,"),
    ],
)
def test_a_task_that_it_does_not_fit_is_named(change, says):
    write(make_episode(0), task=UNITS)
    with pytest.raises(ConfigError, match=f"data set toy-v0 does not fit {says}"):
        open_dataset("toy-v0").check(replace(UNITS, **change))


@pytest.mark.parametrize(
    ("key", "space", "says"),
    [
        ("action_space", spaces.Discrete(3), r"data set toy-v0 has discrete actions or images"),
        ("action_space", spaces.Box(-np.inf, np.inf, (2,)), "data set toy-v0 has unbounded actions"),
        (
            "observation_space",
            spaces.Box(0, 255, (64, 64, 3), np.uint8),
            "data set toy-v0 has discrete actions or images",
        ),
        ("observation_space", spaces.Discrete(3), "data set toy-v0 needs a Box observation space, or a Dict"),
    ],
)
def test_spaces_of_another_kind_are_refused(key, space, says):
    from minari.serialization import serialize_space

    edit(write(make_episode(0)), **{key: serialize_space(space)})
    with pytest.raises(ConfigError, match=says):
        open_dataset("toy-v0")


def cut(folder: Path) -> None:
    path = folder / "data" / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:-5_000])


def make_ragged(folder: Path) -> None:
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file["episode_1/observations"].resize(5, axis=0)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "cannot be read: .*truncated file"),
        (lambda folder: (folder / "data" / "metadata.json").write_text("{"), "cannot be read: Expecting property name"),
        (lambda folder: edit(folder, total_episodes=3), "cannot be read: .*episode_2"),
        (lambda folder: edit(folder, total_episodes=0), "has no episodes"),
        (lambda folder: edit(folder, minari_version="9.0.0"), "cannot be read: The installed Minari version"),
        (make_ragged, ": episode 1 cannot be read: got 5 observations, 5 actions and 5 rewards, want T"),
        (lambda folder: spoil(folder, 1, "terminations", 2, True), ": episode 1 .*: it terminates and goes on"),
    ],
)
def test_damage_is_one_line(damage, says):
    damage(write(make_episode(0), make_episode(1)))
    with pytest.raises(ConfigError, match=rf"^data set toy-v0 ?{says}") as error:
        list(open_dataset("toy-v0").episodes())
    assert "\n" not in str(error.value)


def test_some_of_its_episodes_are_chosen_by_a_seed():
    written = [make_episode(number, steps=number + 1) for number in range(6)]
    write(*written)
    seen = []
    for seed in (1, 1, 2):
        dataset = open_dataset("toy-v0")
        dataset.choose(3, seed)
        chosen = list(dataset.episodes())
        assert (dataset.stored_episodes, dataset.decisions) == (3, sum(e.decisions for e in chosen))
        assert [e.number for e in chosen] == [0, 1, 2]  # as they are named in replay
        for episode in chosen:
            assert_same(replace(episode, number=episode.decisions - 1), written[episode.decisions - 1], exact=False)
        seen.append([e.decisions for e in chosen])
    assert seen[0] == seen[1] != seen[2]
    with pytest.raises(ConfigError, match=r"^data set toy-v0 has 6 episodes; want at most as many of it$"):
        open_dataset("toy-v0").choose(7, 0)


def test_an_id_that_is_not_there_names_those_that_are(root):
    with pytest.raises(ConfigError, match=r"no data set 'toy-v1', .*; there is none yet"):
        open_dataset("toy-v1")
    assert not root.exists()  # nothing is written by looking
    write(make_episode(0))
    shutil.copytree(GOLDEN, root / "group" / "golden-v0")
    with pytest.raises(ConfigError, match=r"there are toy-v0, group/golden-v0$"):
        open_dataset("toy-v1")


@pytest.mark.parametrize(("name", "says"), [("toy", "is no id"), ("../toy-v0", "is no id"), ("toy-v0", "exists, in")])
def test_an_id_that_cannot_be_written_is_one_line(name, says):
    write(make_episode(0))
    with pytest.raises(ConfigError, match=says):
        check_new(name)


def test_what_was_written_by_half_is_removed(root):
    with pytest.raises(RuntimeError):
        write(make_episode(0), replace(make_episode(1), rewards=RefusingRewards(5)))
    assert not (root / "toy-v0").exists()


class RefusingRewards(list):
    """Five rewards that cannot be stored."""

    def __init__(self, count):
        super().__init__([0.0] * count)

    def __iter__(self):
        raise RuntimeError
