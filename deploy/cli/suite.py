"""`qttdm suite`: run what is missing of a benchmark over tasks and seeds, and report it; or compare two variants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qttdm.common.config import ConfigError
from qttdm.deploy.cli.options import Count, Overrides, RunFailed, Settings, seed_list, stopping

if TYPE_CHECKING:
    from qttdm.deploy.configs.run_config import RunConfig

SCREENING = ("dmc/finger-spin", "dmc/cheetah-run", "dmc/reacher-easy", "dmc/cartpole-swingup")
TASKS = (
    "dmc/cartpole-swingup",
    "dmc/pendulum-swingup",
    "dmc/ball_in_cup-catch",
    "dmc/finger-spin",
    "dmc/reacher-easy",
    "dmc/cheetah-run",
    "dmc/walker-walk",
    "metaworld/reach",
    "metaworld/drawer-open",
)


@dataclass(frozen=True, kw_only=True)
class SuiteSettings(Overrides):
    """What the runs of a variant are made from."""

    name: str | None = None
    """the variant's, so that two stand side by side; default: suite, or screening"""
    tasks: str | None = None
    """such as dmc/walker-walk,metaworld/reach; default: all nine"""
    seeds: str | None = None
    """default: 0,1,2"""
    env_steps: Count | None = None
    """of each run; default: 100000"""
    screening: bool = False
    """four tasks, seeds 10 and 11, 50000 steps: to judge an idea"""
    preset: str | None = None
    """as of qttdm train"""
    agent: str | None = None
    """as of qttdm train"""

    def filled(self) -> SuiteSettings:
        """Fill in what was not given."""
        usual = ("screening", SCREENING, "10,11", 50_000) if self.screening else ("suite", TASKS, "0,1,2", 100_000)
        name, tasks, seeds, env_steps = usual
        return replace(
            self,
            name=self.name or name,
            tasks=self.tasks or ",".join(tasks),
            seeds=self.seeds or seeds,
            env_steps=self.env_steps or env_steps,
        )

    def configs(self) -> list[RunConfig]:
        """Resolve one configuration for each seed of each task, seeds in turns. ConfigError."""
        tasks, seeds = self.task_list(), seed_list(self.seeds or "")
        own = {"preset": self.preset, "agent": self.agent, "planner": self.planner, "env_steps": self.env_steps}
        of_task = {task: Settings(**own, task=task, set=("threads=1", *self.set)) for task in tasks}  # type: ignore[arg-type]
        configs = [settings.load(seed) for seed in seeds for settings in of_task.values()]
        wanted = [(task, seed) for seed in seeds for task in tasks]
        if [(config.task, config.seed) for config in configs] != wanted:
            raise ConfigError("--set: cannot take task or seed; want --tasks and --seeds")
        return configs

    def task_list(self) -> list[str]:
        """Read --tasks. ConfigError."""
        from qttdm.common.environments.make import list_tasks

        tasks = [task.strip() for task in (self.tasks or "").split(",")]
        for task in tasks:
            if task not in list_tasks():
                raise ConfigError(f"--tasks: there is no {task!r} in dmc/ or metaworld/; `qttdm tasks` lists them")
        if len({*tasks}) < len(tasks):
            raise ConfigError(f"--tasks: got {self.tasks!r}, want each task once")
        return tasks


def suite(
    *,
    settings: SuiteSettings = SuiteSettings(),
    parallel: Count = 2,
    cluster: bool = False,
    report: bool = False,
    compare: tuple[str, str] | None = None,
    docs: Path = Path("docs/suite"),
    runs_dir: Path = Path("runs/suite"),
) -> None:
    """Run what is missing of a benchmark over tasks and seeds, and report it: docs/results.md.

    Args:
        parallel: runs at a time on this machine
        cluster: on the Ray cluster instead, each run on one of its CPUs
        report: run nothing, report what is there
        compare: run nothing, say whether the second variant is better than the first
        docs: where results are kept, NAME/*.csv, and reported, NAME.md and NAME.png
        runs_dir: where runs are, NAME/*
    """
    chosen = settings.filled()
    folder = docs / (chosen.name or "")
    if folder.parent != docs or folder.name.startswith("."):
        raise ConfigError(f"--name {chosen.name}: want a plain name, such as wide; it becomes a directory")
    if compare:
        from qttdm.deploy.suite.report import compare as compared
        from qttdm.deploy.suite.results import read_variant

        first, second = (read_variant(docs / variant) for variant in compare)
        print(compared(first, second, compare))
        return
    failed = {} if report else _run_missing(chosen, folder, runs_dir / folder.name, parallel, cluster)
    if report or any(folder.glob("*.csv")):
        _report(folder, docs / "reference_curves.csv")
    if failed:
        raise RunFailed("; ".join(f"{name}: {problem}" for name, problem in failed.items()))


def _run_missing(
    chosen: SuiteSettings, results: Path, runs_dir: Path, parallel: int, on_cluster: bool
) -> dict[str, str]:
    """Run what has no result yet; returns why runs failed. ConfigError before anything starts."""
    from qttdm.common.metrics.sinks import check_sinks
    from qttdm.deploy.cluster.auth import choose_mode
    from qttdm.deploy.configs.run_config import check_fits
    from qttdm.deploy.runs.build import choose_device, task_spec
    from qttdm.deploy.suite.runs import Start, SuiteRun, run_all, start_here

    runs = [SuiteRun(config, runs_dir, results) for config in chosen.configs()]
    missing = [run for run in runs if not run.done]
    for config in {run.config.task: run.config for run in missing}.values():
        choose_device(config.device)
        check_sinks(config.sinks)
        check_fits(config, task_spec(config))
    start: Start = start_here
    if on_cluster and missing:
        choose_mode()
        from qttdm.deploy.cluster.preflight import connect
        from qttdm.deploy.suite.cluster import ClusterProcess

        connect()
        start, parallel = ClusterProcess, len(missing)  # the cluster queues what it has no CPU for
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are done: {results}", flush=True)
    with stopping() as stopped:
        failed = run_all(missing, start, parallel, stopped)
        if stopped():
            print("saved; go on with the same command")
    return failed


def _report(folder: Path, references: Path) -> None:
    """Write the variant's table and picture beside its folder, and print the table."""
    from qttdm.deploy.suite.report import picture, table
    from qttdm.deploy.suite.results import read_references, read_variant

    results = read_variant(folder)
    published = read_references(references, {result.task for result in results}) if references.exists() else {}
    page, image = (folder.parent / f"{folder.name}{suffix}" for suffix in (".md", ".png"))
    page.write_text(text := table(results, folder.name, published), encoding="utf-8")
    picture(results, folder.name, published, image)
    print(text, end="")
    print(f"table: {page}; picture: {image}")
