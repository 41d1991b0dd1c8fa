"""learner.evaluations: each is of the weights with the updates that its environment steps ask for, and is told once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from qttdm.common.weights import Weights
from qttdm.deploy.runs.build import make_learner
from qttdm.learner.evaluations import Evaluations
from qttdm.learner.learner import Learner
from tests.fakes import point_env, tiny_config

CONFIG = tiny_config(agent="tdm")


@dataclass
class Desk:
    """Ends what the test says has ended; the returns are the weights' version."""

    submitted: dict[int, Weights] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)
    given_up: list[int] = field(default_factory=list)

    def submit(self, key: int, weights: Weights) -> None:
        self.submitted[key] = weights

    def results(self) -> list[tuple[int, list[float], float | None, float]]:
        ended, self.ended = self.ended, []
        given_up, self.given_up = self.given_up, []
        return [
            *((key, [float(self.submitted[key].version), 0.0], None, 0.1) for key in ended),
            *((key, [], None, 0.0) for key in given_up),
        ]


@pytest.fixture
def learner() -> Learner:
    torch.manual_seed(0)
    return make_learner(CONFIG, point_env(10, 2).task_spec, torch.device("cpu"))


def counts(env_steps: int, updates: int) -> dict[str, Any]:
    return {"env_steps": env_steps, "updates": updates}


def test_one_is_handed_in_when_its_updates_are_made(learner: Learner) -> None:
    desk = Desk()
    evaluations = Evaluations(desk)
    evaluations.plan(counts(10, updates=2))
    evaluations.plan(counts(20, updates=4))
    for learner.updates in range(6):
        evaluations.hand_in_due(learner)
    assert {key: w.version for key, w in desk.submitted.items()} == {10: 2, 20: 4}
    assert evaluations.last_updates == 4


def test_results_come_with_their_own_counters_in_any_order(learner: Learner) -> None:
    desk = Desk()
    evaluations = Evaluations(desk)
    for env_steps in (10, 20):
        learner.updates = env_steps
        evaluations.hand_in(counts(env_steps, env_steps), learner)
    assert list(evaluations.results()) == []
    desk.ended = [20, 10]
    told = list(evaluations.results())
    assert [c for c, _ in told] == [counts(20, 20), counts(10, 10)]
    assert [(v["episode_return"], v["episodes_evaluated"]) for _, v in told] == [(10.0, 2), (5.0, 2)]
    assert len(evaluations) == 0
    assert list(evaluations.results()) == []


def test_one_that_is_given_up_has_no_result_and_is_not_gone_on_with(learner: Learner) -> None:
    desk, restarted = Desk(), Desk()
    evaluations, later = Evaluations(desk), Evaluations(restarted)
    for env_steps in (10, 20):
        learner.updates = env_steps
        evaluations.hand_in(counts(env_steps, env_steps), learner)
    desk.ended, desk.given_up = [20], [10]
    assert [c for c, _ in evaluations.results()] == [counts(20, 20)]
    assert len(evaluations) == 0
    later.load(*evaluations.save())
    assert restarted.submitted == {}


def test_what_was_planned_or_under_way_is_gone_on_with(learner: Learner) -> None:
    """The same weights, although the learner has others by then; what had ended is not evaluated again."""
    desk, restarted = Desk(), Desk()
    evaluations, later = Evaluations(desk), Evaluations(restarted)
    for env_steps in (10, 20):
        learner.updates = env_steps
        evaluations.hand_in(counts(env_steps, env_steps), learner)
    evaluations.plan(counts(30, updates=30))
    desk.ended = [10]
    list(evaluations.results())
    later.load(*evaluations.save())
    assert later.last_updates == 20
    with torch.no_grad():
        next(learner.networks.parameters()).add_(1.0)
    learner.updates = 30
    later.hand_in_due(learner)
    assert restarted.submitted.keys() == {20, 30}
    assert restarted.submitted[20].checksum == desk.submitted[20].checksum != restarted.submitted[30].checksum
    np.testing.assert_array_equal(restarted.submitted[20].values, desk.submitted[20].values)
