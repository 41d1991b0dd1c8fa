"""`make chaos`, short: a run under attack loses nothing, reaches its end, and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
SEEDS = os.environ.get("CHAOS_SEEDS", "4,6,10").split(",")
"""These kill the driver, the learner and the service, stop others, fill a disk, and break and hang an environment."""


@pytest.mark.parametrize("seed", SEEDS)
def test_the_auditor_finds_nothing_after_a_schedule_of_faults(seed):
    command = [sys.executable, "-m", "qttdm.deploy.chaos", "--seed", seed, "--minutes", "0.3"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("the auditor found nothing\n")
