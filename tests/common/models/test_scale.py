"""Observations scaled by those drawn so far; a model that scales them itself speaks in the task's units."""

from itertools import repeat

import numpy as np
import pytest
import torch

from qttdm.common.batch import Batch
from qttdm.common.models.qt import QT, QTConfig
from qttdm.common.models.scale import BATCHES, RATE, ObservationScale, Unit, rescale
from qttdm.common.models.tdm import TDM, TDMConfig, prediction_head
from qttdm.common.weights import Weights
from qttdm.learner.learner import Learner, LearnerConfig
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
    assert torch.equal(part.target.scale.std, part.network.scale.std)
    part.update(tensors(batch(unit=10 * UNIT)), 0.0)
    after = part.network.scale.std
    assert torch.equal(part.target.scale.std, after)
    other = QT(QTConfig(**SIZES, normalise=True), 3, 2)
    Weights.of(part.network, 1).copy_into(other)
    assert torch.equal(other.scale.std, after)


@pytest.mark.parametrize("name", ["tdm", "qt"])
def test_the_scale_follows_what_is_moved_later(name):
    """An object that only trembled in the first episodes, and is then pushed: a hundred thousand times as far."""
    if name == "tdm":
        network = TDM(TDMConfig(**TDM_SIZES, normalise=True), 3, 2, can_terminate=False)
        part, scale = TDMLearner(TDMLearnerConfig(), network), network.state_embedding.scale
    else:
        network = QT(QTConfig(**SIZES, normalise=True), 3, 2)
        part, scale = QTLearner(QTLearnerConfig(), network, discount=0.9), network.scale
    trembles = np.array([1e-6, 1.0, 1.0], np.float32)
    part.prepare(repeat(batch(unit=trembles, centre=np.zeros(3, np.float32))))
    assert scale.std[0] < 2e-6
    later = batch(unit=np.array([0.1, 1.0, 1.0], np.float32), centre=np.zeros(3, np.float32))
    for _ in range(2 * BATCHES):
        part.update(tensors(later), 0.0)
    assert scale(tensors(later)["observations"]).abs().max() < 10


def test_anothers_networks_without_a_count_are_refused():
    """Else what is taken would be forgotten with the first batch."""
    part = QTLearner(QTLearnerConfig(), QT(QTConfig(**SIZES, normalise=True), 3, 2), discount=0.9)
    learner = Learner(LearnerConfig(batch_size=8), [part], torch.device("cpu"), 10, bfloat16=False)
    state = learner.state()
    learner.start_from(state)
    with pytest.raises(ValueError, match=r"scale\.batches"):
        learner.start_from({name: tensor for name, tensor in state.items() if "scale.batches" not in name})


def test_without_it_no_batch_is_drawn():
    batches = iter([batch()])
    TDMLearner(TDMLearnerConfig(), TDM(TDMConfig(**TDM_SIZES), 3, 2, can_terminate=False)).prepare(batches)
    QTLearner(QTLearnerConfig(), QT(QTConfig(**SIZES), 3, 2), discount=0.9).prepare(batches)
    assert len(list(batches)) == 1


def tensors(of: Batch) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in of.items()}


EVERYWHERE = torch.ones(8, 4, dtype=torch.bool)


def test_a_unit_is_the_root_mean_square_of_what_exists_then_a_running_one():
    unit, generator = Unit(), torch.Generator().manual_seed(0)
    mask = torch.rand(20, 300, 4, generator=generator) < 0.5
    targets = torch.where(mask, 5.0 * torch.randn(20, 300, 4, generator=generator), 1e6)
    for one, there in zip(targets, mask, strict=True):
        unit.follow((one, there))
    assert unit.size.item() == pytest.approx(targets[mask].square().mean().sqrt().item(), rel=0.01)
    unit.batches.fill_(1e9)
    before = unit.size.item()
    unit.follow((torch.full((8, 4), 100.0), EVERYWHERE))
    want = np.sqrt((1 - RATE) * before**2 + RATE * 100.0**2)
    assert unit.size.item() == pytest.approx(want, rel=1e-5)


def test_nothing_but_zeros_leaves_a_unit_to_the_first_that_is_not():
    unit, nowhere = Unit(), torch.zeros(8, 4, dtype=torch.bool)
    for _ in range(100):
        assert unit.follow((torch.zeros(8, 4), EVERYWHERE), (torch.full((8, 4), 7.0), nowhere)) == 1
    assert unit.size == 1
    unit.follow((torch.full((8, 4), 3.0), EVERYWHERE))
    assert unit.size == 3


def test_a_unit_of_several_groups_is_the_largest():
    unit, one = Unit(), torch.zeros(8, 4, dtype=torch.bool)
    one[0, 0] = True
    unit.follow((torch.full((8, 4), 0.1), EVERYWHERE), (torch.full((8, 4), 2.0), one))
    assert unit.size == 2


def test_what_a_head_predicts_stays_as_its_unit_grows():
    torch.manual_seed(0)
    head, unit = prediction_head(TDMConfig(**TDM_SIZES), 1), Unit()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(5, 8)
    before = head(hidden) * unit.size
    rescale(head, unit.follow((torch.full((8, 4), 30.0), EVERYWHERE)))
    assert unit.size == 30
    torch.testing.assert_close(head(hidden) * unit.size, before)


def made_in(unit: float) -> tuple[Batch, dict[str, torch.Tensor]]:
    """Windows whose rewards count in this unit, a hundredth of it on average."""
    data = batch(unit=1.0, centre=0.0)
    data["rewards"] = data["rewards"] * np.float32(unit)
    return data, {name: torch.from_numpy(array) for name, array in data.items()}


def test_the_unit_of_rewards_changes_nothing():
    """Cents or thousands: the same losses and the same actions, rewards and values in the unit of what comes in."""
    seen = []
    for unit in (1.0, 1000.0, 0.001):
        torch.manual_seed(0)
        tdm = TDM(TDMConfig(**TDM_SIZES, normalise=True), 3, 2, can_terminate=False)
        qt = QT(QTConfig(**SIZES, normalise=True), 3, 2)
        model = TDMLearner(TDMLearnerConfig(learning_rate=0.01), tdm)
        value = QTLearner(QTLearnerConfig(learning_rate=0.01, ema_every=1, states_per_window=2), qt, discount=0.9)
        data, tensors = made_in(unit)
        losses = []
        for part in (model, value):
            part.prepare(repeat(data))
            metrics = [part.update(tensors, 0.0) for _ in range(20)]
            losses.append([m.get("loss_q", m.get("loss_reward")).item() for m in metrics])
        states = tensors["observations"][:, 0]
        rewards = tdm(tensors["observations"][:, :-1], tensors["actions"]).rewards
        assert torch.equal(value.target.value_unit.size, qt.value_unit.size)
        seen.append((losses, rewards / unit, qt.value({"observations": states}) / unit, qt.choose(states)[0]))
    assert seen[0][1].abs().mean() > 0.1, "something has been learned"
    assert seen[0][2].abs().mean() > 0.1
    for other in seen[1:]:
        assert np.allclose(other[0], seen[0][0], rtol=2e-2, atol=1e-3)
        torch.testing.assert_close(other[1], seen[0][1], rtol=0, atol=0.05)
        torch.testing.assert_close(other[2], seen[0][2], rtol=0, atol=0.05)
        assert (other[3] == seen[0][3]).float().mean() > 0.95


def test_a_scale_that_follows_is_that_of_all_batches():
    """At first the plain mean and standard deviation of what came, whatever their sizes; what stands still stays."""
    rng = np.random.default_rng(0)
    scale = ObservationScale(3)
    seen = []
    for i in range(20):
        observations = CENTRE + i * np.array([0.1, 9.0, 0.0]) + UNIT * rng.standard_normal((64, 5, 3))
        mask = np.arange(5) < rng.integers(1, 6, 64)[:, None]
        mask[:] = mask[:1]  # as many in each batch
        observations[~mask] = 1e6
        seen.append(observations[mask])
        scale.follow(torch.tensor(observations, dtype=torch.float32), torch.tensor(mask))
    parts = [(rows.mean(axis=0), rows.var(axis=0)) for rows in seen]
    means = np.array([mean for mean, _ in parts])
    std = np.sqrt(np.mean([variance for _, variance in parts], axis=0) + means.var(axis=0))
    np.testing.assert_allclose(scale.mean.numpy(), means.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(scale.std.numpy()[:2], std[:2], rtol=1e-3)
    assert scale.std[2] == 1.0
