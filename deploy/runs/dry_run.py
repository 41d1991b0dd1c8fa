"""`qttdm eval RUN --policy-only`: does the policy load and act here, and how fast? It says nothing of how well."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from qttdm.common.batch import Batch
from qttdm.common.contracts import Agent
from qttdm.common.seeding import derive_seed
from qttdm.deploy.runs.acting import ActingAgent


def dry_run(agent: ActingAgent, decisions: int) -> tuple[np.ndarray, np.ndarray]:
    """Decide alone, one after the other, on random observations: normal numbers, one episode.

    Returns actions [T, N] in the task's units, and the ms that each decision took [T]; the first, slow ones are not
    counted.
    """
    generator = np.random.default_rng(agent.config.seed)
    agent.policy.warm_up(1)
    episode, spec = agent.policy.start(derive_seed(agent.config.seed, "evaluation", 0), 0.0), agent.data
    actions, ms = [], []
    for _ in range(decisions):
        shown = {name: noise(generator, (1, *s.shape), s.dtype) for name, s in spec.observations.items()}
        began = time.perf_counter()
        action = agent.policy.decide([episode], shown).actions[0]
        ms.append(1e3 * (time.perf_counter() - began))
        actions.append(agent.spec.in_units(action))
    return np.stack(actions), np.array(ms)


def report(agent: ActingAgent, decisions: int = 100) -> Iterator[str]:
    """Yield what so many decisions were like, line by line."""
    actions, ms = dry_run(agent, decisions)
    least, most = (end.astype(float).round(3).tolist() for end in (actions.min(axis=0), actions.max(axis=0)))
    yield f"{decisions} decisions on random observations: {np.median(ms):.1f} ms each, slowest {ms.max():.1f} ms"
    yield f"actions from {least} to {most}; nothing is said of returns"


def random_batch(agent: Agent) -> Batch:
    """Make windows of noise: speed does not depend on what is learned."""
    rng, batch, data = np.random.default_rng(0), agent.batch_size, agent.data
    steps, observed = (batch, data.window), data.observations["observations"]
    *shape, channels = observed.shape
    acted = (*steps, *data.actions.shape)
    windows = Batch(
        observations=noise(rng, (batch, data.window + 1, *shape, channels * data.stack), observed.dtype),
        actions=noise(rng, acted, "float32").clip(-1, 1)
        if data.choices is None
        else rng.integers(data.choices, size=acted),
        rewards=noise(rng, steps, "float32"),
        terminated=np.zeros(steps, np.bool_),
        mask=np.ones(steps, np.bool_),
        returns_to_go=noise(rng, steps, "float32"),
    )
    if data.ends:
        windows["last_observations"] = windows["observations"][:, -1]
        windows["left"] = np.full(batch, data.window)
        windows["ends"] = np.ones(batch, np.bool_)
    return windows


def noise(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Draw normal numbers, or bytes for an image."""
    if dtype == "uint8":
        return rng.integers(256, size=shape, dtype=np.uint8)
    return rng.standard_normal(shape).astype(dtype)
