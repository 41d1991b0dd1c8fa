"""The door: `qttdm train | eval | serve | plot | top | tasks | cluster`.

A user's mistake is one line on stderr and exit status 2, before anything starts; a run that fails is one line and 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from qttdm.common.config import ConfigError, load_config
from qttdm.common.run_dir import RunDir

if TYPE_CHECKING:
    from qttdm.deploy.configs.run_config import RunConfig
    from qttdm.deploy.monitoring.alone import Alone


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("qttdm: interrupted", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    """The command, its expected failures as one line each."""
    # Imported late, so that `--help` and a mistyped option answer at once.
    from qttdm.actors.episodes import EnvironmentFailure
    from qttdm.common.checkpoint import CheckpointError
    from qttdm.common.environments.rendering import RenderError
    from qttdm.deploy.cli.cluster import SeedsFailed
    from qttdm.deploy.screens.video import VideoError
    from qttdm.learner.learner import NonFiniteLossError

    try:
        options.command(options)
    except ConfigError as error:
        print(f"qttdm: {error}", file=sys.stderr)
        return 2
    except (NonFiniteLossError, EnvironmentFailure, CheckpointError, RenderError, VideoError, SeedsFailed) as error:
        print(f"qttdm: {error}", file=sys.stderr)
        return 1
    return 0


def train(options: argparse.Namespace) -> None:
    """Train a new run, or go on with one."""
    from qttdm.deploy.configs.run_config import RunConfig, preset_path
    from qttdm.deploy.runs.local import LocalRun, new_run, resume_run
    from qttdm.deploy.screens.plot import plot_runs
    from qttdm.deploy.screens.progress import Progress

    stop = StopWhen(options.max_minutes)
    metrics = serve_metrics(options)
    if options.resume:
        names = ("preset", "task", "seed", "agent", "planner", "run_dir", "env_steps", "set")
        given = [name.replace("_", "-") for name in names if getattr(options, name) not in (None, [])]
        if given:
            raise ConfigError(f"--resume goes on with the run as it was configured; it cannot take --{given[0]}")
        run_dir = RunDir.open(options.resume)
        start: Callable[[], LocalRun] = lambda: resume_run(run_dir)  # noqa: E731
    else:
        overrides = [*options.set]
        if options.env_steps is not None:
            if any(item.startswith("training.env_steps=") for item in overrides):
                raise ConfigError("--env-steps and --set training.env_steps are the same setting; give one of them")
            overrides.append(f"training.env_steps={options.env_steps}")
        config = load_config(
            RunConfig,
            preset_path(options.preset or "laptop"),
            overrides=overrides,
            task=options.task,
            seed=options.seed,
            agent=options.agent,
        )
        check_task(config)
        run_dir = RunDir.create(options.run_dir) if options.run_dir else RunDir.create_for(config.task)
        start = lambda: new_run(config, run_dir)  # noqa: E731
    with run_dir.lock(), stop:
        run = start()
        if metrics is not None:
            c = run.config
            run.measure(metrics.of_run(run_dir.path.name, c.seed, c.task, run_dir.path / "metrics-state"))
        print(f"{run.config.agent} on {run.config.task}, seed {run.config.seed}, {run.device}: {run_dir.path}")
        with Progress(run.config.training.env_steps, options.max_minutes) as progress:
            run.train(progress, lambda: stop.interrupted, stop.time_is_up)
            if not stop.interrupted:
                run.finish(progress, lambda: stop.interrupted)
        if stop.interrupted:
            print(f"saved; go on with: qttdm train --resume {run_dir.path}")
        else:
            print(plot_runs([run_dir.path], run_dir.curve_path))
            print(f"curve: {run_dir.curve_path}")


def serve_metrics(options: argparse.Namespace) -> Alone | None:
    """As asked for. ConfigError if that is not possible, before anything else is done."""
    if options.metrics_port is None:
        return None
    from qttdm.deploy.monitoring.alone import Alone

    metrics = Alone(options.metrics_host, options.metrics_port)
    print(f"metrics: http://{options.metrics_host}:{options.metrics_port}/metrics")
    return metrics


def check_task(config: RunConfig) -> None:
    """Make the environment once and hold the settings against it, before a run directory is made."""
    from qttdm.common.environments.make import make_env
    from qttdm.common.metrics.sinks import check_sinks
    from qttdm.deploy.agents.agent import choose_device
    from qttdm.deploy.configs.run_config import check_fits

    choose_device(config.device)
    check_sinks(config.sinks)
    env = make_env(config.task, config.env)
    check_fits(config, env.task_spec)
    env.close()


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate a run's newest checkpoint, or the one named."""
    from qttdm.deploy.runs.trained import TrainedAgent
    from qttdm.deploy.screens.video import write_video

    agent = TrainedAgent(options.run, options.set)
    started = time.monotonic()
    result = agent.evaluate(options.episodes)
    for i, episode_return in enumerate(result.returns):
        print(f"episode {i}: return {episode_return:.1f}")
    success = "" if result.success is None else f", success {result.success:.0%}"
    print(f"mean return {result.mean_return:.1f}{success}, {time.monotonic() - started:.1f} s")
    if options.video:
        write_video(agent.film(), agent.run_dir.video_path, agent.frames_per_second)
        print(f"video: {agent.run_dir.video_path}")


def serve(options: argparse.Namespace) -> None:
    """Serve a run's newest checkpoint, or the one named, over TCP."""
    from qttdm.deploy.runs.serve import run

    o = options
    run(o.run, o.set, o.host, o.port, o.token_file, o.tls_cert, o.tls_key, o.watch, serve_metrics(options))


def plot(options: argparse.Namespace) -> None:
    """Learning curves of one or more runs."""
    from qttdm.deploy.screens.plot import plot_runs

    print(plot_runs(options.runs, options.out, options.references, options.metric))
    print(f"curve: {options.out}")


def top(options: argparse.Namespace) -> None:
    """How all runs on a cluster are, live."""
    from qttdm.deploy.screens.top import top

    top(options.url, options.once)


def tasks(options: argparse.Namespace) -> None:
    """All tasks, one a line."""
    from qttdm.common.environments.make import list_tasks

    for name in list_tasks():
        print(name)
    print("gym/<id>: any Gymnasium environment with a bounded Box of actions in one row, such as gym/Pendulum-v1")


class StopWhen:
    """Knows of the first Ctrl-C (or SIGTERM), and of the time given. A second Ctrl-C kills."""

    def __init__(self, max_minutes: float | None) -> None:
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.interrupted = False

    def time_is_up(self) -> bool:
        """Have the minutes passed?"""
        return self.deadline is not None and time.monotonic() > self.deadline

    def __enter__(self) -> StopWhen:
        self._previous = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        print("stopping: saving a checkpoint (once more to give up)", file=sys.stderr)


def positive_int(text: str) -> int:
    """argparse type: 1, 2, ..."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, want a whole number from 1")
    return int(text)


def positive_float(text: str) -> float:
    """argparse type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, want a number above 0")
    return value


def whole_number(text: str) -> int:
    """argparse type: 0, 1, 2, ..."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"got {text!r}, want a whole number from 0")
    return int(text)


def port_number(text: str) -> int:
    """argparse type: 1 to 65535."""
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"got {text!r}, want a port, 1 to 65535")
    return int(text)


def add_metrics(p: argparse.ArgumentParser) -> None:
    """Where this process serves its metrics."""
    p.add_argument("--metrics-port", metavar="N", type=port_number, help="serve metrics to Prometheus: docs/metrics.md")
    p.add_argument("--metrics-host", metavar="H", default="127.0.0.1", help="default: 127.0.0.1, this machine only")


class PlannerPreset(argparse.Action):
    """`--planner NAME`: the settings that the name stands for, put before those of `--set`, which win."""

    def __call__(self, parser: argparse.ArgumentParser, options: argparse.Namespace, value: Any, _: Any = None) -> None:
        from qttdm.deploy.configs.run_config import planner_preset

        options.planner = value
        try:
            options.set = [*planner_preset(value), *options.set]
        except ConfigError as error:
            parser.error(str(error))


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong without repeating the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"qttdm: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    from qttdm.deploy.cli import cluster as cluster_cli

    parser = OneLineParser(
        prog="qttdm", description="QT-TDM: planning with a Transformer Dynamics Model and a Q-Transformer"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    p = commands.add_parser("train", help="train an agent, or go on with a run")
    p.set_defaults(command=train)
    p.add_argument("--preset", metavar="P", help="debug, laptop (default), paper-dmc, paper-metaworld or a .yaml file")
    p.add_argument("--task", metavar="T", help="such as dmc/walker-walk; `qttdm tasks` lists them")
    p.add_argument("--seed", metavar="S", type=whole_number, help="every random stream derives from it")
    p.add_argument("--agent", metavar="A", help="qt-tdm (default), tdm or qt")
    p.add_argument(
        "--planner", metavar="NAME", action=PlannerPreset, help="exact (the paper's) or fast; --set wins over it"
    )
    p.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="such as planner.horizon=5")
    p.add_argument("--run-dir", metavar="DIR", type=Path, help="default: runs/<task>-<time>; must not exist")
    p.add_argument("--resume", metavar="RUN", type=Path, help="go on with this run from its newest checkpoint")
    p.add_argument("--env-steps", metavar="N", type=positive_int, help="simulator steps to train for")
    p.add_argument("--max-minutes", metavar="X", type=positive_float, help="end cleanly after so long")
    add_metrics(p)

    p = commands.add_parser("eval", help="evaluate a run's newest checkpoint")
    p.set_defaults(command=evaluate)
    p.add_argument("run", metavar="RUN", type=Path, help="a run, or one of its checkpoints")
    p.add_argument("--episodes", metavar="N", type=positive_int, default=10)
    p.add_argument(
        "--planner", metavar="NAME", action=PlannerPreset, help="exact (the paper's) or fast; --set wins over it"
    )
    p.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="such as planner.samples=32")
    p.add_argument("--video", action="store_true", help="film the first episode")

    p = commands.add_parser("serve", help="serve a run's newest checkpoint over TCP: docs/protocol.md")
    p.set_defaults(command=serve)
    p.add_argument("run", metavar="RUN", type=Path, help="a run, or one of its checkpoints")
    p.add_argument("--host", metavar="H", help="default: 127.0.0.1, this machine only; any other needs a token")
    p.add_argument("--port", metavar="P", type=whole_number, help="default: 7747; 0 takes any that is free")
    p.add_argument("--watch", action="store_true", help="follow a run that is training: take each new checkpoint")
    p.add_argument("--token-file", metavar="FILE", type=Path, help="what clients must say; default: $QTTDM_TOKEN")
    p.add_argument("--tls-cert", metavar="PEM", type=Path, help="encrypt, with this certificate")
    p.add_argument("--tls-key", metavar="PEM", type=Path, help="and this key")
    add_metrics(p)
    p.add_argument(
        "--planner", metavar="NAME", action=PlannerPreset, help="exact (the paper's) or fast; --set wins over it"
    )
    p.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="such as service.max_batch=16")

    p = commands.add_parser("plot", help="learning curves: mean, 95%% bootstrap interval and IQM over seeds")
    p.set_defaults(command=plot)
    p.add_argument("runs", metavar="RUN", type=Path, nargs="+")
    p.add_argument("--out", metavar="PNG", type=Path, default=Path("curve.png"))
    p.add_argument("--references", metavar="CSV", type=Path, help="published curves to draw beside")
    p.add_argument("--metric", choices=("return", "success"), help="default: success where the task defines it")

    p = commands.add_parser("top", help="how all runs on a cluster are, live in a terminal, from their metrics")
    p.set_defaults(command=top)
    p.add_argument("--url", metavar="URL", default="http://127.0.0.1:9108/metrics", help="default: %(default)s")
    p.add_argument("--once", action="store_true", help="print it once; so it does where there is no terminal")

    p = commands.add_parser("tasks", help="list the tasks")
    p.set_defaults(command=tasks)
    cluster_cli.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
