"""Plan every decision, with any planner: the policy that owns the networks and carries each episode's warm start."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qttdm.common.contracts import ArrayTree, DataSpec, Decisions, Plan, Planner
from qttdm.common.seeding import derive_seed
from qttdm.common.trees import TensorTree, join, split, take
from qttdm.common.weights import Weights


@dataclass
class PlannedEpisode:
    """What one episode carries from decision to decision."""

    generator: torch.Generator
    exploration: float
    """in [0, 1], 0 when evaluating; above 0 turns on the planner's own"""
    carry: TensorTree
    """the planner's, E = 1"""


class NetworkPolicy:
    """The networks of a policy: on its device, in eval mode and without gradients, for they are never trained."""

    def __init__(self, networks: nn.ModuleDict, data: DataSpec, device: torch.device) -> None:
        self.networks, self.data, self.device = networks.to(device).eval().requires_grad_(False), data, device
        self.weights_version = 0

    def load(self, weights: Weights) -> None:
        """Take new network weights."""
        weights.copy_into(self.networks)
        self.weights_version = weights.version


class PlanningPolicy(NetworkPolicy):
    """Plans for whichever episodes are due, in one batch; an episode's actions do not depend on the others."""

    def __init__(
        self,
        planner: Planner,
        networks: nn.ModuleDict,
        data: DataSpec,
        device: torch.device,
        bfloat16: bool = False,
        compile: bool = False,
    ) -> None:
        """networks: all that the planner uses, in the learner's order.

        bfloat16: plan under autocast. compile: one graph of the whole decision, on a GPU a CUDA graph.
        """
        super().__init__(networks, data, device)
        self.planner, self.bfloat16 = planner, bfloat16
        # One graph, or an error: a break in it would be a wait for the device in the middle of a decision.
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        self.compiled = torch.compile(planner.plan, mode=mode, fullgraph=True) if compile else None

    def start(self, seed: int, exploration: float, goal: Any = None) -> PlannedEpisode:
        """Make the carry of one episode. ValueError if the planner takes no such goal."""
        carry = self.planner.begin(1, self.device, goal)
        return PlannedEpisode(seeded_generator(seed, self.device), exploration, carry)

    def decide(
        self, episodes: Sequence[PlannedEpisode], observations: ArrayTree, deadline: float | None = None
    ) -> Decisions:
        """Decide once for each episode. Where the plan is not finite the episode keeps its warm start."""
        noise = self.planner.draw([e.generator for e in episodes])
        carry = join([e.carry for e in episodes])
        context = on_device(observations, self.device)
        explores = [e.exploration > 0 for e in episodes]
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            if deadline is None and self.compiled is not None:
                plan = self._plan_padded(context, carry, noise, torch.tensor(explores, device=self.device))
            else:  # with a deadline never compiled: that would be for one number of iterations
                mixed = explores[0] if len(set(explores)) == 1 else torch.tensor(explores, device=self.device)
                more = None if deadline is None else until(deadline, self.device)
                plan = self.planner.plan(context, carry, noise, mixed, more)
        names = list(plan.figures)
        numbers = torch.stack([plan.values, *plan.figures.values()]).float().cpu().numpy()  # [1 + F, E]
        figures = dict(zip(names, numbers[1:], strict=True))
        decisions = Decisions(plan.actions.cpu().numpy(), numbers[0], plan.iterations, figures)
        for episode, own, finite in zip(episodes, split(plan.carry), decisions.finite, strict=True):
            if finite:  # one that is not would spoil all that follows
                episode.carry = own
        return decisions

    def _plan_padded(self, context: TensorTree, carry: TensorTree, noise: TensorTree, explore: Tensor) -> Plan:
        """Run the compiled plan for the next power of two of environments: each size that comes has its own graph.

        Copies of the first environment fill up; an environment's plan does not depend on the company. What comes out
        is copied: it belongs to the CUDA graph, whose next replay overwrites it.
        """
        assert self.compiled is not None
        environments = len(explore)
        index = torch.zeros(next_power_of_two(environments), dtype=torch.long, device=self.device)
        index[:environments] = torch.arange(environments, device=self.device)
        plan = self.compiled(take(context, index), take(carry, index), take(noise, index), explore[index])

        def own(tree: TensorTree) -> dict[str, Tensor]:
            return {name: tensor[:environments].clone() for name, tensor in tree.items()}

        bare = own({"actions": plan.actions, "values": plan.values})
        return Plan(bare["actions"], own(plan.carry), bare["values"], own(plan.figures), plan.iterations)

    def warm_up(self, environments: int) -> None:
        """Decide for every size of batch up to that many, so that no episode waits for compilation later."""
        size, most = 1, next_power_of_two(environments) if self.compiled is not None else 1
        while size <= most:
            episodes = [self.start(seed, 0.0) for seed in range(size)]
            for _ in range(3 if self.compiled is not None else 1):  # compile, capture, replay
                self.decide(episodes, blank_observations(self.data, size))
            size *= 2


def seeded_generator(seed: int, device: torch.device) -> torch.Generator:
    """Make a generator of its own for one episode."""
    return torch.Generator(device).manual_seed(derive_seed(seed, "policy"))


def on_device(observations: ArrayTree, device: torch.device) -> dict[str, Tensor]:
    """Copy observations by name, [E, ..], to the device."""
    return {name: torch.from_numpy(array).to(device) for name, array in observations.items()}


def blank_observations(data: DataSpec, environments: int) -> dict[str, np.ndarray]:
    """Make zeros in the shape of E environments' observations."""
    return {name: np.zeros((environments, *a.shape), a.dtype) for name, a in data.observations.items()}


def next_power_of_two(number: int) -> int:
    """Return the smallest power of two that is not less than `number`, which is at least 1."""
    return 1 << (number - 1).bit_length()


def until(deadline: float, device: torch.device) -> Callable[[int], bool]:
    """Make the planner's `more`: would another iteration, as long as those so far on average, end in time?"""
    started = time.monotonic()

    def more(done: int) -> bool:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what is queued there has not taken its time yet
        now = time.monotonic()
        return now + (now - started) / done <= deadline

    return more
