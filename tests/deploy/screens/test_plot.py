from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import imageio.v3
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import trim_mean

from qttdm.common.config import ConfigError, dump_config, merge, parse_overrides, validate
from qttdm.common.metrics.lines import COUNTERS, MetricsWriter
from qttdm.deploy.configs.run_config import RunConfig
from qttdm.deploy.screens.plot import align, bootstrap_interval, interquartile_mean, plot_runs, read_references


def make_run(
    path: Path,
    evaluations: dict[int, float],
    task: str = "dmc/walker-walk",
    overrides: Sequence[str] = (),
    success: dict[int, float] | None = None,
    training: dict[int, float] | None = None,
) -> Path:
    """A run's directory as training leaves it: evaluations and training returns by environment step."""
    path.mkdir()
    config = validate(RunConfig, merge({"task": task}, parse_overrides(overrides)), "test")
    (path / "config.yaml").write_text(dump_config(config))
    with closing(MetricsWriter(path / "metrics.jsonl")) as writer:
        for step, value in (training or {}).items():
            writer.write("train", **dict.fromkeys(COUNTERS, 0) | {"env_steps": step}, episode_return=value)
        for step, value in evaluations.items():
            solved = (success or {}).get(step)
            writer.write(
                "eval", **dict.fromkeys(COUNTERS, 0) | {"env_steps": step}, episode_return=value, success=solved
            )
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved, to look into."""
    figures: list[Figure] = []
    original = Figure.savefig

    def savefig(figure: Figure, *arguments: Any, **keywords: Any) -> None:
        figures.append(figure)
        original(figure, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def lines(figure: Figure, panel: int = 0) -> dict[str, list[tuple[float, float]]]:
    """What is drawn: label -> points."""
    return {
        str(line.get_label()): list(zip(*map(np.ndarray.tolist, map(np.asarray, line.get_data())), strict=True))
        for line in figure.axes[panel].get_lines()
    }


def slow_interquartile_mean(values: list[float]) -> float:
    """Each value as 4 * R equal pieces; the outer quarter of the pieces cut from each end."""
    pieces = sorted(values * (4 * len(values)))
    cut = len(pieces) // 4
    middle = pieces[cut:-cut]
    return sum(middle) / len(middle)


@pytest.mark.parametrize("runs", range(1, 12))
def test_interquartile_mean_is_the_mean_of_the_middle_half(runs: int) -> None:
    values = np.random.default_rng(runs).normal(size=(runs, 3))
    got = interquartile_mean(values)
    assert got == pytest.approx([slow_interquartile_mean(values[:, column].tolist()) for column in range(3)])
    if runs % 4 == 0:
        assert got == pytest.approx(trim_mean(values, 0.25, axis=0))


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean(np.array([7.0])) == 7
    assert interquartile_mean(np.array([0.0, 10.0])) == 5
    assert interquartile_mean(np.array([100.0, 1.0, 0.0])) == pytest.approx((0.25 * 0 + 1 * 1 + 0.25 * 100) / 1.5)
    assert interquartile_mean(np.array([1.0, 2.0, 3.0, 1000.0])) == 2.5


def test_bootstrap_equals_the_loop() -> None:
    values = np.random.default_rng(1).normal(size=(5, 4))
    drawn = np.random.default_rng(3).integers(5, size=(300, 5))
    means = [[sum(values[run, column] for run in draw) / 5 for column in range(4)] for draw in drawn]
    low, high = bootstrap_interval(values, samples=300, seed=3)
    assert low == pytest.approx(np.percentile(means, 2.5, axis=0))
    assert high == pytest.approx(np.percentile(means, 97.5, axis=0))


def test_bootstrap_known_cases() -> None:
    low, high = bootstrap_interval(np.array([[0.0, 5.0], [1.0, 5.0]]))
    assert (low[0], high[0]) == (0, 1)  # both draws the same run: a quarter of the time each
    assert (low[1], high[1]) == (5, 5)
    many = np.random.default_rng(0).normal(size=(400, 1))
    low, high = bootstrap_interval(many)
    assert (high - low)[0] == pytest.approx(2 * 1.96 / 20, rel=0.1)  # the normal interval, R = 400, sigma = 1
    assert low < many.mean() < high
    again = bootstrap_interval(many)
    assert np.array_equal(low, again[0]), "same runs, same picture"


def test_align_interpolates_onto_the_union_within_the_common_range() -> None:
    first = (np.array([0.0, 10.0, 20.0, 30.0]), np.array([0.0, 1.0, 2.0, 3.0]))
    second = (np.array([5.0, 15.0, 25.0]), np.array([10.0, 20.0, 10.0]))
    grid, values = align([first, second])
    assert grid.tolist() == [5, 10, 15, 20, 25]
    assert values.tolist() == [[0.5, 1, 1.5, 2, 2.5], [10, 15, 20, 15, 10]]
    with pytest.raises(ValueError, match="share no range"):
        align([first, (np.array([31.0]), np.array([1.0]))])


def test_groups_are_agent_and_task_with_their_seeds_together(tmp_path: Path, drawn: list[Figure]) -> None:
    paths = [
        make_run(tmp_path / "a", {0: 0, 10: 100, 20: 200}),
        make_run(tmp_path / "b", {0: 0, 20: 400, 30: 500}, overrides=["seed=1", "threads=2", "device=cpu"]),
        make_run(tmp_path / "c", {0: 5, 1000: 7}, overrides=["agent=tdm"]),
        make_run(tmp_path / "d", {0: 1, 10: 2}, task="dmc/cheetah-run"),
    ]
    table = plot_runs(paths, tmp_path / "curve.png")
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == ["dmc/cheetah-run", "dmc/walker-walk"]
    assert lines(figure, 1) == {
        "qt-tdm (2 runs)": [(0, 0), (10, 150), (20, 300)],
        "tdm": [(0, 5), (1000, 7)],
    }
    assert len(figure.axes[1].collections) == 1, "a band for the group of two only"
    assert {axes.get_xlabel() for axes in figure.axes} == {"environment steps"}
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()]
    assert rows[0] == ["task", "group", "runs", "at step", "score", "mean", "95% interval", "IQM"]
    assert rows[2] == [
        "dmc/walker-walk",
        "qt-tdm",
        "2",
        "20",
        "episode_return",
        "300.0",
        "200.0 to 400.0",
        "300.0",
    ]
    assert rows[3] == ["dmc/walker-walk", "tdm", "1", "1,000", "episode_return", "7.0", "-", "7.0"]
    assert imageio.v3.imread(tmp_path / "curve.png").std() > 5, "something is drawn"


def test_runs_with_other_settings_are_a_group_of_their_own_named_after_them(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    """What differs names the group; the other task has its own panel and names."""
    paths = [
        make_run(tmp_path / "a", {0: 1}, overrides=["qt-tdm.planner.horizon=5"]),
        make_run(
            tmp_path / "b", {0: 2}, overrides=["qt-tdm.planner.horizon=3", "qt-tdm.learner.qt.learning_rate=1.0e-4"]
        ),
        make_run(
            tmp_path / "c",
            {0: 4},
            overrides=["qt-tdm.planner.horizon=3", "qt-tdm.learner.qt.learning_rate=1.0e-4", "seed=7"],
        ),
        make_run(tmp_path / "d", {0: 8}, overrides=["tdm.planner.horizon=5", "agent=tdm"]),
        make_run(tmp_path / "e", {0: 16}, task="gym/Hopper-v5", overrides=["env.action_repeat=4"]),
    ]
    plot_runs(paths, tmp_path / "curve.png")
    assert lines(drawn[0], 0) == {
        "qt-tdm qt-tdm.learner.qt.learning_rate=0.0001 qt-tdm.planner.horizon=3 (2 runs)": [(0, 3)],
        "qt-tdm qt-tdm.learner.qt.learning_rate=0.0003 qt-tdm.planner.horizon=5": [(0, 1)],
        "tdm": [(0, 8)],
    }
    assert lines(drawn[0], 1) == {"qt-tdm": [(0, 16)]}
    legend = drawn[0].axes[0].get_legend()
    assert legend is not None
    assert max(len(line) for text in legend.get_texts() for line in text.get_text().splitlines()) <= 40


def test_a_setting_that_an_older_run_does_not_have(tmp_path: Path, drawn: list[Figure]) -> None:
    paths = [make_run(tmp_path / "a", {0: 1}), make_run(tmp_path / "b", {0: 2})]
    config = paths[1] / "config.yaml"
    config.write_text(config.read_text().replace("precision: auto\n", ""))
    plot_runs(paths, tmp_path / "curve.png")
    assert lines(drawn[0]) == {"qt-tdm precision=auto": [(0, 1)], "qt-tdm precision=-": [(0, 2)]}


def test_the_clusters_settings_tell_apart_only_runs_on_a_cluster(tmp_path: Path, drawn: list[Figure]) -> None:
    names = {"alone": (), "one": ("cluster.actors=1",), "four": ("cluster.actors=4",)}
    paths = [make_run(tmp_path / name, {0: i}, overrides=names[name]) for i, name in enumerate(names)]
    for path in paths[1:]:
        (path / "generation").write_text("1")
    plot_runs(paths, tmp_path / "curve.png")
    assert lines(drawn[0]) == {
        "qt-tdm": [(0, 0)],
        "qt-tdm cluster.actors=1 on=cluster": [(0, 1)],
        "qt-tdm cluster.actors=4 on=cluster": [(0, 2)],
    }


def test_the_same_seed_twice_in_a_group_is_refused(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / name, {0: 1}, overrides=["seed=3", f"threads={n}"]) for n, name in [(1, "a"), (2, "b")]
    ]
    with pytest.raises(ConfigError, match=rf"{paths[0]} and {paths[1]} have the same settings and the same seed, 3"):
        plot_runs(paths, tmp_path / "curve.png")


def test_a_single_run_shows_its_training_returns(tmp_path: Path, drawn: list[Figure]) -> None:
    path = make_run(tmp_path / "a", {0: 1, 10: 2}, training={3: 0.5, 6: 0.75})
    plot_runs([path], tmp_path / "curve.png")
    assert lines(drawn[0]) == {"training episodes": [(3, 0.5), (6, 0.75)], "qt-tdm": [(0, 1), (10, 2)]}


def test_success_where_every_evaluation_has_it_unless_told(tmp_path: Path, drawn: list[Figure]) -> None:
    solved = make_run(tmp_path / "a", {0: 1, 10: 2}, success={0: 0.0, 10: 0.5})
    plot_runs([solved], tmp_path / "curve.png")
    plot_runs([solved], tmp_path / "curve.png", metric="episode_return")
    assert lines(drawn[0])["qt-tdm"] == [(0, 0), (10, 0.5)]
    assert lines(drawn[1])["qt-tdm"] == [(0, 1), (10, 2)]
    unsolved = make_run(tmp_path / "b", {0: 1, 10: 2})
    with pytest.raises(ConfigError, match="has no success"):
        plot_runs([unsolved], tmp_path / "curve.png", metric="success")


def test_an_evaluation_repeated_at_a_step_counts_once(tmp_path: Path, drawn: list[Figure]) -> None:
    path = make_run(tmp_path / "a", {0: 1, 10: 2})
    with closing(MetricsWriter(path / "metrics.jsonl")) as writer:
        writer.write("eval", **dict.fromkeys(COUNTERS, 10), episode_return=9.0)
    plot_runs([path], tmp_path / "curve.png")
    assert lines(drawn[0])["qt-tdm"] == [(0, 1), (10, 9)]


CSV = """source,task,step,reward_or_success,seed
ours,walker-walk,0,1.0,1
ours,walker-walk,0,3.0,2
ours,walker-walk,50,10,1
ours,walker-walk,500,10,1
ours,cheetah-run,0,7,1
ours,mw-hammer,0,0.5,1
"""


def test_references_match_the_bare_task_and_the_metric(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "references.csv"
    path.write_text(CSV)
    (steps, values) = read_references(path, "dmc/walker-walk", "episode_return")["ours"]
    assert (steps.tolist(), values.tolist()) == ([0, 50, 500], [2, 10, 10])
    assert read_references(path, "metaworld/hammer-v3", "success")["ours"][1].tolist() == [0.5]
    assert read_references(path, "metaworld/hammer-v3", "episode_return") == {}
    assert read_references(path, "dmc/walker-run", "episode_return") == {}
    plot_runs([make_run(tmp_path / "a", {0: 1, 100: 2})], tmp_path / "curve.png", references=path)
    assert lines(drawn[0])["ours"] == [(0, 2), (50, 10)], "only as far as the run goes"


@pytest.mark.parametrize("text", ["a,b\n1,2\n", CSV + "ours,walker-walk,x,1,1\n", CSV + "ours\n"])
def test_a_reference_file_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "references.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match="want a csv of source, task, step"):
        read_references(path, "dmc/walker-walk", "episode_return")
    with pytest.raises(ConfigError, match="cannot read reference curves"):
        read_references(tmp_path / "none", "dmc/walker-walk", "episode_return")


def test_directories_that_cannot_be_plotted(tmp_path: Path) -> None:
    out = tmp_path / "curve.png"
    with pytest.raises(ConfigError, match="no run directories"):
        plot_runs([], out)
    with pytest.raises(ConfigError, match="not a run directory"):
        plot_runs([tmp_path], out)
    empty = make_run(tmp_path / "empty", {}, training={1: 1.0})
    with pytest.raises(ConfigError, match="has no evaluations yet"):
        plot_runs([empty], out)
    apart = [make_run(tmp_path / "a", {0: 1, 10: 2}), make_run(tmp_path / "b", {20: 1, 30: 2}, overrides=["seed=1"])]
    with pytest.raises(ConfigError, match=r"qt-tdm.*share no range"):
        plot_runs(apart, out)
    (empty / "config.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        plot_runs([empty], out)
    assert not out.exists()
    with pytest.raises(ConfigError, match="cannot write the plot"):
        plot_runs(apart[:1], tmp_path / "none" / "curve.png")
