"""What the benchmark's tables are computed from."""

import time

from qttdm.deploy.bench.timing import in_turns, rate


def test_the_ratio_is_ours_to_the_other_and_the_first_round_does_not_count():
    ours, other = iter([1.0, 20.0, 40.0, 60.0]), iter([1.0, 10.0, 10.0, 10.0])
    got = in_turns(lambda: next(ours), lambda: next(other), rounds=3)
    assert (got.ours, got.other, got.ratio) == (40.0, 10.0, 4.0)


def test_rate_is_calls_per_second(monkeypatch):
    clock, calls = iter([10.0, 12.0]), []
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert rate(lambda: calls.append(None), 5) == 2.5
    assert len(calls) == 5
