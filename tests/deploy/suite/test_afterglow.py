"""deploy/suite/afterglow.py: a model that is told its rewards knows what it has paid. One learns here."""

import numpy as np

from qttdm.deploy.suite.afterglow import GLOW, make_episode, payments, train


def test_an_event_pays_once():
    episode = make_episode(np.random.default_rng(0))
    lit = episode.observations[:-1, 0] > 0
    events = np.flatnonzero(np.diff(lit.astype(int)) == 1) + 1
    paid = [episode.rewards[begin : begin + GLOW].sum() for begin in events if begin + GLOW <= episode.decisions]
    assert len(paid) > 20
    assert set(paid) == {1.0}
    assert episode.rewards[~lit].sum() == 0
    assert episode.actions[events - 1].all()


def test_a_model_that_is_told_its_rewards_pays_once():
    """By chance alone it would be 41% of events: so many are out of the reach of one that is not told."""
    paid = payments(train("drawn", 0, 500))
    assert len(paid) > 300
    assert (paid == 1).mean() > 0.41 + 0.25
