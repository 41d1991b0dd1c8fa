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
from torch import Tensor, nn

from qttdm.common.config import Config
from qttdm.common.qt import QT
from qttdm.common.seeding import derive_seed
from qttdm.common.weights import Weights
from qttdm.planner_service.planner import Noise, Plan, Planner, PlanState, draw_noise


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
        # One graph, or an error: a break in it would be a wait for the device in the middle of a decision.
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        self.compiled = torch.compile(planner.plan, mode=mode, fullgraph=True) if planner.config.compile else None

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
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            if deadline is None and self.compiled is not None:
                explore = torch.tensor(explores, device=self.device)
                plan = self._plan_padded(on_device, state, noise, explore)
            else:  # with a deadline never compiled: that would be for one number of iterations
                mixed = explores[0] if len(set(explores)) == 1 else torch.tensor(explores, device=self.device)
                more = None if deadline is None else until(deadline, self.device)
                plan = self.planner.plan(on_device, state, noise, mixed, more)
        for episode, own in zip(episodes, plan.state.split(), strict=True):
            episode.plan = own
        numbers = torch.stack([plan.values, plan.terminal, plan.std.mean(dim=(1, 2))]).float().cpu().numpy()  # [3, E]
        values, terminal, std_mean = numbers
        return Decisions(plan.actions.cpu().numpy(), values, plan.iterations, terminal, std_mean)

    def _plan_padded(self, observations: Tensor, state: PlanState, noise: Noise, explore: Tensor) -> Plan:
        """The compiled plan, of the next power of two of environments: a graph is captured for each size that comes.

        Copies of the first environment fill up; an environment's plan does not depend on the company. What comes out
        is copied: it belongs to the CUDA graph, whose next replay overwrites it.
        """
        assert self.compiled is not None
        environments = len(observations)
        index = torch.zeros(next_power_of_two(environments), dtype=torch.long, device=self.device)
        index[:environments] = torch.arange(environments, device=self.device)

        def filled(part: Tensor) -> Tensor:
            return part[index]

        wide = PlanState(*map(filled, vars(state).values()))
        plan = self.compiled(filled(observations), wide, Noise(*map(filled, vars(noise).values())), filled(explore))

        def own(part: Tensor) -> Tensor:
            return part[:environments].clone()

        after = PlanState(*map(own, vars(plan.state).values()))
        return Plan(own(plan.actions), after, own(plan.values), own(plan.terminal), own(plan.std), plan.iterations)

    def warm_up(self, environments: int) -> None:
        """Decide once for every size of batch up to that many, so that nobody waits for compilation later."""
        size, most = 1, next_power_of_two(environments) if self.compiled is not None else 1
        while size <= most:
            episodes = [self.start(seed, 0.0) for seed in range(size)]
            for _ in range(3 if self.compiled is not None else 1):  # compile, capture, replay
                self.decide(episodes, np.zeros((size, self.planner.dynamics.obs_dim), np.float32))
            size *= 2

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

    def warm_up(self, environments: int) -> None:
        """Decide once for so many."""
        episodes = [self.start(seed, 0.0) for seed in range(environments)]
        self.decide(episodes, np.zeros((environments, self.qt.obs_dim), np.float32))

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


def next_power_of_two(number: int) -> int:
    """The smallest that is not less than `number`, which is at least 1."""
    return 1 << (number - 1).bit_length()


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
