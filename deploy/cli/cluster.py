"""`qttdm cluster train | status | stop | resume`."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qttdm.common.config import ConfigError, load_config
from qttdm.common.run_dir import RunDir
from qttdm.deploy.cluster.auth import choose_mode

if TYPE_CHECKING:
    from qttdm.common.environments.task_env import TaskSpec
    from qttdm.deploy.cluster.seed_run import SeedRun
    from qttdm.deploy.configs.run_config import RunConfig

RUNS = Path("runs")
ANSWER_SECONDS = 30.0  # for a run to say how it goes
JOB_SERVICE_SECONDS = 60.0  # for it to be ready, on a head that has just been started


def add_parser(commands: Any) -> None:
    """Put `cluster` and its commands beside the others."""
    from qttdm.deploy.cli.main import PlannerPreset, positive_float, positive_int  # this module is imported by that one

    cluster = commands.add_parser("cluster", help="train seeds on a Ray cluster, look at them, stop them, go on")
    actions = cluster.add_subparsers(metavar="COMMAND", required=True)

    p = actions.add_parser("train", help="train one or more seeds of a task")
    p.set_defaults(command=train)
    p.add_argument("--name", metavar="NAME", help="of the run, and its directory's; default: <task>-<time>")
    p.add_argument("--preset", metavar="P", help="debug, laptop (default), paper-dmc, paper-metaworld or a .yaml file")
    p.add_argument("--task", metavar="T", help="such as dmc/walker-walk; `qttdm tasks` lists them")
    p.add_argument("--agent", metavar="A", help="qt-tdm (default), tdm or qt")
    p.add_argument("--seeds", metavar="S,S,..", type=seed_list, default=[0, 1], help="default: 0,1")
    p.add_argument("--actors", metavar="N", type=positive_int, help="collecting processes of a seed")
    p.add_argument("--shards", metavar="N", type=positive_int, help="replay processes of a seed")
    p.add_argument("--gpus-per-seed", metavar="X", type=positive_float, help="such as 1, 0.5 or 0.25; default: none")
    p.add_argument("--env-steps", metavar="N", type=positive_int, help="simulator steps to train each seed for")
    p.add_argument(
        "--planner", metavar="NAME", action=PlannerPreset, help="exact (the paper's) or fast; --set wins over it"
    )
    p.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="such as cluster.publish_every=20")
    p.add_argument("--runs-dir", metavar="DIR", type=Path, default=RUNS, help="default: runs; shared by all nodes")
    p.add_argument("--detach", action="store_true", help="leave it to the cluster (a Ray job) and return")

    p = actions.add_parser("resume", help="go on with a run that was stopped or died")
    p.set_defaults(command=resume)
    p.add_argument("name", metavar="NAME")
    p.add_argument("--runs-dir", metavar="DIR", type=Path, default=RUNS)
    p.add_argument(
        "--accept-losses", action="store_true", help="also if the replay lost episodes that the checkpoints count on"
    )
    p.add_argument("--detach", action="store_true", help="leave it to the cluster (a Ray job) and return")

    p = actions.add_parser("status", help="how the runs on the cluster are going")
    p.set_defaults(command=status)
    p.add_argument("name", metavar="NAME", nargs="?")

    p = actions.add_parser("stop", help="save a run's seeds and take them off the cluster")
    p.set_defaults(command=stop)
    p.add_argument("name", metavar="NAME")


def seed_list(text: str) -> list[int]:
    """argparse type: "0,1,2" -> [0, 1, 2], each once."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len({int(part) for part in parts}) < len(parts):
        raise argparse.ArgumentTypeError(f"got {text!r}, want different whole numbers from 0, such as 0,1,2")
    return [int(part) for part in parts]


def train(options: argparse.Namespace) -> None:
    """Start a run of several seeds and stay with it, or leave it to the cluster."""
    choose_mode()
    configs = seed_configs(options)
    directory = new_directory(options.runs_dir, options.name, configs[0].task)

    from qttdm.deploy.cluster.cluster_run import new_seeds
    from qttdm.deploy.cluster.preflight import check_nodes, check_resources, connect

    connect()
    refuse_running(directory.name)
    room = check_resources(configs[0].cluster.bundles(), len(configs))
    RunDir.create(directory)
    try:
        check_nodes(directory)
        seeds = new_seeds(directory, configs)
        print(f"{configs[0].agent} on {configs[0].task}, seeds {', '.join(str(c.seed) for c in configs)}: {directory}")
        print(room)
        if options.detach:
            detach(directory)
            return
    except BaseException:  # nothing has started: the corrected command finds the name free
        shutil.rmtree(directory)
        raise
    drive(directory, seeds)


def resume(options: argparse.Namespace) -> None:
    """Go on with every seed that is not finished, from its last checkpoint and with the replay that its shards kept.

    A seed whose shards have less than its checkpoint counts on fails, unless `--accept-losses`.
    """
    choose_mode()
    directory = (options.runs_dir / options.name).absolute()

    from qttdm.deploy.cluster.cluster_run import old_seeds
    from qttdm.deploy.cluster.preflight import check_nodes, check_resources, connect

    seeds = old_seeds(directory)
    for seed in seeds:
        check_cluster(seed.config, seed.spec)  # config.yaml may have been edited
        seed.accept_losses = options.accept_losses
    connect()
    refuse_running(directory.name)
    left = [seed for seed in seeds if seed.state != "finished"]
    if left:
        room = check_resources(left[0].config.cluster.bundles(), len(left))
        check_nodes(directory)
        print(f"goes on with seeds {', '.join(str(seed.config.seed) for seed in left)}: {directory}")
        print(room)
    if options.detach:
        detach(directory, *["--accept-losses"] * options.accept_losses)
    else:
        drive(directory, seeds)


def status(options: argparse.Namespace) -> None:
    """A table, or lines, for each run that is on the cluster."""
    choose_mode()
    from qttdm.deploy.cluster.preflight import connect, named_runs
    from qttdm.deploy.screens.cluster_progress import ClusterProgress

    connect()
    names = [options.name] if options.name else named_runs()
    if not names:
        print("no run is on this cluster")
    for name in names:
        notice = ask(name, "read")
        print(f"{name}: {notice['task']}, {notice['directory']}")
        with ClusterProgress() as progress:
            progress.show(notice)


def stop(options: argparse.Namespace) -> None:
    """Ask a run to save and leave; returns when it has."""
    choose_mode()
    from qttdm.deploy.cluster.preflight import connect, named_runs

    connect()
    ask(options.name, "ask_stop")
    print(f"stopping {options.name}", flush=True)
    while options.name in named_runs():
        time.sleep(0.5)
        with suppress(ConfigError):  # a board that was killed meanwhile has forgotten, and is perhaps not back yet
            ask(options.name, "ask_stop")
    print(f"stopped; go on with: qttdm cluster resume {options.name}")


def new_directory(runs_dir: Path, name: str | None, task: str) -> Path:
    """Where a new run will be. ConfigError if it cannot be made there; nothing is made yet."""
    name = f"{task.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}" if name is None else name
    if not name.strip() or "/" in name or name.startswith("."):
        raise ConfigError(f"--name {name}: want a plain name, such as walker-1; it becomes a directory")
    directory = (runs_dir / name).absolute()
    if directory.exists():
        raise ConfigError(f"{directory}: exists; choose another --name, or go on with it: qttdm cluster resume {name}")
    there = next(path for path in directory.parents if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(
            f"{directory}: cannot be made, {there} is no directory that may be written to; want another --runs-dir"
        )
    return directory


def seed_configs(options: argparse.Namespace) -> list[RunConfig]:
    """One resolved configuration for each seed. ConfigError if they do not fit together or to the task."""
    from qttdm.deploy.cluster.seed_run import task_spec
    from qttdm.deploy.configs.run_config import RunConfig, preset_path

    shortcuts = {
        "cluster.actors": options.actors,
        "cluster.shards": options.shards,
        "cluster.gpus_per_seed": options.gpus_per_seed,
        "training.env_steps": options.env_steps,
    }
    overrides = [*options.set]
    for key, value in shortcuts.items():
        if value is not None:
            if any(item.startswith(f"{key}=") for item in options.set):
                raise ConfigError(f"--{key.rpartition('.')[2].replace('_', '-')} and --set {key} are the same setting")
            overrides.append(f"{key}={float(value)}" if key == "cluster.gpus_per_seed" else f"{key}={value}")
    configs = [
        load_config(
            RunConfig,
            preset_path(options.preset or "laptop"),
            overrides=overrides,
            task=options.task,
            seed=seed,
            agent=options.agent,
        )
        for seed in options.seeds
    ]
    check_cluster(configs[0], task_spec(configs[0]))
    return configs


def check_cluster(config: RunConfig, spec: TaskSpec) -> None:
    """ConfigError if the settings do not fit the task, each other, or being spread over shards."""
    from qttdm.common.metrics.sinks import check_sinks
    from qttdm.deploy.configs.run_config import check_fits

    check_sinks(config.sinks)
    check_fits(config, spec)
    c = config.cluster
    if config.replay.capacity // c.shards < spec.episode_decisions:
        raise ConfigError(
            f"replay.capacity={config.replay.capacity} over cluster.shards={c.shards} does not leave a shard one "
            f"episode of {spec.episode_decisions} decisions; want at least {c.shards * spec.episode_decisions}"
        )
    if config.device not in ("auto", *(("cuda", "cuda:0") if c.gpus_per_seed > 0 else ("cpu", "mps"))):
        raise ConfigError(
            f"device={config.device} and cluster.gpus_per_seed={c.gpus_per_seed:g} contradict each other; leave device "
            f"at auto: each process then uses the one GPU that it is given a share of"
        )


def drive(directory: Path, seeds: Sequence[SeedRun]) -> None:
    """Stay with a run to its end, then its summary. SeedsFailed if some of its seeds did."""
    from qttdm.deploy.cli.main import StopWhen
    from qttdm.deploy.cluster.cluster_run import ClusterRun
    from qttdm.deploy.cluster.exporter_actor import ensure_exporter
    from qttdm.deploy.screens.cluster_progress import ClusterProgress
    from qttdm.deploy.screens.plot import plot_runs

    run = ClusterRun(directory, seeds)
    stop = StopWhen(None)
    cluster = seeds[0].config.cluster
    if cluster.metrics_port is not None:
        print(ensure_exporter(cluster.metrics_host, cluster.metrics_port))
    with RunDir(directory).lock(), stop:
        with ClusterProgress() as progress:
            run.run(progress.show, lambda: stop.interrupted)
        finished = [seed for seed in seeds if seed.state == "finished"]
        for seed in finished:
            curve_and_video(seed.run_dir)
        if finished:
            print(plot_runs([seed.run_dir.path for seed in finished], directory / "curve.png"))
            print(f"curve: {directory / 'curve.png'}")
    if any(seed.state == "stopped" for seed in seeds):
        print(f"saved; go on with: qttdm cluster resume {directory.name}")
    failed = [seed for seed in seeds if seed.state == "failed"]
    if failed:
        lines = [f"seed {seed.config.seed}: {seed.error} ({seed.run_dir.path / 'failure.txt'})" for seed in failed]
        raise SeedsFailed("; ".join(lines))


def curve_and_video(run_dir: RunDir) -> None:
    """Leave a seed's directory as a run on one machine leaves it."""
    from qttdm.common.environments.rendering import RenderError
    from qttdm.deploy.runs.trained import TrainedAgent
    from qttdm.deploy.screens.plot import plot_runs
    from qttdm.deploy.screens.video import VideoError, write_video

    plot_runs([run_dir.path], run_dir.curve_path)
    if not run_dir.video_path.exists():
        try:
            agent = TrainedAgent(run_dir.path)
            write_video(agent.film(), run_dir.video_path, agent.frames_per_second)
        except (RenderError, VideoError) as error:
            print(f"no video: {error}")


class SeedsFailed(RuntimeError):  # noqa: N818 - some seeds of a run failed; the others went on
    """Which, and why, in one line."""


def detach(directory: Path, *flags: str) -> None:
    """Have the cluster go on with a run as a job of its own. flags: of `resume`. ConfigError: it has no job service."""
    import ray
    from ray.job_submission import JobSubmissionClient

    name = directory.name
    words = ["-m", "qttdm.deploy.cli.main", "cluster", "resume", name, "--runs-dir", str(directory.parent), *flags]
    job, command = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}", shlex.join([sys.executable, *words])
    deadline = time.monotonic() + JOB_SERVICE_SECONDS
    while True:
        try:
            client = JobSubmissionClient(ray.get_runtime_context().gcs_address)
            client.submit_job(entrypoint=command, submission_id=job)
            break
        except (ConnectionError, RuntimeError) as error:
            if "try again" in str(error) and time.monotonic() < deadline:
                time.sleep(1)
                continue
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"--detach: the cluster's job service refuses ({reason}); want a head that was started with "
                f"--include-dashboard=true"
            ) from None
    print(f"detached as Ray job {job}")
    print(f"look: qttdm cluster status {name}; stop: qttdm cluster stop {name}; log: ray job logs {job}")


def ask(name: str, method: str) -> Any:
    """A question to a run's board. ConfigError if there is no such run on the cluster."""
    import ray

    from qttdm.deploy.cluster.preflight import named_runs
    from qttdm.deploy.configs.cluster_config import NAMESPACE

    try:
        board = ray.get_actor(f"{name}/board", namespace=NAMESPACE)
        return ray.get(getattr(board, method).remote(), timeout=ANSWER_SECONDS)
    except ray.exceptions.GetTimeoutError:
        raise ConfigError(f"{name}: does not answer within {ANSWER_SECONDS:g} s; look at `ray status`") from None
    except (ValueError, ray.exceptions.RayError):
        there = ", ".join(named_runs()) or "none"
        raise ConfigError(f"{name}: no such run is on the cluster now; there: {there}") from None


def refuse_running(name: str) -> None:
    """ConfigError if the run is on the cluster already."""
    from qttdm.deploy.cluster.preflight import named_runs

    if name in named_runs():
        raise ConfigError(f"{name}: is running on the cluster; look at it with: qttdm cluster status {name}")
