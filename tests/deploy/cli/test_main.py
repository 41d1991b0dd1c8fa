"""The command line: what it refuses in one line, and what it leaves behind. A few tests start it as a user would."""

import itertools
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

import tests.fakes  # noqa: F401 - registers the toy tasks
from qttdm.common.config import load_config
from qttdm.common.metrics.lines import read_metrics
from qttdm.deploy.agents.registry import AGENTS
from qttdm.deploy.cli.main import main
from qttdm.deploy.configs.run_config import RunConfig, preset_path
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.planner_service.planners.mppi import PRESETS
from tests.deploy.listening import listening

ROOT = Path(__file__).parents[3]
TINY = [
    "--set=threads=1",
    "--set=env={action_repeat: 8, episode_steps: 80}",
    "--set=training={seed_decisions: 10, eval_every: 160, checkpoint_every: 10000}",
]
TOY = ["train", "--preset", "debug", "--task", "gym/FakePoint-v0", "--env-steps", "240", *TINY]
CARTPOLE = [
    "train",
    "--preset",
    "debug",
    *TINY,
    "--set=training.eval_every=10000",
]  # for other processes, which do not know the toys


def command(*arguments):
    """As an argument list for a process of its own."""
    return [sys.executable, "-m", "qttdm.deploy.cli.main", *map(str, arguments)]


def process(folder, *arguments):
    """Start one in `folder`; the project is found wherever that is."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command(*arguments), cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run_main(capsys, *arguments):
    """Exit status, stdout and stderr of the command, in this process."""
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two finished runs of the toy, seeds 0 and 1."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        assert main([*TOY, "--seed", str(seed), "--run-dir", str(folder / str(seed))]) == 0
    return folder


def training_returns(run):
    return [line["episode_return"] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"]


class TestHelp:
    def test_one_line_per_command(self, capsys):
        status, out, _ = run_main(capsys, "--help")
        assert status == 0
        for name in ("train", "eval", "serve", "plot", "top", "tasks", "config", "suite", "cluster", "collect", "data"):
            assert len(re.findall(rf"^\W+{name} +\w.*$", out, re.MULTILINE)) == 1

    @pytest.mark.parametrize(
        "name", ["train", "eval", "serve", "plot", "top", "tasks", "config", "suite", "cluster", "collect", "data"]
    )
    def test_each_command_explains_itself(self, capsys, name):
        status, out, _ = run_main(capsys, name, "--help")
        assert status == 0
        assert f"Usage: qttdm {name}" in out

    def test_train_lists_all_presets_and_agents(self, capsys):
        _, out, _ = run_main(capsys, "train", "--help")
        words = re.findall(r"[\w-]+", out)
        assert {*AGENTS, *(path.stem for path in (ROOT / "deploy" / "configs").glob("*.yaml"))} <= {*words}

    def test_it_brings_no_torch(self):
        code = "import sys, qttdm.deploy.cli.main; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


class TestMistakes:
    """Exit status 2, one line that helps, and nothing made."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--task", "dmc/cartpole-swngup"], ["dmc/cartpole-swngup", "dmc/cartpole-swingup"]),
            (["--task", "dmx/walker-walk"], ["dmx/walker-walk", "dmc/walker-walk"]),
            (["--preset", "debgu"], ["debgu", "debug, faithful, generalist-laptop, generalist-paper, laptop"]),
            (["--preset", "none.yaml"], ["none.yaml", "cannot read"]),
            (["--agent", "td-mpc"], ["agent", "td-mpc", "qt-tdm"]),
            (["--set", "qt-tdm.planner.horizn=5"], ["qt-tdm.planner.horizn", "horizon"]),
            (["--set", "qt-tdm.planner.horizon=long"], ["qt-tdm.planner.horizon", "'long'", "integer"]),
            (["--set", "qt-tdm.planner.horizon=0"], ["qt-tdm.planner.horizon", "0", "> 0"]),
            (["--set", "qt-tdm.planner.horizon"], ["qt-tdm.planner.horizon", "KEY=VALUE"]),
            (["--planner", "quick"], ["'quick'", "exact, fast"]),
            (["--set", "qt-tdm.tdm.window=50"], ["qt-tdm: tdm.window=50", "20 decisions"]),
            (["--set", "device=gpu9"], ["device=gpu9", "cpu"]),
            (["--env-steps", "0"], ["--env-steps", '"0"', ">= 1"]),
            (["--env-steps", "1.5"], ["--env-steps", "'1.5'", "whole number"]),
            (["--seed", "-1"], ["--seed", '"-1"', ">= 0"]),
            (["--max-minutes", "soon"], ["--max-minutes", '"soon"']),
            (["--taks", "dmc/walker-walk"], ["--taks"]),
            (["--accept-losses"], ["--accept-losses goes with --resume"]),
        ],
    )
    def test_training(self, here, capsys, arguments, words):
        preset = [] if "--preset" in arguments else ["--preset", "debug"]
        status, out, err = run_main(capsys, "train", *preset, *arguments)
        assert (status, out) == (2, "")
        assert err.startswith("qttdm: ")
        assert err.count("\n") == 1
        for word in words:
            assert word in err
        assert list(here.iterdir()) == []

    @pytest.mark.parametrize(
        "arguments", [[], ["trian"], ["eval"], ["plot"], ["eval", "nowhere"], ["plot", "nowhere"], ["eval", ".", "--x"]]
    )
    def test_other_commands(self, here, capsys, arguments):
        status, _, err = run_main(capsys, *arguments)
        assert status == 2
        assert err.count("\n") == 1
        assert list(here.iterdir()) == []

    def test_of_an_option_given_twice_the_last_one_counts(self, capsys):
        """As `make smoke ARGS='--preset laptop'` gives it."""
        status, out, _ = run_main(
            capsys, "config", "--seed", "1", "--preset", "none", "--preset", "debug", "--seed", "2"
        )
        assert status == 0
        assert "\nseed: 2\n" in out

    def test_an_existing_run_directory_is_not_trained_in(self, trained, capsys):
        before = (trained / "0" / "metrics.jsonl").read_bytes()
        status, _, err = run_main(capsys, *TOY, "--run-dir", trained / "0")
        assert status == 2
        assert "exists; choose another --run-dir, or --resume it" in err
        assert (trained / "0" / "metrics.jsonl").read_bytes() == before

    def test_what_is_not_a_run_is_not_resumed(self, here, capsys):
        (here / "folder").mkdir()
        for name in ("folder", "nothing"):
            status, _, err = run_main(capsys, "train", "--resume", name)
            assert status == 2
            assert f"{name}: not a run directory" in err
            assert err.count("\n") == 1

    @pytest.mark.parametrize(
        "option",
        [
            ["--task", "dmc/walker-walk"],
            ["--seed", "0"],
            ["--preset", "debug"],
            ["--agent", "qt"],
            ["--run-dir", "x"],
            ["--planner", "fast"],
            ["--set", "seed=1"],
        ],
    )
    def test_a_resumed_run_stays_as_it_was_configured(self, trained, capsys, option):
        status, _, err = run_main(capsys, "train", "--resume", trained / "0", *option)
        assert status == 2
        assert f"it cannot take {option[0]}\n" in err

    def test_a_resumed_run_does_not_end_before_where_it_is(self, trained, capsys):
        before = (trained / "0" / "config.yaml").read_bytes()
        status, _, err = run_main(capsys, "train", "--resume", trained / "0", "--env-steps", "10")
        assert status == 2
        assert re.fullmatch(r"qttdm: --env-steps 10: \S+ has had \d+ already; want more than that\n", err)
        assert (trained / "0" / "config.yaml").read_bytes() == before

    def test_one_process_at_a_time(self, trained, capsys):
        from qttdm.common.run_dir import RunDir

        with RunDir.open(trained / "0").lock():
            status, _, err = run_main(capsys, "train", "--resume", trained / "0")
        assert status == 2
        assert "is training here" in err


class TestTraining:
    def test_a_finished_run_trains_longer(self, trained, here, capsys):
        run = shutil.copytree(trained / "0", here / "run")
        done = read_metrics(run / "metrics.jsonl")
        had = done[-1]["env_steps"]
        status, out, _ = run_main(capsys, "train", "--resume", run)
        assert (status, f"has had its {had:,} steps; --env-steps {2 * had}" in out) == (0, True)
        assert run_main(capsys, "train", "--resume", run, "--env-steps", f"{had + 100:_}")[0] == 0
        lines = read_metrics(run / "metrics.jsonl")
        assert lines[: len(done)] == done
        assert lines[-1]["env_steps"] >= had + 100
        assert lines[-1]["updates"] > done[-1]["updates"]
        assert load_config(RunConfig, run / "config.yaml").training.env_steps == had + 100

    def test_a_run_whose_time_was_up_says_how_to_go_on(self, here, capsys):
        _, out, _ = run_main(capsys, *TOY, "--run-dir", "run", "--max-minutes", "0.0001")
        assert "steps were wanted; go on with: qttdm train --resume run\n" in out

    def test_leaves_everything_behind(self, trained):
        run = trained / "0"
        assert {"config.yaml", "metrics.jsonl", "checkpoints", "curve.png"} <= {path.name for path in run.iterdir()}
        kinds = [line["kind"] for line in read_metrics(run / "metrics.jsonl")]
        assert kinds == ["train", "train", "update", "eval", "train", "update", "eval"]
        assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")

    def test_says_what_it_does(self, here, capsys):
        status, out, err = run_main(capsys, *TOY, "--seed", "3")
        assert (status, err) == (0, "")
        (run,) = (here / "runs").iterdir()
        assert re.fullmatch(r"gym-FakePoint-v0-\d{8}-\d{6}", run.name)
        assert out.startswith("qt-tdm on gym/FakePoint-v0, seed 3, cpu: runs/gym-FakePoint-v0-")
        assert "evaluation at 160 steps: return" in out
        assert "no video: " in out  # a toy draws nothing
        assert "curve: " in out

    def test_the_saved_configuration_is_enough_to_run_it_again(self, trained, here, capsys):
        status, _, _ = run_main(capsys, "train", "--preset", trained / "1" / "config.yaml", "--run-dir", "again")
        assert status == 0
        assert training_returns(here / "again") == training_returns(trained / "1")
        assert (here / "again" / "config.yaml").read_text() == (trained / "1" / "config.yaml").read_text()
        assert training_returns(trained / "0") != training_returns(trained / "1")

    def test_max_minutes_ends_cleanly(self, here, capsys):
        start = time.monotonic()
        long = ["--env-steps", "10000000", "--max-minutes", "0.02"]
        status, out, err = run_main(capsys, *TOY, *long, "--run-dir", "run")
        assert (status, err) == (0, "")
        assert time.monotonic() - start < 60
        assert "stopped early" in out
        assert "evaluation at" in out
        assert (here / "run" / "curve.png").exists()
        assert len(list((here / "run" / "checkpoints").iterdir())) >= 1

    def test_the_number_of_steps_given_twice_is_refused(self, here, capsys):
        status, _, err = run_main(capsys, *TOY, "--set", "training.env_steps=160")
        assert (status, err.count("\n")) == (2, 1)
        assert "--env-steps and --set training.env_steps are the same setting" in err
        assert not (here / "runs").exists()

    def test_resuming_what_is_finished_ends_at_once(self, trained, capsys):
        before = training_returns(trained / "0")
        status, _, _ = run_main(capsys, "train", "--resume", trained / "0")
        assert status == 0
        assert training_returns(trained / "0") == before

    def test_a_loss_that_is_not_finite_is_one_line_and_status_1(self, here, capsys):
        poison = ["--task", "gym/FakePointPoisoned-v0", "--set=env={action_repeat: 1, episode_steps: 10}"]
        with pytest.warns(RuntimeWarning, match="overflow"):
            status, _, err = run_main(capsys, *TOY, *poison)
        assert status == 1
        assert err.count("\n") == 1
        assert "not finite at update" in err

    def test_a_simulator_that_hangs_ends_it_with_one_line_and_it_is_resumed(self, here):
        limits = "cluster={hang_seconds: 15, timeout_seconds: 14}"
        task = "gym/tests.fakes:FakePointHangs-v0"
        options = [*TINY, f"--set={limits}", "--env-steps", "1_000_000", "--run-dir", "run"]
        child = process(here, "train", "--preset", "debug", "--task", task, *options)
        deadline = time.monotonic() + 300
        while not (here / "run" / "metrics.jsonl").exists():  # what hangs from the start never gets so far
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert listening(child.pid) == set()
        (here / "hang").touch()
        _, err = child.communicate(timeout=120)
        assert child.returncode == 1
        hung = here / "run" / "hung" / "actor-0.txt"
        assert err.startswith("qttdm: actor-0 hung, see run/hung/actor-0.txt; go on with: qttdm train --resume run (")
        assert err.count("\n") == 1
        assert "fakes.py" in hung.read_text()
        resumed = process(here, "train", "--resume", "run", "--max-minutes", "0.05")
        _, err = resumed.communicate(timeout=120)
        assert (resumed.returncode, err) == (0, f"run/config.yaml: imports the code that it names: {task}\n")
        assert "actor 0 replaced its environments: hung, see" in (here / "run" / "events.log").read_text()
        (here / "hang").touch()
        evaluating = process(here, "eval", "run", "--set=cluster={hang_seconds: 2, timeout_seconds: 1}")
        _, err = evaluating.communicate(timeout=120)
        assert evaluating.returncode == 1
        assert err.endswith(f"; {task}: making, a reset or a step has taken more than 2 s (cluster.hang_seconds)\n")
        assert err.count("\n") == 2

    def test_a_full_disk_is_one_line_and_leaves_no_directory(self, here, capsys):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
        try:
            status, _, err = run_main(capsys, *TOY, "--run-dir", "run")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert status == 1
        assert re.fullmatch(r"qttdm: run/config\.yaml: cannot write [\d,]+ bytes \(File too large\)\n", err)
        assert not (here / "run").exists()

    def test_interrupted_from_the_keyboard_and_resumed(self, here):
        """The real thing: Ctrl-C in the middle of training, and then --resume, each in a process of its own."""
        child = process(here, *CARTPOLE, "--env-steps", "640", "--run-dir", "run")
        metrics = here / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)  # one request: GNU timeout sends two
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
        assert "stopping: saving a checkpoint" in err
        assert "Traceback" not in err
        assert "saved; go on with: qttdm train --resume run" in out
        assert len(list((here / "run" / "checkpoints").iterdir())) == 1
        stopped_at = read_metrics(metrics)
        assert stopped_at[-1]["decisions"] < 80

        resumed = process(here, "train", "--resume", "run")
        out, err = resumed.communicate(timeout=120)
        assert (resumed.returncode, err) == (0, "")
        lines = read_metrics(metrics)
        assert lines[: len(stopped_at)] == stopped_at
        assert (lines[-1]["kind"], lines[-1]["decisions"], lines[-1]["updates"]) == ("eval", 80, 70)
        assert "video" in out  # a video, or one line why there is none
        assert (here / "run" / "video.mp4").exists() is ("no video" not in out)


class TestEvalAndPlot:
    def test_eval_prints_returns(self, trained, capsys):
        status, out, err = run_main(capsys, "eval", trained / "0", "--episodes", "3")
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert [re.sub(r"-?\d+\.\d$", "#", line) for line in lines[:3]] == [f"episode {i}: return #" for i in range(3)]
        assert re.fullmatch(r"mean return -?\d+\.\d, success \d+%, .* s|mean return -?\d+\.\d, .* s", lines[3])

    def test_eval_repeats_the_runs_own_last_evaluation(self, trained, capsys):
        own = [line for line in read_metrics(trained / "0" / "metrics.jsonl") if line["kind"] == "eval"][-1]
        _, out, _ = run_main(capsys, "eval", trained / "0", "--episodes", "2")
        assert [float(text) for text in re.findall(r"episode \d: return (.*)", out)] == pytest.approx(
            own["episode_returns"], abs=0.051
        )

    def test_eval_with_another_planner(self, trained, capsys):
        def returns(*more):
            return run_main(capsys, "eval", trained / "0", "--episodes", "2", *more)[1].splitlines()[:2]

        assert returns("--set", "qt-tdm.planner.init_std=0.06", "--set", "qt-tdm.planner.samples=200") != returns()

    def test_eval_with_a_planner_by_name_and_set_wins_over_it(self, trained, monkeypatch):
        planners = []
        monkeypatch.setattr(
            TrainedAgent, "evaluate", lambda agent, *_: planners.append(agent.config.settings.planner) or 1 / 0
        )
        for name in PRESETS:
            for more in ([], ["--set", "qt-tdm.planner.samples=70"]):
                with pytest.raises(ZeroDivisionError):
                    main(["eval", str(trained / "0"), *more, "--planner", name, "--set", "qt-tdm.planner.horizon=1"])
        own = TrainedAgent(trained / "0").config.settings.planner
        for planner, (name, more) in zip(planners, itertools.product(PRESETS, ({}, {"samples": 70})), strict=True):
            assert planner == own.model_copy(update={**PRESETS[name], **more, "horizon": 1})

    def test_eval_leaves_the_run_as_it_is(self, trained, capsys):
        files = [path for path in sorted((trained / "0").rglob("*")) if path.is_file()]
        before = [path.read_bytes() for path in files]
        run_main(capsys, "eval", trained / "0", "--episodes", "1")
        assert [path for path in sorted((trained / "0").rglob("*")) if path.is_file()] == files
        assert [path.read_bytes() for path in files] == before

    def test_eval_says_when_it_cannot_film(self, trained, capsys):
        status, _, err = run_main(capsys, "eval", trained / "0", "--episodes", "1", "--video")
        assert status == 1
        assert err.count("\n") == 1

    def test_plot_over_two_runs(self, trained, here, capsys):
        status, out, _ = run_main(capsys, "plot", trained / "0", trained / "1", "--out", "both.png")
        assert status == 0
        assert (here / "both.png").read_bytes().startswith(b"\x89PNG")
        assert re.search(r"gym/FakePoint-v0 +qt-tdm +2 ", out)


@pytest.mark.parametrize("number", ["100000", "1e5", "100_000"])
@pytest.mark.parametrize("option", ["--env-steps {}", "--set training.env_steps={}"])
def test_a_number_may_be_written_in_three_ways(option, number, capsys):
    status, out, _ = run_main(capsys, "config", *option.format(number).split())
    assert (status, "  env_steps: 100000\n" in out) == (0, True)


def test_the_version_also_as_a_module():
    done = subprocess.run([sys.executable, "-m", "qttdm", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"qttdm {version('qttdm')}\n")


def test_tasks_are_listed_one_a_line(capsys):
    status, out, _ = run_main(capsys, "tasks")
    assert status == 0
    names = [line for line in out.splitlines() if re.fullmatch(r"(dmc|metaworld)/[\w-]+", line)]
    assert len(names) == len(set(names)) >= 100
    assert {"dmc/walker-walk", "dmc/reacher-easy", "metaworld/hammer"} <= set(names)


class TestConfig:
    def test_the_printed_page_is_a_preset_with_every_field_and_its_comment(self, here, capsys):
        status, out, err = run_main(
            capsys, "config", "--preset", "debug", "--set", "qt-tdm.planner.horizon=2", "--seed", "7"
        )
        assert (status, err) == (0, "")
        assert "  # gamma, per decision\n  discount: 0.98\n" in out
        assert "    # H, decisions\n    horizon: 2\n" in out
        (here / "page.yaml").write_text(out)
        config = load_config(RunConfig, preset_path("debug"), overrides=["qt-tdm.planner.horizon=2"], seed=7)
        assert load_config(RunConfig, here / "page.yaml") == config

    def test_a_mistake_is_one_line(self, capsys):
        status, out, err = run_main(capsys, "config", "--set", "qt-tdm.planner.horizn=2")
        assert (status, out, err.count("\n")) == (2, "", 1)
