"""common/models/tdm.py: a rollout is the full forward pass on its own predictions, for less work."""

import pytest
import torch
from torch import Tensor, nn

from qttdm.common.models.tdm import TDM, Prediction, TDMConfig

HORIZON, OBS_DIM = 3, 5
SHAPES = [(1, False, False), (2, True, False), (2, False, True), (6, True, True), (6, False, False)]
variants = pytest.mark.parametrize(("action_dim", "can_terminate", "predict_change"), SHAPES)


def make_tdm(
    action_dim: int = 2, can_terminate: bool = True, predict_change: bool = False, *, awake: bool = True, **config
) -> TDM:
    """Small; `awake`: with weights large enough that every part matters, the zero last layers of the heads included."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "num_heads": 4, "num_layers": 2, "window": 4, "bins": 7, "head_dim": 12} | config
    tdm = TDM(TDMConfig(predict_change=predict_change, **sizes), OBS_DIM, action_dim, can_terminate)
    if awake:
        with torch.no_grad():
            for p in tdm.parameters():
                p.normal_(std=0.3)
    return tdm.eval()


def make_window(tdm: TDM, sequences: int = 3, steps: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(sequences, steps, tdm.obs_dim, generator=generator)
    return observations, torch.rand(sequences, steps, tdm.action_dim, generator=generator) * 2 - 1


def assert_same(got: Prediction, want: Prediction) -> None:
    torch.testing.assert_close(got.observations, want.observations)
    torch.testing.assert_close(got.rewards, want.rewards)
    assert (got.continuation_logits is None) == (want.continuation_logits is None)
    if want.continuation_logits is not None:
        torch.testing.assert_close(got.continuation_logits, want.continuation_logits)


def last_step(prediction: Prediction) -> Prediction:
    logits = prediction.continuation_logits
    return Prediction(
        prediction.observations[:, -1], prediction.rewards[:, -1], None if logits is None else logits[:, -1]
    )


def slow_rollout(tdm: TDM, observations: Tensor, actions: Tensor) -> list[Prediction]:
    """Own predictions fed back, the whole window from the root computed again at every step."""
    states, predictions = observations.unsqueeze(1), []
    for step in range(actions.shape[1]):
        predictions.append(last_step(tdm(states, actions[:, : step + 1])))
        states = torch.cat([states, predictions[-1].observations.unsqueeze(1)], dim=1)
    return predictions


def start(tdm, observations):
    return tdm.start({"observations": observations})


def fan_out(tdm, root, copies, out=None):
    """Each root `copies` times in a row, with room for the horizon."""
    return tdm.select(root, torch.arange(len(root.observations)).repeat_interleave(copies), HORIZON, out)


def imagine(tdm, rollout, actions):
    for step in range(actions.shape[1]):
        yield tdm.step(rollout, actions[:, step])


@torch.no_grad()
def test_a_beam_reorders_and_drops_sequences():
    tdm, actions = make_tdm(), torch.rand(6, HORIZON, 2) * 2 - 1
    rollout = fan_out(tdm, start(tdm, torch.randn(6, OBS_DIM)), 1)
    first = tdm.step(rollout, actions[:, 0])
    index = torch.tensor([4, 4, 1])
    beam = tdm.select(rollout, index, HORIZON - 1)
    torch.testing.assert_close(tdm.state(beam)["observations"], first.observations[index])
    tdm.step(rollout, actions[:, 1])  # the source goes on by itself
    want = tdm.step(rollout, actions[:, 2])
    tdm.step(beam, actions[index, 1])
    got = tdm.step(beam, actions[index, 2])
    torch.testing.assert_close(got.rewards, want.rewards[index])
    torch.testing.assert_close(got.observations, want.observations[index])


@pytest.mark.parametrize("joint", [False, True])
@variants
@torch.no_grad()
def test_stepping_equals_the_full_forward_pass(action_dim: int, can_terminate: bool, predict_change: bool, joint: bool):
    tdm = make_tdm(action_dim, can_terminate, predict_change, joint_tokens=joint, interpolate=joint)
    roots, copies = torch.randn(2, OBS_DIM), 4
    actions = torch.rand(2 * copies, HORIZON, action_dim) * 2 - 1
    want = slow_rollout(tdm, roots.repeat_interleave(copies, dim=0), actions)

    rollout = fan_out(tdm, start(tdm, roots), copies)
    for step in range(HORIZON):
        assert_same(tdm.step(rollout, actions[:, step]), want[step])
        torch.testing.assert_close(rollout.observations, want[step].observations)
        assert rollout.steps == step + 1


@torch.no_grad()
def test_rollouts_do_not_see_each_other():
    tdm = make_tdm()
    roots, actions = torch.randn(5, OBS_DIM), torch.rand(5, HORIZON, 2) * 2 - 1
    together = list(imagine(tdm, fan_out(tdm, start(tdm, roots), 1), actions))
    for b in range(5):
        one = slice(b, b + 1)
        alone = list(imagine(tdm, fan_out(tdm, start(tdm, roots[one]), 1), actions[one]))
        for got, want in zip(alone, together, strict=True):
            torch.testing.assert_close(got.observations, want.observations[one])
            torch.testing.assert_close(got.rewards, want.rewards[one])


@torch.no_grad()
def test_tokens_that_pass_the_trunk():
    # The root's state once for all copies, then one pass a step: N action tokens first, N+1 tokens later.
    tdm, passed = make_tdm(action_dim=6), []
    tdm.trunk.register_forward_pre_hook(lambda _module, inputs: passed.append(tuple(inputs[0].shape[:2])))
    roots, copies = torch.randn(2, OBS_DIM), 50
    root = start(tdm, roots)
    rollout = fan_out(tdm, root, copies)
    for actions in (torch.zeros(100, HORIZON, 6), torch.ones(100, HORIZON, 6)):
        list(imagine(tdm, rollout, actions))
        rollout = fan_out(tdm, root, copies, out=rollout)
    assert passed == [(2, 1)] + 2 * [(100, 6), (100, 7), (100, 7)]


@pytest.mark.parametrize("action_dim", [1, 6])
@torch.no_grad()
def test_the_cache_has_room_for_the_horizon_and_no_more(action_dim: int):
    tdm = make_tdm(action_dim, embed_dim=8, num_layers=3)
    sequences = 2 * 5
    rollout = fan_out(tdm, start(tdm, torch.randn(2, OBS_DIM)), 5)
    keys_and_values = 2 * sequences * (1 + HORIZON * (action_dim + 1)) * 8
    assert sum(layer.numel() for layer in rollout.cache.layers) == 3 * keys_and_values
    list(imagine(tdm, rollout, torch.zeros(sequences, HORIZON, action_dim)))
    assert rollout.cache.length == HORIZON * (action_dim + 1)


@torch.no_grad()
def test_selecting_into_a_rollout_uses_its_memory_again_and_forgets_everything():
    tdm, copies = make_tdm(), 4
    root = start(tdm, torch.randn(2, OBS_DIM))
    first, second = torch.rand(2, 8, HORIZON, 2) * 2 - 1
    rollout = fan_out(tdm, root, copies)
    memory = [layer.data_ptr() for layer in rollout.cache.layers]
    before = list(imagine(tdm, rollout, first))
    rollout = fan_out(tdm, root, copies, out=rollout)
    assert rollout.steps == 0
    other = list(imagine(tdm, rollout, second))
    assert not torch.allclose(other[-1].rewards, before[-1].rewards)
    rollout = fan_out(tdm, root, copies, out=rollout)
    after = list(imagine(tdm, rollout, first))
    for got, want in zip(after, before, strict=True):
        assert torch.equal(got.observations, want.observations)
        assert torch.equal(got.rewards, want.rewards)
    assert [layer.data_ptr() for layer in rollout.cache.layers] == memory
    assert root.cache.length == 1


def differences(one: Prediction, other: Prediction) -> tuple[Tensor, Tensor]:
    """How far two predictions for windows are apart at each step: of states and of rewards, each [B, L]."""
    states = (one.observations - other.observations).abs().amax(dim=-1)
    return states, (one.rewards - other.rewards).abs()


@pytest.mark.parametrize("action_dim", [1, 3])
@torch.no_grad()
def test_a_prediction_reads_its_step_s_last_action_token(action_dim: int):
    tdm = make_tdm(action_dim)
    observations, actions = make_window(tdm)
    before = tdm(observations, actions)
    for t in range(4):
        for dim in range(action_dim):
            other = actions.clone()
            other[:, t, dim] = torch.where(actions[:, t, dim] > 0, -1.0, 1.0)
            after = tdm(observations, other)
            for changed in differences(after, before):
                assert (changed[:, :t] == 0).all()
                assert (changed[:, t:] > 1e-6).all()
        other = observations.clone()
        other[:, t] += torch.randn(OBS_DIM)
        after = tdm(other, actions)
        for changed in differences(after, before):
            assert (changed[:, :t] == 0).all()
            assert (changed[:, t:] > 1e-6).all()


@variants
def test_windows_do_not_see_each_other(action_dim: int, can_terminate: bool, predict_change: bool):
    tdm = make_tdm(action_dim, can_terminate, predict_change)
    observations, actions = make_window(tdm, sequences=5)
    whole = tdm(observations, actions)
    for b in range(5):
        alone = tdm(observations[b : b + 1], actions[b : b + 1])
        torch.testing.assert_close(alone.observations[0], whole.observations[b])
        torch.testing.assert_close(alone.rewards[0], whole.rewards[b])


def slow_forward(tdm: TDM, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """One window [L, M], [L, N]: tokens put in a row one by one, all outputs computed -> next states, rewards."""
    dims, bins = tdm.action_dim, tdm.config.bins
    tokens = []
    for state, action in zip(observations, actions, strict=True):
        tokens.append(tdm.state_embedding.weight @ state + tdm.state_embedding.bias)
        for dim, value in enumerate(action.tolist()):
            k = round((value + 1) / 2 * (bins - 1))
            tokens.append(tdm.action_embedding.table.weight[dim * bins + k])
    tokens = [tdm.embedding_norm(token + tdm.position_embedding.weight[i]) for i, token in enumerate(tokens)]
    outputs = tdm.trunk(torch.stack(tokens).unsqueeze(0))[0]
    hidden = outputs[[t * (dims + 1) + dims for t in range(len(observations))]]
    return tdm.state_head(hidden), tdm.reward_head(hidden).squeeze(-1)


@variants
@torch.no_grad()
def test_forward_equals_tokens_put_in_a_row(action_dim: int, can_terminate: bool, predict_change: bool):
    tdm = make_tdm(action_dim, can_terminate, predict_change)
    observations, actions = make_window(tdm)
    got = tdm(observations, actions)
    for b in range(3):
        states, rewards = slow_forward(tdm, observations[b], actions[b])
        want = observations[b] + states if predict_change else states
        torch.testing.assert_close(got.observations[b], want)
        torch.testing.assert_close(got.rewards[b], rewards)


@torch.no_grad()
def test_a_joint_token_is_the_sum_of_a_step():
    tdm = make_tdm(joint_tokens=True)
    observations, actions = make_window(tdm)
    rows = tdm.action_embedding.table.weight
    steps = [observations[:, t] @ tdm.state_embedding.weight.T + tdm.state_embedding.bias for t in range(4)]
    for t in range(4):
        for dim in range(2):
            steps[t] = steps[t] + rows[dim * 7 + ((actions[:, t, dim] + 1) * 3).round().long()]
        steps[t] = tdm.embedding_norm(steps[t] + tdm.position_embedding.weight[t])
    hidden = tdm.trunk(torch.stack(steps, dim=1))
    torch.testing.assert_close(tdm(observations, actions).observations, tdm.state_head(hidden))


@pytest.mark.parametrize("predict_change", [False, True])
def test_the_heads_start_at_zero(predict_change: bool):
    tdm = make_tdm(predict_change=predict_change, awake=False)
    observations, actions = make_window(tdm)
    prediction = tdm(observations, actions)
    want = observations if predict_change else torch.zeros_like(observations)
    assert torch.equal(prediction.observations, want)
    assert (prediction.rewards == 0).all()
    assert (prediction.continuation_logits == 0).all()
    for head in (tdm.state_head, tdm.reward_head, tdm.continuation_head):
        hidden = [layer for layer in head if isinstance(layer, nn.Linear)][:-1]
        assert len(hidden) == 3
        assert all(layer.weight.std() > 0 for layer in hidden)


def test_embeddings_do_not_start_at_zero():
    tdm = make_tdm(awake=False, bins=256, embed_dim=64)
    for weight in (tdm.action_embedding.table.weight, tdm.position_embedding.weight, tdm.state_embedding.weight):
        assert abs(weight.std().item() - 0.02) < 0.004


def test_tasks_that_cannot_terminate_have_no_continuation_head():
    tdm = make_tdm(can_terminate=False)
    assert tdm(*make_window(tdm)).continuation_logits is None
    assert not any("continuation" in name for name, _ in tdm.named_parameters())


@pytest.mark.parametrize(("obs_dim", "action_dim", "parameters"), [(24, 6, 5_711_897), (6, 2, 5_415_431)])
def test_the_paper_s_size(obs_dim: int, action_dim: int, parameters: int):
    with torch.device("meta"):
        tdm = TDM(TDMConfig(), obs_dim, action_dim, can_terminate=False)
    assert sum(p.numel() for p in tdm.parameters()) == parameters


def test_dropout_of_trunk_and_heads():
    tdm = make_tdm(dropout=0.5, head_dropout=0.0).train()
    window = make_window(tdm)
    assert not torch.equal(tdm(*window).rewards, tdm(*window).rewards)
    tdm.trunk.eval()
    assert torch.equal(tdm(*window).rewards, tdm(*window).rewards)
    tdm = make_tdm(dropout=0.0, head_dropout=0.5).train()
    assert not torch.equal(tdm(*window).rewards, tdm(*window).rewards)
    assert torch.equal(tdm.eval()(*window).rewards, tdm(*window).rewards)


def test_other_shapes_are_refused():
    tdm = make_tdm()
    observations, actions = make_window(tdm)
    with pytest.raises(AssertionError, match="want"):
        tdm(observations, actions[:, :-1])
    with pytest.raises(AssertionError, match="want"):
        tdm(observations[..., :-1], actions)
    with pytest.raises(AssertionError, match="want"):
        start(tdm, observations)
