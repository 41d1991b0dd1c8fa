"""`qttdm export`: what acts without a planner as one graph, for programs without this package.

observations float32 [B, M], the task's units --QT, dimension by dimension, or IQL--> actions float32 [B, N], its units

A world model's actor also takes images, uint8 [B, height, width, channels], all that it looks at together in the
channels, the newest last; and gives choices, int64 [B], where actions are discrete.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from qttdm.common.config import ConfigError
from qttdm.common.contracts import TaskSpec
from qttdm.common.extras import need
from qttdm.deploy.runs.dry_run import noise
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.planner_service.policies.greedy import GreedyPolicy, greedy_beside

Format = Literal["onnx", "torch-export"]
SUFFIX = {"onnx": ".onnx", "torch-export": ".pt2"}
TOLERANCE = 1e-5
"""how far the exported graph may be from the original: in the task's units, or of the largest bound if over 1"""
CHECKED = 256
"""observations on which they are compared"""


class ExportError(RuntimeError):
    """The exported graph is not the policy."""


@runtime_checkable
class Actor(Protocol):
    """A value function that acts by a graph of its own."""

    def act(self, observations: Tensor) -> Tensor:
        """Act: [B, ..] -> [B, N], or choices [B]."""


class GreedyGraph(nn.Module):
    """`act` of a network, from the task's units to its units."""

    low: Tensor
    high: Tensor

    def __init__(self, network: Actor, task: TaskSpec) -> None:
        super().__init__()
        self.network, self.task = network, task
        low, high = task.action_bounds or ([-1.0] * task.action_dim, [1.0] * task.action_dim)
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("high", torch.tensor(high))

    def forward(self, observations: Tensor) -> Tensor:
        """Act: [B, M] -> [B, N], or images and choices."""
        if self.task.choices is not None:
            return self.network.act(observations) + self.task.first_choice
        return self.low + (self.high - self.low) * (0.5 * (self.network.act(observations) + 1.0))


def export(agent: TrainedAgent, form: Format, out: Path) -> float:
    """Write the graph and compare it with the policy; returns the largest difference, in the task's units.

    ExportError if that is more than rounding; nothing is left then. ConfigError, before anything is written, for an
    agent without a greedy policy and for packages that are missing.
    """
    policy = agent.policy if isinstance(agent.policy, GreedyPolicy) else greedy_beside(agent.policy)
    if policy is None or not isinstance(policy.value_function, Actor):
        raise ConfigError(
            f"agent={agent.config.agent} has no policy without a planner; want a run of qt-tdm, qt, iql or twm"
        )
    if form == "onnx":
        need("export", "--format onnx")
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}; make it, or choose another --out")
    graph = GreedyGraph(policy.value_function, agent.spec).cpu().eval()
    observed = agent.data.observations["observations"]
    shown = noise(np.random.default_rng(0), (CHECKED, *observed.shape), observed.dtype)
    decided = policy.decide([policy.start(0, 0.0) for _ in shown], {"observations": shown})
    want = agent.spec.in_units(decided.actions)
    got = _write(graph, form, out, np.concatenate([shown] * agent.data.stack, axis=-1))  # as an episode begins
    difference = float(np.abs(got - want).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(agent.spec.action_bounds or 1.0).max())):
        out.unlink()
        raise ExportError(f"{out}: the graph acts otherwise than the original, by {difference:.1e}; it is not kept")
    return difference


def _write(graph: GreedyGraph, form: Format, out: Path, shown: np.ndarray) -> np.ndarray:
    """Write the graph, read it back and let it act: observations [B, ..] -> actions [B, ..]."""
    batch = {"observations": {0: torch.export.Dim("batch", min=1)}}
    example = (torch.from_numpy(shown[:2]),)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.export.export(graph, example, dynamic_shapes=batch)
        if form == "torch-export":
            torch.export.save(program, out)
            result: np.ndarray = torch.export.load(out).module()(torch.from_numpy(shown)).numpy()
            return result
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which has nothing to do here
        torch.onnx.export(program, f=out, dynamo=True, external_data=False, verbose=False, output_names=["actions"])
    session = importlib.import_module("onnxruntime").InferenceSession(out, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["actions"], {"observations": shown})[0]
    return found
