"""The planner's settings: Algorithm 2's numbers, the economies, and named choices of both."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from qttdm.common.config import Config


class PlannerConfig(Config):
    """Algorithm 2's numbers; defaults are the paper's (Table II). The economies are off by default."""

    horizon: int = Field(default=3, gt=0)
    """H, decisions"""
    samples: int = Field(default=512, gt=0)
    """J, Gaussian action sequences an iteration"""
    qt_samples: int = Field(default=24, ge=0)
    """J_QT, sequences proposed by the QT, once a decision"""
    iterations: int = Field(default=6, gt=0)
    """I"""
    elites: int = Field(default=64, gt=0)
    """sequences the Gaussian is fitted to (top-k)"""
    init_std: float = Field(default=2.0, gt=0)
    """std of the first iteration, in action units; the action range is [-1, 1]"""
    min_std: float = Field(default=0.05, gt=0)
    max_std: float = Field(default=2.0, gt=0)
    temperature: float = Field(default=0.5, gt=0)
    """weight of an elite is exp(temperature * (value - best value))"""
    random_bins: float = Field(default=0.1, ge=0, le=1)
    """chance of a uniform bin in each dimension, when the QT proposes and when collecting"""
    terminal_value: Literal["greedy", "first_dimension"] = "greedy"
    """V(s_H): walk all N dimensions, or the maximum over the first one (one pass; equal in the limit by Eq. 2)"""
    compile: bool = False
    """torch.compile the whole decision as one graph, on a GPU a CUDA graph; needs a C++ compiler, minutes to start"""

    sample_decay: float = Field(default=1.0, ge=1)
    """economy: iteration n draws J / sample_decay^n sequences, but at least twice the elites"""
    early_stop: bool = False
    """economy: an environment whose std is at its floor everywhere keeps its Gaussian; all there: iterations end"""
    noise_exponent: float = Field(default=0.0, ge=0)
    """economy: samples are coloured over the horizon, power ~ 1 / frequency^exponent; 0 is white"""
    keep_elites: int = Field(default=0, ge=0)
    """economy: best sequences that compete again in the next iteration and, shifted, in the next decision"""

    @model_validator(mode="after")
    def _elites_fit(self) -> PlannerConfig:
        population = self.samples_at(self.iterations - 1) + self.qt_samples
        if self.elites > population:
            raise ValueError(
                f"elites={self.elites} is more than samples + qt_samples = {population}; "
                f"want elites from 1 to {population}"
            )
        if self.keep_elites > self.elites:
            raise ValueError(
                f"keep_elites={self.keep_elites} is more than elites={self.elites}; "
                f"want keep_elites from 0 to {self.elites}"
            )
        if self.compile and self.early_stop:
            raise ValueError(
                "early_stop looks at the outcome of each iteration, and compile captures all in one graph; "
                "want one of them"
            )
        if not self.min_std <= self.init_std <= self.max_std:
            raise ValueError(
                f"init_std={self.init_std} is not between min_std={self.min_std} and max_std={self.max_std}"
            )
        return self

    def samples_at(self, iteration: int) -> int:
        """J of an iteration, counted from 0."""
        decayed = round(self.samples / self.sample_decay**iteration)
        return min(self.samples, max(decayed, 2 * self.elites))


PRESETS: dict[str, dict[str, Any]] = {
    "exact": {
        "samples": 512,
        "qt_samples": 24,
        "iterations": 6,
        "elites": 64,
        "init_std": 2.0,
        "terminal_value": "greedy",
        "sample_decay": 1.0,
        "early_stop": False,
        "noise_exponent": 0.0,
        "keep_elites": 0,
    },
    "fast": {
        "samples": 96,
        "qt_samples": 32,
        "iterations": 3,
        "elites": 24,
        "init_std": 1.0,
        "terminal_value": "greedy",
        "sample_decay": 1.0,
        "early_stop": False,
        "noise_exponent": 0.0,
        "keep_elites": 4,
    },
}
"""How much a decision is thought about, by name: as in the paper, 3,096 imagined sequences; or 324, of which the QT's
own look over the whole range, so that the Gaussian can begin narrower, around the last decision's plan. For settings
that trade time for quality; all others stay. What was tried, and what `fast` loses: docs/results.md."""
