"""deploy/suite/open_loop.py: what is imagined is the model's own, starts are where they say, intervals cover."""

import numpy as np
import pytest
import torch

from qttdm.common.config import ConfigError
from qttdm.common.episode import Episode
from qttdm.deploy.suite.open_loop import Starts, draw_starts, drift, imagine, median_interval
from tests.fakes import FakeDynamics, tiny_generalist, tiny_sequence_model, tiny_tdm

CPU = torch.device("cpu")
MODELS = {"tdm": tiny_tdm, "transformer": tiny_sequence_model, "generalist": tiny_generalist}


@pytest.mark.parametrize("kind", MODELS)
def test_imagined_steps_are_the_models_and_each_rows_own(kind):
    """Within the window as the model's own steps; beyond it goes on."""
    model = MODELS[kind](0)
    start, actions = torch.rand(3, 3) * 2 - 1, torch.rand(3, 15, 2) * 2 - 1
    imagined = imagine(model, start, actions)
    rollout = model.select(model.start({"observations": start}), torch.arange(3), model.window)
    for t in range(model.window):
        model.step(rollout, actions[:, t])
        torch.testing.assert_close(imagined[:, t], model.state(rollout)["observations"])
    assert imagined.shape == (3, 15, 3)
    torch.testing.assert_close(imagine(model, start[:1], actions[:1]), imagined[:1])


def test_beyond_its_window_a_model_without_memory_begins_at_what_it_imagined():
    model = tiny_tdm(0)
    start, actions = torch.rand(2, 3), torch.rand(2, 12, 2) * 2 - 1
    whole = imagine(model, start, actions)
    window = model.window
    torch.testing.assert_close(imagine(model, whole[:, window - 1], actions[:, window:]), whole[:, window:])


@pytest.mark.parametrize("kind", ["transformer", "generalist"])
def test_beyond_its_window_a_model_with_a_memory_keeps_its_last_steps(kind):
    """As from a root that has a history of so many steps; not as from one without."""
    model = MODELS[kind](0)
    kept = min(4, model.window - 1)
    start, actions = torch.rand(2, 3) * 2 - 1, torch.rand(2, model.window + 1, 2) * 2 - 1
    imagined = imagine(model, start, actions)
    seen, history = torch.cat([start[:, None], imagined], dim=1), []
    rollout = model.select(model.start({"observations": start}), torch.arange(2), model.window)
    for t in range(model.window):
        history.append(model.remember(rollout, actions[:, t]))
        model.step(rollout, actions[:, t])
    context = {"observations": seen[:, model.window], "history": torch.cat(history[-kept:], dim=1)}
    again = model.select(model.start(context), torch.arange(2), 1)
    model.step(again, actions[:, -1])
    assert torch.equal(model.state(again)["observations"], imagined[:, -1])


def episodes(lengths: tuple[int, ...]) -> list[Episode]:
    """Episodes whose first number is the episode's and whose second counts its steps; a third stands still."""
    made = []
    for number, length in enumerate(lengths):
        seen = np.stack([np.full(length + 1, number), np.arange(length + 1), np.full(length + 1, 7)], axis=1)
        actions = np.arange(length)[:, None] / 100
        made.append(Episode(seen.astype(np.float32), actions.astype(np.float32), seen[1:, 0], False, 0, number=number))
    return made


def test_starts_are_pieces_of_episodes_and_of_each_once_before_any_twice():
    starts = draw_starts(episodes((4, 9, 30, 8, 12)), starts=40, steps=8)
    assert starts.observations.shape == (40, 9, 3)
    assert sorted(starts.observations[:4, 0, 0].tolist()) == [1, 2, 3, 4]
    for seen, acted in zip(starts.observations, starts.actions, strict=True):
        assert (seen[:, 0] == seen[0, 0]).all()
        assert (seen[:, 1].diff() == 1).all()
        torch.testing.assert_close(acted[:, 0] * 100, seen[:-1, 1])
    of_long = starts.observations[starts.observations[:, 0, 0] == 2, 0, 1]
    assert len(set(of_long.tolist())) > 5
    assert of_long.max() <= 22
    assert starts.std[2] == 1.0
    with pytest.raises(ConfigError, match=r"--steps 31: the longest episode has 30 decisions; want at most as many"):
        draw_starts(episodes((4, 30)), starts=8, steps=31)


def test_errors_are_in_standard_deviations():
    """A model that is off by one std more in one of two numbers with each step."""
    std = torch.tensor([2.0, 5.0])
    model = FakeDynamics(lambda s, a: (s + a * std * torch.tensor([1.0, 0.0]), torch.zeros(len(s)), None), 2, 3)
    still = Starts(torch.ones(4, 6, 2), torch.ones(4, 5, 2), std)
    want = np.arange(1, 6) / 2**0.5
    assert drift(model, still, CPU) == pytest.approx(np.tile(want, (4, 1)))
    broken = FakeDynamics(lambda s, a: (s * torch.nan, torch.zeros(len(s)), None), 2, 3)
    assert np.isinf(drift(broken, still, CPU)).all()


def test_the_interval_covers_the_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        middle, low, high = median_interval(rng.exponential(size=(60, 1)), samples=300, seed=seed)
        assert low <= middle <= high
        covered += bool(low[0] <= np.log(2) <= high[0])
    assert 88 <= covered <= 99
