"""The laptop preset learns (minutes each; `make test-learning`)."""

from __future__ import annotations

import pytest

from qttdm.common.metrics.lines import read_metrics
from qttdm.deploy.cli.main import main


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cartpole_is_swung_up_and_balanced(seed, tmp_path):
    run = tmp_path / "run"
    assert main(["train", "--seed", str(seed), "--run-dir", str(run)]) == 0
    last = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "eval"][-1]
    assert last["episode_return"] >= 800
