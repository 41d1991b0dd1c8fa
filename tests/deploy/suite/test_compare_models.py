"""qttdm compare-models: any run with a dynamics model, beside the true simulator; what does not fit is one line."""

import os

import numpy as np
import pytest

from qttdm.common.run_dir import RunDir
from qttdm.deploy.cli.main import main
from qttdm.deploy.runs.local import new_run
from tests.fakes import randomise, tiny_config

CART = "dmc/cartpole-swingup"
SIZES = ["--steps", "12", "--starts", "6"]
PLANNER = ["--episodes", "2", "--samples", "8", "--horizon", "2", "--noise", "brownian"]
GENERALIST = "{shared: true, embed_dim: 8, num_heads: 2, num_layers: 1, window: 4, bins: 9, dropout: 0.0}"


def saved(folder, agent, *overrides, task=CART):
    """A run with random weights and one checkpoint."""
    run = new_run(tiny_config(*overrides, agent=agent, task=task), RunDir.create(folder))
    randomise(run.learner.networks)
    run.loop.store.save(80, run.learner.state(), {"counters": {}, "metrics_bytes": 0}, {})
    run.close()
    return str(folder)


def collected(name, episodes=2, seed=0, task=CART):
    """A data set of random actions, 20 decisions an episode."""
    words = ["--kind", "random", "--out", name, "--episodes", str(episodes), "--task", task, "--preset", "debug"]
    assert main(["collect", *words, "--references", "1", "--set", f"seed={seed}"]) == 0
    return name


@pytest.fixture
def held_out(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return collected("held-v0", 3)


def rows(capsys):
    """The table that was printed, cell by cell, by model."""
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return lines[0], {line[0]: line[1:] for line in lines[2:]}


def test_models_are_compared_by_what_they_foresee_and_by_one_planner_in_each(held_out, tmp_path, capsys):
    env = "env={action_repeat: 8, episode_steps: 160}"
    runs = [saved(tmp_path / agent, agent, env) for agent in ("mlp", "tdm", "qt-tdm", "trajectory-transformer")]
    capsys.readouterr()
    words = ["--dataset", held_out, *SIZES, *PLANNER]
    assert main(["compare-models", *runs, *words, "--out", "cart"]) == 0
    head, found = rows(capsys)
    assert head == ["model", "agent", "parameters", "error at 1", "error at 5", "error at 12", "return"]
    assert list(found) == [*runs, "the true simulator"]
    assert [cells[0] for cells in found.values()] == ["mlp", "tdm", "qt-tdm", "trajectory-transformer", "-"]
    for cells in found.values():
        assert cells[2:5] == ["-"] * 3 or all(0 < float(cell.split()[0]) < np.inf for cell in cells[2:5])
        assert 0 < float(cells[5].split()[0]) <= 20
    assert (tmp_path / "cart.md").read_text().count("\n") == 7
    assert (tmp_path / "cart.png").stat().st_size > 10_000
    # what is said of a model does not depend on the others
    assert main(["compare-models", runs[1], runs[0], *words]) == 0
    again = rows(capsys)[1]
    assert again == {name: found[name] for name in (runs[1], runs[0], "the true simulator")}


def test_a_model_of_many_tasks_is_judged_on_what_it_has_not_learned_from(held_out, tmp_path, capsys):
    collected("some/one-v0", seed=1)
    run = str(tmp_path / "general")
    train = ["offline", "--preset", "generalist-laptop", "--dataset", "some", "--task", CART, "--updates", "2"]
    settings = [f"generalist.model={GENERALIST}", "generalist.planner={horizon: 2, samples: 4, context: 2}"]
    settings += ["env={action_repeat: 8, episode_steps: 160}", "training.eval_episodes=0"]
    assert main([*train, "--run-dir", run, *(word for item in settings for word in ("--set", item))]) == 0
    capsys.readouterr()
    assert main(["compare-models", run, "--dataset", held_out, *SIZES]) == 0
    head, found = rows(capsys)
    assert head[-1] == "error at 12"
    assert float(found[run][-1].split()[0]) > 0
    other, another = collected("other-v0", task="dmc/pendulum-swingup"), ["--task", "dmc/pendulum-swingup"]
    assert main(["compare-models", run, "--dataset", other, *another, *SIZES, *PLANNER]) == 0
    found = rows(capsys)[1]
    assert float(found[run][-1].split()[0]) >= 0
    assert list(found) == [run, "the true simulator"]
    assert main(["compare-models", run, "--dataset", other, *SIZES]) == 2
    assert "does not fit dmc/cartpole-swingup: numbers observed: got 3, want 5" in capsys.readouterr().err
    tuned = str(tmp_path / "tuned")
    begin = ["offline", "--preset", "generalist-laptop", "--from", run, "--dataset", other, "--task", CART]
    settings = ["--set", settings[2], "--set", settings[3], "--updates", "1"]
    assert main([*begin, *settings, "--run-dir", tuned]) == 0
    capsys.readouterr()
    assert main(["compare-models", tuned, "--dataset", "some/one-v0", *SIZES]) == 2
    assert "has learned from the data set some/one-v0 itself" in capsys.readouterr().err
    folder = f"{os.environ['MINARI_DATASETS_PATH']}/some/one-v0"  # by whatever name
    assert main(["compare-models", run, "--dataset", folder, *SIZES]) == 2
    assert f"has learned from the data set {folder} itself" in capsys.readouterr().err
    nowhere = str(tmp_path / "nowhere" / "models")
    assert main(["compare-models", run, "--dataset", other, *another, *SIZES, "--out", nowhere]) == 2
    assert f"{nowhere}: there is no folder {tmp_path / 'nowhere'}; make it" in capsys.readouterr().err
    assert main(["compare-models", run, "--dataset", "some/one-v0", *SIZES]) == 2
    assert capsys.readouterr().err.startswith(f"qttdm: {run}: has learned from the data set some/one-v0 itself; want")


@pytest.mark.parametrize(
    ("agent", "task", "more", "says"),
    [
        ("mlp", "gym/FakePoint-v0", [], "does not fit gym/FakePoint-v0: numbers observed: got 5, want 3"),
        ("qt", CART, [], "agent=qt has learned no dynamics model that it plans in; want a run of qt-tdm, tdm, mlp"),
        ("simulator-shooting", CART, [], "agent=simulator-shooting has learned no dynamics model"),
        ("mlp", CART, ["--steps", "21"], "--steps 21: the longest episode has 20 decisions; want at most as many"),
        ("tdm", CART, ["--episodes", "1", "--horizon", "9"], "imagines 4 steps; want from 1 to 4"),
        ("mlp", CART, ["--dataset", "held-v9"], "there is no data set 'held-v9'"),
    ],
)
def test_what_does_not_fit_is_one_line(held_out, tmp_path, capsys, agent, task, more, says):
    run = saved(tmp_path / "run", agent, task=task)
    capsys.readouterr()
    words = [] if "--dataset" in more else ["--dataset", held_out]
    assert main(["compare-models", run, *words, *([] if "--steps" in more else SIZES), *more]) == 2
    assert says in (err := capsys.readouterr().err)
    assert err.count("\n") == 1
    assert not (tmp_path / "models.md").exists()


def test_returns_are_compared_of_one_task_only(held_out, tmp_path, capsys):
    runs = [saved(tmp_path / "a", "mlp"), saved(tmp_path / "b", "mlp", "env.episode_steps=160")]
    capsys.readouterr()
    words = ["compare-models", *runs, "--dataset", held_out, *SIZES]
    assert main(words) == 0
    assert main([*words, *PLANNER]) == 2
    assert f"{runs[1]}: its task or its settings of env are not those of {runs[0]}" in capsys.readouterr().err
    assert main(["compare-models", "--dataset", held_out]) == 2
    assert "name runs whose agents have a dynamics model" in capsys.readouterr().err
