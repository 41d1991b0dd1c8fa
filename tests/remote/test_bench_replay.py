"""The replay's benchmark through Ray, small, and that it leaves nothing behind."""

import pytest
import ray

from qttdm.deploy.bench import replay as bench_replay
from qttdm.deploy.bench.replay import Size, through_ray, waiting

pytestmark = pytest.mark.ray


def test_through_ray(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_replay, "CAPACITY", 2000)
    batches, steps = through_ray("uniform", 2, tmp_path, Size(rounds=1, batches=3, episodes=5))
    assert min(batches.ours, batches.other, batches.ratio, steps.ours, steps.other, steps.ratio) > 0
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor("bench-uniform-2/replay-0")


def test_a_learner_that_takes_longer_waits_a_smaller_share(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_replay, "CAPACITY", 2000)
    none, much = waiting(tmp_path, [0.0, 0.2], batches=5)
    assert 0 < much < none <= 1
