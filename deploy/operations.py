"""Floating-point operations that the algorithm needs: of a decision, and of an update.

Counted are multiply-adds (2 each) of matrix products only; a linear layer with W weights needs 2 W per token forward,
and 4 W more backward.
"""

from __future__ import annotations

from dataclasses import dataclass

from qttdm.deploy.run_config import RunConfig


@dataclass(frozen=True)
class Macs:
    """Multiply-adds: of linear layers, and of attention's scores and weighted sums."""

    linear: int = 0
    attention: int = 0

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.linear + other.linear, self.attention + other.attention)

    def __rmul__(self, factor: int) -> Macs:
        return Macs(factor * self.linear, factor * self.attention)

    @property
    def flops(self) -> float:
        """Floating-point operations."""
        return 2.0 * (self.linear + self.attention)


def trunk_macs(dim: int, layers: int, tokens: int, read: int, pairs: int, read_pairs: int) -> Macs:
    """One sequence: in all blocks but the last every token; there, keys and values of all, the rest of what is read.

    A block has 12 D^2 weights, 2 D^2 of them for keys and values. pairs, read_pairs: query-key pairs in a block of the
    first kind and in the last.
    """
    linear = (layers - 1) * tokens * 12 * dim**2 + tokens * 2 * dim**2 + read * 10 * dim**2
    return Macs(linear, 2 * dim * ((layers - 1) * pairs + read_pairs))


def head_macs(inputs: int, hidden: int, layers: int, outputs: int) -> Macs:
    """A prediction head for one row."""
    return Macs(inputs * hidden + (layers - 1) * hidden * hidden + hidden * outputs)


def tdm_heads_macs(c: RunConfig, m: int) -> Macs:
    """The TDM's state and reward heads for one step."""
    t = c.tdm
    return head_macs(t.embed_dim, t.head_dim, t.head_layers, m) + head_macs(t.embed_dim, t.head_dim, t.head_layers, 1)


def qt_macs(c: RunConfig, m: int, tokens: int, attends: bool) -> Macs:
    """The QT reading a state and tokens-1 actions, Q-values at each; attends=False: a token alone is its own value."""
    d, layers = c.qt.embed_dim, c.qt.num_layers
    weights = layers * (12 if attends else 10) * d**2 + 2 * (d * d + d * c.qt.bins)
    pairs = tokens * (tokens + 1) // 2 if attends else 0
    return Macs(m * d + tokens * weights, 2 * d * layers * pairs)


def decision_macs(c: RunConfig, m: int, n: int, environments: int = 1) -> Macs:
    """Algorithm 2 for E environments: sampled sequences in every iteration, proposed and kept ones once."""
    p, t = c.planner, c.tdm
    root = Macs(m * t.embed_dim) + trunk_macs(t.embed_dim, t.num_layers, 1, 1, 1, 1)
    sequence = Macs()
    for h in range(p.horizon):
        # The first step adds N action tokens to the root's state token, a later one N+1 to the h (N+1) before it.
        seen, tokens = (h * (n + 1), n + 1) if h else (1, n)
        pairs = tokens * seen + tokens * (tokens + 1) // 2
        sequence += trunk_macs(t.embed_dim, t.num_layers, tokens, 1, pairs, seen + tokens)
        sequence += tdm_heads_macs(c, m) + Macs(m * t.embed_dim if h else 0)
    choose = qt_macs(c, m, n, attends=n > 1)
    value = choose if p.terminal_value == "greedy" else qt_macs(c, m, 1, attends=False)
    sampled = sum(p.samples_at(i) for i in range(p.iterations)) + p.keep_elites
    if c.agent == "tdm":
        each = sampled * sequence
    else:
        each = sampled * (sequence + value) + p.qt_samples * (sequence + p.horizon * choose + value)
    return environments * (root + each)


def update_macs(c: RunConfig, m: int, n: int, batch: int) -> Macs:
    """Eq. 8 forward and backward on B windows, Eq. 9 forward and backward on B * S states, two target passes."""
    t, length = c.tdm, c.tdm.window
    tokens = length * (n + 1)
    read_pairs = (n + 1) * length * (length + 1) // 2
    tdm = trunk_macs(t.embed_dim, t.num_layers, tokens, length, tokens * (tokens + 1) // 2, read_pairs)
    # Backward costs twice the forward pass; but nobody asks for the gradient with respect to the observations.
    tdm = 3 * (tdm + length * tdm_heads_macs(c, m)) + 2 * Macs(length * m * t.embed_dim)
    online = qt_macs(c, m, n, attends=n > 1 or c.qt.dropout > 0)
    qt = 3 * online + Macs(-m * c.qt.embed_dim) + qt_macs(c, m, 1, attends=False)
    if n > 1:  # targets of all dimensions but the last, from the later dimensions of the same step
        qt += qt_macs(c, m, n, attends=True)
    per_window = tdm if c.agent != "qt" else Macs()
    if c.agent != "tdm":
        per_window += c.learner.qt.states_per_window * qt
    return batch * per_window


def decision_flops(c: RunConfig, m: int, n: int, environments: int = 1) -> float:
    """Floating-point operations of one decision."""
    return decision_macs(c, m, n, environments).flops


def update_flops(c: RunConfig, m: int, n: int, batch: int) -> float:
    """Floating-point operations of one update."""
    return update_macs(c, m, n, batch).flops
