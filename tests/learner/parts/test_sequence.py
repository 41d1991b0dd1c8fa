"""learner/parts/sequence.py: the loss against a loop over single tokens, and what counts as known."""

import numpy as np
import pytest
import torch

from qttdm.common.contracts import vector_data
from qttdm.common.episode import Episode
from qttdm.learner.parts.sequence import SequenceLearner, SequenceLearnerConfig
from qttdm.replay.buffer import Replay, ReplayConfig
from tests.fakes import tiny_sequence_model

M, N, L, DISCOUNT = 3, 2, 4, 0.9
ENDS = (True, False, False)  # which of three episodes the task itself ended
LENGTHS = (6, 3, 9)


def replay(seed: int = 0) -> Replay:
    rng = np.random.default_rng(seed)
    made = Replay(ReplayConfig(capacity=100), vector_data(M, N, L, DISCOUNT, ends=True), seed)
    for number, (length, ended) in enumerate(zip(LENGTHS, ENDS, strict=True)):
        observations = rng.uniform(-1, 1, (length + 1, M)).astype(np.float32)
        actions = rng.uniform(-1, 1, (length, N)).astype(np.float32)
        rewards = rng.uniform(0, 1, length).astype(np.float32)
        made.add(Episode(observations, actions, rewards, ended, 0, number=number))
    return made


def batch_of(seed: int = 0, size: int = 64) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in replay(seed).sample(size).items()}


def learner(**settings: float) -> SequenceLearner:
    model = tiny_sequence_model(0, window=L)
    model.requires_grad_(True)
    return SequenceLearner(SequenceLearnerConfig(**settings), model, DISCOUNT)


def test_batches_say_how_their_episodes_end():
    stored, batch = replay(), batch_of(size=200)
    seen = set()
    for row in range(200):
        left, ends = int(batch["left"][row]), bool(batch["ends"][row])
        steps = int(batch["mask"][row].sum())
        assert steps == min(L, left)
        if left <= L:  # the episode's last observation is in the window
            assert torch.equal(batch["observations"][row, left], batch["last_observations"][row])
            assert batch["terminated"][row, left - 1] == ends
        seen.add((left, ends))
    assert seen == {(left, ends) for length, ends in zip(LENGTHS, ENDS, strict=True) for left in range(1, length + 1)}
    assert "left" not in Replay(stored.config, vector_data(M, N, L, DISCOUNT), 0).data.observations


def test_returns_after_a_step_are_known_unless_a_time_limit_cuts_them_off():
    """0.9^6 = 0.53 and 0.9^7 = 0.48: with `cut_value` 0.5 seven decisions must follow."""
    part, batch = learner(cut_value=0.5), batch_of()
    values, known = part.values(batch), part.values_known(batch)
    for row in range(len(known)):
        for step in range(L):
            left = int(batch["left"][row]) - step
            want = left >= 1 and (bool(batch["ends"][row]) or left >= 7)
            assert bool(known[row, step]) == want
            if want and step + 1 < L and left > 1:
                later = batch["returns_to_go"][row, step + 1]  # what is left from the next step on
                assert values[row, step].item() == pytest.approx(later.item(), abs=1e-5)
    ended = batch["terminated"] & batch["mask"]
    assert values[ended].abs().max() < 1e-6


@pytest.mark.parametrize("goal_share", [0.0, 1.0])
def test_the_loss_against_a_loop(goal_share):
    weights = {"observation_weight": 1.5, "action_weight": 5.0, "reward_weight": 0.7, "value_weight": 0.3}
    part, batch = learner(goal_share=goal_share, **weights), batch_of(size=6)
    model = part.network
    loss, metrics = part.loss(batch)
    values, known = part.values(batch), part.values_known(batch)
    total, tokens, of_kind, going_on = 0.0, 0, {"observation": [], "action": []}, []
    for row in range(6):
        goal = model.tokens.encode(batch["last_observations"][row : row + 1]) if goal_share else None
        sequence: list[int] = []
        for step in range(int(batch["mask"][row].sum()) + 1):
            observed = model.tokens.encode(batch["observations"][row, step][None])[0].tolist()
            acted = [] if step == L else model.tokens.encode(batch["actions"][row, step][None], M)[0].tolist()
            exists = step < L and bool(batch["mask"][row, step])
            for kind, bins in (("observation", observed), ("action", acted if exists else [])):
                for token in bins:
                    if sequence:
                        logits = model.next(model.begin(torch.tensor([sequence]), goal))[0]
                        nats = -logits.log_softmax(0)[token].item()
                        total, tokens = total + weights[f"{kind}_weight"] * nats, tokens + 1
                        of_kind[kind].append(nats)
                    sequence.append(token)
            if not exists:
                break
            outcome = model.outcome(model.begin(torch.tensor([sequence]), goal).hidden)
            for name, number, counts in (
                ("rewards", batch["rewards"][row, step], True),
                ("values", values[row, step], bool(known[row, step])),
            ):
                if counts:
                    column = model.column(name)
                    token = int(model.tokens.encode(number[None], column))
                    total -= weights[f"{name[:-1]}_weight"] * outcome.logits[name][0].log_softmax(0)[token].item()
                    tokens += 1
            sign = -1.0 if batch["terminated"][row, step] else 1.0
            going_on.append(-torch.nn.functional.logsigmoid(sign * outcome.continuation_logits[0]).item())
    assert loss.item() == pytest.approx(total / tokens + float(np.mean(going_on)), rel=1e-4)
    assert metrics["loss_observation_tokens"].item() == pytest.approx(np.mean(of_kind["observation"]), rel=1e-4)
    assert metrics["loss_action_tokens"].item() == pytest.approx(np.mean(of_kind["action"]), rel=1e-4)
    assert metrics["loss_going_on"].item() == pytest.approx(np.mean(going_on), rel=1e-4)


def test_bins_are_fitted_to_what_exists():
    part = learner()
    part.prepare(iter(lambda: replay().sample(32), None))
    tokens = part.network.tokens
    observations = batch_of(size=500)["observations"][:, 0].numpy()
    assert tokens.low[:M].tolist() == pytest.approx(observations.min(axis=0).tolist())
    assert tokens.high[:M].tolist() == pytest.approx(observations.max(axis=0).tolist())
    assert 0 < tokens.low[part.network.column("rewards")] < tokens.high[part.network.column("rewards")] <= 1


def test_it_learns_what_follows_and_goes_on_exactly_after_a_resume():
    torch.manual_seed(0)
    part, batch = learner(learning_rate=3e-3), batch_of(size=32)
    first = part.update(batch, 0.0)
    for _ in range(60):
        last = part.update(batch, 0.0)
    assert last["loss_observation_tokens"] < 0.8 * first["loss_observation_tokens"]
    other = learner(learning_rate=3e-3)
    other.load_state(part.state())
    torch.manual_seed(1)
    mine = part.update(batch, 0.0)
    torch.manual_seed(1)
    theirs = other.update(batch, 0.0)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
