"""The door: qttdm COMMAND.

A user's mistake is one line on stderr and exit status 2, before anything starts; a run that fails is one line and 1.
Long, since every command's options and help are here; what a command does is elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App, Parameter

from qttdm.common.config import ConfigError, commented_yaml
from qttdm.common.extras import missing, need
from qttdm.common.run_dir import RunDir
from qttdm.deploy.cli import data
from qttdm.deploy.cli.cluster import cluster
from qttdm.deploy.cli.compare import compare_models
from qttdm.deploy.cli.offline import Mode, of_mode, offline
from qttdm.deploy.cli.options import (
    Choice,
    Count,
    Metrics,
    Overrides,
    Port,
    Positive,
    RunFailed,
    RunPath,
    Seed,
    Settings,
    run,
)
from qttdm.deploy.cli.suite import suite

if TYPE_CHECKING:
    from qttdm.common.metrics.telemetry import MakeTelemetry
    from qttdm.deploy.configs.run_config import RunConfig

app = App(
    "qttdm",
    help="QT-TDM: planning with a Transformer Dynamics Model and a Q-Transformer",
    version=lambda: f"qttdm {version('qttdm')}",
    version_flags=("--version",),
    help_format="plaintext",
    default_parameter=Parameter(negative=(), allow_repeating=True),
)
app.command(cluster)
app.command(offline)
app.command(suite)
app.command(data.collect)
app.command(data.data)
app.command(compare_models)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return run(app, arguments)


@app.command
def train(
    *,
    settings: Settings = Settings(),
    seed: Seed | None = None,
    run_dir: Path | None = None,
    resume: Path | None = None,
    accept_losses: bool = False,
    max_minutes: Positive | None = None,
    metrics: Metrics = Metrics(),
) -> None:
    """Train an agent, or go on with a run.

    Args:
        seed: every random stream derives from it
        run_dir: default: runs/<task>-<time>; must not exist
        resume: go on with this run from its newest checkpoint; with --env-steps, until so many
        accept_losses: of --resume: also if the replay or metrics.jsonl lost what the checkpoint counts on
        max_minutes: end cleanly after so long
    """
    from qttdm.deploy.runs.local import new_run, resume_run, silent
    from qttdm.deploy.runs.training import make_directory, train_in

    exporter = metrics.serve()

    def telemetry_of(config: RunConfig) -> MakeTelemetry:
        """Report to the metrics served here, if they are."""
        state = directory.path / "metrics-state"
        return exporter.of_run(directory.name, config.seed, config.task, state) if exporter else silent(config)

    if resume:
        others = {**vars(settings), "env_steps": None, "seed": seed, "run_dir": run_dir}
        given = [n for n, v in others.items() if v not in (None, ())]
        if given:
            option = given[0].replace("start_from", "from").replace("_", "-")
            raise ConfigError(
                f"--resume goes on with the run as it was configured, with more --env-steps if given; it cannot take "
                f"--{option}"
            )
        directory = RunDir.open(resume)
        start = partial(resume_run, directory, telemetry_of, settings.env_steps, accept_losses)
    else:
        if accept_losses:
            raise ConfigError("--accept-losses goes with --resume: a new run has nothing to lose")
        config = settings.load(seed)
        config, directory = make_directory(config, run_dir)
        start = partial(new_run, config, directory, telemetry_of)
    with closing(exporter) if exporter else nullcontext():
        train_in(directory, start, max_minutes)


@app.command
def check(task: str, /, *, overrides: Overrides = Overrides(), preset: str | None = None) -> None:
    """Try a task, your own above all: shapes, seeding, rewards, speed; what that advises, and how long training takes.

    Args:
        preset: whose settings a run would have; default: laptop
    """
    from qttdm.deploy.runs.check import check

    for line in check(Settings(preset=preset, task=task, planner=overrides.planner, set=overrides.set).load()):
        print(line, flush=True)


@app.command(name="eval")
def evaluate(
    run: RunPath | None = None,
    /,
    *,
    episodes: Count = 10,
    video: bool = False,
    policy_only: bool = False,
    mode: Mode | None = None,
    goal: str | None = None,
    choice: Choice = Choice(),
) -> None:
    """Evaluate a run's newest checkpoint, or the one named; or, without a run, an agent that needs no training.

    Args:
        episodes: how many
        video: film the first episode
        mode: of the Trajectory Transformer: search for return, imitate, or imitate what leads to --goal
        goal: observation that it is to reach, such as 0.5,-1
        policy_only: no simulator: act on 100 random observations, to see that it works here and how fast
    """
    from qttdm.deploy.runs.acting import agent_without_training
    from qttdm.deploy.runs.pretrained import output_folder
    from qttdm.deploy.runs.probe import ended_if_stuck
    from qttdm.deploy.runs.trained import TrainedAgent
    from qttdm.deploy.screens.video import write_video

    if policy_only and video:
        raise ConfigError("--video films a simulator, and --policy-only has none; give one of the two")
    if policy_only and run is None:
        raise ConfigError("--policy-only acts with trained networks: name a run")
    if run is None:
        agent, video_path = agent_without_training(choice.load()), Path("eval.mp4")
    else:
        for option in ("preset", "task", "agent"):
            if getattr(choice, option) is not None:
                raise ConfigError(f"--{option}: {run} has its own; leave out one of the two")
        agent = trained = TrainedAgent(run, (*of_mode(mode, goal), *choice.set), choice.planner)
        video_path = output_folder(trained.run_dir) / trained.run_dir.video_path.name
    if policy_only:
        from qttdm.deploy.runs.dry_run import report

        print(*report(agent), sep="\n")
        return
    agent.policy.warm_up(episodes)  # may compile, longer than a simulator may take
    started = time.monotonic()
    with ended_if_stuck(agent.spec.name, agent.config.cluster.hang_seconds) as rearm:
        result = agent.evaluate(episodes, rearm)
    for i, episode_return in enumerate(result.returns):
        print(f"episode {i}: return {episode_return:.1f}")
    success = "" if result.success is None else f", success {result.success:.0%}"
    print(f"mean return {result.mean_return:.1f}{success}, {time.monotonic() - started:.1f} s")
    if video:
        with ended_if_stuck(agent.spec.name, agent.config.cluster.hang_seconds) as rearm:
            frames, frames_per_second = agent.film(rearm)
        write_video(frames, video_path, frames_per_second)
        print(f"video: {video_path}")


@app.command
def scores(*paths: Path) -> None:
    """Compare Atari 100k scores with a human's: mean, median, interquartile mean, optimality gap.

    Args:
        paths: runs of atari/ tasks, whose newest evaluation counts, and JSON files {"Pong": [score of each seed]}
    """
    from qttdm.deploy.screens.scores import read_scores, table

    if not paths:
        raise ConfigError("scores: name runs of atari/ tasks, or JSON files of scores")
    print(table(read_scores(paths)))


@app.command
def dream(run: RunPath, /, *, steps: Count = 15, at: Seed | None = None, overrides: Overrides = Overrides()) -> None:
    """Let a run's world model imagine how one of its episodes goes on, and draw that beside how it went.

    Args:
        steps: to imagine, with the episode's own actions
        at: which step of the episode it begins after; default: the window's length, or the middle of a shorter episode
    """
    from qttdm.deploy.runs.dream import imagine_episode
    from qttdm.deploy.runs.pretrained import output_folder
    from qttdm.deploy.runs.trained import TrainedAgent
    from qttdm.deploy.screens.dream import draw_dream

    agent = TrainedAgent(run, overrides.set, overrides.planner)
    folder = output_folder(agent.run_dir)
    print(*draw_dream(imagine_episode(agent, steps, at), folder), sep="\n")


@app.command
def serve(
    run: RunPath,
    /,
    *,
    host: str | None = None,
    port: Seed | None = None,
    watch: bool = False,
    token_file: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    overrides: Overrides = Overrides(),
) -> None:
    """Serve a run's newest checkpoint over WebSockets, with /metrics and /healthz: docs/protocol.md.

    Args:
        host: default: 127.0.0.1, this machine only; any other needs a token, and TLS unless server.plain_text=true
        port: default: 7747; 0 takes any that is free
        watch: follow a run that is training: take each new checkpoint
        token_file: what clients must show; default: $QTTDM_TOKEN
        tls_cert: encrypt, with this certificate (PEM)
        tls_key: and this key (PEM)
    """
    need("serve", "qttdm serve")
    from qttdm.deploy.runs import serve

    serve.run(run, overrides.set, host, port, token_file, tls_cert, tls_key, watch, overrides.planner)


@app.command
def export(
    run: RunPath,
    /,
    *,
    format: Literal["onnx", "torch-export", "run"] = "onnx",
    out: Path | None = None,
    overrides: Overrides = Overrides(),
) -> None:
    """Write a run's policy without its planner as one graph: observations [B, M] to actions [B, N]: docs/robot.md.

    Or, with --format run, all that acting needs, the planner too: a small run for eval, serve and qttdm.load.

    Args:
        format: for ONNX Runtime, for torch.export.load, or for qttdm
        out: default: policy.onnx, policy.pt2 or policy in the run
    """
    from qttdm.deploy.runs.export import SUFFIX, ExportError, export
    from qttdm.deploy.runs.pretrained import export_run, output_folder
    from qttdm.deploy.runs.trained import TrainedAgent
    from qttdm.planner_service.policies.planning import PlanningPolicy

    agent = TrainedAgent(run, overrides.set, overrides.planner)
    path = out or output_folder(agent.run_dir) / f"policy{SUFFIX.get(format, '')}"
    if format == "run":
        export_run(agent, path)
        print(f"{path}: {sum(file.stat().st_size for file in path.rglob('*')) / 1000:.0f} KB; a run for eval and serve")
        return
    try:
        difference = export(agent, format, path)
    except ExportError as error:
        raise RunFailed(error) from None
    if isinstance(agent.policy, PlanningPolicy):
        print(f"this is the policy without the planner: {agent.config.agent}'s value function alone, acting greedily")
    print(f"{path}: equal to the original to {difference:.1e}, in the task's units")


@app.command
def plot(
    *runs: Path,
    out: Path = Path("curve.png"),
    references: Path | None = None,
    metric: Literal["return", "success"] | None = None,
) -> None:
    """Draw learning curves: mean, 95% bootstrap interval and IQM over seeds.

    Args:
        runs: directories of runs
        out: the picture to write
        references: csv of published curves to draw beside
        metric: default: success where the task defines it
    """
    from qttdm.deploy.screens.plot import plot_runs

    print(plot_runs(runs, out, references, "episode_return" if metric == "return" else metric))
    print(f"curve: {out}")


@app.command
def report(*runs: Path, out: Path = Path("report.html")) -> None:
    """Write one page of runs, for any browser, offline: curves, settings that differ, videos, machines.

    Args:
        runs: directories of runs
        out: the page to write
    """
    from qttdm.deploy.screens.page import write_page

    write_page(runs, out)
    print(f"report: {out}")


@app.command
def board(directory: Path = Path("runs"), /, *, port: Seed = 6006) -> None:
    """Open TensorBoard on the runs below a directory; Ctrl-C ends it.

    Args:
        directory: where the runs are
        port: of this machine; 0 takes any that is free
    """
    import os

    need("report", "qttdm board")
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such directory; train first, or name the one that holds the runs")
    program = [sys.executable, "-m", "tensorboard.main", "--logdir", str(directory), "--port", str(port)]
    os.execv(sys.executable, program)


@app.command
def top(*, url: str = "http://127.0.0.1:9108/metrics", once: bool = False) -> None:
    """Show how all runs on a cluster are, live in a terminal, from their metrics.

    Args:
        url: the cluster's exporter
        once: print it once; so it does where there is no terminal
    """
    need("monitor", "qttdm top")
    from qttdm.deploy.screens.top import top

    top(url, once)


@app.command
def monitor(
    *,
    target: str = "127.0.0.1:9108",
    data: Path = Path("runs/.monitor"),
    ray: Path = Path("/tmp/ray"),  # noqa: S108 - Ray's own default
    prometheus_port: Port = 9090,
    grafana_port: Port = 3000,
) -> None:
    """Run Prometheus and Grafana on this machine, with the dashboards ready to look at, until Ctrl-C.

    Args:
        target: HOST:PORT of the exporter, as cluster.metrics_port
        data: where measurements and logs are kept
        ray: Ray's --temp-dir
    """
    from qttdm.deploy.monitoring.monitor import Options, run

    run(Options(target, data.absolute(), ray.absolute(), prometheus_port, grafana_port))


@app.command
def tasks() -> None:
    """List the tasks, one a line."""
    from qttdm.common.environments.make import OPTIONAL, list_numbered, list_tasks

    print(*list_tasks(), *list_numbered(), sep="\n")
    for family, extra in OPTIONAL.items():
        if missing(extra):
            print(f"{family}/..: pip install 'qttdm[{extra}]'")
    print("gym/<id>: any Gymnasium environment with bounded Box or Discrete actions, such as gym/LunarLander-v3")
    print("<module>:<class>: your own, in the working directory or installed, such as my_module:MyEnv")


@app.command
def config(*, settings: Settings = Settings(), seed: Seed | None = None) -> None:
    """Print all settings of a new run, resolved, each with its comment.

    Args:
        seed: every random stream derives from it
    """
    print(commented_yaml(settings.load(seed)), end="")


if __name__ == "__main__":
    sys.exit(main())
