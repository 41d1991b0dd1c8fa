"""The one table, and the rows of a run on a cluster."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from qttdm.common.config import load_config
from qttdm.common.run_dir import RunDir
from qttdm.deploy.cluster.cluster_run import seed_row
from qttdm.deploy.configs.run_config import RunConfig, preset_path
from qttdm.deploy.screens.rows import View, print_views, short_time

RUNNING = {
    "env_steps": 12_500,
    "episode_return": 123.45,
    "eval_return": 99.0,
    "updates_per_second": 40.26,
    "decisions_per_second": 41.0,
    "seconds": 200.0,
    "wall_seconds": 600.0,
    "spent": {"waiting_for_decisions": 30.0, "waiting_for_batches": 20.0, "updating": 150.0},
    "replay_fill": 0.12,
    "staleness": 37,
    "actor_restarts": 2,
    "environment_failures": 1,
}


@pytest.fixture
def running(tmp_path):
    """Make the row of a running seed 3, of which one process hung, from what its learner says."""

    def make(target=50_000, **said):
        return row_of(tmp_path, 3, "running", {"evaluator": 1}, RUNNING | said, target)

    return make


@pytest.fixture
def queued(tmp_path):
    """The row of seed 4, which waits for a place."""
    return row_of(tmp_path, 4, "queued", {}, {}, 50_000)


def row_of(directory, seed, state, restarts, said, target):
    config = load_config(RunConfig, preset_path("laptop"), overrides=[f"training.env_steps={target}"], seed=seed)
    run_dir = RunDir(directory)
    return seed_row(SimpleNamespace(config=config, run_dir=run_dir, state=state, restarts=restarts, status=said))


def shown(view, **console):
    file = io.StringIO()
    print_views([view], Console(file=file, **console))
    return file.getvalue().splitlines()


def test_a_seed_of_a_cluster_as_cells(running, queued):
    assert running().cells() == {
        "seed": "3",
        "state": "running",
        "env steps": "12,500 25%",
        "left": "30.0m",  # 600 s for a quarter
        "return": "123.5",
        "eval": "99.0",
        "upd/s": "40.3",
        "dec/s": "41.0",
        "idle": "25%",
        "fill": "12%",
        "stale": "37",
        "died": "4",
    }
    assert queued.line() == "seed 4 | state queued | env steps 0 0% | died 0"


@pytest.mark.parametrize("width", [80, 200])
def test_a_run_of_half_a_million_steps_fits_into_80_columns(running, queued, width):
    large = {"episode_return": 1234.5, "eval_return": -1234.5, "staleness": 99999}
    late = running(500_000, env_steps=500_000, **large)
    early = running(500_000, env_steps=5_000, wall_seconds=3_000.0, **large)
    view = View("", [late, early, queued])
    heads, first, second, third = shown(view, width=width, force_terminal=True, color_system=None)
    assert " ".join(heads.split()) == "seed state env steps left return eval upd/s dec/s idle fill stale died"
    assert " ".join(first.split()) == "3 running 500,000 100% 0s 1234 -1234 40.3 41.0 25% 12% 99999 4"
    assert " ".join(second.split()) == "3 running 5,000 1% 3.4d 1234 -1234 40.3 41.0 25% 12% 99999 4"
    assert " ".join(third.split()) == "4 queued 0 0% - - - - - - - - 0"


def test_a_view_holds_title_table_notes_and_troubles_and_without_a_terminal_nothing_is_cut(running):
    lines = shown(View("walk: dmc/walker-walk", [running()], ["[b]a note"], ["seed 0: silent"]), width=20)
    assert [lines[0], *lines[3:]] == ["walk: dmc/walker-walk", "[b]a note", "! seed 0: silent"]
    assert lines[2].split()[-3:] == ["12%", "37", "4"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0s"), (59.4, "59s"), (60, "1.0m"), (5400, "1.5h"), (864_000, "10.0d")],
)
def test_times_are_short(seconds, text):
    assert short_time(seconds) == text
