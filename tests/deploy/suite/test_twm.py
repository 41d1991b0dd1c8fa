"""The suite of learning in imagination: its own task and bandit, and that each experiment says what it measured."""

import numpy as np
import pytest

from qttdm.common.metrics.lines import read_metrics
from qttdm.deploy.suite import twm
from qttdm.deploy.suite.bandit import learn
from qttdm.deploy.suite.three_rooms import DECISIONS, DOORS, GOAL, MOVES, ThreeRooms


def test_walls_have_a_door_each():
    env, rng = ThreeRooms(), np.random.default_rng(0)
    crossed = set()
    for seed in range(100):
        shown, _ = env.reset(seed=seed)
        for _ in range(DECISIONS):
            shown, _, terminated, truncated, _ = env.step(int(rng.integers(len(MOVES))))
            assert (shown[..., 0].sum(), shown[GOAL][2]) == (1, True)
            assert not (shown[..., 0] & shown[..., 1]).any(), "in a wall"
            crossed |= {door for door in DOORS if shown[door][0]}
            if terminated or truncated:
                break
    assert crossed == set(DOORS)


def test_each_room_pays_once_and_the_goal_ends_it():
    env = ThreeRooms()
    env.reset(seed=0)
    env.at = (0, 2)
    way = [3, 3, 2, 2, 3, 3, 3, 3, 1, 1, 3, 3, 0, 0, 3, 3]  # back once: the second room pays once
    steps = [env.step(move) for move in way]
    assert [i for i, (_, reward, *_) in enumerate(steps) if reward] == [1, 11, 15]
    assert [terminated for *_, terminated, _, _ in steps] == [False] * 15 + [True]


def test_a_threshold_leaves_bad_arms_alone_and_binds():
    """A plain bonus of the same weight pulls bad arms exp(-ln(20) / 2) = 22% as often as good ones: 2.4% of pulls."""
    (threshold, free), (plain, _), (_, bound) = (
        learn(good, at, 1, 400) for good, at in ((18, twm.THRESHOLD), (18, twm.PLAIN), (1, twm.THRESHOLD))
    )
    assert threshold > 0.995
    assert plain == pytest.approx(0.976, abs=0.01)
    assert free > 0.2, "equal arms are kept"
    assert bound == pytest.approx(twm.THRESHOLD, abs=0.03)


def test_what_is_drawn_follows_the_softmax_of_counts():
    rows = {what: (measured, holds) for what, _, measured, holds in twm.draws(2_000, 0.5, 32)}
    assert rows["draws of the newer half: uniform"] == ("15%", "yes")
    assert rows["draws of the newer half: balanced, temperature 20"][1] == "no"
    squares = [holds for what, (_, holds) in rows.items() if what.startswith("chi-square")]
    assert squares == ["yes", "yes"]


def test_draws_from_others_than_the_softmax_are_noticed():
    rng, visits = np.random.default_rng(0), np.arange(1_000) // 20
    chances = np.exp(-visits / 10)
    right = rng.choice(1_000, 10_000, p=chances / chances.sum())
    assert abs(twm.departure(right, visits, 10.0)) < 3
    assert twm.departure(right, visits, 11.0) > 3
    assert twm.departure(rng.integers(0, 1_000, 10_000), visits, 10.0) > 3


def test_rooms_are_learned_by_both_samplers(tmp_path, monkeypatch):
    """Of the returns of what was collected, by the length of each episode."""
    monkeypatch.chdir(tmp_path)
    rows = twm.rooms([1], steps=600)
    assert rows[0] == twm.HEAD
    assert [row[0] for row in rows[1:4]] == [
        "mean return of a step's episode, of 3: balanced",
        "mean return of a step's episode, of 3: uniform",
        "balanced less uniform",
    ]
    lines = read_metrics(tmp_path / twm.RUNS / "rooms-uniform-1/metrics.jsonl")
    steps = [line["episode_return"] for line in lines if line["kind"] == "train" for _ in range(line["episode_length"])]
    assert rows[3][3] == "no", "one seed shows nothing"
    assert rows[2][2].startswith(f"{np.mean(steps):.2f} ")
    made = sorted(path.name for path in (tmp_path / twm.RUNS).iterdir())
    assert made == ["rooms-balanced-1", "rooms-uniform-1"]
    assert "temperature: 2.4" in (tmp_path / twm.RUNS / made[0] / "config.yaml").read_text()


def test_a_decision_is_timed_for_one_client_and_for_many():
    _, one, many, *_ = twm.acting([1], calls=5)
    assert float(one[2]) > float(many[2]) > 0


def test_tables_are_kept_and_an_unknown_name_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert twm.main(["bandt"]) == 2
    assert capsys.readouterr().err.startswith("twm-suite: there is no experiment 'bandt'; want one of cartpole,")
    assert twm.main(["acting"]) == 0
    assert (tmp_path / twm.RUNS / "acting.md").read_text() in capsys.readouterr().out
