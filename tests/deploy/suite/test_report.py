"""Aggregates and comparisons against numbers by hand and rliable's; the table's text; the picture."""

import imageio.v3
import numpy as np
import pytest

from qttdm.common.config import ConfigError
from qttdm.deploy.suite.report import aggregate, compare, picture, score_at, table
from qttdm.deploy.suite.results import Result, read_references


def result(task, seed, scores, steps=(50_000, 100_000)):
    """A run that scored these at these steps, and took a minute for each 50,000."""
    rows = [
        (step, score, score if task.startswith("metaworld/") else None, step / 50_000 * 60)
        for step, score in zip(steps, scores, strict=True)
    ]
    return Result(task, seed, "abc", "1a2b3c4", "a CPU", 80.0, rows)


def test_aggregate_is_rliables():
    """rliable 1.2.0 with 50,000 samples says 0.45625, 0.36875 to 0.525 of these four runs of four tasks."""
    runs = [[0.1, 0.5, 0.9, 0.3], [0.2, 0.4, 0.8, 0.35], [0.3, 0.6, 0.95, 0.1], [0.05, 0.7, 0.7, 0.5]]
    mean, low, high = aggregate(list(np.array(runs).T), samples=20_000)
    assert mean == pytest.approx(0.45625)
    assert (low, high) == pytest.approx((0.36875, 0.525), abs=0.01)


def test_a_sample_draws_within_tasks_only():
    """Tasks that differ, runs that do not: nothing is uncertain. Drawn over all runs it would be."""
    got = aggregate([np.array([0.0, 0.0]), np.array([0.5, 0.5, 0.5]), np.array([1.0])])
    assert got == pytest.approx([(0.5 * 0.0 + 0.5 + 0.5 + 0.5 * 0.5) / 3] * 3)  # a quarter of six cut from each end


@pytest.mark.parametrize(
    ("step", "score"), [(0, 1.0), (10_000, 3.0), (5_000, 2.0), (60_000, None), (110_000, 7.0), (120_000, None)]
)
def test_a_curve_is_read_off_only_where_it_has_points(step, score):
    curve = np.array([0.0, 10_000, 100_000, 110_000]), np.array([1.0, 3.0, 5.0, 7.0])
    assert score_at(curve, step) == score


def test_the_table(tmp_path):
    results = [
        result("dmc/walker-walk", 0, (400, 900)),
        result("dmc/walker-walk", 1, (600, 900)),
        result("metaworld/reach", 0, (0.0, 0.5)),
    ]
    (tmp_path / "published.csv").write_text(
        "source,task,step,reward_or_success,seed\n"
        "lab/a,walker-walk,0,0,1\nlab/a,walker-walk,100000,800,1\nlab/a,walker-walk,0,0,2\n"
        "lab/a,walker-walk,100000,1000,2\nlab/a,walker-run,100000,1000,2\nlab/b,mw-reach,100000,1.0,mean\n"
    )
    published = read_references(tmp_path / "published.csv", ["dmc/walker-walk", "metaworld/reach"])
    # 0, 0.4, 0.6: weights 1/6, 2/3, 1/6 -> 0.367; both walkers 0.4 or 0.6: 0.333 or 0.5
    assert table(results, "mine", published) == (
        "Interquartile mean of the normalised score, over all runs:\n\n"
        "| tasks | method | at 20,000 | at 30,000 | at 50,000 | at 100,000 |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| all tasks (2) | mine | - | - | 0.367 (0.333 to 0.500) | 0.833 (0.833 to 0.833) |\n"
        "| dmc (1) | mine | - | - | 0.500 (0.400 to 0.600) | 0.900 (0.900 to 0.900) |\n"
        "| dmc (1) | lab/a | - | - | - | 0.900 (0.800 to 1.000) |\n"
        "\nMean score of each task: return of dmc, success of metaworld:\n\n"
        "| task | method | runs | at 20,000 | at 30,000 | at 50,000 | at 100,000 | minutes | decisions/s |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| dmc/walker-walk | mine | 2 | - | - | 500 (400 to 600) | 900 (900 to 900) | 2.0 | 80 |\n"
        "| dmc/walker-walk | lab/a | 2 | - | - | - | 900 (800 to 1000) |  |  |\n"
        "| metaworld/reach | mine | 1 | - | - | 0.00 | 0.50 | 2.0 | 80 |\n"
        "| metaworld/reach | lab/b | 1 | - | - | - | 1.00 |  |  |\n"
        "\nMade by 1a2b3c4 on a CPU. Minutes and decisions/s are a run's mean, learning included.\n"
    )
    picture(results, "mine", published, tmp_path / "both.png")
    assert imageio.v3.imread(tmp_path / "both.png")[..., :3].std() > 10


def test_a_comparison_is_of_pairs_at_the_steps_that_both_have():
    first = [result("dmc/walker-walk", seed, (100 * seed, 500)) for seed in (1, 2, 3)]
    better = [result("dmc/walker-walk", seed, (100 * seed + 40 * seed, 500)) for seed in (1, 2)]
    longer = result("dmc/walker-walk", 3, (360, 500, 0), steps=(50_000, 100_000, 150_000))
    text = compare(first, [*better, longer, result("dmc/walker-walk", 4, (0, 0))], ("a", "b"))
    assert "| dmc/walker-walk | 3 | 0.400 | 0.430 | +0.030 |" in text
    # differences 0.02, 0.04 and 0.03
    assert text.endswith("b to a, normalised mean along the curve of 3 pairs of runs: +0.030 (+0.020 to +0.040): rises")
    assert compare([*better, longer], first, ("b", "a")).endswith("-0.030 (-0.040 to -0.020): falls")
    worse = [result("dmc/walker-walk", 1, (0, 500)), *better[1:]]
    assert compare(first, worse, ("a", "b")).endswith("-0.005 (-0.050 to +0.040): neither rises nor falls")
    with pytest.raises(ConfigError, match="no task and seed"):
        compare(first[:1], [longer], ("a", "b"))


def test_reference_files_that_cannot_be_read(tmp_path):
    (tmp_path / "x.csv").write_text("source,task,step\nlab,walker-walk,0\n")
    with pytest.raises(ConfigError, match=r"x\.csv: want a csv of source, task, step, reward_or_success, seed"):
        read_references(tmp_path / "x.csv", ["dmc/walker-walk"])
