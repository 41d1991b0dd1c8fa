"""`qttdm data`: what is in a data set, as text and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from qttdm.common.config import ConfigError
from qttdm.replay.datasets import Dataset

BINS = 10
"""of the histogram in text"""
SHOWN = 20_000
"""most states of the picture, evenly taken"""
EDGE = 1 - 1e-4
"""from which an action, of [-1, 1], counts as at the edge of its box"""


@dataclass(frozen=True)
class Survey:
    """What a data set holds: K episodes, M numbers observed, N acted."""

    returns: np.ndarray
    """[K]"""
    lengths: np.ndarray
    """decisions, [K]"""
    terminated: int
    """episodes that the task ended"""
    seen: np.ndarray
    """lowest and highest of each number observed, [2, M]"""
    acted: np.ndarray
    """the same of actions in [-1, 1], [2, N]"""
    at_edge: np.ndarray
    """share of actions there, [N]"""
    states: np.ndarray
    """at most SHOWN of those decided in, [S, M]"""


def survey(dataset: Dataset) -> Survey:
    """Read it once. ConfigError as `Dataset.episodes`."""
    returns, lengths, terminated, states = [], [], 0, []
    seen, acted = (np.array([[np.inf], [-np.inf]]).repeat(n, axis=1) for n in (dataset.obs_dim, dataset.action_dim))
    at_edge, step = np.zeros(dataset.action_dim), -(-dataset.decisions // SHOWN)
    for episode in dataset.episodes():
        returns.append(episode.episode_return)
        lengths.append(episode.decisions)
        terminated += episode.terminated
        for ends, rows in ((seen, episode.observations), (acted, episode.actions)):
            np.minimum(ends[0], rows.min(axis=0), out=ends[0])
            np.maximum(ends[1], rows.max(axis=0), out=ends[1])
        at_edge += (np.abs(episode.actions) >= EDGE).sum(axis=0)
        states.append(episode.observations[:-1][::step])
    total = np.array(lengths)
    return Survey(np.array(returns), total, terminated, seen, acted, at_edge / total.sum(), np.concatenate(states))


def describe(dataset: Dataset, found: Survey) -> Iterator[str]:
    """Yield the report, line by line."""
    kept, references = len(found.returns), dataset.references
    yield (
        f"{dataset.name}: {kept:,} episodes, {found.lengths.sum():,} decisions; {dataset.obs_dim} numbers observed, "
        f"{dataset.action_dim} acted"
    )
    if dataset.dropped or dataset.clipped:
        yield (
            f"left out: {dataset.dropped:,} episodes with values that are not finite; clipped to the box: "
            f"{dataset.clipped:,} actions"
        )
    yield f"returns: {_spread(found.returns)}, mean {found.returns.mean():.4g}"
    if references and references["expert"] != references["random"]:
        share = (found.returns.mean() - references["random"]) / (references["expert"] - references["random"])
        yield f"random {references['random']:.4g}, expert {references['expert']:.4g}: the mean is at {share:.0%} of it"
    yield from _histogram(found.returns)
    yield f"lengths: {_spread(found.lengths)}"
    yield f"ends: {found.terminated:,} by termination, {kept - found.terminated:,} by a time limit or whoever collected"
    edge = found.at_edge.mean()
    yield f"actions at the edge of the box: {edge:.1%} of all numbers; of each, {_shares(found.at_edge)}"
    still = [name for name, low, high in zip(dataset.observed, *found.seen, strict=True) if low == high]
    yield f"observations that never change: {', '.join(still) or 'none'}"
    yield from (f"  {name}: from {low:.4g} to {high:.4g}" for name, low, high in _ranges(dataset, found))


def draw(dataset: Dataset, found: Survey, out: Path) -> None:
    """Draw how returns and states are spread, as a png. ConfigError if it cannot be written."""
    figure = Figure(figsize=(9.6, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    returns, states = figure.subplots(1, 2)
    returns.hist(found.returns, bins=30, color="#0072B2")
    for name, value in (dataset.references or {}).items():
        returns.axvline(value, color="0.3", linestyle="--" if name == "random" else "-", linewidth=1, label=name)
    returns.set(title=f"{dataset.name}: {len(found.returns):,} episodes", xlabel="return", ylabel="episodes")
    if dataset.references:
        returns.legend(frameon=False, fontsize="small")
    plane, share = _principal(found.states)
    shown = states.hexbin(*plane.T, gridsize=50, bins="log", cmap="viridis", mincnt=1)
    figure.colorbar(shown, ax=states, label="states")
    states.set(title=f"states, {share:.0%} of their variance", xlabel="first principal axis", ylabel="second")
    try:
        figure.savefig(out, format="png")
    except OSError as error:
        raise ConfigError(f"{out}: cannot write the picture ({error.strerror})") from None


def _ranges(dataset: Dataset, found: Survey) -> Iterator[tuple[str, float, float]]:
    yield from zip(dataset.observed, *found.seen, strict=True)
    yield from ((f"action[{i}] of [-1, 1]", low, high) for i, (low, high) in enumerate(found.acted.T))


def _spread(values: np.ndarray) -> str:
    low, first, middle, last, high = np.percentile(values, [0, 25, 50, 75, 100])
    return f"from {low:.4g} to {high:.4g}, quartiles {first:.4g}, {middle:.4g}, {last:.4g}"


def _shares(shares: np.ndarray) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)


def _histogram(values: np.ndarray) -> Iterator[str]:
    counts, edges = np.histogram(values, BINS)
    if edges[0] == edges[-1] or np.ptp(values) == 0:
        return
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        yield f"  {low:10.4g} to {high:10.4g} {'#' * -(-40 * count // counts.max()):40} {count:,}".rstrip()


def _principal(states: np.ndarray) -> tuple[np.ndarray, float]:
    """Project onto the plane in which they are spread most, each number in units of its spread: [S, M] -> [S, 2].

    Also returns the share of the variance that is in the plane.
    """
    spread = states.std(axis=0)
    scaled = (states - states.mean(axis=0)) / np.where(spread > 0, spread, 1)
    _, sizes, axes = np.linalg.svd(scaled, full_matrices=False)
    plane = np.zeros((len(states), 2))
    flat = scaled @ axes[:2].T  # [S, 2], or [S, 1] of a single number
    plane[:, : flat.shape[1]] = flat
    total = np.square(sizes).sum()
    return plane, float(np.square(sizes[:2]).sum() / total) if total > 0 else 1.0
