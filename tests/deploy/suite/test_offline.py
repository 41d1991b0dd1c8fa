"""The offline suite's own parts: walls hold, walks arrive, the control of the search is one."""

import numpy as np
import pytest
import torch

from qttdm.common.models.sequence_model import Layout, SequenceModel, SequenceModelConfig
from qttdm.deploy.suite.four_rooms import DECISIONS, DOOR, FourRooms, moved, near, passed_through, walks
from qttdm.deploy.suite.offline import main, shuffled
from qttdm.planner_service.planners.beam_search import BeamSearch, BeamSearchConfig


def test_walls_hold_but_at_doors():
    """A random walk changes rooms only through a door."""
    rng, position, crossed = np.random.default_rng(0), np.array([0.3, 0.3], np.float32), 0
    for _ in range(3_000):
        after = moved(position, rng.uniform(-1, 1, 2))
        for axis in np.flatnonzero(position * after < 0):
            crossed += 1
            share = position[axis] / (position[axis] - after[axis])
            at = position + share * (after - position)
            if (position * after < 0).sum() == 1:
                assert abs(abs(at[1 - axis]) - 0.5) < DOOR + 0.15, "through the wall"
        assert (np.abs(after) <= 1).all()
        position = after
    assert crossed > 20, "no door was found"


@pytest.mark.parametrize("rewarded", [False, True])
def test_walks_arrive_and_follow_the_environment(rewarded):
    """Logs are what the environment does; nearly all arrive; where a reward is paid the episode ends."""
    logged = walks(200, seed=0, rewarded=rewarded)
    assert np.mean([episode.decisions < DECISIONS for episode in logged]) > 0.95
    for episode in logged:
        steps = zip(episode.observations[:-1], episode.actions, episode.observations[1:], strict=True)
        assert all(np.array_equal(moved(before, action), after) for before, action, after in steps)
        paid = [near(position, FourRooms.goal) for position in episode.observations[1:]]
        assert episode.rewards.tolist() == ([float(there) for there in paid] if rewarded else [0.0] * len(paid))
        assert episode.terminated == bool(rewarded and paid[-1])
    if rewarded:
        assert 0.01 < np.mean([episode.terminated for episode in logged]) < 0.5
    else:
        assert sum(passed_through(e.observations[-1]) for e in logged) < 20, "walks end in the middle of rooms"


def small_model():
    """A sequence model of 2 observations and 1 action, window 6."""
    torch.manual_seed(0)
    config = SequenceModelConfig(embed_dim=16, num_heads=2, num_layers=1, window=6, bins=8, dropout=0.0)
    model = SequenceModel(config, Layout({"observations": 2, "actions": 1}, ("rewards", "values")), can_terminate=False)
    torch.nn.init.normal_(model.token_embedding.weight)
    return model.eval().requires_grad_(False)


def test_shuffled_predictions_are_the_same_numbers_elsewhere():
    """The control changes who has which prediction, nothing else."""
    model = small_model()
    planner = BeamSearch(BeamSearchConfig(context=0, horizon=2), 0.9, model)
    outcome = model.outcome(torch.randn(50, 16))
    plain, mixed = (
        planner._number(outcome, "rewards"),
        shuffled(planner, torch.Generator().manual_seed(0), outcome, "rewards"),
    )
    assert not torch.equal(plain, mixed)
    assert torch.equal(plain.sort().values, mixed.sort().values)


def test_an_unknown_experiment_is_one_line(capsys):
    """It says which there are."""
    assert main(["serach"]) == 2
    assert capsys.readouterr().err.startswith("offline-suite: there is no experiment 'serach'; want one of search,")
