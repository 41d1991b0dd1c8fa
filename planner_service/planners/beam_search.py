"""Beam search over a sequence model's own sequences (Trajectory Transformer; Janner et al., 2021).

    offline    sample actions from the model, keep the sequences of highest predicted return
    imitate    keep the likeliest sequences, token by token; nothing is read of rewards

With a goal, an observation to be reached, in front of the sequence, what is likely leads there.

The score of a sequence of h+1 steps is the sum of discount^k r_k over its steps, and discount^(h+1) R_h, the return
that the model predicts after them; or, of TT(+Q), whose authors published no formula, the sum over all steps but the
newest, and discount^h Q(s_h, a_h). Each step weighs the probability that the episode lasts until it.

Each environment's sequence begins with its last C steps, which it carries in bins. Context is encoded once; beams are
copied out of its keys and values, and parents are gathered. Environments with histories of different lengths, and those
with a goal and those without, are searched one kind after the other (history.py).

Letters beyond the usual: C steps of context, B beams, X copies of a beam of which each samples its own action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from qttdm.common.config import Config
from qttdm.common.contracts import DynamicsModel, Plan, ValueFunction
from qttdm.common.models.sequence_model import Outcome, SequenceModel, Sequences
from qttdm.common.trees import TensorTree
from qttdm.planner_service.planners.history import no_history, plan_alike, recent, remember
from qttdm.planner_service.planners.returns import Returns, repeated

Critic = Callable[[Tensor, Tensor], Tensor]
"""observations [B, M], actions [B, N] -> the return of acting so, [B], in the rewards' unit"""


class BeamSearchConfig(Config):
    """How widely and how far is searched; defaults are the published ones."""

    mode: Literal["offline", "imitate"] = "offline"
    """what is looked for: return, or the likeliest behaviour"""
    horizon: int = Field(default=15, gt=0)
    """H, decisions"""
    context: int = Field(default=5, ge=0)
    """C, past decisions that the model is shown"""
    beams: int = Field(default=128, gt=0)
    """B, sequences kept"""
    expansion: int = Field(default=2, gt=0)
    """X, actions sampled for each of them (offline)"""
    nucleus: float = Field(default=0.4, gt=0, le=1)
    """actions are drawn from the likeliest bins that together have this probability, one at least"""
    top_bins: int | None = Field(default=None, gt=0)
    """and from so many at most; null: no matter how many"""
    percentile: float | None = Field(default=None, gt=0, lt=1)
    """rewards and values count at this share of their distribution; null: at their mean"""
    goal: list[float] | None = None
    """observation to be reached by episodes that are given no other, in the task's units; needs goals=true"""


class BeamSearch:
    """Searches in a sequence model; what it explores is what the model is unsure of.

    A plan's values are returns, or, when it imitates, log-likelihoods.
    """

    def __init__(
        self, config: BeamSearchConfig, discount: float, model: SequenceModel, critic: Critic | None = None
    ) -> None:
        """critic: values the newest step instead of the model's own reward and return: the paper's TT(+Q)."""
        self.config, self.discount, self.model, self.critic = config, discount, model, critic
        self.dynamics: DynamicsModel = model
        self.value_function: ValueFunction | None = None
        layout = model.layout
        self.slots, self.action_dim, self.first_action = layout.slots, layout.inputs["actions"], layout.first("actions")

    @property
    def horizon(self) -> int:
        """H, decisions."""
        return self.config.horizon

    def begin(self, environments: int, device: torch.device, goal: Any = None) -> dict[str, Tensor]:
        """Carry the bins of the last C steps, and a goal's, int64 [E, M].

        ValueError if the model was made without goals, or it is none.
        """
        carry = no_history(environments, self.config.context, self.slots, device)
        goal, dim = self.config.goal if goal is None else goal, self.model.obs_dim
        if self.model.goal_embedding is None:
            if goal is not None:
                raise ValueError("goal: the model was trained without goals; want one that was trained with goals=true")
            return carry
        wanted = torch.as_tensor(torch.zeros(dim) if goal is None else goal, dtype=torch.float32, device=device)
        if wanted.shape != (dim,) or not wanted.isfinite().all():
            raise ValueError(f"goal: got {goal}, want {dim} finite numbers, as observed")
        carry["goal"] = self.model.tokens.encode(wanted).expand(environments, -1)
        carry["has_goal"] = torch.full((environments,), goal is not None, device=device)
        return carry

    def draw(self, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Draw uniforms [E, H, B X, N], each environment's from its own generator; no search but for return samples."""
        c = self.config
        shape = (c.horizon if c.mode == "offline" else 0, c.beams * c.expansion, self.action_dim)
        return {"chance": torch.stack([torch.rand(shape, generator=g, device=g.device) for g in generators])}

    def plan(
        self,
        context: TensorTree,
        carry: TensorTree,
        noise: TensorTree,
        explore: bool | Tensor,
        more: Callable[[int], bool] | None = None,
    ) -> Plan:
        """Decide for each environment, as contracts.Planner says; a search has one iteration, and explores as it is."""
        alike = 2 * carry["steps"] + carry.get("has_goal", 0)  # [E]
        return plan_alike(self._plan, alike, context, carry, noise)

    def _plan(self, context: TensorTree, carry: TensorTree, noise: TensorTree, kind: int) -> Plan:
        """Decide for environments that are read together: with histories as long, and all or none with a goal."""
        steps, has_goal = divmod(kind, 2)
        now = self.model.tokens.encode(context["observations"])  # [E, M]
        prompt = torch.cat([recent(carry, steps), now], dim=1)
        root = self.model.begin(prompt, carry["goal"] if has_goal else None, self.horizon)
        if self.config.mode == "offline":
            bins, values = self._search_return(root, noise["chance"])
        else:
            bins, values = self._search_likelihood(root, len(now))
        actions = self.model.tokens.decode(bins, self.first_action)
        return Plan(actions, remember(carry, torch.cat([now, bins], dim=1)), values, {}, iterations=1)

    def _search_return(self, root: Sequences, chance: Tensor) -> tuple[Tensor, Tensor]:
        """Search for return from E roots; chance [E, H, B X, N]. Returns first actions' bins [E, N], and values [E]."""
        model, c = self.model, self.config
        environments, _, candidates, _ = chance.shape
        device = chance.device
        all_of = repeated(environments, candidates, device)
        copies = repeated(environments * c.beams, c.expansion, device)
        beams = model.select(root, all_of, c.horizon)
        returns, first = Returns(self.discount), all_of.new_zeros(0)
        for step in range(c.horizon):
            bins = []
            for n in range(self.action_dim):
                bins.append(draw(model.next(beams), chance[:, step, :, n].flatten(), c.nucleus, c.top_bins))
                model.feed(beams, bins[-1])
            first = torch.stack(bins, dim=-1) if step == 0 else first  # [E B X, N]
            outcome = model.outcome(beams.hidden)
            if self.critic is not None:  # its value holds the step's reward too
                scores = returns.total + returns.weight * self._criticise(beams, torch.stack(bins, dim=-1))
            returns.add(self._number(outcome, "rewards"), outcome.continuation_logits)
            if self.critic is None:
                scores = returns.total + returns.weight * self._number(outcome, "values")
            scores = scores.view(environments, candidates)
            if step + 1 == c.horizon:
                break
            best = scores.sort(dim=1, descending=True, stable=True).indices[:, : c.beams]  # of ties the first
            kept = (best + candidates * torch.arange(environments, device=device)[:, None]).flatten()
            returns.take(kept[copies])
            first = first[kept][copies]
            parents = model.select(beams, kept, 1)
            model.imagine(parents)
            beams = model.select(parents, copies, c.horizon - step - 1)
        values, order = scores.sort(dim=1, descending=True, stable=True)
        return first.view(environments, candidates, -1)[torch.arange(environments, device=device), order[:, 0]], values[
            :, 0
        ]

    def _search_likelihood(self, root: Sequences, environments: int) -> tuple[Tensor, Tensor]:
        """Search for the likeliest sequences from E roots. First bins [E, N], log-likelihoods [E]."""
        model, c = self.model, self.config
        beams, width = root, 1
        scores = torch.zeros(environments, 1, device=root.hidden.device)
        taken = root.bins.new_zeros(environments, 0)  # [E W, tokens so far]
        tokens = c.horizon * self.slots - model.obs_dim
        for token in range(tokens):
            of_bins = model.next(beams).float().log_softmax(dim=-1).view(environments, width, -1)
            joint = (scores.unsqueeze(-1) + of_bins).flatten(1)  # [E, W V]
            vocabulary = of_bins.shape[-1]
            scores, best = joint.topk(min(c.beams, joint.shape[1]), dim=1)
            parent = (best // vocabulary + width * torch.arange(environments, device=best.device)[:, None]).flatten()
            width = best.shape[1]
            taken = torch.cat([taken[parent], (best % vocabulary).view(-1, 1)], dim=1)
            if token + 1 < tokens:
                beams = model.select(beams, parent, 1)
                model.feed(beams, taken[:, -1])
        first = taken.view(environments, width, -1)[:, 0, : self.action_dim]
        return first, scores[:, 0]

    def _criticise(self, beams: Sequences, actions: Tensor) -> Tensor:
        """Value the newest observations and these actions' bins, int64 [B, N]: [B]."""
        assert self.critic is not None
        tokens = self.model.tokens
        return self.critic(tokens.decode(beams.bins), tokens.decode(actions, self.first_action))

    def _number(self, outcome: Outcome, name: str) -> Tensor:
        """Read a number off its distribution, [..]."""
        if self.config.percentile is None:
            return self.model.mean(outcome, name)
        probabilities = outcome.logits[name].float().softmax(dim=-1)
        return self.model.tokens.percentile(probabilities, self.model.column(name), self.config.percentile)


def draw(logits: Tensor, chance: Tensor, nucleus: float, top_bins: int | None) -> Tensor:
    """Draw bins from the likeliest ones: logits [B, V], uniforms [B] -> int64 [B].

    The likeliest bins whose probability together reaches `nucleus`, at most `top_bins`; never none.
    """
    probabilities, order = logits.float().softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = before < nucleus
    kept[:, 0] = True
    if top_bins is not None:
        kept[:, top_bins:] = False
    reached = (probabilities * kept).cumsum(dim=-1)  # [B, V]
    wanted = chance[:, None] * reached[:, -1:]
    rank = (reached <= wanted).sum(dim=-1).clamp(max=kept.sum(dim=-1) - 1)
    return order.gather(1, rank[:, None]).squeeze(1)
