"""`qttdm suite` with real runs: what is done is not run again, a stop is resumed, a mistake is one line."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qttdm.deploy.cli.main import main

ROOT = Path(__file__).parents[3]
TASK = "dmc-cartpole-swingup"
TINY = ["--preset=debug", "--tasks=dmc/cartpole-swingup", "--env-steps=640"]
TINY += ["--set=env={action_repeat: 8, episode_steps: 80}", "--set=training={seed_decisions: 10, eval_every: 320}"]


@pytest.fixture(autouse=True)
def finds_itself(monkeypatch):
    """What the suite starts finds the project from any folder."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a suite of two seeds has ended."""
    folder = tmp_path_factory.mktemp("suite")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(ROOT))
        assert main(["suite", *TINY, "--seeds=0,1"]) == 0
    return folder


@pytest.fixture
def there(finished, here):
    """A copy of it, to work in."""
    shutil.copytree(finished, here, dirs_exist_ok=True)
    return here


def run_suite(capsys, *words):
    """Exit status, stdout and stderr."""
    capsys.readouterr()
    status = main(["suite", *words])
    return status, *capsys.readouterr()


def scores(folder, seed=0, name="suite"):
    """A result without what the clock decides."""
    lines = (folder / f"docs/suite/{name}/{TASK}-seed{seed}.csv").read_text().splitlines()
    return [(row["env_steps"], row["return"], row["success"]) for row in csv.DictReader(lines[1:])]


def test_leaves_results_a_table_and_a_picture(finished):
    assert [steps for steps, _, _ in scores(finished)] == ["320", "640"]
    assert scores(finished, 0) != scores(finished, 1)
    page = (finished / "docs/suite/suite.md").read_text()
    assert "| dmc/cartpole-swingup | suite | 2 |" in page
    assert (finished / "docs/suite/suite.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_done_is_not_run_again_even_without_its_run(there, capsys):
    shutil.rmtree(there / "runs")  # as in a clone: only results are committed
    before = (there / "docs/suite/suite.md").read_text()
    status, out, _ = run_suite(capsys, *TINY, "--seeds=0,1")
    assert (status, out.splitlines()[0]) == (0, "2 of 2 runs are done: docs/suite/suite")
    assert before in out
    assert not (there / "runs").exists()


def test_where_it_ran_is_no_setting(there, capsys):
    more = ["--set=threads=2", "--set=device=cpu", "--set=cluster.metrics_port=null"]
    status, out, _ = run_suite(capsys, *TINY, "--seeds=0,1", *more)
    assert (status, out.splitlines()[0]) == (0, "2 of 2 runs are done: docs/suite/suite")


def test_results_of_other_settings_are_refused_and_kept(there, capsys):
    kept = scores(there)
    for gone in ("docs", "runs"):  # also if it is only half done
        status, out, err = run_suite(capsys, *TINY, "--seeds=1,0", "--set=qt-tdm.planner.horizon=2")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert f"{TASK}-seed1" in err
        assert "is of other settings" in err
        assert "--name" in err
        if gone == "docs":
            assert scores(there) == kept
            shutil.rmtree(there / gone)


def test_runs_of_a_task_with_unequal_settings_are_not_reported(there, capsys):
    path = there / f"docs/suite/suite/{TASK}-seed1.csv"
    path.write_text(path.read_text().replace('"settings": "', '"settings": "0'))
    status, _, err = run_suite(capsys, "--report")
    assert (status, err.count("\n")) == (2, 1)
    assert "dmc/cartpole-swingup seed 0 has the settings" in err


def test_a_failed_run_is_one_line_and_the_others_go_on(there, capsys):
    """Seed 2 has a directory that is no run's; seed 0 has ended, but its result was not kept."""
    (there / f"runs/suite/suite/{TASK}-seed2").mkdir()
    kept = scores(there)
    (there / f"docs/suite/suite/{TASK}-seed0.csv").unlink()
    status, out, err = run_suite(capsys, *TINY, "--seeds=2,0", "--parallel=1")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("qttdm: dmc/cartpole-swingup seed 2: qttdm: runs/suite/suite/dmc-cartpole-swingup-seed2: not")
    assert "dmc/cartpole-swingup seed 0: finished" in out
    assert scores(there) == kept


def test_a_stop_saves_and_the_next_call_goes_on(finished, here, capsys):
    command = [sys.executable, "-m", "qttdm.deploy.cli.main", "suite", *TINY]
    child = subprocess.Popen([*command, "--seeds=0,1", "--parallel=1"], stdout=subprocess.PIPE, text=True)
    run = here / f"runs/suite/suite/{TASK}-seed0"
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count("\n") < 3:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert "seed 0: stopped" in out
    assert "seed 1" not in out
    assert "go on with the same command" in out
    assert len(list((run / "checkpoints").iterdir())) == 1
    status, _, _ = run_suite(capsys, *TINY, "--seeds=0")
    assert status == 0
    assert scores(here) == scores(finished)


def test_two_variants_are_compared(there, capsys):
    shutil.copytree(there / "docs/suite/suite", there / "docs/suite/wide")
    status, out, _ = run_suite(capsys, "--compare", "suite", "wide")
    assert status == 0
    assert out.endswith("of 2 pairs of runs: +0.000 (+0.000 to +0.000): neither rises nor falls\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks=dmc/cartpole-swingup,dmc/walker-wlak"], ["--tasks", "'dmc/walker-wlak'", "qttdm tasks"]),
        (["--tasks=gym/Hopper-v5"], ["'gym/Hopper-v5'", "qttdm tasks"]),
        (["--tasks=dmc/walker-walk,dmc/walker-walk"], ["each task once"]),
        (["--seeds=0,one"], ["--seeds", "'0,one'", "such as 0,1,2"]),
        (["--seeds=1,1"], ["--seeds", "different"]),
        (["--set=seed=3"], ["--set seed=3", "--seeds"]),
        (["--set=training.env_steps=3"], ["--env-steps"]),
        (["--set=qt-tdm.planner.horizn=3"], ["horizn"]),
        (["--set=device=gpu9"], ["device=gpu9"]),
        (["--preset=debgu"], ["debgu", "debug, faithful, "]),
        (["--parallel=0"], ["--parallel", ">= 1"]),
        (["--name=a/b"], ["--name a/b"]),
        (["--report"], ["docs/suite/suite: no results", "none yet"]),
        (["--compare", "a", "b"], ["docs/suite/a: no results"]),
        (["--screening", "--set=training.seed_decisions=60000"], ["training.env_steps=50000"]),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_made(here, capsys, words, said):
    status, out, err = run_suite(capsys, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert [word for word in said if word not in err] == []
    assert list(here.iterdir()) == []
