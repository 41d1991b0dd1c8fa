"""common/environments: bodies.py, universe.py, dmc_random.py. QTTDM_SEEDS=200 tries so many bodies of each family."""

import os

import mujoco
import numpy as np
import pytest
import torch
from dm_control.utils import rewards

from qttdm.common.config import ConfigError
from qttdm.common.environments.bodies import AXES, FAMILIES, TORSO_PARENT, body, ends, mjcf, reward_of
from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.make import list_numbered, make_env
from qttdm.common.environments.rendering import choose_gl
from qttdm.common.models.simulator import Simulator

SEEDS = range(int(os.environ.get("QTTDM_SEEDS", "4")))


def limbs(links):
    """Each link's parent and direction, of the links that turn away from their parent."""
    return [(link.parent, link.direction) for link in links]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_body_settles(family):
    for seed in SEEDS:
        text = mjcf(family, seed)
        assert text == mjcf(family, seed)
        model = mujoco.MjModel.from_xml_string(text)
        assert model.nu == model.nv - 6 == len(body(family, seed)) in range(4, 21)
        assert (model.actuator_ctrlrange == [-1, 1]).all()
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        assert data.ncon == 0  # nothing begins in the ground
        mujoco.mj_step(model, data, 1_000)
        assert np.isfinite(data.qpos).all()
        assert not data.warning.number.any()
        assert np.abs(data.qvel).max() < 2  # rolling, at most
        assert 0 < data.qpos[2] < 1.5


def test_the_families_are_what_they_are_called():
    for seed in SEEDS:
        line = body("line", seed)
        assert limbs(line) == [(number - 1, line[0].direction) for number in range(len(line))]
        assert np.ptp(ends(line), axis=0).astype(bool).sum() == 1

        chain = body("chain", seed)
        assert [link.parent for link in chain] == [number - 1 for number in range(len(chain))]
        ways = AXES[[link.direction for link in chain]]
        assert ((ways[1:] * ways[:-1]).sum(axis=1) >= 0).all()  # never back

        for family in ("bush", "tree"):
            links = body(family, seed)
            assert len(set(limbs(links))) == len(links)  # one thing in one place
            for link in links:
                if link.parent != TORSO_PARENT:
                    assert AXES[link.direction] @ AXES[links[link.parent].direction] >= 0
        depth = {TORSO_PARENT: 0}
        for number, link in enumerate(body("bush", seed)):
            depth[number] = depth[link.parent] + 1
        assert any(sum(link.parent == parent for link in body("bush", s)) > 1 for s in SEEDS for parent in range(-1, 4))
    for family in FAMILIES:
        assert len({mjcf(family, seed) for seed in SEEDS}) == len(SEEDS)


def test_what_is_shown_is_what_mujoco_says():
    env = make_env("universe/tree-3", EnvConfig())
    observation, _ = env.reset(seed=0)
    joints = env.task_spec.action_dim
    assert env.task_spec.obs_dim == 2 * joints + 10
    assert (env.task_spec.episode_steps, env.task_spec.step_seconds) == (800, 0.025)
    physics = env.unwrapped._env.physics
    for _ in range(5):
        observation, reward, *_ = env.step(np.sin(np.arange(joints)).astype(np.float32))
    sensed = physics.data.sensordata[:3]
    want = rewards.tolerance(sensed[0], (1.0, 1.0), margin=1.0, value_at_margin=0.0, sigmoid="linear")
    assert reward == pytest.approx(want, abs=1e-9)
    rotation = physics.named.data.xmat["torso"].reshape(3, 3)
    assert observation[:joints] == pytest.approx(physics.data.qpos[7:], abs=1e-6)
    assert observation[2 * joints] == pytest.approx(physics.named.data.xpos["torso", "z"], abs=1e-6)
    assert observation[2 * joints + 1 : 2 * joints + 4] == pytest.approx(rotation[2], abs=1e-5)
    assert observation[-6:-3] == pytest.approx(rotation.T @ physics.data.qvel[:3], abs=1e-5)
    velocity = np.zeros(6)
    mujoco.mj_objectVelocity(physics.model.ptr, physics.data.ptr, mujoco.mjtObj.mjOBJ_XBODY, 1, velocity, 1)
    assert observation[-3:] == pytest.approx(velocity[:3], abs=1e-5)


@pytest.mark.parametrize("speed", [-0.5, 0.0, 0.3, 1.0, 1.4, 2.5])
def test_the_reward_is_dm_controls(speed):
    want = rewards.tolerance(speed, (1.0, 1.0), margin=1.0, value_at_margin=0.0, sigmoid="linear")
    assert reward_of(np.array(speed)) == pytest.approx(want)


def test_a_random_body_is_scaled():
    """A fixed seed, against the task it is made from: longer, heavier, geared otherwise; else the same."""
    choose_gl()
    from qttdm.common.environments import dmc_random  # it loads what draws, which has to be chosen before

    xml = dmc_random.xml_of(dmc_random.dmc.load("cartpole-swingup")[0].physics.model.ptr)
    assert dmc_random.scaled(xml, 3) == dmc_random.scaled(xml, 3) != dmc_random.scaled(xml, 6)
    old, new = (mujoco.MjModel.from_xml_string(text) for text in (xml, dmc_random.scaled(xml, 3)))
    length = new.geom("pole_1").size[1] / old.geom("pole_1").size[1]
    assert new.geom("pole_1").size[0] == old.geom("pole_1").size[0]
    assert length != pytest.approx(1.0, abs=0.01)
    assert new.body("pole_1").ipos[2] / old.body("pole_1").ipos[2] == pytest.approx(length)
    mass = new.body("pole_1").mass[0] / old.body("pole_1").mass[0]
    assert mass / length != pytest.approx(1.0, abs=0.01)
    assert new.actuator("slide").gear[0] / old.actuator("slide").gear[0] == pytest.approx(1.0, abs=0.5)
    assert (new.nq, new.nv, new.nu, new.nsite) == (old.nq, old.nv, old.nu, old.nsite)


@pytest.mark.parametrize("task", ["universe/chain-7", "dmc-random/reacher-easy-3"])
def test_the_simulator_predicts_them(task):
    """Also where the task draws a target for each episode."""
    env = make_env(task, EnvConfig(action_repeat=2), with_state=True)
    observation, _ = env.reset(seed=4)
    simulator = Simulator(env.task_spec, threads=1)
    context = {name: torch.from_numpy(array[None]) for name, array in env.observe(observation).items()}
    rollout = simulator.select(simulator.start(context), torch.tensor([0]), 3)
    for step in range(3):
        action = np.sin(step + np.arange(env.task_spec.action_dim)).astype(np.float32)
        predicted = float(simulator.step(rollout, torch.from_numpy(action[None])).rewards[0])
        observation, reward, *_ = env.step(action)
        assert predicted == pytest.approx(reward, abs=1e-6)
    assert rollout.observations[0] == pytest.approx(observation, abs=1e-6)


def test_they_are_listed_as_patterns():
    listed = list_numbered()
    assert listed[:4] == [f"universe/{family}-<seed>" for family in FAMILIES]
    assert "dmc-random/cartpole-swingup-<seed>" in listed


@pytest.mark.parametrize("task", ["universe/worm-3", "universe/chain", "universe/chain-x", "dmc-random/dog-run-1"])
def test_one_that_does_not_exist_is_one_line(task):
    with pytest.raises(ConfigError, match=f"unknown task '{task}'; nearest: .*-<seed>"):
        make_env(task, EnvConfig())
