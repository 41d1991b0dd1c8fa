"""planner_service/planners/beam_search.py against a plain loop: no cache, one environment, one sequence at a time."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from qttdm.common.models.sequence_model import Outcome, SequenceModel, Sequences
from qttdm.common.trees import join, split, take
from qttdm.planner_service.planners.beam_search import BeamSearch, BeamSearchConfig, draw
from tests.fakes import tiny_sequence_model

DISCOUNT = 0.9
CPU = torch.device("cpu")


def generators(environments: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + e) for e in range(environments)]


def slow_draw(logits: Tensor, chance: float, nucleus: float, top_bins: int | None) -> int:
    """One draw, bin by bin."""
    probabilities = logits.softmax(0).tolist()
    ranked = sorted(range(len(probabilities)), key=lambda k: (-probabilities[k], k))
    kept, mass = [], 0.0
    for k in ranked:
        if kept and (mass >= nucleus or len(kept) == top_bins):
            break
        kept.append(k)
        mass += probabilities[k]
    below = 0.0
    for k in kept:
        below += probabilities[k]
        if below > chance * mass:
            return k
    return kept[-1]


def slow_search(planner: BeamSearch, prompt: list[int], chance: Tensor) -> tuple[list[int], float]:
    """One environment: each token reads its whole sequence anew; beams are lists. Returns first action and value."""
    model, c = planner.model, planner.config
    obs, slots = model.obs_dim, model.layout.slots

    def logits(tokens: list[int]) -> Tensor:
        return model.next(model.begin(torch.tensor([tokens])))[0]

    beams = [(list(prompt), 0.0, 1.0)] * (c.beams * c.expansion)  # tokens, return so far, weight of what comes
    for step in range(c.horizon):
        grown = []
        for number, (tokens, total, weight) in enumerate(beams):
            for n in range(slots - obs):
                action = slow_draw(logits(tokens), float(chance[step, number, n]), c.nucleus, c.top_bins)
                tokens = [*tokens, action]
            outcome = model.outcome(model.begin(torch.tensor([tokens])).hidden)
            reward, value = (planner._number(outcome, name).item() for name in ("rewards", "values"))
            total = total + weight * reward
            weight = weight * DISCOUNT
            if outcome.continuation_logits is not None:
                weight *= outcome.continuation_logits.sigmoid().item()
            grown.append((total + weight * value, tokens, total, weight))
        if step + 1 == c.horizon:
            break
        best = sorted(range(len(grown)), key=lambda i: -grown[i][0])[: c.beams]
        beams = []
        for i in best:
            _, tokens, total, weight = grown[i]
            for _ in range(obs):
                tokens = [*tokens, int(logits(tokens).argmax())]
            beams += [(tokens, total, weight)] * c.expansion
    value, tokens, *_ = max(grown, key=lambda g: g[0])
    return tokens[len(prompt) : len(prompt) + slots - obs], value


CONFIGS = [
    {"horizon": 3, "context": 1, "beams": 4, "expansion": 2, "nucleus": 0.7},
    {"horizon": 2, "context": 2, "beams": 3, "expansion": 3, "nucleus": 1.0, "top_bins": 3, "percentile": 0.6},
    {"horizon": 1, "context": 0, "beams": 5, "expansion": 1},
]


@pytest.mark.parametrize("settings", CONFIGS)
@pytest.mark.parametrize("can_terminate", [False, True])
def test_the_search_for_return_is_the_plain_loops(settings, can_terminate):
    """Over decisions, so that histories fill up and the oldest step leaves."""
    model = tiny_sequence_model(0, can_terminate=can_terminate)
    planner = BeamSearch(BeamSearchConfig(**settings), DISCOUNT, model)
    environments, draws = 3, generators(3)
    carry = planner.begin(environments, CPU)
    histories: list[list[int]] = [[] for _ in range(environments)]
    for decision in range(3):
        observations = torch.rand(environments, 3, generator=torch.Generator().manual_seed(decision)) * 2 - 1
        noise = planner.draw(draws)
        plan = planner.plan({"observations": observations}, carry, noise, False)
        now = model.tokens.encode(observations).tolist()
        for e in range(environments):
            first, value = slow_search(planner, histories[e] + now[e], noise["chance"][e])
            assert plan.actions[e].tolist() == model.tokens.decode(torch.tensor([first]), 3)[0].tolist()
            assert plan.values[e].item() == pytest.approx(value, abs=1e-4)
            histories[e] = (histories[e] + now[e] + first)[-5 * settings["context"] :] if settings["context"] else []
        carry = plan.carry


@pytest.mark.parametrize("with_goals", [False, True])
@pytest.mark.parametrize("mode", ["offline", "imitate"])
def test_an_environments_plan_does_not_depend_on_the_others(mode, with_goals):
    """Also where their histories are of different lengths, and only some have a goal."""
    model = tiny_sequence_model(1)
    config = BeamSearchConfig(mode=mode, horizon=2, context=2, beams=3, expansion=2)
    planner = BeamSearch(config, DISCOUNT, model)
    carries = []
    for e, decisions in enumerate((0, 1, 3)):
        carry = planner.begin(1, CPU, [-0.9, 0.3 * e, 0.5] if with_goals and e > 0 else None)
        draws = generators(3)[e : e + 1]
        for _ in range(decisions):
            carry = planner.plan({"observations": torch.full((1, 3), 0.1 * e)}, carry, planner.draw(draws), False).carry
        carries.append(carry)
    observations, noise = torch.rand(3, 3), planner.draw(generators(3))
    together = planner.plan({"observations": observations}, join(carries), noise, False)
    for e in range(3):
        alone = planner.plan(
            {"observations": observations[e : e + 1]}, carries[e], take(noise, torch.tensor([e])), False
        )
        assert torch.equal(alone.actions[0], together.actions[e])
        torch.testing.assert_close(alone.values[0], together.values[e])
        for name, tensor in alone.carry.items():
            assert torch.equal(tensor, split(together.carry)[e][name])


@pytest.mark.parametrize("goal", [False, True])
def test_enough_beams_find_the_likeliest_of_all_sequences(goal):
    model = tiny_sequence_model(2, obs_dim=1, action_dim=2, bins=3)
    goals = torch.tensor([[2]]) if goal else None
    config = BeamSearchConfig(mode="imitate", horizon=2, context=0, beams=3**5)
    planner = BeamSearch(config, DISCOUNT, model)
    carry = planner.begin(1, CPU, [0.9] if goal else None)
    plan = planner.plan({"observations": torch.tensor([[0.2]])}, carry, planner.draw(generators(1)), False)

    def likelihood(tail: tuple[int, ...]) -> float:
        tokens, total = model.tokens.encode(torch.tensor([[0.2]])), 0.0
        for token in tail:
            total += model.next(model.begin(tokens, goals)).log_softmax(-1)[0, token].item()
            tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
        return total

    best = max(itertools.product(range(3), repeat=5), key=likelihood)
    assert plan.actions.tolist() == model.tokens.decode(torch.tensor([best[:2]]), 1).tolist()
    assert plan.values.item() == pytest.approx(likelihood(best), abs=1e-4)


class Table(SequenceModel):
    """Bins of an action are its reward, observations count steps, and the value after a step is a table's."""

    def __init__(self, values: dict[tuple[int, int], float], goes_on: dict[int, float]) -> None:
        model = tiny_sequence_model(0, obs_dim=1, action_dim=1, bins=4)
        super().__init__(model.config, model.layout, can_terminate=True)
        self.table, self.goes_on, self.taken = values, goes_on, []
        self.tokens.centres[2:] = torch.arange(4.0)

    def next(self, sequences: Sequences) -> Tensor:
        return torch.zeros(len(sequences.hidden), 4)  # every action as likely

    def feed(self, sequences: Sequences, bins: Tensor) -> None:
        super().feed(sequences, bins)
        if sequences.tokens % 2 == 0:
            self.taken.append((sequences.tokens // 2 - 1, bins))

    def outcome(self, hidden: Tensor) -> Outcome:
        step, bins = self.taken[-1]

        def one_hot(numbers: list[float]) -> Tensor:
            return torch.nn.functional.one_hot(torch.tensor(numbers).long(), 4) * 100.0

        values = [self.table.get((step, int(k)), 0.0) for k in bins]
        logits = {"rewards": one_hot(bins.tolist()), "values": one_hot(values)}
        return Outcome(logits, torch.tensor([self.goes_on.get(int(k), 100.0) for k in bins]))


@pytest.mark.parametrize(
    ("horizon", "values", "goes_on", "first", "score"),
    [
        (1, {}, {}, 3, 3.0),  # the largest reward
        (1, {(0, 1): 3.0}, {}, 1, 1 + 0.9 * 3),  # 3.7 with what lies beyond
        (1, {(0, 1): 3.0}, {1: -100.0}, 3, 3.0),  # .. which does not count where the episode ends
        (2, {(0, 1): 3.0}, {}, 3, 3 + 0.9 * 3),  # the frontier's value alone counts, not the one on the way
        (2, {(1, 2): 3.0}, {}, 3, 3 + 0.9 * 2 + 0.81 * 3),
    ],
)
def test_scores_by_hand(horizon, values, goes_on, first, score):
    model = Table(values, goes_on)
    planner = BeamSearch(BeamSearchConfig(horizon=horizon, context=0, beams=16, expansion=2, nucleus=1.0), 0.9, model)
    chance = ((torch.arange(32) % 4 + 0.5) / 4).view(1, 1, 32, 1).expand(1, horizon, 32, 1)  # each action in turn
    plan = planner.plan({"observations": torch.zeros(1, 1)}, planner.begin(1, CPU), {"chance": chance}, False)
    assert model.tokens.encode(plan.actions, 1).item() == first
    assert plan.values.item() == pytest.approx(score, abs=1e-4)


def test_draws_against_a_loop():
    g = torch.Generator().manual_seed(0)
    logits, chance = 2 * torch.randn(300, 7, generator=g), torch.rand(300, generator=g)
    logits[:50, :4] = 1.0  # ties
    for nucleus, top_bins in ((0.3, None), (0.6, 2), (1.0, None), (1e-6, None)):
        want = [slow_draw(row, float(u), nucleus, top_bins) for row, u in zip(logits, chance, strict=True)]
        assert draw(logits, chance, nucleus, top_bins).tolist() == want


def test_an_exact_tie_of_the_two_likeliest_keeps_one_of_them():
    """The published truncation kept none, and drew from all bins."""
    logits = torch.tensor([[1.0, 1.0, -50.0]]).expand(64, 3)
    assert set(draw(logits, torch.linspace(0, 0.999, 64), 0.4, None).tolist()) == {0}
    assert set(draw(logits, torch.linspace(0, 0.999, 64), 0.6, None).tolist()) == {0, 1}


def test_the_same_seed_gives_the_same_plan_and_another_one_another():
    model = tiny_sequence_model(5, bins=32)
    planner = BeamSearch(BeamSearchConfig(horizon=3, context=1, beams=4, nucleus=1.0), DISCOUNT, model)
    values = []
    for seed in (0, 0, 1):
        noise = planner.draw([torch.Generator().manual_seed(seed)])
        values.append(planner.plan({"observations": torch.zeros(1, 3)}, planner.begin(1, CPU), noise, False).values)
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert math.isfinite(values[0].item())


def test_with_a_critic_the_newest_step_counts_by_its_q_alone():
    """Q says that bin 1 is best by far now; on the way its reward counts, 1, as any."""
    model, seen = Table({(0, 3): 3.0, (1, 3): 3.0}, {}), []

    def critic(observations: Tensor, actions: Tensor) -> Tensor:
        seen.append(observations.shape)
        return torch.where(actions.squeeze(1) == model.tokens.centres[1, 1], 9.0, 0.0)

    config = BeamSearchConfig(horizon=2, context=0, beams=8, expansion=4, nucleus=1.0)
    planner = BeamSearch(config, 0.9, model, critic)
    chance = ((torch.arange(32) % 4 + 0.5) / 4).view(1, 1, 32, 1).expand(1, 2, 32, 1)
    plan = planner.plan({"observations": torch.zeros(1, 1)}, planner.begin(1, CPU), {"chance": chance}, False)
    assert seen == [(32, 1), (32, 1)]
    assert model.tokens.encode(plan.actions, 1).item() == 1  # all that is kept at first
    assert plan.values.item() == pytest.approx(1 + 0.9 * 9, abs=1e-4)
