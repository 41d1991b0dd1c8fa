"""Plan every decision (Algorithm 2), for E environments at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from qttdm.common.weights import Weights
from qttdm.planner_service.planners.mppi import Noise, Plan, Planner, PlanState, draw_noise
from qttdm.planner_service.policies.policy import Decisions, EpisodeState, freeze, seeded_generator


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
