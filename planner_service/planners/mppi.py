"""Model predictive control with a dynamics model and a terminal value (paper, Algorithm 2, Eq. 10).

Pure torch, for E environments at once, as a function of its arguments: all random numbers come in as `noise`, drawn
from one generator per environment, so an environment's plan does not depend on who else is in the batch.

Letters beyond the usual: I iterations, J Gaussian samples, Q candidates proposed by the value function (J_QT in the
paper), P the population of one iteration (samples, proposals, elites kept), T the elites (top-k).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from qttdm.common.config import Config
from qttdm.common.contracts import DynamicsModel, Plan, ValueFunction
from qttdm.common.shapes import check_shape
from qttdm.common.trees import TensorTree
from qttdm.planner_service.planners.returns import Returns, repeated, without_goal


class MPPIConfig(Config):
    """Algorithm 2's numbers; defaults are the paper's (Table II)."""

    kind: Literal["mppi"] = "mppi"
    """Algorithm 2, or random-shooting"""
    horizon: int = Field(default=3, gt=0)
    """H, decisions"""
    samples: int = Field(default=512, gt=0)
    """J, Gaussian action sequences an iteration"""
    qt_samples: int = Field(default=24, ge=0)
    """J_QT, sequences proposed by the value function, once a decision"""
    iterations: int = Field(default=6, gt=0)
    """I"""
    elites: int = Field(default=64, gt=0)
    """sequences the Gaussian is fitted to (top-k)"""
    init_std: float = Field(default=2.0, gt=0)
    """std of the first iteration, in action units; the action range is [-1, 1]"""
    min_std: float = Field(default=0.05, gt=0)
    """lower bound of the std, in action units"""
    max_std: float = Field(default=2.0, gt=0)
    """upper bound of the std, in action units"""
    temperature: float = Field(default=0.5, gt=0)
    """weight of an elite is exp(temperature * (value - best value))"""
    relative: bool = False
    """temperature counts in the elites' spread, best value less worst, whatever a task's rewards; else in return"""
    random_bins: float = Field(default=0.1, ge=0, le=1)
    """chance of a uniform bin, when the value function proposes and when collecting"""
    random_per_action: bool = False
    """random_bins is the chance that an action has any, however many dimensions it has; else of each dimension, as in
    the paper: with six, half of all actions have one"""
    keep_elites: int = Field(default=0, ge=0)
    """best sequences that compete again in the next iteration and, shifted, in the next decision"""
    average_depths: bool = False
    """a sequence's return is the mean of its estimates after 1 .. H decisions; else the one after H, as in the paper"""
    execute: Literal["mean", "elite"] = "mean"
    """in evaluation and serving: the elites' weighted mean, or an elite drawn by its weight, as in the paper"""
    compile: bool = False
    """torch.compile the whole decision as one graph, on a GPU a CUDA graph; needs a C++ compiler, minutes to start"""

    @model_validator(mode="after")
    def _elites_fit(self) -> MPPIConfig:
        population = self.samples + self.qt_samples
        if self.elites > population:
            raise ValueError(
                f"elites={self.elites} is more than samples + qt_samples = {population}; "
                f"want elites from 1 to {population}"
            )
        if self.keep_elites > self.elites:
            raise ValueError(
                f"keep_elites={self.keep_elites} is more than elites={self.elites}; "
                f"want keep_elites from 0 to {self.elites}"
            )
        if not self.min_std <= self.init_std <= self.max_std:
            raise ValueError(
                f"init_std={self.init_std} is not between min_std={self.min_std} and max_std={self.max_std}"
            )
        return self

    def make(
        self, discount: float, action_dim: int, dynamics: DynamicsModel, value_function: ValueFunction | None = None
    ) -> MPPI:
        """Make the planner with these numbers."""
        return MPPI(self, discount, action_dim, dynamics, value_function)


PRESETS: dict[str, dict[str, Any]] = {
    "exact": {"samples": 512, "qt_samples": 24, "iterations": 6, "elites": 64, "init_std": 2.0, "keep_elites": 0},
    "fast": {"samples": 96, "qt_samples": 32, "iterations": 3, "elites": 24, "init_std": 1.0, "keep_elites": 4},
}
"""How much a decision is thought about, by name: as in the paper, 3,096 imagined sequences; or 324, of which the QT's
own look over the whole range, so that the Gaussian can begin narrower, around the last decision's plan. For settings
that trade time for quality; all others stay. What was tried, and what `fast` loses: docs/results.md."""


@dataclass(frozen=True)
class _Population:
    """Candidate sequences [E, P, H, N], their estimated returns [E, P] and the terminal values' parts in these."""

    actions: Tensor
    values: Tensor
    terminal: Tensor

    def best(self, count: int) -> _Population:
        """Select the `count` highest-valued, best first."""
        values, index = self.values.topk(count, dim=1)  # [E, count]
        actions = self.actions.take_along_dim(index[:, :, None, None], dim=1)
        return _Population(actions, values, self.terminal.gather(1, index))


class MPPI:
    """Algorithm 2. `value_function=None` is the paper's TDM ablation: no proposals, no terminal value."""

    def __init__(
        self,
        config: MPPIConfig,
        discount: float,
        action_dim: int,
        dynamics: DynamicsModel,
        value_function: ValueFunction | None,
    ) -> None:
        if value_function is None:
            config = config.model_copy(update={"qt_samples": 0})
        self.config, self.discount, self.action_dim = config, discount, action_dim
        self.random_bins = config.random_bins
        """chance of a uniform bin, of each dimension"""
        if config.random_per_action:
            self.random_bins = 1.0 - (1.0 - config.random_bins) ** (1.0 / action_dim)
        self.dynamics: DynamicsModel = dynamics
        self.value_function: ValueFunction | None = value_function

    @property
    def horizon(self) -> int:
        """H, decisions."""
        return self.config.horizon

    def begin(self, environments: int, device: torch.device, goal: Any = None) -> dict[str, Tensor]:
        """Start without a plan: mean [E, H, N] and elites [E, keep_elites, H, N] of 0, has_elites bool [E]."""
        without_goal(goal)
        c, n = self.config, self.action_dim
        return {
            "mean": torch.zeros(environments, c.horizon, n, device=device),
            "elites": torch.zeros(environments, c.keep_elites, c.horizon, n, device=device),
            "has_elites": torch.zeros(environments, dtype=torch.bool, device=device),
        }

    def draw(self, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Draw one decision's noise, from each environment's generator and on its device.

        normal [E, I, J, H, N]. Uniforms: proposal [E, 2, H, Q, N] and action [E, 2, N], each whether a bin is replaced
        and by which; elite [E], which elite is executed.
        """
        c, n = self.config, self.action_dim
        normals, uniforms = [], []
        shape = (c.iterations, c.samples, c.horizon, n)
        sizes = [2 * c.horizon * c.qt_samples * n, 1, 2 * n]
        for g in generators:
            normals.append(torch.randn(shape, generator=g, device=g.device))
            uniforms.append(torch.rand(sum(sizes), generator=g, device=g.device))
        proposal, elite, action = torch.stack(uniforms).split(sizes, dim=1)
        return {
            "normal": torch.stack(normals),
            "proposal": proposal.view(len(generators), 2, c.horizon, c.qt_samples, n),
            "elite": elite.squeeze(1),
            "action": action.view(len(generators), 2, n),
        }

    def plan(
        self,
        context: TensorTree,
        carry: TensorTree,
        noise: TensorTree,
        explore: bool | Tensor,
        more: Callable[[int], bool] | None = None,
    ) -> Plan:
        """Decide for each environment, as contracts.Planner says.

        explore (collecting): an elite is drawn by its weight and random bins are mixed into its action; without
        (evaluating): config.execute.
        """
        c = self.config
        mean = carry["mean"]
        check_shape(mean, "E H N", H=c.horizon, N=self.action_dim)
        std = torch.full_like(mean, c.init_std)
        root = self.dynamics.start(context)

        memory: Any = None
        for iteration in range(c.iterations):
            # Line 2: Gaussian samples, discretised.
            # (Networks that overflow, on an absurd observation, end in NaN: no number of a bin, which would fail the
            # whole batch, and on a GPU the process. The environment's own outcome remains NaN.)
            samples = mean.unsqueeze(1) + std.unsqueeze(1) * noise["normal"][:, iteration]
            samples = self.dynamics.quantise(samples.nan_to_num())
            # Lines 3-9: their returns. Those of the proposals are the same in every iteration: the first one's
            # rollout takes them along.
            if iteration == 0:
                sampled, kept, proposals = self._evaluate_first(root, samples, carry, noise["proposal"])
            else:
                sampled, memory = self._evaluate(root, samples, memory)
            candidates = join(sampled, kept)
            # Line 10: refit the Gaussian to the elites.
            elites = join(candidates, proposals).best(c.elites)
            values = elites.values
            if c.relative:
                values = values / (values[:, :1] - values[:, -1:]).clamp_min(1e-8)
            weights = torch.softmax(c.temperature * values, dim=1)  # [E, T]
            mean, std = weighted_moments(elites.actions, weights)
            std = std.clamp(c.min_std, c.max_std)
            if c.keep_elites > 0:
                kept = candidates.best(c.keep_elites)
            if more is not None and not more(iteration + 1):
                break

        # Line 11: execute the first action; the rest is the next decision's warm start.
        after = {
            "mean": shift(mean),
            "elites": shift(elites.actions[:, : c.keep_elites]),
            "has_elites": torch.ones_like(carry["has_elites"]),
        }
        figures = {"terminal": elites.terminal[:, 0], "std": std.mean(dim=(1, 2))}
        actions = self._execute(mean, elites, weights, noise, explore)
        return Plan(actions, after, elites.values[:, 0], figures, iteration + 1)

    def _execute(
        self, mean: Tensor, elites: _Population, weights: Tensor, noise: TensorTree, explore: bool | Tensor
    ) -> Tensor:
        """Choose the first action, [E, N]: the mean's or a drawn elite's; exploring, the latter with random bins."""
        executed = mean[:, 0].clamp(-1, 1)  # weights may sum to 1 + 1e-7
        if explore is False and self.config.execute == "mean":
            return executed
        # Inverse transform: the first elite whose cumulated weight exceeds the uniform number.
        last = weights.shape[1] - 1
        drawn = (weights.cumsum(dim=1) <= noise["elite"][:, None]).sum(dim=1).clamp(max=last)  # [E]
        elite = elites.actions[:, :, 0].take_along_dim(drawn[:, None, None], dim=1).squeeze(1)  # [E, N]
        elite = self.dynamics.quantise(elite)
        if self.config.execute == "elite":
            executed = elite
        if explore is False:
            return executed
        chance, which = noise["action"].unbind(1)
        explored = torch.where(chance < self.random_bins, self.dynamics.uniform(which), elite)
        return explored if explore is True else torch.where(explore.unsqueeze(1), explored, executed)

    def _evaluate(self, root: Any, actions: Tensor, memory: Any) -> tuple[_Population, Any]:
        """Compute Eq. 10 for sequences [E, J, H, N]; also the rollout, whose memory the next call may use again.

        For tasks that can terminate, each reward counts with the probability that the episode lasted until then.
        """
        environments, samples, horizon, _ = actions.shape
        rollout = self.dynamics.select(root, repeated(environments, samples, actions.device), horizon, memory)
        returns = Returns(self.discount)
        depths: list[_Depth] = []
        for step in range(horizon):
            prediction = self.dynamics.step(rollout, actions[:, :, step].flatten(0, 1))
            returns.add(prediction.rewards, prediction.continuation_logits)
            depths.append(_Depth(returns.total, returns.weight, self.dynamics.state(rollout)))
        values, terminal = (part.view(environments, samples) for part in self._total(depths))
        return _Population(actions, values, terminal), rollout

    def _evaluate_first(
        self, root: Any, samples: Tensor, carry: TensorTree, uniform: Tensor
    ) -> tuple[_Population, _Population | None, _Population | None]:
        """Compute Eq. 10 for samples [E, J, H, N], the last decision's elites, and Q sequences that are proposed.

        A proposed action is the value function's greedy one in the state that the sequence has come to, some bins
        replaced by uniform ones. All sequences are imagined together.
        """
        c, value_function = self.config, self.value_function
        known = samples if c.keep_elites == 0 else torch.cat([samples, carry["elites"]], dim=1)
        environments, num_known = known.shape[:2]
        num_proposed = c.qt_samples
        rollout = self.dynamics.select(root, repeated(environments, num_known + num_proposed, known.device), c.horizon)
        returns = Returns(self.discount)
        depths: list[_Depth] = []
        taken = []
        for step in range(c.horizon):
            actions = known[:, :, step]  # [E, known, N]
            if value_function is not None and num_proposed > 0:
                states = {
                    name: part.unflatten(0, (environments, -1))[:, num_known:].flatten(0, 1)  # [E*Q, ..]
                    for name, part in self.dynamics.state(rollout).items()
                }
                chance, which = uniform[:, :, step].transpose(0, 1).flatten(1, 2)  # each [E*Q, N]
                proposed, _ = value_function.propose(states, chance, which, self.random_bins)
                actions = torch.cat([actions, proposed.unflatten(0, (environments, -1))], dim=1)  # [E, known + Q, N]
            taken.append(actions)
            prediction = self.dynamics.step(rollout, actions.flatten(0, 1))
            returns.add(prediction.rewards, prediction.continuation_logits)
            depths.append(_Depth(returns.total, returns.weight, self.dynamics.state(rollout)))
        sequences = torch.stack(taken, dim=2)  # [E, known + Q, H, N]
        values, terminal = (part.view(environments, -1) for part in self._total(depths))
        sizes = [samples.shape[1], c.keep_elites, num_proposed]
        parts = (part.split(sizes, dim=1) for part in (sequences, values, terminal))
        sampled, kept, proposals = (_Population(*group) for group in zip(*parts, strict=True))
        missing = ~carry["has_elites"][:, None]
        kept = _Population(kept.actions, kept.values.masked_fill(missing, -torch.inf), kept.terminal)
        return sampled, kept if c.keep_elites > 0 else None, proposals if num_proposed > 0 else None

    def _total(self, depths: Sequence[_Depth]) -> tuple[Tensor, Tensor]:
        """Add the terminal value: Eq. 10, [B], rewards so far and the value of where the sequence stands; that part.

        With `average_depths` the mean of all depths' (Efficient TD-MPC, arXiv 2605.16692), their values in one pass.
        """
        if self.value_function is None:
            return depths[-1].rewards, torch.zeros_like(depths[-1].rewards)
        used = depths if self.config.average_depths else depths[-1:]
        states = {name: torch.cat([depth.state[name] for depth in used]) for name in used[0].state}
        values = self.value_function.value(states).unflatten(0, (len(used), -1))  # [depths, B]
        terminal = torch.stack([depth.weight.expand_as(depth.rewards) for depth in used]) * values
        return (torch.stack([depth.rewards for depth in used]) + terminal).mean(dim=0), terminal.mean(dim=0)


@dataclass(frozen=True)
class _Depth:
    """Where imagined sequences stand after some decisions."""

    rewards: Tensor
    """discounted, so far, [B]"""
    weight: Tensor
    """of what follows, [B], or a scalar if nothing terminates"""
    state: TensorTree
    """[B, ..]"""


def join(a: _Population, b: _Population | None) -> _Population:
    """Concatenate both populations' sequences."""
    if b is None:
        return a
    return _Population(*(torch.cat(parts, dim=1) for parts in zip(vars(a).values(), vars(b).values(), strict=True)))


def weighted_moments(actions: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and std over elites: actions [E, T, H, N], weights [E, T] summing to 1 -> two of [E, H, N]."""
    w = weights[:, :, None, None]
    mean = (w * actions).sum(dim=1)
    variance = (w * (actions - mean.unsqueeze(1)).square()).sum(dim=1)
    return mean, variance.sqrt()


def shift(x: Tensor) -> Tensor:
    """Shift sequences [..., H, N] one step on; the step that comes in at the end is 0."""
    return torch.cat([x[..., 1:, :], torch.zeros_like(x[..., :1, :])], dim=-2)
