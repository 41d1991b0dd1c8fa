"""What a planner's economies save and cost, with small runs."""

import numpy as np
import pytest

from qttdm.common.run_dir import RunDir
from qttdm.deploy import bench
from qttdm.deploy.bench_economies import VARIANTS, Row, format_row
from qttdm.deploy.local import new_run
from tests.fakes import tiny_config

QUICK = ["--set", "planner.horizon=1", "--device", "cpu"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = []
    for seed in (0, 1):
        run_dir = RunDir.create(tmp_path_factory.mktemp("runs") / f"run-{seed}")
        new_run(tiny_config(f"seed={seed}"), run_dir).save()
        made.append(run_dir.path)
    return made


def test_a_row_for_each_economy_with_time_return_and_difference_to_exact(runs, capsys):
    before = sorted(path.name for path in runs[0].iterdir())
    assert bench.main(["--run", *map(str, runs), "--episodes", "2", *QUICK]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert "2 runs, 2 episodes each" in head
    assert [row[:28].strip() for row in rows] == ["exact", "as trained", *list(VARIANTS)[1:]]
    exact = rows[0][28:].split()
    assert exact[1] == "1.000"
    assert exact[6:] == ["+0.0", "+0.0", "to", "+0.0"]
    for row in rows:
        ms, ratio, value, low, _, high = row[28:].split()[:6]
        assert float(ms) > 0
        assert float(ratio) > 0
        assert float(low) <= float(value) <= float(high)
    assert sorted(path.name for path in runs[0].iterdir()) == before


def test_planners_by_name_from_the_start_states_of_another_seed(runs, capsys):
    def returns(*words: str) -> list[float]:
        assert bench.main(["--run", str(runs[0]), "--episodes", "2", "--only", "iterations", *words, *QUICK]) == 0
        _, _, *rows = capsys.readouterr().out.splitlines()
        assert [row[:28].strip() for row in rows] == ["exact", "iterations=3"]
        return [float(row[28:].split()[2]) for row in rows]

    own = returns()
    assert returns("--start", "0") == own  # the run's seed
    assert returns("--start", "1") != own


def test_a_difference_is_one_of_pairs():
    returns = np.array([0.0, 100.0, 200.0])
    exact = Row("exact", np.array([0.2, 0.4]), returns)
    cells = format_row(Row("dear", np.array([0.1, 0.1]), returns - 5), exact)[28:].split()
    assert cells == ["100.0", "0.375", "95.0", "-5.0", "to", "195.0", "-5.0", "-5.0", "to", "-5.0"]


@pytest.mark.parametrize(
    ("override", "words"),
    [("agent=qt", ["agent=qt", "does not plan"]), ("task=gym/Pendulum-v1", ["Pendulum", "FakePoint"])],
)
def test_runs_that_cannot_be_compared_are_refused_in_one_line(runs, tmp_path, capsys, override, words):
    run_dir = RunDir.create(tmp_path / "other")
    new_run(tiny_config(override), run_dir).save()
    assert bench.main(["--run", str(runs[0]), str(run_dir.path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words)
