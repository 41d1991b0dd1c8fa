"""Agents from the same parts, one of a user's own among them, and devices that are there or not."""

import inspect
from contextlib import closing

import numpy as np
import pytest
import torch

from qttdm.common.config import ConfigError
from qttdm.common.contracts import TaskSpec
from qttdm.common.metrics.lines import read_metrics
from qttdm.common.run_dir import RunDir
from qttdm.deploy.configs.run_config import RunConfig
from qttdm.deploy.runs.acting import agent_without_training
from qttdm.deploy.runs.build import (
    choose_device,
    exploration,
    make_learner,
    make_policy,
    make_task_env,
    task_spec,
    use_bfloat16,
)
from qttdm.deploy.runs.local import new_run
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.deploy.screens.progress import Progress
from qttdm.planner_service.policies.greedy import GreedyPolicy, greedy_beside
from qttdm.planner_service.policies.planning import PlanningPolicy
from tests.fakes import tiny_config

CPU = torch.device("cpu")
SPEC = TaskSpec(3, 2, action_repeat=8, episode_steps=80, terminates=False)
NETWORKS = {
    "qt-tdm": ["tdm", "qt"],
    "tdm": ["tdm"],
    "qt": ["qt"],
    "mlp": ["mlp"],
    "iql": ["iql"],
    "trajectory-transformer": ["sequence"],
    "twm": ["world_model", "actor_critic"],
    "generalist": ["sequence"],
}


@pytest.mark.parametrize("agent", NETWORKS)
def test_an_agent_has_its_networks_and_no_others(agent):
    config = tiny_config(agent=agent)
    learner, policy = make_learner(config, SPEC, CPU), make_policy(config, SPEC, CPU)
    assert list(learner.networks) == list(policy.networks) == NETWORKS[agent]
    assert {name.partition("/")[0] for name in learner.state() if "/" in name} == set(NETWORKS[agent])


@pytest.mark.parametrize("agent", NETWORKS)
def test_the_policy_takes_what_the_learner_gives_and_keeps_its_own_copy(agent):
    config = tiny_config(agent=agent)
    learner, policy = make_learner(config, SPEC, CPU), make_policy(config, SPEC, CPU)
    policy.load(learner.weights())
    pairs = list(zip(learner.networks.parameters(), policy.networks.parameters(), strict=True))
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    with torch.no_grad():
        pairs[0][0].add_(1.0)
    assert not torch.equal(*pairs[0])


def test_how_each_agent_acts():
    policies = {agent: make_policy(tiny_config(agent=agent), SPEC, CPU) for agent in NETWORKS}
    assert isinstance(policies["qt"], GreedyPolicy)  # no planning
    assert isinstance(policies["iql"], GreedyPolicy)
    assert isinstance(policies["twm"], GreedyPolicy)
    assert isinstance(policies["tdm"], PlanningPolicy)
    assert isinstance(policies["mlp"], PlanningPolicy)
    assert isinstance(policies["qt-tdm"], PlanningPolicy)
    assert policies["tdm"].planner.value_function is None  # no proposals, no terminal value
    assert policies["tdm"].planner.config.qt_samples == 0
    assert policies["qt-tdm"].planner.value_function is not None


def test_qt_tdm_acts_by_its_own_policy_where_it_is_asked_to():
    """As the greedy policy beside the planner, with the weights of the same run."""
    learner = make_learner(tiny_config(), SPEC, CPU)
    planning, bare = make_policy(tiny_config(), SPEC, CPU), make_policy(tiny_config("qt-tdm.act=policy"), SPEC, CPU)
    assert isinstance(bare, GreedyPolicy)
    for policy in (planning, bare):
        policy.load(learner.weights())
    shown = {"observations": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}
    beside = greedy_beside(planning)
    actions = [p.decide([p.start(i, 0.0) for i in range(4)], shown).actions for p in (bare, beside)]
    assert np.array_equal(*actions)


@pytest.mark.parametrize("terminates", [False, True])
def test_only_tasks_that_terminate_get_a_continuation_head(terminates):
    spec = TaskSpec(3, 2, 8, 80, terminates=terminates)
    learner = make_learner(tiny_config(), spec, CPU)
    assert any("continuation_head" in name for name in learner.state()) is terminates


def test_making_a_policy_does_not_move_the_random_stream():
    """The learner's dropout draws from it: what acts must not decide how is learned."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    make_policy(tiny_config(), SPEC, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_linear_schedules_end_with_the_training():
    """320 simulator steps are 40 decisions, 10 of them before learning."""
    for ratio, want in (("1.0", 30), ("0.5", 15), ("2.0", 60)):
        assert make_learner(tiny_config(f"training.update_ratio={ratio}"), SPEC, CPU).total_updates == want


def test_exploration_is_scheduled_for_qt_and_the_planners_own_business_otherwise():
    assert [
        exploration(tiny_config(agent=agent), SPEC, steps) for agent in ("qt-tdm", "tdm") for steps in (0, 320)
    ] == [1] * 4
    scheduled = [exploration(tiny_config(agent="qt"), SPEC, steps) for steps in (0, 48, 96, 320)]
    assert scheduled == pytest.approx([1.0, 0.505, 0.01, 0.01])


class TestOwn:
    NAME = "tests.deploy.agents.own_agent:Curious"

    def test_it_trains_resumes_and_is_evaluated_as_any(self, tmp_path):
        config = tiny_config("own.width=8", agent=self.NAME)
        run_dir = RunDir.create(tmp_path / "run")
        with closing(new_run(config, run_dir)) as run, Progress(320, None) as progress:
            run.train(progress)
        assert sum(line["kind"] == "update" for line in read_metrics(run_dir.metrics_path)) > 0
        trained = TrainedAgent(run_dir.path)
        assert trained.config.settings.width == 8
        assert len(trained.evaluate(2).returns) == 2

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("nowhere:Agent", "cannot import nowhere:Agent"),
            ("tests.deploy.agents.own_agent:Absent", "cannot import"),
            ("os:PathLike", "is no agent: it has no check, learner, policy, exploration, Settings"),
            (
                "tests.deploy.agents.broken_agent:Any",
                "cannot import tests.deploy.agents.broken_agent:Any (ZeroDivisionError",
            ),
            (
                "dreamer",
                "there is no 'dreamer'; want one of qt-tdm, tdm, qt, mlp, iql, trajectory-transformer, twm, ",
            ),
        ],
    )
    def test_what_is_no_agent_is_one_line(self, name, says):
        with pytest.raises(ConfigError) as error:
            tiny_config(agent=name)
        assert says in str(error.value)

    def test_an_unknown_key_of_its_section_is_named(self):
        with pytest.raises(ConfigError, match=r"unknown key own.depth; known keys here are samples, width"):
            tiny_config("own.depth=2", agent=self.NAME)


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_are_compiled_or_that_is_refused(name):
    overrides = [f"{name}.learner.compile=true"]
    if name in ("twm", "trajectory-transformer", "generalist"):
        wanted = rf"{name}.*: learner.compile=true: .* want false, or agent qt-tdm, tdm, qt, mlp or iql"
        with pytest.raises(ConfigError, match=wanted):
            tiny_config(*overrides, agent=name)
        return
    learner = make_learner(tiny_config(*overrides, agent=name), SPEC, CPU)
    assert not any(inspect.ismethod(part.loss) for part in learner.parts)


class TestSimulatorShooting:
    """It needs no training, and plans from the state that its environments show."""

    def config(self, *overrides: str, task: str = "dmc/cartpole-swingup", **more) -> RunConfig:
        own = ["env={action_repeat: 8, episode_steps: 80}", "training={env_steps: 320, seed_decisions: 10}"]
        return tiny_config(*own, *overrides, task=task, agent="simulator-shooting", **more)

    def test_its_values_are_the_rewards_it_gets_in_a_search_of_one_step(self):
        agent = agent_without_training(self.config("simulator-shooting.planner.horizon=1"))
        policy, values, rewards = agent.policy, [], []
        env = make_task_env(agent.config, agent.spec)
        observation, _ = env.reset(seed=3)
        episode = policy.start(3, 0.0)
        for _ in range(10):
            seen = {name: array[None] for name, array in env.observe(observation).items()}
            decided = policy.decide([episode], seen)
            observation, reward, *_ = env.step(decided.actions[0])
            values.append(float(decided.values[0]))
            rewards.append(reward)
        assert values == pytest.approx(rewards, abs=1e-6)

    def test_it_is_trained_like_any_and_its_replay_keeps_the_state(self, tmp_path):
        config = self.config()
        run_dir = RunDir.create(tmp_path / "run")
        with closing(new_run(config, run_dir)) as run, Progress(320, None) as progress:
            run.train(progress)
            state = run.replay.next()["simulator_state"]
        assert state.dtype == np.float64
        assert state.shape[2] == task_spec(config).simulator_state > 0
        assert len(TrainedAgent(run_dir.path).evaluate(1).returns) == 1

    @pytest.mark.parametrize("task", ["gym/FakePoint-v0", "metaworld/reach", "dmc/quadruped-escape"])
    def test_other_suites_are_one_line(self, task):
        with pytest.raises(
            ConfigError,
            match=rf"agent=simulator-shooting asks for simulator_state, {task} shows observations; dmc tasks",
        ):
            agent_without_training(self.config(task=task))

    def test_an_agent_with_networks_needs_a_run(self):
        with pytest.raises(ConfigError, match="agent=qt-tdm acts with trained networks; want the directory of one"):
            agent_without_training(tiny_config())


def test_devices():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "mps"])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(ConfigError) as error:
        choose_device(name)
    assert str(error.value).startswith(f"device={name}: ")
    assert "want one of auto, cpu" in str(error.value)


def test_precision():
    cuda = torch.device("cuda")  # only named
    assert [use_bfloat16(tiny_config(f"precision={p}"), CPU) for p in ("auto", "float32", "bfloat16")] == [0, 0, 1]
    assert [use_bfloat16(tiny_config(f"precision={p}"), cuda) for p in ("auto", "float32", "bfloat16")] == [1, 0, 1]
