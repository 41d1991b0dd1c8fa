"""Policies: what chooses actions for E environments at once, episode by episode.

`MPCPolicy` plans (Algorithm 2); `GreedyPolicy` is the paper's QT ablation. Both own their copy of the networks, in
eval mode, and take new weights between decisions. Both keep nothing else: what an episode carries from one decision to
the next is its `EpisodeState`, so that `decide` serves whichever episodes are due, and an episode's actions do not
depend on the company. `begin` and `act` are that for environments in lockstep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from pydantic import Field
from torch import nn

from common.config import Config
from common.qt import QT
from common.seeding import derive_seed
from common.weights import Weights
from planner_service.planner import Planner, PlanState, draw_noise


class EpsilonConfig(Config):
    """The QT ablation's epsilon-greedy collecting: chance of a uniform action, falling linearly."""

    start: float = Field(default=1.0, ge=0, le=1)
    end: float = Field(default=0.01, ge=0, le=1)
    share: float = Field(default=0.3, gt=0, le=1)
    """share of the training after which `end` is reached"""

    def at(self, progress: float) -> float:
        """Epsilon after that share of the training."""
        return self.start + (self.end - self.start) * min(1.0, progress / self.share)


class Policy(Protocol):
    """What actors need of a policy."""

    decided: Decisions | None
    """what `act` decided last; None if nothing yet, or if another process decides"""

    @property
    def weights_version(self) -> int:
        """Of the networks that act."""

    def load(self, weights: Weights) -> None:
        """Take new network weights."""

    def begin(self, seeds: list[int], exploration: float) -> None:
        """Start one episode in each of len(seeds) environments; exploration in [0, 1], 0 when evaluating."""

    def act(self, observations: np.ndarray) -> np.ndarray:
        """float32 [E, M] -> float32 [E, N] in [-1, 1]."""


@dataclass
class EpisodeState:
    """What one episode carries from decision to decision."""

    generator: torch.Generator
    exploration: float
    """in [0, 1], 0 when evaluating"""
    plan: PlanState | None = None
    """the warm start, E = 1; None where nothing is planned"""


@dataclass(frozen=True)
class Decisions:
    """One decision for each of some episodes."""

    actions: np.ndarray
    """float32 [E, N] in [-1, 1]"""
    values: np.ndarray
    """float32 [E], the return expected from here on, discounted: of the best sequence found, or the QT's"""
    iterations: int
    """the planner's; 0 where nothing is planned"""
    terminal: np.ndarray
    """float32 [E], the part of `values` that is the terminal value's; 0 where nothing is planned"""
    std: np.ndarray
    """float32 [E], of the planner's last Gaussian, mean over horizon and action dimensions; 0 likewise"""

    @property
    def finite(self) -> np.ndarray:
        """bool [E]: numbers that one can act on? Networks overflow on observations far beyond all they have seen."""
        return np.isfinite(self.actions).all(axis=1) & np.isfinite(self.values)


class MPCPolicy:
    """Plans every decision. Exploration > 0 turns on the planner's own: a drawn elite, some random bins."""

    def __init__(self, planner: Planner, device: torch.device, bfloat16: bool = False) -> None:
        """bfloat16: plan under autocast."""
        self.planner, self.device, self.bfloat16 = planner, device, bfloat16
        self.networks = nn.ModuleDict({"tdm": planner.dynamics})
        if planner.value_function is not None:
            self.networks["qt"] = planner.value_function
        freeze(self.networks)
        self.weights_version = 0
        self.decided: Decisions | None = None
        planner.prepare(device)
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        self.plan = torch.compile(planner.plan, mode=mode) if planner.config.compile else planner.plan

    def load(self, weights: Weights) -> None:
        weights.copy_into(self.networks)
        self.weights_version = weights.version

    def start(self, seed: int, exploration: float) -> EpisodeState:
        """Of an episode, at its start."""
        initial = PlanState.initial(1, self.planner.config, self.planner.dynamics.action_dim, self.device)
        return EpisodeState(seeded_generator(seed, self.device), exploration, initial)

    def decide(
        self, episodes: Sequence[EpisodeState], observations: np.ndarray, deadline: float | None = None
    ) -> Decisions:
        """One decision for each episode, in which it moves on: observations float32 [E, M].

        deadline: in time.monotonic()'s seconds; as many iterations as fit, but one at least.
        """
        noise = draw_noise([e.generator for e in episodes], self.planner.config, self.planner.dynamics.action_dim)
        state = PlanState.join([e.plan for e in episodes if e.plan is not None])
        on_device = torch.from_numpy(observations).to(self.device)
        explores = [e.exploration > 0 for e in episodes]
        explore = explores[0] if len(set(explores)) == 1 else torch.tensor(explores, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            if deadline is None:
                plan = self.plan(on_device, state, noise, explore)
            else:  # never compiled: that would be for one number of iterations
                plan = self.planner.plan(on_device, state, noise, explore, more=until(deadline, self.device))
        # Compiled, the tensors belong to a CUDA graph, whose next replay reads this state and overwrites them.
        s = plan.state
        after = PlanState(s.mean.clone(), s.elites.clone(), s.has_elites.clone())
        for episode, own in zip(episodes, after.split(), strict=True):
            episode.plan = own
        numbers = torch.stack([plan.values, plan.terminal, plan.std.mean(dim=(1, 2))]).float().cpu().numpy()  # [3, E]
        values, terminal, std_mean = numbers
        return Decisions(plan.actions.cpu().numpy(), values, plan.iterations, terminal, std_mean)

    def begin(self, seeds: list[int], exploration: float) -> None:
        self.episodes = [self.start(seed, exploration) for seed in seeds]

    def act(self, observations: np.ndarray) -> np.ndarray:
        self.decided = self.decide(self.episodes, observations)
        return self.decided.actions


class GreedyPolicy:
    """The QT alone: its greedy action, or with probability `exploration` a uniform one."""

    def __init__(self, qt: QT, device: torch.device) -> None:
        self.qt, self.device = qt, device
        self.networks = nn.ModuleDict({"qt": qt})
        freeze(self.networks)
        self.weights_version = 0
        self.decided: Decisions | None = None

    def load(self, weights: Weights) -> None:
        weights.copy_into(self.networks)
        self.weights_version = weights.version

    def start(self, seed: int, exploration: float) -> EpisodeState:
        """Of an episode, at its start."""
        return EpisodeState(seeded_generator(seed, torch.device("cpu")), exploration)

    @torch.no_grad()
    def decide(
        self, episodes: Sequence[EpisodeState], observations: np.ndarray, deadline: float | None = None
    ) -> Decisions:
        """One decision for each episode, in which it moves on: observations float32 [E, M]. It has no iterations, so
        that a deadline changes nothing."""
        bins, values = self.qt.choose(torch.from_numpy(observations).to(self.device))  # [E, N], [E]
        uniform = torch.stack([torch.rand(1 + self.qt.action_dim, generator=e.generator) for e in episodes])
        chance = uniform[:, :1].expand(-1, self.qt.action_dim)  # one draw decides for the whole action
        exploration = torch.tensor([[e.exploration] for e in episodes])  # [E, 1]
        bins = self.qt.tokenizer.replace(bins.cpu(), chance, uniform[:, 1:], exploration)
        nothing = np.zeros(len(episodes), np.float32)
        actions = self.qt.tokenizer.decode(bins).numpy()
        return Decisions(actions, values.float().cpu().numpy(), iterations=0, terminal=nothing, std=nothing)

    def begin(self, seeds: list[int], exploration: float) -> None:
        self.episodes = [self.start(seed, exploration) for seed in seeds]

    def act(self, observations: np.ndarray) -> np.ndarray:
        self.decided = self.decide(self.episodes, observations)
        return self.decided.actions


class RandomPolicy:
    """Uniform actions in [-1, 1]: the seed episodes."""

    weights_version = 0
    decided: Decisions | None = None

    def __init__(self, action_dim: int) -> None:
        self.action_dim = action_dim

    def load(self, weights: Weights) -> None:
        """Nothing here learns."""

    def begin(self, seeds: list[int], exploration: float) -> None:
        self.generators = [np.random.default_rng(derive_seed(seed, "random actions")) for seed in seeds]

    def act(self, observations: np.ndarray) -> np.ndarray:
        return np.stack([g.uniform(-1, 1, self.action_dim) for g in self.generators]).astype(np.float32)


def freeze(networks: nn.Module) -> None:
    """Eval mode, no gradients: a policy's networks are never trained."""
    networks.eval()
    networks.requires_grad_(False)


def until(deadline: float, device: torch.device) -> Callable[[int], bool]:
    """The planner's `more`: would another iteration, as long as those so far on average, end before the deadline?"""
    started = time.monotonic()

    def more(done: int) -> bool:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what is queued there has not taken its time yet
        now = time.monotonic()
        return now + (now - started) / done <= deadline

    return more


def seeded_generator(seed: int, device: torch.device) -> torch.Generator:
    """A generator of its own for one episode."""
    return torch.Generator(device).manual_seed(derive_seed(seed, "policy"))
