"""How far dynamics models drift from what happened: told where logged episodes stand, and what was done from there on.

    episodes --draw_starts--> Starts --drift of a model--> errors [S, T] --median_interval--> a row of a table

Letters beyond the usual: S starts, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qttdm.common.config import ConfigError
from qttdm.common.contracts import DynamicsModel, RememberingModel
from qttdm.common.episode import Episode
from qttdm.common.models.scale import ObservationScale
from qttdm.deploy.screens.plot import Array

CONTEXT = 4
"""steps, imagined ones, with which a model that has a memory begins again where its window ends"""


@dataclass(frozen=True)
class Starts:
    """Where to begin, and what happened from there on."""

    observations: Tensor
    """[S, T+1, M]"""
    actions: Tensor
    """[S, T, N]"""
    std: Tensor
    """of each number observed, over all episodes, [M]; 1 where it does not move"""


def draw_starts(episodes: Sequence[Episode], starts: int, steps: int, seed: int = 0) -> Starts:
    """Draw S starts with T steps behind them, at any place of their episodes; from each episode once, then again.

    ConfigError if no episode is as long.
    """
    long = [e for e in episodes if e.decisions >= steps]
    if not long:
        longest = max(e.decisions for e in episodes)
        raise ConfigError(f"--steps {steps}: the longest episode has {longest} decisions; want at most as many")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(long))
    chosen = [long[order[i % len(long)]] for i in range(starts)]
    places = [int(rng.integers(e.decisions - steps + 1)) for e in chosen]
    scale = ObservationScale(episodes[0].observations.shape[1])
    scale.fit_to(torch.from_numpy(np.concatenate([e.observations for e in episodes])))
    pairs = list(zip(chosen, places, strict=True))
    return Starts(
        torch.from_numpy(np.stack([e.observations[at : at + steps + 1] for e, at in pairs])),
        torch.from_numpy(np.stack([e.actions[at : at + steps] for e, at in pairs])),
        scale.std.data,
    )


def imagine(model: DynamicsModel, observations: Tensor, actions: Tensor) -> Tensor:
    """Follow actions [S, T, N] from observations [S, M]: what the model expects to be observed, [S, T, M].

    Where its window ends it begins again from what it has imagined; a model with a memory keeps the last CONTEXT steps.
    """
    memory = model if isinstance(model, RememberingModel) else None
    everyone = torch.arange(len(observations), device=observations.device)
    room = model.window or actions.shape[1]
    history, imagined, taken = list[Tensor](), list[Tensor](), room
    for action in actions.unbind(dim=1):
        if taken == room:
            kept = history[-min(CONTEXT, room - 1) :] if room > 1 else []
            context = {"observations": observations} | ({"history": torch.cat(kept, dim=1)} if kept else {})
            rollout = model.select(model.start(context), everyone, room - len(kept))
            taken = len(kept)
        if memory is not None:
            history.append(memory.remember(rollout, action))
        model.step(rollout, action)
        observations = model.state(rollout)["observations"]
        imagined.append(observations)
        taken += 1
    return torch.stack(imagined, dim=1)


def drift(model: DynamicsModel, starts: Starts, device: torch.device) -> Array:
    """Measure the error of what is imagined, root mean square over standard deviations of what is observed: [S, T]."""
    seen = starts.observations.to(device)
    with torch.inference_mode():
        off = (imagine(model, seen[:, 0], starts.actions.to(device)) - seen[:, 1:]) / starts.std.to(device)
        return off.square().mean(dim=-1).sqrt().nan_to_num(torch.inf).double().cpu().numpy()


def median_interval(errors: Array, samples: int = 2000, seed: int = 0) -> tuple[Array, Array, Array]:
    """Compute the median over starts and its 95% percentile-bootstrap interval: errors [S, T] -> [T] each."""
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.median(errors[rng.integers(len(errors), size=len(errors))], axis=0) for _ in range(samples)])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return np.median(errors, axis=0), low, high
