"""The replay's benchmark through Ray, small, and that it leaves nothing behind."""

import pytest
import ray

from qttdm.deploy.bench import replay as bench_replay
from qttdm.deploy.bench.replay import through_ray

pytestmark = pytest.mark.ray


def test_through_ray(cluster, tmp_path, monkeypatch):
    for name, small in (("CAPACITY", 2000), ("ROUNDS", 1), ("BATCHES", 3), ("EPISODES", 5)):
        monkeypatch.setattr(bench_replay, name, small)
    steps, batches = through_ray("uniform", 2, tmp_path)
    assert min(steps.ours, steps.other, steps.ratio, batches.ours, batches.other, batches.ratio) > 0
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor("bench-uniform-2/replay-0")
