"""Model predictive control with a dynamics model and a terminal value (paper, Algorithm 2, Eq. 10).

Pure torch, for E environments at once, as a function of its arguments: all random numbers come in as `Noise`, drawn
from one generator per environment, so an environment's plan does not depend on who else is in the batch.

Letters beyond the usual: I iterations, J Gaussian samples, Q candidates proposed by the QT (J_QT in the paper),
P the population of one iteration (samples, proposals, elites kept), T the elites (top-k).

A dynamics model is anything with TDM's `start`, `fan_out`, `rewind`, `step`, `imagine`, `tokenizer` and `action_dim`,
whose rollouts have `Rollout.observations`; a value function anything with QT's `choose`, `value` and `tokenizer`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qttdm.common.models.qt import QT
from qttdm.common.models.tdm import TDM, Rollout
from qttdm.common.shapes import check_shape
from qttdm.planner_service.planners.mppi_config import PlannerConfig


@dataclass(frozen=True)
class Noise:
    """All random numbers of one decision."""

    normal: Tensor
    """[E, I, J, H, N], standard normal"""
    proposal: Tensor
    """[E, 2, H, Q, N], uniform: whether a proposed bin is replaced, and by which"""
    elite: Tensor
    """[E], uniform: which elite is executed"""
    action: Tensor
    """[E, 2, N], uniform: whether an executed bin is replaced, and by which"""


def draw_noise(generators: list[torch.Generator], config: PlannerConfig, action_dim: int) -> Noise:
    """One decision's noise for each environment, from its own generator and on that generator's device."""
    c, n = config, action_dim
    normals, uniforms = [], []
    shape = (c.iterations, c.samples, c.horizon, n)
    for g in generators:
        normals.append(torch.randn(shape, generator=g, device=g.device))
        uniforms.append(torch.rand(2 * c.horizon * c.qt_samples * n + 1 + 2 * n, generator=g, device=g.device))
    uniform = torch.stack(uniforms)  # [E, everything]
    proposal, elite, action = uniform.split([2 * c.horizon * c.qt_samples * n, 1, 2 * n], dim=1)
    return Noise(
        normal=torch.stack(normals),
        proposal=proposal.view(len(generators), 2, c.horizon, c.qt_samples, n),
        elite=elite.squeeze(1),
        action=action.view(len(generators), 2, n),
    )


@dataclass(frozen=True)
class PlanState:
    """What one decision leaves to the next of the same episode: the warm start."""

    mean: Tensor
    """[E, H, N], shifted by one step; 0 at an episode's start"""
    elites: Tensor
    """[E, keep_elites, H, N], shifted by one step"""
    has_elites: Tensor
    """bool [E], False at an episode's start"""

    @staticmethod
    def initial(environments: int, config: PlannerConfig, action_dim: int, device: torch.device) -> PlanState:
        """Nothing planned yet."""
        shape = (environments, config.keep_elites, config.horizon, action_dim)
        return PlanState(
            mean=torch.zeros(environments, config.horizon, action_dim, device=device),
            elites=torch.zeros(shape, device=device),
            has_elites=torch.zeros(environments, dtype=torch.bool, device=device),
        )

    @staticmethod
    def join(states: Sequence[PlanState]) -> PlanState:
        """Several environments' states as one batch."""
        return PlanState(*(torch.cat(parts) for parts in zip(*(vars(s).values() for s in states), strict=True)))

    def split(self) -> list[PlanState]:
        """Each environment's own: undoes `join` for states of one environment each."""
        return [PlanState(*parts) for parts in zip(*(part.split(1) for part in vars(self).values()), strict=True)]


@dataclass(frozen=True)
class Plan:
    """The outcome of one decision."""

    actions: Tensor
    """[E, N], to execute now"""
    state: PlanState
    """for the next decision"""
    values: Tensor
    """[E], estimated return of the best sequence found (Eq. 10)"""
    terminal: Tensor
    """[E], the terminal value's part in that: what the states after the horizon are thought to be worth"""
    std: Tensor
    """[E, H, N], of the last fitted Gaussian"""
    iterations: int
    """iterations run"""


@dataclass(frozen=True)
class _Population:
    """Candidate sequences [E, P, H, N], their estimated returns [E, P] and the terminal values' parts in these."""

    actions: Tensor
    values: Tensor
    terminal: Tensor

    def best(self, count: int) -> _Population:
        """The `count` highest-valued, best first."""
        values, index = self.values.topk(count, dim=1)  # [E, count]
        actions = self.actions.take_along_dim(index[:, :, None, None], dim=1)
        return _Population(actions, values, self.terminal.gather(1, index))


@dataclass(frozen=True)
class _Fit:
    """A Gaussian and the elites it was fitted to."""

    elites: _Population
    weights: Tensor
    """[E, T]"""
    mean: Tensor
    """[E, H, N]"""
    std: Tensor
    """[E, H, N]"""

    def unless_settled(self, newest: _Fit, min_std: float) -> _Fit:
        """`newest`, but this one for environments whose std is at its floor everywhere already."""
        settled = (self.std <= min_std).flatten(1).all(dim=1)[:, None, None]  # [E, 1, 1]
        actions = torch.where(settled.unsqueeze(-1), self.elites.actions, newest.elites.actions)
        values = torch.where(settled[:, 0], self.elites.values, newest.elites.values)
        terminal = torch.where(settled[:, 0], self.elites.terminal, newest.elites.terminal)
        return _Fit(
            _Population(actions, values, terminal),
            torch.where(settled[:, 0], self.weights, newest.weights),
            torch.where(settled, self.mean, newest.mean),
            torch.where(settled, self.std, newest.std),
        )


class Planner:
    """Algorithm 2. `value_function=None` is the paper's TDM ablation: no proposals, no terminal value."""

    def __init__(self, config: PlannerConfig, discount: float, dynamics: TDM, value_function: QT | None) -> None:
        if value_function is None:
            config = config.model_copy(update={"qt_samples": 0})
        self.config, self.discount = config, discount
        self.dynamics, self.value_function = dynamics, value_function
        self.colour: Tensor | None = None

    def prepare(self, device: torch.device) -> None:
        """Constants to that device, once. `plan` does it; whoever compiles `plan` does it before.

        (What is made inside a CUDA graph is overwritten when the graph is replayed.)
        """
        c = self.config
        if c.noise_exponent > 0 and (self.colour is None or self.colour.device != device):
            self.colour = colour_factor(c.horizon, c.noise_exponent).to(device)

    @torch.inference_mode()
    def plan(
        self,
        observations: Tensor,
        state: PlanState,
        noise: Noise,
        explore: bool | Tensor,
        more: Callable[[int], bool] | None = None,
    ) -> Plan:
        """One decision for each environment: observations [E, M].

        explore, for all or bool [E]: an elite is drawn by its weight and random bins are mixed into its action
        (collecting); without, the weighted mean of the elites is executed (evaluating).
        more: asked after each iteration, with their number so far, whether there is time for one more.
        """
        c = self.config
        check_shape(state.mean, "E H N", E=len(observations), H=c.horizon, N=self.dynamics.action_dim)
        root = self.dynamics.start(observations)
        mean, std = state.mean, torch.full_like(state.mean, c.init_std)
        self.prepare(observations.device)
        normal = noise.normal if self.colour is None else coloured(noise.normal, self.colour)

        memory: Rollout | None = None
        fit: _Fit | None = None
        for iteration in range(c.iterations):
            # Line 2: Gaussian samples, discretised.
            # (Networks that overflow, on an absurd observation, end in NaN: no number of a bin, which would fail the
            # whole batch, and on a GPU the process. The environment's own outcome remains NaN.)
            samples = mean.unsqueeze(1) + std.unsqueeze(1) * normal[:, iteration, : c.samples_at(iteration)]
            samples = self.dynamics.tokenizer.snap(samples.nan_to_num())
            # Lines 3-9: their returns. Those of the QT's proposals are the same in every iteration: the first one's
            # rollout takes them along.
            if iteration == 0:
                sampled, kept, proposals = self._evaluate_first(root, samples, state, noise.proposal)
            else:
                sampled, memory = self._evaluate(root, samples, memory)
            candidates = join(sampled, kept)
            # Line 10: refit the Gaussian to the elites.
            newest = self._refit(join(candidates, proposals).best(c.elites))
            fit = fit.unless_settled(newest, c.min_std) if fit is not None and c.early_stop else newest
            mean, std = fit.mean, fit.std
            if c.keep_elites > 0:
                kept = candidates.best(c.keep_elites)
            settled = c.early_stop and bool((std <= c.min_std).all())
            if settled or (more is not None and not more(iteration + 1)):
                break
        assert fit is not None

        # Line 11: execute the first action; the rest is the next decision's warm start.
        next_state = PlanState(
            mean=shift(mean),
            elites=shift(fit.elites.actions[:, : c.keep_elites]),
            has_elites=torch.ones_like(state.has_elites),
        )
        actions = mean[:, 0].clamp(-1, 1)  # weights may sum to 1 + 1e-7
        if explore is not False:
            drawn = self._explore(fit, noise)
            actions = drawn if explore is True else torch.where(explore.unsqueeze(1), drawn, actions)
        best = fit.elites
        return Plan(actions, next_state, best.values[:, 0], best.terminal[:, 0], std, iteration + 1)

    def _refit(self, elites: _Population) -> _Fit:
        """Weights exp(temperature * (value - best value)), normalised, and the Gaussian they give."""
        weights = torch.softmax(self.config.temperature * elites.values, dim=1)  # [E, T]
        mean, std = weighted_moments(elites.actions, weights)
        return _Fit(elites, weights, mean, std.clamp(self.config.min_std, self.config.max_std))

    def _evaluate(self, root: Rollout, actions: Tensor, memory: Rollout | None = None) -> tuple[_Population, Rollout]:
        """Eq. 10 for sequences [E, J, H, N]; also the rollout, whose memory the next call may use again.

        For tasks that can terminate, each reward counts with the probability that the episode lasted until then.
        """
        environments, samples, horizon, _ = actions.shape
        if memory is not None and len(memory.observations) == environments * samples:
            rollout = self.dynamics.rewind(memory, root, samples)
        else:
            rollout = self.dynamics.fan_out(root, samples, horizon)
        returns = Returns(self.discount)
        for prediction in self.dynamics.imagine(rollout, actions.flatten(0, 1)):
            returns.add(prediction.rewards, prediction.continuation_logits)
        values, terminal = (part.view(environments, samples) for part in self._total(returns, rollout))
        return _Population(actions, values, terminal), rollout

    def _evaluate_first(
        self, root: Rollout, samples: Tensor, state: PlanState, uniform: Tensor
    ) -> tuple[_Population, _Population | None, _Population | None]:
        """Eq. 10 for samples [E, J, H, N], for the last decision's elites, and for Q sequences that the QT proposes.

        A proposed action is the QT's greedy one in the state that the sequence has come to, some bins replaced by
        uniform ones. All sequences go through the TDM together.
        """
        c, qt = self.config, self.value_function
        known = samples if c.keep_elites == 0 else torch.cat([samples, state.elites], dim=1)
        environments, num_known = known.shape[:2]
        num_proposed = c.qt_samples if qt is not None else 0
        rollout = self.dynamics.fan_out(root, num_known + num_proposed, c.horizon)
        returns = Returns(self.discount)
        taken = []
        for step in range(c.horizon):
            actions = known[:, :, step]  # [E, known, N]
            if qt is not None and num_proposed > 0:
                states = rollout.observations.unflatten(0, (environments, -1))[:, num_known:].flatten(0, 1)  # [E*Q, M]
                chance, which = uniform[:, :, step].transpose(0, 1).flatten(1, 2)  # each [E*Q, N]
                bins, _ = qt.choose(states, chance, which, c.random_bins)
                proposed = qt.tokenizer.decode(bins).unflatten(0, (environments, -1))  # [E, Q, N]
                actions = torch.cat([actions, proposed], dim=1)  # [E, known + Q, N]
            taken.append(actions)
            prediction = self.dynamics.step(rollout, actions.flatten(0, 1))
            returns.add(prediction.rewards, prediction.continuation_logits)
        sequences = torch.stack(taken, dim=2)  # [E, known + Q, H, N]
        values, terminal = (part.view(environments, -1) for part in self._total(returns, rollout))
        sizes = [samples.shape[1], c.keep_elites, num_proposed]
        parts = (part.split(sizes, dim=1) for part in (sequences, values, terminal))
        sampled, kept, proposed = (_Population(*group) for group in zip(*parts, strict=True))
        kept = _Population(kept.actions, kept.values.masked_fill(~state.has_elites[:, None], -torch.inf), kept.terminal)
        return sampled, kept if c.keep_elites > 0 else None, proposed if num_proposed > 0 else None

    def _total(self, returns: Returns, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """[B] each: Eq. 10, the rewards summed so far and the value of where the rollout stands; that value's part."""
        if self.value_function is None:
            return returns.total, torch.zeros_like(returns.total)
        first_only = self.config.terminal_value == "first_dimension"
        terminal = returns.weight * self.value_function.value(rollout.observations, first_only)
        return returns.total + terminal, terminal

    def _explore(self, fit: _Fit, noise: Noise) -> Tensor:
        """An elite drawn by its weight, its first action with some bins replaced by uniform ones: [E, N]."""
        tokenizer = self.dynamics.tokenizer
        # Inverse transform: the first elite whose cumulated weight exceeds the uniform number.
        last = fit.weights.shape[1] - 1
        drawn = (fit.weights.cumsum(dim=1) <= noise.elite[:, None]).sum(dim=1).clamp(max=last)  # [E]
        first = fit.elites.actions[:, :, 0].take_along_dim(drawn[:, None, None], dim=1).squeeze(1)  # [E, N]
        chance, which = noise.action.unbind(1)
        return tokenizer.decode(tokenizer.replace(tokenizer.encode(first), chance, which, self.config.random_bins))


class Returns:
    """The running sum of Eq. 10 along imagined sequences."""

    def __init__(self, discount: float) -> None:
        self.discount = discount
        self.total = torch.zeros(())
        self.weight = torch.ones(())  # gamma^k times the probability that the episode lasts until step k

    def add(self, rewards: Tensor, continuation_logits: Tensor | None) -> None:
        """One step: rewards [B], log-odds [B] that the episode goes on after it."""
        self.total = self.total + self.weight * rewards
        self.weight = self.weight * self.discount
        if continuation_logits is not None:
            self.weight = self.weight * torch.sigmoid(continuation_logits)


def join(a: _Population, b: _Population | None) -> _Population:
    """Both populations' sequences, one behind the other."""
    if b is None:
        return a
    return _Population(*(torch.cat(parts, dim=1) for parts in zip(vars(a).values(), vars(b).values(), strict=True)))


def weighted_moments(actions: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std over elites: actions [E, T, H, N], weights [E, T] summing to 1 -> two of [E, H, N]."""
    w = weights[:, :, None, None]
    mean = (w * actions).sum(dim=1)
    variance = (w * (actions - mean.unsqueeze(1)).square()).sum(dim=1)
    return mean, variance.sqrt()


def shift(x: Tensor) -> Tensor:
    """Sequences [..., H, N] one step on; the step that comes in at the end is 0."""
    return torch.cat([x[..., 1:, :], torch.zeros_like(x[..., :1, :])], dim=-2)


@functools.lru_cache
def colour_factor(horizon: int, exponent: float) -> Tensor:
    """[H, H] float32 on the CPU: turns white noise over H into noise with power ~ 1 / frequency^exponent, variance 1.

    The autocovariance of such a sequence is the cosine transform of its spectrum; its Cholesky factor turns white
    noise into it. (Pinneri et al., Sample-efficient Cross-Entropy Method, CoRL 2020, Section 3.1.)
    """
    # The real spectrum of a sequence twice as long (its first half does not wrap round to its own start). As usual,
    # frequency 0 gets the power of the lowest other one; interior frequencies stand for themselves and their mirrors.
    k = torch.arange(horizon + 1, dtype=torch.float64)
    mirrored = torch.where((k == 0) | (k == horizon), 1.0, 2.0)
    frequency, power = k / (2 * horizon), mirrored * k.clamp(min=1) ** -exponent
    lag = torch.arange(horizon, dtype=torch.float64)
    autocovariance = (power * torch.cos(2 * torch.pi * lag[:, None] * frequency)).sum(dim=1) / power.sum()  # [H]
    covariance = autocovariance[(lag[:, None] - lag).abs().long()]  # [H, H], Toeplitz
    return torch.linalg.cholesky(covariance + 1e-9 * torch.eye(horizon, dtype=torch.float64)).float()


def coloured(normal: Tensor, factor: Tensor) -> Tensor:
    """White noise [E, I, J, H, N] mixed over H by `colour_factor` [H, H]: same shape."""
    with torch.autocast(normal.device.type, enabled=False):  # samples are never rounded to bfloat16
        return torch.einsum("gh,eijhn->eijgn", factor, normal)
