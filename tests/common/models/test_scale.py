"""Observations scaled by those of the first batches; a model that scales them itself speaks in the task's units."""

from itertools import repeat

import numpy as np
import pytest
import torch

from qttdm.common.batch import Batch
from qttdm.common.models.qt import QT, QTConfig
from qttdm.common.models.scale import BATCHES, ObservationScale
from qttdm.common.models.tdm import TDM, TDMConfig
from qttdm.common.weights import Weights
from qttdm.learner.parts.qt import QTLearner, QTLearnerConfig
from qttdm.learner.parts.tdm import TDMLearner, TDMLearnerConfig

SIZES = {"embed_dim": 8, "num_heads": 2, "num_layers": 1, "bins": 5, "dropout": 0.0}
TDM_SIZES = {**SIZES, "window": 4, "head_dim": 8, "head_layers": 1, "head_dropout": 0.0}
UNIT = np.array([0.5, 30.0, 0.0], np.float32)
CENTRE = np.array([2.0, -100.0, 7.0], np.float32)


def batch(seed: int = 0, exists: int = 4, unit=UNIT, centre=CENTRE) -> Batch:
    """Windows in which observations have these means and standard deviations; what is not there is absurd."""
    rng = np.random.default_rng(seed)
    observations = centre + unit * rng.standard_normal((256, 5, 3), np.float32)
    observations[:, exists + 1 :] = 1e6
    return Batch(
        observations=observations,
        actions=rng.uniform(-1, 1, (256, 4, 2)).astype(np.float32),
        rewards=rng.standard_normal((256, 4), np.float32),
        terminated=np.zeros((256, 4), np.bool_),
        mask=np.tile(np.arange(4) < exists, (256, 1)),
        returns_to_go=np.zeros((256, 4), np.float32),
    )


def test_fitted_to_the_steps_that_exist():
    scale = ObservationScale(3)
    assert torch.equal(scale(torch.ones(2, 3)), torch.ones(2, 3))
    batches = (batch(seed, exists=3) for seed in range(10**9))
    scale.fit(batches)
    assert next(batches)["rewards"][0, 0] == batch(BATCHES)["rewards"][0, 0], "no more than it needs"
    assert scale.mean.numpy() == pytest.approx(CENTRE, rel=0.01)
    assert scale.std.numpy() == pytest.approx([0.5, 30.0, 1.0], rel=0.02)
    seen = torch.from_numpy(batch(99)["observations"][:, 0])
    assert scale(seen)[:, :2].std(dim=0).tolist() == pytest.approx([1, 1], abs=0.1)
    assert torch.allclose(scale.undo(scale(seen)), seen, rtol=1e-5)


@pytest.mark.parametrize("predict_change", [False, True])
def test_the_unit_of_an_observation_changes_nothing(predict_change):
    """Metres, millimetres or kilometres: the same losses, and predictions in the unit of what comes in."""
    losses, predictions = [], []
    for unit, centre in ((1.0, 0.0), (1000.0, 5.0), (0.001, 0.002)):
        torch.manual_seed(0)
        tdm = TDM(TDMConfig(**TDM_SIZES, normalise=True, predict_change=predict_change), 3, 2, can_terminate=False)
        learner = TDMLearner(TDMLearnerConfig(learning_rate=0.01), tdm)
        data = batch(unit=np.full(3, unit, np.float32), centre=np.full(3, centre, np.float32))
        learner.prepare(repeat(data))
        tensors = {name: torch.from_numpy(array) for name, array in data.items()}
        losses.append([learner.update(tensors, 0.0)["loss_state"].item() for _ in range(20)])
        predictions.append((tdm(tensors["observations"][:, :-1], tensors["actions"]).observations - centre) / unit)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert losses[0] == pytest.approx(losses[2], rel=1e-2)
    assert losses[0][-1] < losses[0][0]
    assert torch.allclose(predictions[0], predictions[1], atol=0.05)
    assert torch.allclose(predictions[0], predictions[2], atol=0.05)


def test_the_scale_travels_with_the_weights_and_the_target_has_it():
    part = QTLearner(QTLearnerConfig(), QT(QTConfig(**SIZES, normalise=True), 3, 2), discount=0.9)
    part.prepare(repeat(batch()))
    before = part.network.state_embedding.scale.std.clone()
    assert torch.equal(part.target.state_embedding.scale.std, before)
    part.update({name: torch.from_numpy(array) for name, array in batch().items()}, 0.0)
    assert torch.equal(part.network.state_embedding.scale.std, before), "it is not trained"
    other = QT(QTConfig(**SIZES, normalise=True), 3, 2)
    Weights.of(part.network, 1).copy_into(other)
    assert torch.equal(other.state_embedding.scale.std, before)


def test_without_it_no_batch_is_drawn():
    batches = iter([batch()])
    TDMLearner(TDMLearnerConfig(), TDM(TDMConfig(**TDM_SIZES), 3, 2, can_terminate=False)).prepare(batches)
    QTLearner(QTLearnerConfig(), QT(QTConfig(**SIZES), 3, 2), discount=0.9).prepare(batches)
    assert len(list(batches)) == 1
