"""The generalist suite, tiny: each experiment runs from end to end, by the project's own parts, and says what holds."""

import json

import numpy as np
import pytest
import torch

from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.make import make_raw
from qttdm.common.run_dir import RunDir
from qttdm.deploy.bodies import gaits
from qttdm.deploy.cli.main import main as qttdm
from qttdm.deploy.runs.local import new_run
from qttdm.deploy.suite import experiments, generalist, specialist
from qttdm.deploy.suite.generalist import Few, Walk, main
from qttdm.deploy.suite.specialist import CHOSEN, RUNS, Cart, chosen, in_simulator, simulated
from qttdm.replay.datasets import open_dataset
from tests.fakes import randomise, tiny_config

ENV = {"env.action_repeat": 8, "env.episode_steps": 160}
SMALL = {"shared": True, "embed_dim": 8, "num_heads": 2, "num_layers": 1, "bins": 9, "dropout": 0.0, "window": 10}
FEW = {"horizon": 2, "samples": 3}
CART = Cart(
    env=ENV,
    model=SMALL,
    stages=([{"std": 0.5, **FEW}, {"std": 1.0, **FEW}], [{"samples": 5}]),
    searching_steps=40,
    episodes=2,
    updates=3,
    starts=3,
    depth=12,
    windows=20,
    tdm={"embed_dim": 16, "num_heads": 2},
)
FEW_BODIES = Few(known=(0,), logged=2, shots=(1, 2), updates=3, tuning=2, depth=5)
WALK = Walk(
    env=EnvConfig(action_repeat=2, episode_steps=20),
    bodies=2,
    new=1,
    context=3,
    settings={
        "training.offline_updates": 2,
        "generalist": {"model": SMALL, "planner": {**FEW, "context": 2}, "learner.batch_size": 4},
    },
)


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """A run of cartpole, random episodes under the names of its data sets, a small suite; in a folder of the test's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    run = new_run(
        tiny_config(*(f"{k}={v}" for k, v in ENV.items()), task=experiments.CART), RunDir.create(experiments.RUN)
    )
    randomise(run.learner.networks)
    run.loop.store.save(80, run.learner.state(), {"counters": {}, "metrics_bytes": 0}, {})
    run.close()
    for name, seed in (("cart/medium-400-v0", 0), ("cart/medium-40-seed100-v0", 1)):
        words = ["--kind", "random", "--out", name, "--episodes", "3", "--task", experiments.CART, "--preset", "debug"]
        sets = [word for item in [f"seed={seed}", *(f"{k}={v}" for k, v in ENV.items())] for word in ("--set", item)]
        assert qttdm(["collect", *words, *sets]) == 0
    for name, size in (("Cart", CART), ("Few", FEW_BODIES), ("Walk", WALK)):
        monkeypatch.setattr(generalist, name, lambda size=size: size)


def table(name):
    """What an experiment has written, cell by cell, without head and rule."""
    lines = (RUNS / f"{name}.md").read_text().splitlines()
    return [line[2:-2].split(" | ") for line in lines[2:]]


def test_the_planner_that_earned_most_is_chosen(logs):
    assert main(["planner"]) == 0
    *tried, last = table("planner")
    assert len(tried) == 3
    short = simulated({**ENV, "env.episode_steps": 40})
    found, returns = chosen(CART)
    earned = {
        (std, k): in_simulator(short, found.model_copy(update={"std": std, "samples": k}), 1)[0]
        for std in (0.5, 1.0)
        for k in (3, 5)
    }
    best = max((0.5, 1.0), key=lambda std: earned[std, 3])
    assert [row[5] for row in tried] == [
        f"{e:.0f} in 40 steps" for e in (earned[0.5, 3], earned[1.0, 3], earned[best, 5])
    ]
    assert (found.std, found.samples) == (best, 5 if earned[best, 5] > earned[best, 3] else 3)
    assert returns == in_simulator(simulated(ENV), found, 2)
    assert last[:5] == [str(cell) for cell in specialist.searched(found)]


def choose():
    """Write a planner as if it had been searched, and what it earned."""
    CHOSEN.parent.mkdir(parents=True)
    planner = {"kind": "random-shooting", "horizon": 2, "samples": 4, "std": 1.0}
    CHOSEN.write_text(json.dumps({"planner": planner, "returns": [2.0, 4.0]}))


def test_the_specialist_is_held_against_the_simulator_and_the_mlp(logs):
    choose()
    assert main(["specialist", "--seeds", "1", "2"]) == 0
    rows = {row[0]: row[1:] for row in table("specialist")}
    assert next(iter(rows)) == "return, true simulator"
    agent, policy = specialist.load(RUNS / "specialist-1", specialist.held_out())
    earned = specialist.judge(CART, [RUNS / "specialist-1", RUNS / "specialist-2"], specialist.held_out(), 12)
    part = earned["return"].mean() / 3
    assert rows["share of it in the generalist"][0].startswith(f"{part:.0%} (")
    assert rows["share of it in the generalist"][2] == ("yes" if part >= 0.85 else "**no**")
    assert rows["error at 12 steps, generalist"][2] in ("yes", "**no**")
    assert policy.planner.dynamics.window == 10
    assert agent.config.training.offline_updates == 3


def test_one_network_has_three_uses(logs):
    choose()
    assert main(["three-uses"]) == 0
    rows = {row[0]: row[1:] for row in table("three-uses")}
    wanted = [row[1] for row in rows.values()]
    assert [w for w in wanted if w] == ["< 10%", ">= 60%", ">= 0"]
    assert sum(name.startswith("return, half of it proposed") for name in rows) == len(specialist.SIGMAS)
    returns = specialist.acting(RUNS / "specialist-1", {**specialist.IMITATE, "context": 4}).evaluate(2).returns
    assert rows["return, imitation"][0] == experiments.mean(returns)


def test_rewards_are_asked_for_with_the_steps_before(logs):
    """An expected reward is what the planner's own root says of the same steps; guessing the mean is 1 off."""
    model = specialist.load(specialist.of_numbers(CART, 1), specialist.held_out())[1].planner.dynamics
    episodes = list(specialist.held_out().episodes())
    e = episodes[0]
    seen, acted = torch.from_numpy(e.observations[None, :5]), torch.from_numpy(e.actions[None, :4])
    with torch.inference_mode():
        history = specialist.remembered(model, seen, acted)
        assert [step.shape for step in history] == [(1, model.slots)] * 4
        first = model.start({"observations": seen[:, 0]})
        assert torch.equal(history[0], model.remember(first, acted[:, 0]))
        root = model.start({"observations": seen[:, 4], "history": torch.cat(history, dim=1)})
        assert model.remember(root, acted[:, 0]).shape == (1, model.slots)
    off = specialist.reward_errors(model, episodes, 50)
    assert len(off) == 50
    assert np.isfinite(off).all()
    column = int(model.columns_of("rewards")[0])
    with torch.no_grad():  # bins that all stand for the mean: the error is the rewards' own variance
        model.tokens.centres[column] = float(np.concatenate([e.rewards for e in episodes]).mean())
    assert np.mean(specialist.reward_errors(model, episodes, 4_000)) == pytest.approx(1, abs=0.25)


def test_a_token_a_state_has_as_much_time(logs, monkeypatch):
    choose()
    seconds = iter([0.6, 0.2, 0.5, 0.25])  # of updates, of decisions
    monkeypatch.setattr(specialist, "cpu_seconds", lambda work: (work(), next(seconds))[1])
    assert main(["tokens"]) == 0
    rows = {row[0]: row[1:] for row in table("tokens")}
    assert rows["updates, seed 1"][:2] == ["3", "9"]
    assert rows["sequences a decision, seed 1"][:2] == ["4", "8"]
    assert list(rows)[2:] == ["return", "error"]
    assert specialist.TrainedAgent(RUNS / "states-1").config.training.offline_updates == 9


def test_a_few_episodes_are_learned_from_what_is_known_and_from_nothing(logs):
    choose()
    assert main(["few-shot"]) == 0
    rows = table("few-shot")
    assert [row[:2] for row in rows] == [["1", "return"], ["1", "error"], ["2", "return"], ["2", "error"]]
    assert [row[6] in ("yes", "**no**") for row in rows] == [True, False, True, False]
    tuned, new = (specialist.TrainedAgent(RUNS / f"{kind}-1-1").config.training for kind in ("tuned", "new"))
    assert (tuned.dataset_episodes, tuned.offline_updates, new.offline_updates) == (1, 2, 3)
    assert str(tuned.start_from).endswith("generalist-suite/cartpoles")
    assert new.start_from is None
    assert generalist.TARGET not in {f"{generalist.SCALED}{seed}" for seed in Few().known}


def test_the_target_is_outside_of_what_is_known():
    """Its pole is longer than all that are known before."""

    def pole(seed):
        physics = make_raw(f"{generalist.SCALED}{seed}").env.unwrapped._env.physics
        return float(physics.named.model.geom_size["pole_1", 1])

    target = int(generalist.TARGET.rpartition("-")[2])
    assert pole(target) > 1.05 * max(pole(seed) for seed in Few().known)


def test_bodies_that_were_not_in_the_data(logs, monkeypatch):
    for name, value in (("RANDOM", 6), ("NEAR", 3), ("SEARCH_SECONDS", 0.5)):
        monkeypatch.setattr(gaits, name, value)
    assert main(["zero-shot"]) == 0
    rows = table("zero-shot")
    assert [row[0].split(", ")[0] for row in rows] == ["bodies held out"] * 3 + ["bodies learned from"] * 3
    assert [row[3] in ("yes", "**no**") for row in rows] == [False, False, True, False, False, False]
    run, (new,) = RUNS / "chains-1", generalist.names("chain", 1, 1000, 6)
    assert specialist.TrainedAgent(run).config.training.dataset == "walkers"
    # what imitation is shown is the gait of that body
    agent = specialist.acting(run, {**specialist.IMITATE, "context": 3}, f"task={new}")
    *_, gait = open_dataset(generalist.dataset_of("new-walkers", new)).episodes()
    generalist.prompt(agent.policy, gait)
    carry, model = agent.policy.start(0, 0.0).carry, agent.policy.planner.dynamics
    acted = carry["history"][0, :, -agent.spec.action_dim :]
    assert carry["steps"].tolist() == [3]
    assert torch.equal(acted, model.tokens.encode(torch.from_numpy(gait.actions[-3:]), model.columns_of("actions")))
