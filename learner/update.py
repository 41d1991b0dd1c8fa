"""Algorithm 1, lines 4-14: one gradient step of the TDM and one of the QT on one batch.

    replay --Batch--> Learner.update --> TDMLearner.update   (Eq. 8)
                                    \\-> QTLearner.update    (Eq. 2, 9), EMA target
    Learner.drain() -> metrics        the only place that waits for the device

The learner is a composition: QT-TDM has both parts, the ablations one each.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from qttdm.common.batch import Batch
from qttdm.common.config import Config
from qttdm.common.qt import QT
from qttdm.common.tdm import TDM
from qttdm.common.telemetry import Telemetry
from qttdm.common.weights import Weights, version_of
from qttdm.learner.losses import dynamics_loss, masked_mean, q_loss
from qttdm.learner.optimizer import AdamStep, OptimizerConfig
from qttdm.learner.stopwatch import Stopwatch
from qttdm.learner.targets import bellman_targets, n_step_returns


class TDMLearnerConfig(OptimizerConfig):
    """Paper, Table IV."""

    learning_rate: float = Field(default=1e-4, gt=0)
    max_grad_norm: float = Field(default=30.0, gt=0)
    state_weight: float = Field(default=1.0, gt=0)
    """beta_1"""
    reward_weight: float = Field(default=2.0, gt=0)
    """beta_2"""
    continuation_weight: float = Field(default=1.0, gt=0)


class QTLearnerConfig(OptimizerConfig):
    """Paper, Table IV."""

    learning_rate: float = Field(default=3e-4, gt=0)
    max_grad_norm: float = Field(default=20.0, gt=0)
    n_step: int = Field(default=3, gt=0)
    states_per_window: int = Field(default=1, gt=0)
    """leading steps of each window that are training states; the paper uses the first"""
    ema_coefficient: float = Field(default=0.005, gt=0, le=1)
    """zeta: how far the target moves towards the network"""
    ema_every: int = Field(default=5, gt=0)
    """updates between two such moves"""
    monte_carlo_clamp: bool = False
    """bound targets from below by the return-to-go; for sparse rewards, none of them negative: what a time limit cuts
    off must not have been worse than nothing"""
    conservative_weight: float = Field(default=0.0, ge=0)
    """pulls the Q of bins not taken towards 0; for offline data"""


class LearnerConfig(Config):
    """Both updates."""

    batch_size: int = Field(default=512, gt=0)
    """B, windows"""
    compile: bool = False
    """torch.compile the two losses (needs a C++ compiler, takes a minute at start); for GPUs, CPUs gain nothing"""
    reward_scale: float = Field(default=1.0, gt=0)
    """rewards times this inside the agent"""
    tdm: TDMLearnerConfig = TDMLearnerConfig()
    qt: QTLearnerConfig = QTLearnerConfig()


class NonFiniteLossError(RuntimeError):
    """A loss became infinite or not a number; the message says which and at which update."""


Tensors = Mapping[str, Tensor]

CACHE_BYTES = 4 * 2**20
"""what the widest activations of an update may take of a CPU's caches, for each thread"""


class Part(Protocol):
    """One network's training: what Learner composes."""

    name: str
    optimizer: AdamStep

    @property
    def network(self) -> nn.Module: ...

    def update(self, batch: Tensors, progress: float) -> dict[str, Tensor]: ...
    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, state: Tensors) -> None: ...


class TDMLearner:
    """Algorithm 1, lines 5-9."""

    name = "tdm"

    def __init__(self, config: LearnerConfig, network: TDM) -> None:
        self.config, self.network = config.tdm, network
        self.optimizer = AdamStep(self.config, network)
        self.loss = torch.compile(self._loss) if config.compile else self._loss

    def _loss(self, batch: Tensors) -> Any:
        prediction = self.network(batch["observations"][:, :-1], batch["actions"])
        c = self.config
        return dynamics_loss(
            prediction,
            batch["observations"][:, 1:],
            batch["rewards"],
            batch["terminated"],
            batch["mask"],
            c.state_weight,
            c.reward_weight,
            c.continuation_weight,
        )

    def update(self, batch: Tensors, progress: float) -> dict[str, Tensor]:
        """One step on a batch of windows; metrics stay on the device."""
        self.optimizer.clear()
        steps = batch["mask"].sum()
        terms = torch.zeros(3, device=steps.device)
        for part in self._parts(batch):
            share = part["mask"].sum() / steps  # each loss is a mean over its own steps
            loss = self.loss(part)
            (share * loss.total).backward()
            terms += share * torch.stack([loss.state, loss.reward, loss.continuation]).detach()
        norm = self.optimizer.step(progress)
        return dict(zip(("loss_state", "loss_reward", "loss_continuation"), terms, strict=True)) | {
            "grad_norm_tdm": norm
        }

    def _parts(self, batch: Tensors) -> Iterator[Tensors]:
        """The batch; on a CPU in parts whose activations stay in its caches. Their gradients are added up.

        What stands between the matrix products waits for memory otherwise (docs/results.md says what is gained).
        """
        count, length, action_dim = batch["actions"].shape
        parts = 1
        if batch["actions"].device.type == "cpu":
            widest = 4 * count * length * (action_dim + 1) * 4 * self.network.config.embed_dim  # bytes, inside the MLPs
            parts = min(count, math.ceil(widest / (torch.get_num_threads() * CACHE_BYTES)))
        for i in range(parts):
            rows = slice(i * count // parts, (i + 1) * count // parts)
            yield {name: tensor[rows] for name, tensor in batch.items()}

    def state(self) -> dict[str, Tensor]:
        """Parameters and optimiser."""
        return prefixed("network", self.network.state_dict()) | prefixed("adam", self.optimizer.state())

    def load_state(self, state: Tensors) -> None:
        """Undo `state`."""
        self.network.load_state_dict(under("network", state))
        self.optimizer.load_state(under("adam", state))


class QTLearner:
    """Algorithm 1, lines 10-14. The target network is always in eval mode: targets carry no dropout noise."""

    name = "qt"

    def __init__(self, config: LearnerConfig, network: QT, discount: float) -> None:
        self.config, self.network, self.discount = config.qt, network, discount
        self.target = copy.deepcopy(network).eval().requires_grad_(False)
        self.optimizer = AdamStep(self.config, network)
        self.updates = 0
        self.loss = torch.compile(self._loss) if config.compile else self._loss

    def _loss(self, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what else there is to know of the batch."""
        c, s = self.config, self.config.states_per_window
        returns, weight, index = n_step_returns(
            batch["rewards"], batch["mask"], batch["terminated"], s, c.n_step, self.discount
        )  # each [B, S]
        observations = batch["observations"][:, :s].flatten(0, 1)  # [B * S, M]
        later = batch["observations"].take_along_dim(index.unsqueeze(-1), dim=1).flatten(0, 1)  # [B * S, M]
        bins = self.network.tokenizer.encode(batch["actions"][:, :s]).flatten(0, 1)  # [B * S, N]
        taken_before = bins[:, :-1]  # [B * S, N-1]
        with torch.no_grad():
            if taken_before.shape[1] > 0:
                next_dimension_q = self.target(observations, taken_before)[:, :, 1:]
            else:  # one dimension: there is no next one
                next_dimension_q = observations.new_empty(2, len(bins), 0, self.network.config.bins)
            targets = bellman_targets(
                next_dimension_q,
                self.target(later, bins[:, :0])[:, :, 0],
                returns.flatten(),
                weight.flatten(),
                batch["returns_to_go"][:, :s].flatten() if c.monte_carlo_clamp else None,
            )
        q = self.network(observations, taken_before)
        mask = batch["mask"][:, :s].flatten()
        loss, taken = q_loss(q, bins, targets, mask, c.conservative_weight)
        taken = taken.detach().mean(dim=0)  # [B * S, N]
        return loss, {
            "q_mean": masked_mean(taken.mean(dim=1), mask),
            "q_max": taken.masked_fill(~mask.unsqueeze(1), -torch.inf).max(),
            "q_target_mean": masked_mean(targets.mean(dim=1), mask),
            "replayed_return": masked_mean(batch["returns_to_go"][:, :s].flatten(), mask),
        }

    def update(self, batch: Tensors, progress: float) -> dict[str, Tensor]:
        """One step on the leading states of a batch of windows; metrics stay on the device."""
        self.optimizer.clear()
        loss, values = self.loss(batch)
        loss.backward()
        norm = self.optimizer.step(progress)
        self.updates += 1
        if self.updates % self.config.ema_every == 0:
            self._follow()
        return {"loss_q": loss.detach(), "grad_norm_qt": norm, **values}

    @torch.no_grad()
    def _follow(self) -> None:
        """Line 14: the target moves towards the network by zeta."""
        torch._foreach_lerp_(
            list(self.target.parameters()), list(self.network.parameters()), self.config.ema_coefficient
        )

    @torch.no_grad()
    def drift(self) -> Tensor:
        """Distance of the target from the network, over the network's norm: a scalar on the device."""
        parameters: list[Tensor] = [*self.network.parameters()]
        target: list[Tensor] = [*self.target.parameters()]
        apart = torch._foreach_sub(parameters, target)
        distance, norm = (torch.stack(torch._foreach_norm(tensors)).norm() for tensors in (apart, parameters))
        return distance / norm

    def state(self) -> dict[str, Tensor]:
        """Parameters, target, optimiser and the count that paces the target."""
        return (
            prefixed("network", self.network.state_dict())
            | prefixed("target", self.target.state_dict())
            | prefixed("adam", self.optimizer.state())
            | {"updates": torch.tensor(self.updates)}
        )

    def load_state(self, state: Tensors) -> None:
        """Undo `state`."""
        self.network.load_state_dict(under("network", state))
        self.target.load_state_dict(under("target", state))
        self.optimizer.load_state(under("adam", state))
        self.updates = int(state["updates"])


class Learner:
    """All parts' updates on one device, metrics kept there until asked for."""

    def __init__(
        self, config: LearnerConfig, parts: Sequence[Part], device: torch.device, total_updates: int, bfloat16: bool
    ) -> None:
        """total_updates: at which linear schedules reach 0. bfloat16: autocast; parameters stay float32."""
        self.config, self.parts, self.device, self.total_updates = config, parts, device, total_updates
        self.bfloat16 = bfloat16
        self.networks = nn.ModuleDict({part.name: part.network for part in parts}).to(device).train()
        self.updates = 0
        self.generation = 0
        """which start of the run's learner this is; weights of a later one have higher versions"""
        self.flops = 0.0
        """floating-point operations that an update needs, where someone has counted them"""
        self.telemetry = Telemetry.silent("learner")
        self._pending: list[dict[str, Tensor]] = []
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copying = Stopwatch(device, lambda seconds: self._took("copy", seconds), self._copies)
        self._computing = Stopwatch(device, lambda seconds: self._took("compute", seconds))

    def update(self, batch: Batch) -> None:
        """One update of every part."""
        self.update_staged(self.stage(batch))

    def stage(self, batch: Batch) -> Tensors:
        """Begin to copy a batch to the device; on a GPU that runs beside the updates under way."""
        tensors = {name: torch.from_numpy(array) for name, array in vars(batch).items()}
        if self._copies is not None:  # out of pinned memory the copy does not hold up this thread either
            tensors = {name: t.pin_memory() for name, t in tensors.items()}
        with torch.cuda.stream(self._copies), self._copying.lap():
            return {name: t.to(self.device, non_blocking=True) for name, t in tensors.items()}

    def update_staged(self, batch: Tensors) -> None:
        """One update of every part on what `stage` returned."""
        if self._copies is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self._copies)
            for tensor in batch.values():
                tensor.record_stream(computing)  # its memory may be used again only when the computing is done
        on_device = dict(batch)
        for name in ("rewards", "returns_to_go"):
            on_device[name] = batch[name] * self.config.reward_scale
        progress = self.updates / self.total_updates
        metrics: dict[str, Tensor] = {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16), self._computing.lap():
            for part in self.parts:
                metrics |= part.update(on_device, progress)
        self.updates += 1
        self._pending.append(metrics)

    def drain(self) -> dict[str, float]:
        """Means of all metrics since the last call; {} if there was no update. With a target, `target_drift` as of now.

        One wait for the device, for all of them. Raises NonFiniteLossError at the first loss that is not finite.
        """
        if not self._pending:
            return {}
        names = list(self._pending[0])
        told = [row[name].float() for row in self._pending for name in names]
        drifts = [part.drift() for part in self.parts if isinstance(part, QTLearner)]
        values = torch.stack(told + drifts).cpu()
        table = values[: len(told)].view(-1, len(names))  # [updates, metrics]
        first = self.updates - len(self._pending) + 1
        self._pending.clear()
        for row, finite in enumerate(table.isfinite()):
            if not finite.all():
                bad = [name for name, good in zip(names, finite.tolist(), strict=True) if not good]
                raise NonFiniteLossError(f"{', '.join(bad)} not finite at update {first + row}")
        means = dict(zip(names, table.mean(dim=0).tolist(), strict=True))
        if drifts:
            means["target_drift"] = float(values[-1])
        return means

    def learning_rates(self) -> dict[str, float]:
        """`lr_<part>` of the next update."""
        progress = self.updates / self.total_updates
        return {f"lr_{part.name}": part.optimizer.learning_rate(progress) for part in self.parts}

    def weights(self) -> Weights:
        """What policies need, as of now."""
        return Weights.of(self.networks, version_of(self.generation, self.updates))

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, the dropout generators' states included."""
        state = {"updates": torch.tensor(self.updates), "rng.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        for part in self.parts:
            state |= prefixed(part.name, part.state())
        return state

    def load_state(self, state: Tensors) -> None:
        """Undo `state`."""
        self.updates = int(state["updates"])
        self._pending.clear()
        torch.set_rng_state(state["rng.cpu"])
        if self.device.type == "cuda" and "rng.cuda" in state:
            torch.cuda.set_rng_state(state["rng.cuda"], self.device)
        for part in self.parts:
            part.load_state(under(part.name, state))

    def _took(self, part: str, seconds: float) -> None:
        self.telemetry.observe("qttdm_update_seconds", seconds, part=part)


def prefixed(name: str, tensors: Tensors) -> dict[str, Tensor]:
    """{"a": x} -> {"name/a": x}"""
    return {f"{name}/{key}": value for key, value in tensors.items()}


def under(name: str, tensors: Tensors) -> dict[str, Tensor]:
    """The entries below `name`, without it: undoes `prefixed`."""
    start = f"{name}/"
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
