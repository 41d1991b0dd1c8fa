"""The Transformer Dynamics Model (paper, Eq. 3-5): what happens next, given what happened and what is done.

It reads L(N+1) tokens `s_1 a_1^1 .. a_1^N  s_2 a_2^1 ..`, or with `joint_tokens` their L sums. The hidden
state h_t is the trunk's output at the last token of step t; from it come the next state (Eq. 4), the mean reward
(Eq. 5) and, for tasks that can terminate, whether the episode continues.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from qttdm.common.models.dropout import Dropout
from qttdm.common.models.scale import Unit
from qttdm.common.models.tokenizer import ActionEmbedding, ActionTokenizer
from qttdm.common.models.transformer import (
    KeyValueCache,
    StateEmbedding,
    Transformer,
    TransformerConfig,
    init_weights,
    outside_autocast,
)
from qttdm.common.shapes import check_shape
from qttdm.common.trees import TensorTree


class TDMConfig(TransformerConfig):
    """Size of the TDM; defaults are the paper's (Table III)."""

    embed_dim: int = Field(default=256, gt=0)
    """D, features per token"""
    num_heads: int = Field(default=4, gt=0)
    """attention heads; embed_dim is divisible by it"""
    num_layers: int = Field(default=5, gt=0)
    """transformer blocks"""
    window: int = Field(default=20, gt=0)
    """L, time steps in a training window"""
    head_dim: int = Field(default=512, gt=0)
    """width of the hidden layers of each prediction head"""
    head_layers: int = Field(default=3, gt=0)
    """hidden layers of each prediction head"""
    head_dropout: float = Field(default=0.01, ge=0, lt=1)
    """on the hidden layers of each prediction head"""
    joint_tokens: bool = False
    """one token for each step, the sum of its embeddings; else one for the state and one for each action dimension"""
    predict_change: bool = False
    """the state head outputs s_{t+1} - s_t instead of s_{t+1}: most of a state stays as it is"""


@dataclass(frozen=True)
class Prediction:
    """What the TDM says of one or more steps; leading dimensions [B] or [B, L]."""

    observations: Tensor
    """next states, [..., M]"""
    rewards: Tensor
    """means of the reward's unit-variance Normal, [...]"""
    continuation_logits: Tensor | None
    """log-odds that the episode goes on, [...]; None for tasks that cannot terminate"""


@dataclass
class Rollout:
    """Where imagined sequences stand: the newest state of each, and the trunk's memory of the tokens so far."""

    observations: Tensor
    """[B, M]"""
    cache: KeyValueCache
    steps: int
    """steps taken from the root"""


class TDM(nn.Module):
    """f (Eq. 3), g (Eq. 4), p (Eq. 5) and the continuation head."""

    def __init__(self, config: TDMConfig, obs_dim: int, action_dim: int, can_terminate: bool) -> None:
        super().__init__()
        self.config, self.obs_dim, self.action_dim = config, obs_dim, action_dim
        dim = config.embed_dim
        self.tokenizer = ActionTokenizer(config.bins, config.interpolate)
        self.state_embedding = StateEmbedding(obs_dim, dim, config.state_hidden, config.normalise)
        self.action_embedding = ActionEmbedding(action_dim, self.tokenizer, dim)
        self.tokens = 1 if config.joint_tokens else action_dim + 1  # of a step
        self.position_embedding = nn.Embedding(config.window * self.tokens, dim)
        self.embedding_norm = nn.LayerNorm(dim)
        self.trunk = Transformer(config)
        self.apply(init_weights)
        self.state_head = prediction_head(config, obs_dim)
        self.reward_head = prediction_head(config, 1)
        self.reward_unit = Unit() if config.normalise else None
        self.continuation_head = prediction_head(config, 1) if can_terminate else None

    @property
    def window(self) -> int:
        """Return how many steps a sequence may have."""
        return self.config.window

    def forward(self, observations: Tensor, actions: Tensor) -> Prediction:
        """Predict from windows: observations [B, L, M], actions [B, L, N] in [-1, 1] -> Prediction [B, L, ..]."""
        check_shape(observations, "B L M", M=self.obs_dim)
        check_shape(actions, "B L N", B=observations.shape[0], L=observations.shape[1], N=self.action_dim)
        tokens = self._embed(observations, actions).flatten(1, 2)  # [B, L(N+1), D], or joint [B, L, D]
        tokens = tokens + self.position_embedding.weight[: tokens.shape[1]]
        hidden = self.trunk(self.embedding_norm(tokens), stride=self.tokens)  # [B, L, D]
        return self._predict(hidden, observations)

    def start(self, context: TensorTree) -> Rollout:
        """Encode current states [E, M], once for all sequences imagined from them: the root of imagination."""
        observations = context["observations"]
        check_shape(observations, "E M", M=self.obs_dim)
        cache = self.trunk.new_cache(len(observations), room=1)
        if not self.config.joint_tokens:
            token = self.state_embedding(observations).unsqueeze(1) + self.position_embedding.weight[:1]  # [E, 1, D]
            self.trunk(self.embedding_norm(token), cache=cache)
        return Rollout(observations, cache, steps=0)

    def select(self, rollout: Rollout, index: Tensor, room: int, out: Rollout | None = None) -> Rollout:
        """Copy sequences by number, index int64 [B], with room for `room` more steps; see contracts.DynamicsModel."""
        tokens = rollout.cache.length + room * self.tokens
        cache = rollout.cache.select(index, tokens, out.cache if out is not None else None)
        return Rollout(rollout.observations[index], cache, rollout.steps)

    def step(self, rollout: Rollout, actions: Tensor) -> Prediction:
        """Take actions [B, N] in [-1, 1]; `rollout` moves on to the predicted states.

        All tokens of a step are known when it is taken, so they go through the trunk together; without the state's in
        the first step, where `start` has encoded it, unless tokens are joint.
        """
        check_shape(actions, "B N", B=len(rollout.observations), N=self.action_dim)
        begun = rollout.steps == 0 and not self.config.joint_tokens
        embedded = self.action_embedding(actions) if begun else self._embed(rollout.observations, actions)
        end = (rollout.steps + 1) * self.tokens
        tokens = embedded + self.position_embedding.weight[end - embedded.shape[1] : end]  # [B, N or N+1 or 1, D]
        hidden = self.trunk(self.embedding_norm(tokens), stride=tokens.shape[1], cache=rollout.cache)  # [B, 1, D]
        prediction = self._predict(hidden.squeeze(1), rollout.observations)
        rollout.observations = prediction.observations
        rollout.steps += 1
        return prediction

    def state(self, rollout: Rollout) -> TensorTree:
        """Return the newest predicted states, `observations` [B, M]."""
        return {"observations": rollout.observations}

    def quantise(self, actions: Tensor) -> Tensor:
        """Return the actions that the model can tell apart, any shape."""
        return self.tokenizer.quantise(actions)

    def uniform(self, chance: Tensor) -> Tensor:
        """Return uniform actions, given uniforms in [0, 1), any shape."""
        return self.tokenizer.uniform(chance)

    def _embed(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Embed steps: [..., M] and [..., N] -> their tokens [..., N+1, D], or joint [..., 1, D]."""
        states = self.state_embedding(observations)
        if self.config.joint_tokens:
            return (states + self.action_embedding.sum(actions)).unsqueeze(-2)
        return torch.cat([states.unsqueeze(-2), self.action_embedding(actions)], dim=-2)

    def _predict(self, hidden: Tensor, observations: Tensor) -> Prediction:
        """Apply the heads: h_t [..., D] and s_t [..., M] -> Prediction [...].

        Outside of autocast: in bfloat16 a reward near 1 is a multiple of 0.008, and so is a state.
        """
        with outside_autocast(hidden.device):
            hidden = hidden.to(self.position_embedding.weight.dtype)
            state, scale = self.state_head(hidden), self.state_embedding.scale
            if self.config.predict_change:
                state = observations + (state if scale is None else state * scale.std)
            elif scale is not None:
                state = scale.undo(state)
            rewards = self.reward_head(hidden).squeeze(-1)
            return Prediction(
                observations=state,
                rewards=rewards if self.reward_unit is None else rewards * self.reward_unit.size,
                continuation_logits=self.continuation_head(hidden).squeeze(-1) if self.continuation_head else None,
            )


def prediction_head(config: TDMConfig, outputs: int) -> nn.Sequential:
    """Make MLP with LeakyReLU and dropout (paper: three hidden layers of 512); the last layer starts at zero."""
    layers: list[nn.Module] = []
    width = config.embed_dim
    for _ in range(config.head_layers):
        layers += [nn.Linear(width, config.head_dim), nn.LeakyReLU()]
        if config.head_dropout > 0:
            layers.append(Dropout(config.head_dropout))
        width = config.head_dim
    last = nn.Linear(width, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)
