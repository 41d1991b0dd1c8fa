"""The presets say what the paper's tables say, and contradictions are one line that names the keys."""

import pickle

import pytest

from qttdm.common.config import Config, ConfigError, dump_config, load_config, read_yaml
from qttdm.common.contracts import TaskSpec
from qttdm.deploy.agents.registry import AGENTS
from qttdm.deploy.configs.run_config import RunConfig, check_fits, load_run_config, preset_path, with_settings
from qttdm.deploy.runs.serve import ServeConfig
from qttdm.planner_service.planners.random_shooting import RandomShootingConfig
from tests.fakes import tiny_config

TASKS = {
    "debug": "dmc/cartpole-swingup",
    "faithful": "dmc/cartpole-swingup",
    "laptop": "dmc/cartpole-swingup",
    "paper-dmc": "dmc/walker-walk",
    "paper-metaworld": "metaworld/hammer",
    "tt-laptop": "dmc/cartpole-swingup",
    "tt-paper": "gym/Hopper-v5",
}


def load(preset, **more):
    return load_config(RunConfig, preset_path(preset), **more)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("preset", TASKS)
def test_every_preset_has_every_agent_and_comes_back_from_what_is_saved(preset, agent, tmp_path):
    config = load(preset, agent=agent)
    assert (config.task, config.agent) == (TASKS[preset], agent)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(RunConfig, preset_path(str(tmp_path / "config.yaml"))) == config
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301 - as Ray hands it to a process


@pytest.mark.parametrize("preset", ["debug", "laptop"])
def test_a_preset_for_any_agent_has_a_section_for_each(preset):
    assert {*AGENTS} <= read_yaml(preset_path(preset).read_text(), preset).keys()


def test_an_unknown_preset_is_told_which_there_are():
    with pytest.raises(
        ConfigError,
        match=r"^--preset lapdog: .*debug, faithful, generalist-laptop, generalist-paper, lap.*tt-paper, twm-atari",
    ):
        preset_path("lapdog")


class TestPaper:
    """Tables I-IV and the text of the paper."""

    @pytest.mark.parametrize("preset", ["paper-dmc", "paper-metaworld"])
    def test_common_to_both_suites(self, preset):
        config = load(preset)
        got = config.settings.model_dump()
        want = {
            "discount": 0.98,
            "tdm": {
                "window": 20,
                "bins": 256,
                "embed_dim": 256,
                "num_heads": 4,
                "num_layers": 5,
                "dropout": 0.1,
                "head_dim": 512,
                "head_layers": 3,
                "head_dropout": 0.01,
            },
            "qt": {"bins": 256, "embed_dim": 128, "num_heads": 8, "num_layers": 2, "dropout": 0.1},
            "planner": {
                "horizon": 3,
                "samples": 512,
                "qt_samples": 24,
                "iterations": 6,
                "elites": 64,
                "init_std": 2.0,
                "temperature": 0.5,
                "min_std": 0.05,
                "max_std": 2.0,
                "random_bins": 0.1,
                "keep_elites": 0,
                "execute": "elite",
            },
        }
        assert config.agent == "qt-tdm"
        assert config.replay.sampler == "uniform"
        training = {"seed_decisions": 2000, "update_ratio": 1.0, "eval_every": 10_000, "eval_episodes": 10}
        assert {key: getattr(config.training, key) for key in training} == training
        epsilon = load(preset, agent="qt").settings.epsilon
        assert (epsilon.start, epsilon.end, epsilon.share) == (1.0, 0.01, 0.3)
        for section, values in want.items():
            if isinstance(values, dict):
                assert {key: got[section][key] for key in values} == values, section
            else:
                assert got[section] == values
        learner = config.settings.learner
        assert learner.batch_size == 512
        assert (learner.tdm.learning_rate, learner.tdm.weight_decay, learner.tdm.max_grad_norm) == (1e-4, 1e-6, 30)
        assert (learner.tdm.state_weight, learner.tdm.reward_weight, learner.tdm.schedule) == (1.0, 2.0, "constant")
        assert (learner.qt.learning_rate, learner.qt.weight_decay, learner.qt.max_grad_norm) == (3e-4, 1e-6, 20)
        assert (learner.qt.ema_coefficient, learner.qt.n_step) == (0.005, 3)
        assert config.replay.capacity >= config.training.env_steps // config.env.action_repeat  # nothing is forgotten

    @pytest.mark.parametrize(
        ("task", "repeat", "clamp"),
        [
            ("dmc/walker-walk", 2, False),
            ("dmc/cheetah-run", 4, False),
            ("dmc/reacher-easy", 4, True),
            ("dmc/reacher-hard", 4, True),
            ("dmc/hopper-stand", 4, False),
        ],
    )
    def test_dmc(self, task, repeat, clamp):
        config = load("paper-dmc", task=task)
        assert config.env.action_repeat == repeat
        assert config.settings.learner.qt.monte_carlo_clamp is clamp
        assert config.env.episode_steps in (None, 1000)  # None: the suite's own 1000
        assert config.training.env_steps == 500_000
        assert config.settings.learner.reward_scale == 1.0
        assert (config.settings.learner.qt.schedule, config.settings.learner.qt.ema_every) == ("constant", 5)

    @pytest.mark.parametrize("name", ["hammer", "door-unlock", "reach-wall"])
    def test_metaworld(self, name):
        config = load("paper-metaworld", task=f"metaworld/{name}")
        assert (config.env.action_repeat, config.env.episode_steps) == (2, 200)
        assert config.training.env_steps == 1_000_000
        assert config.settings.learner.reward_scale == 0.5
        assert (config.settings.learner.qt.schedule, config.settings.learner.qt.ema_every) == ("linear", 10)
        assert config.settings.learner.qt.monte_carlo_clamp is False

    @pytest.mark.parametrize(("preset", "episode"), [("paper-dmc", 1000), ("paper-metaworld", 200)])
    def test_settings_fit_the_tasks(self, preset, episode):
        config = load(preset)
        check_fits(config, TaskSpec(24, 6, config.env.action_repeat, episode, terminates=False))


class TestFits:
    SPEC = TaskSpec(3, 2, action_repeat=8, episode_steps=80, terminates=True)  # 10 decisions

    def test_what_fits_passes(self):
        check_fits(tiny_config(), self.SPEC)
        check_fits(tiny_config("qt-tdm.tdm.window=10", "qt-tdm.planner.horizon=10"), self.SPEC)
        check_fits(tiny_config("qt-tdm.learner.qt.states_per_window=2"), self.SPEC)
        check_fits(tiny_config("replay.capacity=10"), self.SPEC)

    @pytest.mark.parametrize(
        ("overrides", "names"),
        [
            (["qt-tdm.tdm.window=11"], ["tdm.window=11", "10 decisions", "env.action_repeat=8", "from 1 to 10"]),
            (["qt-tdm.planner.horizon=5"], ["qt-tdm: planner.horizon=5", "tdm.window=4", "from 1 to 4"]),
            (
                ["qt-tdm.learner.qt.states_per_window=3"],
                ["learner.qt.states_per_window=3", "learner.qt.n_step=3", "tdm.window=4", "at most 5"],
            ),
            (["qt-tdm.learner.qt.n_step=5"], ["learner.qt.n_step=5", "at most 5"]),
            (["replay.capacity=9"], ["replay.capacity=9", "10 decisions", "at least 10"]),
            (["training.seed_decisions=40"], ["training.seed_decisions=40", "training.env_steps=320", "fewer than 40"]),
        ],
    )
    def test_a_contradiction_is_one_line_with_keys_values_and_what_would_do(self, overrides, names):
        with pytest.raises(ConfigError) as error:
            check_fits(tiny_config(*overrides), self.SPEC)
        assert "\n" not in str(error.value)
        for name in names:
            assert name in str(error.value)

    def test_without_proposals_the_elites_must_be_found_among_the_samples(self):
        planner = "planner={samples: 8, qt_samples: 8, elites: 12}"
        tiny_config(f"qt-tdm.{planner}")
        with pytest.raises(ConfigError, match=r"^command line: tdm: planner.elites=12.*from 1 to 8"):
            tiny_config(f"tdm.{planner}", agent="tdm")

    def test_another_agents_settings_are_not_ignored_in_silence(self):
        with pytest.raises(ConfigError, match=r"^command line: tdm: has no effect, .*qt-tdm; .* begin with qt-tdm"):
            tiny_config("tdm.planner.horizon=2")

    def test_a_page_from_before_sections_is_refused_as_such(self, tmp_path):
        (tmp_path / "config.yaml").write_text("task: dmc/walker-walk\nagent: tdm\ntdm: {window: 5}\nplanner: {}\n")
        with pytest.raises(
            ConfigError, match=r"config.yaml: planner: .* section, tdm.planner; a run of the older form"
        ):
            load_config(RunConfig, tmp_path / "config.yaml")

    def test_a_named_planner_is_checked_together_with_what_is_set_beside_it(self):
        config = load_run_config(preset_path("laptop"), ["qt-tdm.planner.elites=128"], planner="exact")
        assert (config.settings.planner.samples, config.settings.planner.elites) == (512, 128)
        with pytest.raises(ConfigError, match="agent=qt does not plan by kind mppi"):
            load_run_config(preset_path("laptop"), planner="exact", agent="qt")

    def test_another_kind_of_planner_begins_from_its_own_defaults(self):
        config = tiny_config("tdm.planner={kind: random-shooting, horizon: 4}", agent="tdm")
        assert config.settings.planner == RandomShootingConfig(horizon=4, samples=8)  # of the preset: none
        with pytest.raises(
            ConfigError, match=r"unknown key tdm.planner.elites; .* horizon, kind, noise, .*samples, start, std"
        ):
            tiny_config("tdm.planner.kind=random-shooting", "tdm.planner.elites=3", agent="tdm")
        with pytest.raises(ConfigError, match=r"of kind mppi or random-shooting"):
            tiny_config("tdm.planner.kind=beam", agent="tdm")

    @pytest.mark.parametrize(
        ("override", "names"),
        [
            (
                "agent=ppo",
                [
                    "agent: there is no 'ppo'",
                    "trajectory-transformer, twm, generalist, simulator-shooting, or module:Class",
                ],
            ),
            ("qt-tdm.discount=1.0", ["qt-tdm.discount: got 1.0", "< 1"]),
            ("seed=-1", ["seed: got -1", ">= 0"]),
            ("precision=float16", ["precision: got 'float16'", "bfloat16"]),
            ("training.update_ratio=0", ["training.update_ratio: got 0", "> 0"]),
            ("qt-tdm.tdm.num_heads=3", ["embed_dim=16", "num_heads=3", "[1, 2, 4, 8, 16]"]),
        ],
    )
    def test_values_out_of_range(self, override, names):
        with pytest.raises(ConfigError) as error:
            tiny_config(override)
        for name in names:
            assert name in str(error.value)


def undocumented(config: type[Config], path: str = "") -> list[str]:
    """Fields without a docstring, by their dotted names; a section may have its class's."""
    found = []
    for name, field in config.model_fields.items():
        if isinstance(field.default, Config):
            found += undocumented(type(field.default), f"{path}{name}.")
        elif not field.description:
            found.append(path + name)
    return found


@pytest.mark.parametrize("config", [*map(with_settings, AGENTS), ServeConfig])
def test_every_field_has_the_docstring_that_qttdm_config_prints(config):
    assert undocumented(config) == []
