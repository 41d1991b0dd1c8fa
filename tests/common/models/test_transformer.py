"""common/models/transformer.py against attention written as loops, and its optimisations against doing all the work."""

import math

import pytest
import torch
from torch import Tensor, nn

from qttdm.common.config import ConfigError, validate
from qttdm.common.models.dropout import Dropout
from qttdm.common.models.transformer import (
    RotaryTrunkConfig,
    StateEmbedding,
    Transformer,
    TransformerConfig,
    causal_bias,
    causal_mask,
    init_weights,
)

TOKENS = 12


def make_trunk(
    embed_dim: int = 16, num_heads: int = 4, num_layers: int = 3, dropout: float = 0.0, seed: int = 0
) -> Transformer:
    """With weights large enough that every part of it matters."""
    torch.manual_seed(seed)
    trunk = Transformer(
        TransformerConfig(embed_dim=embed_dim, num_heads=num_heads, num_layers=num_layers, dropout=dropout)
    )
    with torch.no_grad():
        for p in trunk.parameters():
            p.normal_(std=0.4)
    return trunk


def make_input(sequences: int = 3, tokens: int = TOKENS, dim: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(sequences, tokens, dim, generator=torch.Generator().manual_seed(seed))


def slow_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def slow_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return layer.weight @ x + layer.bias


def slow_gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def slow_trunk(trunk: Transformer, tokens: Tensor) -> Tensor:
    """One sequence [S, D], one token, one head and one key at a time."""
    xs = list(tokens)
    heads, dim = trunk.config.num_heads, trunk.config.embed_dim
    for block in trunk.blocks:
        qkv = [slow_linear(slow_norm(x, block.norm_1), block.attention.qkv).split(dim) for x in xs]
        after = []
        for t, x in enumerate(xs):
            outputs = []
            for head in range(heads):
                part = slice(head * dim // heads, (head + 1) * dim // heads)
                query = qkv[t][0][part]
                scores = [(query @ qkv[s][1][part] / math.sqrt(dim // heads)).exp() for s in range(t + 1)]
                outputs.append(sum(score * qkv[s][2][part] for s, score in enumerate(scores)) / sum(scores))
            x = x + slow_linear(torch.cat(outputs), block.attention.projection)
            hidden = slow_gelu(slow_linear(slow_norm(x, block.norm_2), block.mlp[0]))
            after.append(x + slow_linear(hidden, block.mlp[2]))
        xs = after
    return torch.stack([slow_norm(x, trunk.norm) for x in xs])


@pytest.mark.parametrize(("num_heads", "num_layers"), [(1, 1), (4, 1), (2, 2)])
@torch.no_grad()
def test_equals_attention_written_as_loops(num_heads: int, num_layers: int):
    trunk = make_trunk(8, num_heads, num_layers).double().eval()
    x = make_input(2, 5, 8).double()
    want = torch.stack([slow_trunk(trunk, sequence) for sequence in x])
    torch.testing.assert_close(trunk(x), want)
    one_by_one, cache = [], trunk.new_cache(2, 5)
    for t in range(5):
        one_by_one.append(trunk(x[:, t : t + 1], cache=cache))
    torch.testing.assert_close(torch.cat(one_by_one, 1), want)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, 7, 12])
@pytest.mark.parametrize("stride", [1, 2, 3, 7])
def test_reading_some_outputs_equals_computing_all_and_slicing(stride: int, tokens: int, training: bool):
    trunk = make_trunk().train(training)
    x = make_input(tokens=tokens)
    full = trunk(x)
    want = full[:, (tokens - 1) % stride :: stride]
    got = trunk(x, stride=stride)
    torch.testing.assert_close(got, want)
    # and so do the gradients
    upstream = torch.randn_like(want)
    want_grads = torch.autograd.grad(want, list(trunk.parameters()), upstream)
    got_grads = torch.autograd.grad(got, list(trunk.parameters()), upstream)
    for got_grad, want_grad in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 4])
def test_batch_independence(stride: int):
    trunk, x = make_trunk().eval(), make_input(5)
    whole = trunk(x, stride=stride)
    alone = torch.cat([trunk(row.unsqueeze(0), stride=stride) for row in x])
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("changed", [0, 1, 6, TOKENS - 1])
@torch.no_grad()
def test_a_token_changes_nothing_before_it_and_everything_after(changed: int):
    trunk, x = make_trunk().eval(), make_input()
    other = x.clone()
    other[:, changed] += torch.randn(16)  # not a constant, which a LayerNorm removes
    difference = (trunk(x) - trunk(other)).abs().amax(dim=(0, 2))  # [S]
    assert (difference[:changed] == 0).all()
    assert (difference[changed:] > 1e-4).all()


@pytest.mark.parametrize("split", [[12], [1] * 12, [1, 3, 4, 4], [4, 4, 4], [5, 7], [11, 1]])
@torch.no_grad()
def test_a_cache_continues_the_sequence(split: list[int]):
    trunk, x = make_trunk().eval(), make_input()
    full = trunk(x)
    cache, start = trunk.new_cache(len(x), room=TOKENS), 0
    for size in split:
        got = trunk(x[:, start : start + size], cache=cache)
        torch.testing.assert_close(got, full[:, start : start + size])
        start += size
        assert cache.length == start


@pytest.mark.parametrize("split", [[12], [1] * 12, [1, 3, 4, 4]])
@torch.no_grad()
def test_a_cache_under_autocast_is_bfloat16_and_continues_the_sequence(split: list[int]):
    trunk, x = make_trunk().eval(), make_input()
    exact = trunk(x)
    with torch.autocast("cpu", torch.bfloat16):
        full = trunk(x)
        cache = trunk.new_cache(len(x), room=TOKENS)
        parts = [trunk(part, cache=cache) for part in x.split(split, dim=1)]
        wide = cache.select(torch.arange(len(x)).repeat_interleave(2), room=TOKENS)
    assert {layer.dtype for layer in cache.layers + wide.layers} == {torch.bfloat16}
    # bfloat16 keeps 8 bits; errors of 2^-8 add up over three blocks.
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=0.1, atol=0.1)
    torch.testing.assert_close(torch.cat(parts, dim=1), exact, rtol=0.1, atol=0.1)
    assert {layer.dtype for layer in trunk.new_cache(1, 1).layers} == {torch.float32}


@pytest.mark.parametrize("split", [[1, 3, 4, 4], [1, 11], [4, 8]])
@torch.no_grad()
def test_a_cache_and_a_stride_go_together(split: list[int]):
    trunk, x = make_trunk().eval(), make_input()
    full = trunk(x)
    cache, start = trunk.new_cache(len(x), room=TOKENS), 0
    for size in split:
        before = cache.select(torch.arange(len(x)), room=TOKENS)
        for stride, tokens in ((2, before), (size, cache)):
            got = trunk(x[:, start : start + size], stride=stride, cache=tokens)
            torch.testing.assert_close(got, full[:, start : start + size][:, (size - 1) % stride :: stride])
        start += size


@torch.no_grad()
def test_selecting_copies_sequences():
    trunk, x = make_trunk().eval(), make_input(2)
    cache = trunk.new_cache(2, room=4)
    trunk(x[:, :4], cache=cache)
    wide = cache.select(torch.arange(2).repeat_interleave(3), room=9)
    assert wide.length == 4
    rest = make_input(6, 5, seed=4)
    got = trunk(rest, cache=wide)
    want = trunk(torch.cat([x[:, :4].repeat_interleave(3, dim=0), rest], dim=1))[:, 4:]
    torch.testing.assert_close(got, want)
    # The source is as it was: it has no more tokens, and none of the copies' writes.
    assert cache.length == 4
    again = trunk(x[:, 4:8], cache=cache.select(torch.arange(2), room=8))
    torch.testing.assert_close(again, trunk(x)[:, 4:8])


@torch.no_grad()
def test_selecting_into_a_cache_uses_its_memory_again():
    trunk, x, other = make_trunk().eval(), make_input(), make_input(seed=9)
    root, everything = trunk.new_cache(len(x), room=5), torch.arange(len(x))
    trunk(x[:, :5], cache=root)
    cache = root.select(everything, room=TOKENS)
    memory = [layer.data_ptr() for layer in cache.layers]
    for continuation in (x, other, x):
        got = trunk(continuation[:, 5:], cache=cache)
        torch.testing.assert_close(got, trunk(torch.cat([x[:, :5], continuation[:, 5:]], dim=1))[:, 5:])
        cache = root.select(everything, room=TOKENS, out=cache)
        assert cache.length == 5
    assert [layer.data_ptr() for layer in cache.layers] == memory
    larger = root.select(everything, room=TOKENS + 1, out=cache)  # too small for it: not used
    assert larger.layers[0].data_ptr() != memory[0]


def rotary_trunk(reach: int | None = None) -> Transformer:
    torch.manual_seed(0)
    trunk = Transformer(TransformerConfig(embed_dim=16, num_heads=4, num_layers=3, dropout=0.0), True, reach).eval()
    with torch.no_grad():
        for p in trunk.parameters():
            p.normal_(std=0.4)
    return trunk


@torch.no_grad()
def test_rotary_attention_sees_distances_alone():
    """Position by position as in the paper's Eq. 15: and the same sequence later gives the same."""
    trunk, x = rotary_trunk(), make_input()
    attention = trunk.blocks[0].attention
    angles = [[p * 10_000.0 ** (-i / 2) for i in range(2)] for p in range(TOKENS)]

    def turned(vector: Tensor, p: int) -> Tensor:  # pairs (i, i + d/2)
        out = vector.clone()
        for i, a in enumerate(angles[p]):
            out[i] = vector[i] * math.cos(a) - vector[i + 2] * math.sin(a)
            out[i + 2] = vector[i] * math.sin(a) + vector[i + 2] * math.cos(a)
        return out

    q, k, v = (part.unflatten(-1, (4, 4)) for part in attention.qkv(x[0]).chunk(3, dim=-1))  # [S, heads, d]
    slow = torch.zeros(TOKENS, 4, 4)
    for t in range(TOKENS):
        for head in range(4):
            scores = torch.stack([turned(q[t, head], t) @ turned(k[s, head], s) / 2 for s in range(t + 1)])
            slow[t, head] = scores.softmax(0) @ v[: t + 1, head]
    turn = trunk._turn(TOKENS, None, x.device)
    got = attention(x[:1], 1, None, 0, turn)[0]
    torch.testing.assert_close(got, attention.projection(slow.flatten(1)))


@pytest.mark.parametrize("reach", [None, 3, 5, 40])
@pytest.mark.parametrize("stride", [1, 3])
@torch.no_grad()
def test_a_token_sees_as_far_as_it_reaches(reach: int | None, stride: int):
    """Also through a cache, and after what is out of reach has left."""
    trunk, x = rotary_trunk(reach), make_input()
    one = trunk.blocks[0].attention
    for t in range(TOKENS):  # of a single layer: what is further away may be anything
        changed = make_input(seed=5)
        first = 0 if reach is None else max(0, t + 1 - reach)
        changed[:, first : t + 1] = x[:, first : t + 1]
        turn = trunk._turn(TOKENS, None, x.device)
        torch.testing.assert_close(one(x, 1, None, 0, turn)[:, t], one(changed, 1, None, 0, turn)[:, t])
    full = trunk(x)
    cache, start = trunk.new_cache(len(x), TOKENS), 0
    for size in (3, 1, 2, 6):
        got = trunk(x[:, start : start + size], stride=min(stride, size), cache=cache)
        want = full[:, start : start + size][:, (size - 1) % min(stride, size) :: min(stride, size)]
        torch.testing.assert_close(got, want)
        start += size


@pytest.mark.parametrize("reach", [None, 5])
@torch.no_grad()
def test_tails_of_several_lengths_go_on_together(reach: int | None):
    trunk, x, rest = rotary_trunk(reach), make_input(), make_input(4, 6, seed=3)
    cache = trunk.new_cache(len(x), TOKENS)
    trunk(x, cache=cache)
    index, ends = torch.tensor([2, 0, 1, 2]), torch.tensor([12, 7, 0, 5])
    moved = cache.tails(index, ends, tokens=12, room=6)
    moved = moved.select(torch.tensor([0, 1, 2, 3]), room=18)
    got = torch.cat([trunk(rest[:, :4], cache=moved), trunk(rest[:, 4:], cache=moved)], dim=1)
    for i, (sequence, end) in enumerate(zip(index, ends, strict=True)):
        want = trunk(torch.cat([x[sequence, :end], rest[i]])[None])[0, end:]
        torch.testing.assert_close(got[i], want, rtol=1e-4, atol=1e-5)


def test_a_token_too_many_is_refused():
    trunk, x = make_trunk().eval(), make_input()
    with torch.no_grad():
        with pytest.raises(RuntimeError):
            trunk(x, cache=trunk.new_cache(len(x), room=TOKENS - 1))
        cache = trunk.new_cache(len(x), room=TOKENS - 1)
        trunk(x[:, 1:], cache=cache)
        with pytest.raises(
            RuntimeError, match=f"^1 more than the {TOKENS - 1} tokens in a cache with room for {TOKENS - 1}$"
        ):
            trunk(x[:, :1], cache=cache)


def test_dropout_acts_in_training_only():
    trunk, x = make_trunk(dropout=0.5), make_input(1)
    assert not torch.equal(trunk.train()(x), trunk(x))
    assert torch.equal(trunk.eval()(x), trunk(x))
    torch.testing.assert_close(trunk(x), make_trunk(dropout=0.0)(x))  # and scales nothing in eval
    torch.manual_seed(1)
    first = trunk.train()(x)
    torch.manual_seed(1)
    assert torch.equal(trunk(x), first)


@pytest.mark.parametrize("where", ["drop", "blocks.0.drop", "blocks.0.attention.drop"])
def test_dropout_reaches_embeddings_attention_and_residual_branches(where: str):
    trunk, x = make_trunk(num_layers=1, dropout=0.3).train(), make_input(1)
    drops = {name: module for name, module in trunk.named_modules() if isinstance(module, Dropout)}
    for drop in drops.values():
        drop.eval()
    assert torch.equal(trunk(x), trunk(x))
    drops[where].train()
    assert not torch.equal(trunk(x), trunk(x))


@pytest.mark.parametrize("stride", [1, 3])
def test_attention_with_dropout_differs_by_the_dropout_alone(stride: int):
    """It has products of its own on a CPU: without anything dropped, the same outputs and gradients."""
    trunk, x = make_trunk(dropout=0.3), make_input(2).requires_grad_()
    want = trunk.eval()(x, stride)
    [want_gradient] = torch.autograd.grad(want.square().sum(), x)
    for module in trunk.train().modules():
        if isinstance(module, Dropout):
            module.eval()
    got = trunk(x, stride)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), x)[0], want_gradient)


def test_a_single_token_in_training_is_dropped_too():
    trunk, x = make_trunk(dropout=0.5).train(), make_input(1, tokens=1)
    assert not torch.equal(trunk(x), trunk(x))


def test_initialisation():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(200, 300), nn.Embedding(300, 200), nn.LayerNorm(10))
    module.apply(init_weights)
    for weight in (module[0].weight, module[1].weight):
        assert abs(weight.mean().item()) < 5 * 0.02 / weight.numel() ** 0.5
        assert abs(weight.std().item() - 0.02) < 0.0005
    assert (module[0].bias == 0).all()
    assert (module[2].weight == 1).all()
    assert (module[2].bias == 0).all()


def test_a_trunk_whose_heads_do_not_divide_it_is_refused():
    with pytest.raises(ConfigError, match="num_heads may be one of"):
        validate(TransformerConfig, {"embed_dim": 10, "num_heads": 3, "num_layers": 1}, "here")
    with pytest.raises(ConfigError, match="embed_dim=12 with num_heads=4 is 3 a head; want an even number"):
        validate(RotaryTrunkConfig, {"embed_dim": 12, "num_heads": 4, "num_layers": 1}, "here")


def test_masks_first_needed_in_inference_serve_gradients_later():
    with torch.inference_mode():
        mask, bias = causal_mask(3, 7, 2, torch.device("cpu")), causal_bias(3, 7, 2, torch.device("cpu"), torch.float32)
    assert not mask.is_inference()
    scores = torch.zeros(3, 7, requires_grad=True)
    (scores + bias).softmax(dim=-1)[:, 0].sum().backward()
    assert scores.grad.abs().sum() > 0


def test_states_are_embedded_in_float32_under_autocast():
    """Two positions a millimetre apart, at 1 m: one number in bfloat16."""
    embedding = StateEmbedding(1, 4)
    near, far = torch.tensor([[1.0]]), torch.tensor([[1.001]])
    with torch.autocast("cpu", torch.bfloat16):
        apart = embedding(far) - embedding(near)
        assert torch.equal(
            torch.nn.functional.linear(far, embedding.weight), torch.nn.functional.linear(near, embedding.weight)
        )
    assert apart.dtype == torch.float32
    torch.testing.assert_close(apart, 0.001 * embedding.weight.T, atol=1e-6, rtol=0)


def test_a_hidden_layer_of_states_is_normalised_and_stays_in_float32():
    torch.manual_seed(0)
    embedding = StateEmbedding(3, 4, hidden=16, normalise=True)
    embedding.scale.fit_to(torch.randn(100, 3) * 5 + 2)
    states = torch.randn(7, 2, 3)
    linear, norm, _ = embedding.hidden
    x = (states - embedding.scale.mean) / embedding.scale.std @ linear.weight.T + linear.bias
    x = (x - x.mean(dim=-1, keepdim=True)) / (x.var(dim=-1, keepdim=True, correction=0) + norm.eps).sqrt()
    x = torch.where(x > 0, x, x.exp() - 1)
    want = x @ embedding.weight.T + embedding.bias
    torch.testing.assert_close(embedding(states), want, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert embedding(states).dtype == torch.float32
        torch.testing.assert_close(embedding(states), want, atol=1e-5, rtol=1e-5)
