"""`qttdm suite`: run what is missing of a benchmark over tasks and seeds, and report it; or compare two variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from qttdm.common.config import ConfigError
from qttdm.deploy.cli.options import Count, Overrides, RunFailed, Settings, seed_list
from qttdm.deploy.runs.stopping import stopping

if TYPE_CHECKING:
    from qttdm.deploy.configs.run_config import RunConfig

DOCS = Path("docs/suite")  # NAME/*.csv are results, NAME.md and NAME.png their report
RUNS = Path("runs/suite")
EVAL_EVERY = 10_000  # environment steps: as the published curves
Cluster = Annotated[bool, Parameter(help="on the Ray cluster instead, each run on one of its CPUs")]

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
    """Which runs, and what they are made from."""

    tasks: str | None = None
    """such as dmc/walker-walk,metaworld/reach; default: the suite's nine"""
    seeds: str | None = None
    """default: 0,1,2"""
    env_steps: Count | None = None
    """of each run; default: 100000"""
    screening: bool = False
    """to judge an idea within the hour: by default four tasks, seeds 10 and 11, 50000 steps"""
    preset: str | None = None
    """as of qttdm train; another agent: --set agent=qt"""

    def configs(self) -> list[RunConfig]:
        """Resolve the configuration of each run, all tasks of the first seed first. ConfigError."""
        from qttdm.common.environments.make import list_tasks, need_family

        usual = (SCREENING, "10,11", 50_000) if self.screening else (TASKS, "0,1,2", 100_000)
        tasks, known = self.tasks.split(",") if self.tasks else usual[0], list_tasks()
        for task in tasks:
            need_family(task)
        if wrong := [task for task in tasks if task not in known]:
            raise ConfigError(f"--tasks: there is no {wrong[0]!r} among those that `qttdm tasks` lists")
        if len({*tasks}) < len(tasks):
            raise ConfigError(f"--tasks: got {self.tasks!r}, want each task once")
        if own := [item for item in self.set if item.partition("=")[0] in ("task", "seed")]:
            raise ConfigError(f"--set {own[0]}: want --tasks and --seeds here")
        return [
            Settings(
                preset=self.preset,
                task=task,
                planner=self.planner,
                env_steps=self.env_steps or usual[2],
                set=("threads=1", f"training.eval_every={EVAL_EVERY}", *self.set),
            ).load(seed)
            for seed in seed_list(self.seeds or usual[1])
            for task in tasks
        ]


def suite(
    *,
    name: str | None = None,
    settings: SuiteSettings = SuiteSettings(),
    parallel: Count = 2,
    cluster: Cluster = False,
    report: bool = False,
    compare: tuple[str, str] | None = None,
) -> None:
    """Run what is missing of a benchmark over tasks and seeds, and report it: docs/results.md.

    Args:
        name: of the variant, so that two can stand side by side; default: suite, or screening
        parallel: runs at a time on this machine
        report: run nothing, report what is there
        compare: run nothing, say whether the second variant is better than the first
    """
    name = name or ("screening" if settings.screening else "suite")
    if "/" in name or name.startswith("."):
        raise ConfigError(f"--name {name}: want a plain name, such as wide; it becomes a directory")
    if compare:
        from qttdm.deploy.suite.report import compare as compared
        from qttdm.deploy.suite.results import read_variant

        first, second = (read_variant(DOCS / variant) for variant in compare)
        print(compared(first, second, compare))
        return
    failed = {} if report else _run_missing(settings.configs(), name, parallel, cluster)
    if report or any((DOCS / name).glob("*.csv")):
        _report(name)
    if failed:
        raise RunFailed("; ".join(f"{run}: {problem}" for run, problem in failed.items()))


def _run_missing(configs: Sequence[RunConfig], name: str, parallel: int, on_cluster: bool) -> dict[str, str]:
    """Run what has no result yet; returns why runs failed. ConfigError before anything starts."""
    from qttdm.common.metrics.sinks import check_sinks
    from qttdm.deploy.cluster.auth import choose_mode
    from qttdm.deploy.configs.run_config import check_fits
    from qttdm.deploy.runs.build import choose_device, task_spec
    from qttdm.deploy.suite.runs import Start, SuiteRun, run_all, start_here

    runs = [SuiteRun(config, RUNS / name, DOCS / name) for config in configs]
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
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are done: {DOCS / name}", flush=True)
    with stopping() as stopped:
        failed = run_all(missing, start, parallel, stopped)
        if stopped():
            print("saved; go on with the same command")
    return failed


def _report(name: str) -> None:
    """Write the variant's table and picture beside its folder, and print the table."""
    from qttdm.deploy.screens.plot import PUBLISHED
    from qttdm.deploy.suite.report import picture, table
    from qttdm.deploy.suite.results import read_references, read_variant

    results = read_variant(DOCS / name)
    published = read_references(PUBLISHED, {result.task for result in results})
    page, image = DOCS / f"{name}.md", DOCS / f"{name}.png"
    page.write_text(text := table(results, name, published), encoding="utf-8")
    picture(results, name, published, image)
    print(f"{text}table: {page}; picture: {image}")
