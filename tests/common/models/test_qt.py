"""common/models/qt.py: choosing with a cache is a greedy loop over full forward passes."""

import pytest
import torch
from torch import Tensor

from qttdm.common.models.qt import QT, QTConfig

OBS_DIM, BINS = 5, 7
dimensions = pytest.mark.parametrize("action_dim", [1, 2, 4])
trunks = pytest.mark.parametrize("separate_trunks", [False, True])


def make_qt(action_dim: int = 4, *, awake: bool = True, **config) -> QT:
    """Small; `awake`: with weights large enough that every part matters, the zero last layers of the heads included."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "num_heads": 4, "num_layers": 2, "bins": BINS} | config
    qt = QT(QTConfig(**sizes), OBS_DIM, action_dim)
    if awake:
        with torch.no_grad():
            for p in qt.parameters():  # biases and norms move little, or they alone decide which bin is best
                p.add_(torch.randn(p.shape), alpha=0.5 if p.dim() > 1 else 0.1)
    return qt.double().eval()


def make_states(count: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(count, OBS_DIM, generator=torch.Generator().manual_seed(seed)).double()


def slow_choose(
    qt: QT, observation: Tensor, chance: Tensor | None, which: Tensor | None, probability: float
) -> tuple[list[int], float]:
    """One state [M], all dimensions so far computed again for each."""
    bins: list[int] = []
    for dim in range(qt.action_dim):
        q = qt(observation.unsqueeze(0), qt.tokenizer.decode(torch.tensor([bins])).double())[:, 0, dim]  # [2, K]
        mean = [(q[0, k].item() + q[1, k].item()) / 2 for k in range(qt.config.bins)]
        value = max(mean)
        best = mean.index(value)
        if chance is not None and chance[dim] < probability:
            best = int(which[dim].item() * qt.config.bins)
        bins.append(best)
    return bins, value


@trunks
@dimensions
@torch.no_grad()
def test_choosing_equals_a_greedy_loop(action_dim: int, separate_trunks: bool):
    qt, states = make_qt(action_dim, separate_trunks=separate_trunks), make_states(40)
    bins, value = qt.choose(states)
    assert bins.dtype == torch.int64
    for b, state in enumerate(states):
        want_bins, want_value = slow_choose(qt, state, None, None, 0.0)
        assert bins[b].tolist() == want_bins
        assert value[b].item() == pytest.approx(want_value, rel=1e-9)
    assert len(set(map(tuple, bins.tolist()))) > 1  # otherwise this shows little
    torch.testing.assert_close(qt.value({"observations": states}), value)


@trunks
@dimensions
@torch.no_grad()
def test_replaced_bins_condition_the_later_dimensions(action_dim: int, separate_trunks: bool):
    qt, states = make_qt(action_dim, separate_trunks=separate_trunks), make_states(40)
    chance, which = torch.rand(2, 40, action_dim, generator=torch.Generator().manual_seed(2))
    bins, value = qt.choose(states, chance, which, 0.3)
    for b, state in enumerate(states):
        want_bins, want_value = slow_choose(qt, state, chance[b], which[b], 0.3)
        assert bins[b].tolist() == want_bins
        assert value[b].item() == pytest.approx(want_value, rel=1e-9)
    replaced = chance < 0.3
    assert torch.equal(bins[replaced], (which[replaced] * BINS).long())
    greedy = qt.choose(states)[0]
    before_any = replaced.long().cumsum(dim=1) == 0
    assert torch.equal(bins[before_any], greedy[before_any])
    if action_dim > 1:  # somewhere a bin that was not replaced differs because an earlier one was
        assert (bins != greedy)[~replaced].any()


@torch.no_grad()
def test_no_and_all_bins_replaced():
    qt, states = make_qt(), make_states()
    chance, which = torch.rand(2, 6, 4)
    assert torch.equal(qt.choose(states, chance, which, 0.0)[0], qt.choose(states)[0])
    assert torch.equal(qt.choose(states, chance, which, 1.0)[0], (which * BINS).long())


@torch.no_grad()
def test_states_do_not_see_each_other():
    qt, states = make_qt(), make_states()
    bins, value = qt.choose(states)
    first = qt.first_dimension_value(states)
    actions = qt.tokenizer.decode(bins)
    q = qt(states, actions[:, :-1])
    for b in range(len(states)):
        alone = states[b : b + 1]
        assert torch.equal(qt.choose(alone)[0][0], bins[b])
        torch.testing.assert_close(qt.choose(alone)[1][0], value[b])
        torch.testing.assert_close(qt.first_dimension_value(alone)[0], first[b])
        torch.testing.assert_close(qt(alone, actions[b : b + 1, :-1])[:, 0], q[:, b])


@torch.no_grad()
def test_valuing_is_not_random():
    qt, states = make_qt(), make_states()
    state = torch.get_rng_state()
    for value in (lambda: qt.value({"observations": states}), lambda: qt.first_dimension_value(states)):
        assert torch.equal(value(), value())
    assert torch.equal(torch.get_rng_state(), state)


@trunks
@dimensions
@torch.no_grad()
def test_valuing_by_the_first_dimension_is_its_maximum_of_the_mean(action_dim: int, separate_trunks: bool):
    qt, states = make_qt(action_dim, separate_trunks=separate_trunks), make_states()
    q = qt(states, torch.empty(6, 0))[:, :, 0]  # [2, B, K]
    torch.testing.assert_close(qt.first_dimension_value(states), q.mean(dim=0).amax(dim=-1))


@dimensions
@torch.no_grad()
def test_number_of_passes(action_dim: int):
    qt, passed = make_qt(action_dim), []
    qt.towers[0].trunk.register_forward_pre_hook(lambda _module, inputs: passed.append(inputs[0].shape[1]))
    qt.choose(make_states())
    assert passed == [1] * action_dim  # each token once
    passed.clear()
    qt.value({"observations": make_states()})
    assert len(passed) == action_dim
    passed.clear()
    qt.first_dimension_value(make_states())
    assert passed == [1]


@trunks
@dimensions
@torch.no_grad()
def test_a_dimension_sees_the_earlier_ones_only(action_dim: int, separate_trunks: bool):
    qt, states = make_qt(action_dim, separate_trunks=separate_trunks), make_states()
    bins = torch.randint(BINS, (6, action_dim - 1))
    before = qt(states, qt.tokenizer.decode(bins))
    assert before.shape == (2, 6, action_dim, BINS)
    for dim in range(action_dim - 1):
        other = bins.clone()
        other[:, dim] = (other[:, dim] + 1) % BINS
        changed = (qt(states, qt.tokenizer.decode(other)) - before).abs().amax(dim=-1)  # [2, B, N]
        assert (changed[:, :, : dim + 1] == 0).all()
        assert (changed[:, :, dim + 1 :] > 1e-6).all()
    # fewer dimensions taken: the same values for those there are
    for taken in range(action_dim):
        torch.testing.assert_close(qt(states, qt.tokenizer.decode(bins[:, :taken])), before[:, :, : taken + 1])


@dimensions
def test_the_last_dimension_is_never_an_input(action_dim: int):
    qt, states = make_qt(action_dim), make_states()
    qt(states, torch.rand(6, action_dim - 1)).square().sum().backward()
    gradient = qt.towers[0].action_embedding.table.weight.grad
    if action_dim == 1:
        assert gradient is None
        return
    used = gradient.view(action_dim, BINS, -1).abs().sum(dim=(1, 2))
    assert (used[:-1] > 0).all()
    assert used[-1] == 0
    before = qt.choose(states)
    with torch.no_grad():
        qt.towers[0].action_embedding.table.weight[-BINS:] = 100.0
    assert torch.equal(qt.choose(states)[0], before[0])


@torch.no_grad()
def test_where_all_bins_are_worth_the_same_a_random_one_is_chosen():
    """As the heads start, at zero: else the first bins, which argmax takes, are all that is tried until a reward."""
    qt, states = make_qt(action_dim=2, awake=False), make_states(4000)
    chance, which = torch.rand(2, 4000, 2, generator=torch.Generator().manual_seed(3)).double()
    bins, value = qt.choose(states, chance, which, 0.0)
    assert torch.equal(bins, (which * BINS).long())
    assert not value.any()
    [last.bias.data[2].add_(1e-6) for *_, last in qt.heads]  # worth a little more, and all choose it
    assert qt.choose(states, chance, which, 0.0)[0].eq(2).all()


@torch.no_grad()
def test_autocast_does_not_make_bins_tie():
    qt, states = make_qt(bins=256).float(), make_states(40).float()
    for head in qt.heads:
        head[-1].weight.mul_(0.05)
        head[-1].bias.fill_(50.0)  # large beside the differences between bins, as returns are
    actions = qt.tokenizer.decode(torch.randint(256, (40, 3)))
    want, chosen = qt(states, actions), qt.choose(states)[0]
    with torch.autocast("cpu", torch.bfloat16):
        got, chosen_narrow = qt(states, actions), qt.choose(states)[0]
        value = qt.first_dimension_value(states)
    assert got.dtype == value.dtype == torch.float32
    assert (got - want).abs().max() < 0.1 * want.std(dim=-1).mean()
    assert (got == got.amax(dim=-1, keepdim=True)).sum(dim=-1).float().mean() < 1.1
    # not biased towards the first bins, which argmax takes of those that tie
    assert abs(chosen_narrow.double().mean() - chosen.double().mean()) < 10


def test_the_two_heads_differ_and_start_at_zero():
    qt, states = make_qt(awake=False), make_states()
    actions = torch.rand(6, 3)
    assert (qt(states, actions) == 0).all()
    first, second = (head[0].weight for head in qt.heads)
    assert not torch.equal(first, second)
    one, other = make_qt()(states, actions)
    assert not torch.allclose(one, other)


@trunks
def test_a_head_learns_in_its_own_trunk(separate_trunks: bool):
    qt = make_qt(separate_trunks=separate_trunks)
    qt(make_states(), torch.rand(6, 3))[1].square().sum().backward()  # the second head's
    reached = {name for name, p in qt.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    trunks = {name.rpartition(".trunk.")[0] for name in reached if ".trunk." in name}
    assert trunks == {"towers.1" if separate_trunks else "towers.0"}
    assert len({id(head) for head in qt.heads}) == 2


def test_embeddings_do_not_start_at_zero():
    qt = make_qt(awake=False, bins=256, embed_dim=64)
    for dim, table in enumerate(qt.towers[0].action_embedding.table.weight.split(256)):
        assert abs(table.std().item() - 0.02) < 0.001, dim
        assert abs(table.mean().item()) < 0.001, dim


@pytest.mark.parametrize(("obs_dim", "action_dim", "parameters"), [(24, 6, 696_448), (6, 2, 562_560)])
def test_the_paper_s_size(obs_dim: int, action_dim: int, parameters: int):
    with torch.device("meta"):
        qt = QT(QTConfig(), obs_dim, action_dim)
    assert sum(p.numel() for p in qt.parameters()) == parameters


def test_other_shapes_are_refused():
    qt = make_qt()
    with pytest.raises(AssertionError, match="want"):
        qt.choose(make_states()[:, :-1])
    with pytest.raises(AssertionError, match="want"):
        qt(make_states()[0], torch.zeros(1, 3))
