"""deploy/chaos/soak.py: what grows is told from what only fills up or moves about."""

import numpy as np
import pytest

from qttdm.deploy.chaos.soak import slope

SECONDS = list(np.arange(0.0, 3600.0, 10.0))


def test_a_leak_has_its_slope():
    noise = np.random.default_rng(0).normal(size=len(SECONDS))
    rate, half = slope(SECONDS, [100 + 5 * t / 3600 + e for t, e in zip(SECONDS, noise, strict=True)])
    assert rate == pytest.approx(5, abs=1)
    assert rate - half > 0


def test_what_fills_up_first_and_then_moves_about_has_none():
    noise = np.random.default_rng(1).normal(size=len(SECONDS))
    rate, half = slope(SECONDS, [min(t, 900) + e for t, e in zip(SECONDS, noise, strict=True)])
    assert rate - half < 0 < rate + half
