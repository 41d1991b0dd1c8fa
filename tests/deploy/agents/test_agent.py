"""Three agents from the same parts, and devices that are there or not."""

import pytest
import torch

from qttdm.common.config import ConfigError
from qttdm.common.environments.task_env import TaskSpec
from qttdm.deploy.agents.agent import choose_device, exploration, make_learner, make_policy, use_bfloat16
from qttdm.planner_service.policies.greedy import GreedyPolicy
from qttdm.planner_service.policies.planning import PlanningPolicy
from tests.fakes import tiny_config

CPU = torch.device("cpu")
SPEC = TaskSpec(3, 2, action_repeat=8, episode_steps=80, terminates=False, has_success=False)
NETWORKS = {"qt-tdm": ["tdm", "qt"], "tdm": ["tdm"], "qt": ["qt"]}


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
    assert isinstance(policies["tdm"], PlanningPolicy)
    assert isinstance(policies["qt-tdm"], PlanningPolicy)
    assert policies["tdm"].planner.value_function is None  # no proposals, no terminal value
    assert policies["tdm"].planner.config.qt_samples == 0
    assert policies["qt-tdm"].planner.value_function is not None


@pytest.mark.parametrize("terminates", [False, True])
def test_only_tasks_that_terminate_get_a_continuation_head(terminates):
    spec = TaskSpec(3, 2, 8, 80, terminates=terminates, has_success=False)
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
    assert [exploration(tiny_config(agent=agent), steps) for agent in ("qt-tdm", "tdm") for steps in (0, 320)] == [
        1
    ] * 4
    scheduled = [exploration(tiny_config(agent="qt"), steps) for steps in (0, 48, 96, 320)]
    assert scheduled == pytest.approx([1.0, 0.505, 0.01, 0.01])


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
