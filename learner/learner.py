r"""Algorithm 1, lines 4-14: one gradient step of the TDM and one of the QT on one batch.

    replay --Batch--> Learner.update --> TDMLearner.update   (Eq. 8)
                                    \-> QTLearner.update    (Eq. 2, 9), EMA target
    Learner.drain() -> metrics        the only place that waits for the device

The learner is a composition: QT-TDM has both parts, the ablations one each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import tee
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from qttdm.common.batch import Batch
from qttdm.common.config import Config
from qttdm.common.metrics.instruments import DECISION, histogram
from qttdm.common.metrics.telemetry import Telemetry
from qttdm.common.tensors import Tensors, check_fits, prefixed, under
from qttdm.common.weights import Weights, version_of
from qttdm.learner.parts.optimizer import AdamStep
from qttdm.learner.stopwatch import Stopwatch

UPDATE_SECONDS = histogram(
    "qttdm_update_seconds",
    ("learner",),
    "s",
    "time of an update: waiting for its batch, copying it to the device, computing",
    DECISION,
    "part",
    ("wait", "copy", "compute"),
)


class LearnerConfig(Config):
    """What all parts' updates share."""

    batch_size: int = Field(default=512, gt=0)
    """B, windows"""
    compile: bool = False
    """torch.compile the losses (needs a C++ compiler, takes a minute at start); agents without such ones refuse it"""
    reward_scale: float = Field(default=1.0, gt=0)
    """rewards times this inside the agent"""


class NonFiniteLossError(RuntimeError):
    """A loss became infinite or not a number; the message says which and at which update."""


class Part(Protocol):
    """One network's training: what Learner composes."""

    name: str
    """begins the names of its tensors in a checkpoint, as the policy's networks are named"""
    optimizer: AdamStep

    @property
    def network(self) -> nn.Module:
        """What acts."""

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Fit scales or bins to the first batches, or nothing; once, before the first update."""

    def update(self, batch: Tensors, progress: float) -> dict[str, Tensor]:
        """Make one step, on the device, after that share of the training. Returns the same declared numbers always."""

    def now(self) -> dict[str, Tensor]:
        """Return declared numbers that are asked for when metrics are written, not at each update."""

    def state(self) -> dict[str, Tensor]:
        """Return all that a resumed run needs; the network as `network/PARAMETER`."""

    def load_state(self, state: Tensors) -> None:
        """Undo `state`."""


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
        self.telemetry = Telemetry.silent("learner")
        self._pending: list[dict[str, Tensor]] = []
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copying = Stopwatch(device, lambda seconds: self._took("copy", seconds), self._copies)
        self._computing = Stopwatch(device, lambda seconds: self._took("compute", seconds))

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Prepare every part, all by the same batches."""
        for part, same in zip(self.parts, tee(map(self._scaled, batches), len(self.parts)), strict=True):
            part.prepare(same)

    def start_from(self, state: Tensors) -> None:
        """Take another learner's networks, as contracts.Learner; optimisers begin anew.

        Of a run that was exported without its target network, that begins as the network.
        """
        saved, wanted = self._networks(state), self._networks(self.state())
        network = {name: tensor for name, tensor in saved.items() if "/network/" in name}
        target = {name.replace("/network/", "/target/", 1): tensor for name, tensor in network.items()}
        own = ("/network/", "/target/")
        counts = {
            name: tensor for name, tensor in wanted.items() if tensor.ndim == 0 and not any(x in name for x in own)
        }
        known = wanted.keys() | network.keys()
        taken = {name: tensor for name, tensor in (counts | target | saved).items() if name in known}
        check_fits(taken, wanted)
        for part in self.parts:
            part.load_state(part.state() | under(part.name, taken))

    def _networks(self, state: Tensors) -> dict[str, Tensor]:
        """Return its parts' tensors without their optimisers'."""
        own = tuple(f"{part.name}/" for part in self.parts)
        return {name: tensor for name, tensor in state.items() if name.startswith(own) and "/adam" not in name}

    def update(self, batch: Batch) -> None:
        """Make one update of every part."""
        self._update(self._stage(batch))

    def _stage(self, batch: Batch) -> Tensors:
        """Begin to copy a batch to the device; on a GPU that runs beside the updates under way."""
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        if self._copies is not None:  # out of pinned memory the copy does not hold up this thread either
            tensors = {name: t.pin_memory() for name, t in tensors.items()}
        with torch.cuda.stream(self._copies), self._copying.lap():
            return {name: t.to(self.device, non_blocking=True) for name, t in tensors.items()}

    def _update(self, batch: Tensors) -> None:
        if self._copies is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self._copies)
            for tensor in batch.values():
                tensor.record_stream(computing)  # its memory may be used again only when the computing is done
        on_device = self._scaled(batch)
        progress = self.updates / self.total_updates
        metrics: dict[str, Tensor] = {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16), self._computing.lap():
            for part in self.parts:
                metrics |= part.update(on_device, progress)
        self.updates += 1
        self._pending.append(metrics)

    def _scaled(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Multiply a batch's rewards and returns, whatever kind of arrays they are."""
        scaled = {name: batch[name] * self.config.reward_scale for name in {"rewards", "returns_to_go"} & batch.keys()}
        return {**batch, **scaled}

    def drain(self) -> dict[str, float]:
        """Return means of all metrics since the last call, the parts' newest values, and the next learning rates.

        {} if there was no update, or nothing learns.

        One wait for the device, for all of them. Raises NonFiniteLossError at the first loss that is not finite.
        """
        if not self._pending:
            return {}
        names = list(self._pending[0])
        if not names:  # there are no parts: nothing is learned
            self._pending.clear()
            return {}
        rows = [row[name].float() for row in self._pending for name in names]
        newest = {name: value for part in self.parts for name, value in part.now().items()}
        values = torch.stack([*rows, *newest.values()]).cpu()
        table = values[: len(rows)].view(-1, len(names))  # [updates, metrics]
        first = self.updates - len(self._pending) + 1
        self._pending.clear()
        for row, finite in enumerate(table.isfinite()):
            if not finite.all():
                bad = [name for name, good in zip(names, finite.tolist(), strict=True) if not good]
                raise NonFiniteLossError(f"{', '.join(bad)} not finite at update {first + row}")
        means = dict(zip(names, table.mean(dim=0).tolist(), strict=True))
        progress = self.updates / self.total_updates
        rates = {f"lr_{part.name}": part.optimizer.learning_rate(progress) for part in self.parts}
        return means | dict(zip(newest, values[len(rows) :].tolist(), strict=True)) | rates

    def weights(self) -> Weights:
        """Snapshot what policies need, as of now."""
        return Weights.of(self.networks, version_of(self.generation, self.updates))

    def state(self) -> dict[str, Tensor]:
        """Return everything a resumed run needs, the dropout generators' states included."""
        state = {"updates": torch.tensor(self.updates), "rng.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        for part in self.parts:
            state |= prefixed(part.name, part.state())
        return state

    def load_state(self, state: Tensors) -> None:
        """Undo `state`. ValueError, one line, if it is of other networks."""
        check_fits(self._networks(state), self._networks(self.state()))
        self.updates = int(state["updates"])
        self._pending.clear()
        torch.set_rng_state(state["rng.cpu"])
        if self.device.type == "cuda" and "rng.cuda" in state:
            torch.cuda.set_rng_state(state["rng.cuda"], self.device)
        for part in self.parts:
            part.load_state(under(part.name, state))

    def _took(self, part: str, seconds: float) -> None:
        self.telemetry.observe(UPDATE_SECONDS, seconds, part=part)
