"""`qttdm cluster train | status | stop | resume`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from cyclopts import App, Parameter

from qttdm.common.config import ConfigError, dump_config
from qttdm.common.disk import replace_file
from qttdm.common.run_dir import RunDir, named_after
from qttdm.deploy.cli.options import Count, Positive, RunFailed, Settings, seed_list
from qttdm.deploy.cluster.auth import choose_mode
from qttdm.deploy.runs.stopping import stopping

if TYPE_CHECKING:
    from qttdm.deploy.cluster.seed_run import SeedRun
    from qttdm.deploy.configs.run_config import RunConfig

RUNS = Path("runs")
JOB_SERVICE_SECONDS = 60.0  # for it to be ready, on a head that has just been started

RunsDir = Annotated[Path, Parameter(help="shared by all nodes")]
Detach = Annotated[bool, Parameter(help="leave it to the cluster (a Ray job) and return")]
Name = Annotated[str, Parameter(help="the run's")]
cluster = App("cluster", help="Train seeds on a Ray cluster, look at them, stop them, go on.", version_flags=())


@dataclass(frozen=True, kw_only=True)
class SeedSettings(Settings):
    """Settings of the seeds of a new run."""

    seeds: str = "0,1"
    """different whole numbers, such as 0,1,2"""
    actors: Count | None = None
    """collecting processes of a seed"""
    shards: Count | None = None
    """replay processes of a seed"""
    gpus_per_seed: Positive | None = None
    """such as 1, 0.5 or 0.25; default: none"""
    shortcuts: ClassVar = Settings.shortcuts | {n: f"cluster.{n}" for n in ("actors", "shards", "gpus_per_seed")}

    def configs(self) -> list[RunConfig]:
        """Resolve one configuration for each seed. ConfigError if they do not fit together or to the task."""
        seeds = seed_list(self.seeds)
        from qttdm.deploy.configs.run_config import check_cluster
        from qttdm.deploy.runs.build import check_start, task_spec

        configs = [self.load(seed) for seed in seeds]
        check_cluster(configs[0], task := task_spec(configs[0]))
        check_start(configs[0], task)
        return configs


@cluster.command
def train(
    *,
    name: str | None = None,
    settings: SeedSettings = SeedSettings(),
    runs_dir: RunsDir = RUNS,
    detach: Detach = False,
) -> None:
    """Train one or more seeds of a task.

    Args:
        name: of the run, and its directory's; default: <task>-<time>
    """
    choose_mode()
    configs = settings.configs()
    directory = new_directory(runs_dir, name, configs[0].task)

    from qttdm.deploy.cluster.cluster_run import new_seeds
    from qttdm.deploy.cluster.preflight import check_nodes, check_resources

    refuse_running(directory.name)
    room = check_resources(configs[0].cluster.bundles(), len(configs))
    RunDir.create(directory)
    try:
        check_nodes(directory, configs[0].own_modules)
        seeds = new_seeds(directory, configs)
        print(f"{configs[0].agent} on {configs[0].task}, seeds {', '.join(str(c.seed) for c in configs)}: {directory}")
        print(room)
        if detach:
            submit(directory)
            return
    except BaseException:  # nothing has started: the corrected command finds the name free
        shutil.rmtree(directory)
        raise
    drive(directory, seeds)


@cluster.command
def resume(
    name: Name,
    /,
    *,
    runs_dir: RunsDir = RUNS,
    env_steps: Count | None = None,
    accept_losses: bool = False,
    detach: Detach = False,
) -> None:
    """Go on with a run that was stopped or died: every seed that is not finished, from its last checkpoint.

    Args:
        env_steps: train each seed until so many, also those that are finished
        accept_losses: also if the replay or metrics.jsonl lost what the checkpoints count on
    """
    choose_mode()
    directory = (runs_dir / name).absolute()

    from qttdm.deploy.cluster.cluster_run import old_seeds
    from qttdm.deploy.cluster.preflight import check_nodes, check_resources
    from qttdm.deploy.configs.run_config import check_cluster

    seeds = old_seeds(directory, env_steps)
    for seed in seeds:
        check_cluster(seed.config, seed.spec)  # config.yaml may have been edited
        seed.accept_losses = accept_losses
    refuse_running(directory.name)
    left = [seed for seed in seeds if seed.state != "finished"]
    if left:
        room = check_resources(left[0].config.cluster.bundles(), len(left))
        check_nodes(directory, left[0].config.own_modules)
        print(f"goes on with seeds {', '.join(str(seed.config.seed) for seed in left)}: {directory}")
        print(room)
    if env_steps is not None:
        for seed in seeds:
            replace_file(seed.run_dir.config_path, dump_config(seed.config).encode())
    if detach:
        submit(directory, *["--accept-losses"] * accept_losses)
    else:
        drive(directory, seeds)


@cluster.command
def status(name: Name | None = None, /) -> None:
    """Show how the runs on the cluster are going."""
    there = running()
    from qttdm.deploy.cluster.preflight import ask
    from qttdm.deploy.screens.rows import print_views

    names = [name] if name else there
    if not names:
        print("no run is on this cluster")
    for one in names:
        print_views([ask(one, "view")])


@cluster.command
def stop(name: Name, /) -> None:
    """Save a run's seeds and take them off the cluster."""
    running()
    from qttdm.deploy.cluster.preflight import ask

    ask(name, "request_stop")
    print(f"stopping {name}", flush=True)
    while name in running():
        time.sleep(0.5)
        with suppress(ConfigError):  # the actor may have been killed, has forgotten, and is not back yet
            ask(name, "request_stop")
    print(f"stopped; go on with: qttdm cluster resume {name}")


def new_directory(runs_dir: Path, name: str | None, task: str) -> Path:
    """Choose a new run's directory, without making it. ConfigError if it cannot be made."""
    name = f"{named_after(task)}-{time.strftime('%Y%m%d-%H%M%S')}" if name is None else name
    if not name.strip() or "/" in name or name.startswith("."):
        raise ConfigError(f"--name {name}: want a plain name, such as walker-1; it becomes a directory")
    directory = (runs_dir / name).absolute()
    if directory.exists():
        is_run = any(directory.glob("config.yaml")) or any(directory.glob("seed-*/config.yaml"))
        go_on = f", or go on with it: qttdm cluster resume {name}" if is_run else ""
        raise ConfigError(f"{directory}: exists; choose another --name{go_on}")
    there = next(path for path in directory.parents if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(
            f"{directory}: cannot be made, {there} is no directory that may be written to; want another --runs-dir"
        )
    return directory


def drive(directory: Path, seeds: Sequence[SeedRun]) -> None:
    """Run all seeds to their end and print the summary. RunFailed if some of them failed."""
    from qttdm.deploy.cluster.cluster_run import ClusterRun
    from qttdm.deploy.cluster.exporter_actor import ensure_exporter
    from qttdm.deploy.screens.display import Display
    from qttdm.deploy.screens.plot import plot_runs

    run = ClusterRun(directory, seeds)
    c = seeds[0].config.cluster
    if c.metrics_port is not None:
        print(ensure_exporter(c.metrics_host, c.metrics_port))
    with RunDir(directory).lock(), stopping() as stopped:
        with Display() as display:
            run.run(display.show, stopped)
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
        raise RunFailed("; ".join(f"seed {s.config.seed}: {s.error} ({s.run_dir.path}/failure.txt)" for s in failed))


def curve_and_video(run_dir: RunDir) -> None:
    """Write a seed's curve and video, as a run on one machine does."""
    from qttdm.common.environments.rendering import RenderError
    from qttdm.deploy.runs.trained import TrainedAgent
    from qttdm.deploy.screens.plot import plot_runs
    from qttdm.deploy.screens.video import VideoError, write_video

    plot_runs([run_dir.path], run_dir.curve_path)
    if not run_dir.video_path.exists():
        try:
            frames, frames_per_second = TrainedAgent(run_dir.path).film()
            write_video(frames, run_dir.video_path, frames_per_second)
        except (RenderError, VideoError) as error:
            print(f"no video: {error}")


def submit(directory: Path, *flags: str) -> None:
    """Submit `cluster resume` as a Ray job. flags: of `resume`. ConfigError if the cluster has no job service."""
    import ray
    from ray.job_submission import JobSubmissionClient

    name = directory.name
    words = ["-m", "qttdm.deploy.cli.main", "cluster", "resume", name, "--runs-dir", str(directory.parent), *flags]
    job = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    # From this directory, where a user's own agent or task may lie.
    command = f"cd {shlex.quote(os.getcwd())} && {shlex.join([sys.executable, *words])}"
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


def running() -> list[str]:
    """Connect to the cluster; returns the names of the runs on it. ConfigError if there is no cluster."""
    choose_mode()
    from qttdm.deploy.cluster.preflight import named_runs

    return named_runs()


def refuse_running(name: str) -> None:
    """Check that the run is not on the cluster already. ConfigError if it is."""
    if name in running():
        raise ConfigError(f"{name}: is running on the cluster; look at it with: qttdm cluster status {name}")
