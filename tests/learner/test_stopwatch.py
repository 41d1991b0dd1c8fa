"""Laps on a CPU; those on a GPU: tests/gpu."""

import time

import pytest
import torch

from qttdm.learner.stopwatch import Stopwatch


def test_each_lap_is_told_at_once():
    told: list[float] = []
    watch = Stopwatch(torch.device("cpu"), told.append)
    for laps in range(1, 4):
        with watch.lap():
            time.sleep(0.002 * laps)
        assert len(told) == laps
        assert told[-1] >= 0.002 * laps


def test_a_lap_that_fails_is_not_told():
    told: list[float] = []
    with pytest.raises(ZeroDivisionError), Stopwatch(torch.device("cpu"), told.append).lap():
        _ = 1 / 0
    assert told == []
