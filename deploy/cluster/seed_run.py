"""One seed on a Ray cluster: its placement group and its actors, started, watched until they end, and taken down.

    SeedRun --> shards, evaluator, learner, planner services, collectors      (all in the seed's placement group)

Ray restarts what dies and asks again what was asked (`max_restarts`, `max_task_retries`), queues placement groups that
do not fit now, and ends everything with this process. What is left to do here: create, look for processes that hang,
and leave nothing behind. Over 400 lines, since all of these know the same actors by name.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from qttdm.actors.remote import CollectorActor, EvaluatorActor
from qttdm.actors.settings import ActorSettings
from qttdm.common.contracts import Learner, Policy, TaskSpec
from qttdm.common.events import EventLog, Waiting
from qttdm.common.metrics.process import CALLS, FAILURES
from qttdm.common.metrics.sinks import make_sinks
from qttdm.common.metrics.telemetry import MakeTelemetry, Telemetry
from qttdm.common.run_dir import RunDir
from qttdm.common.seeding import derive_seed
from qttdm.deploy.cluster import ray_private
from qttdm.deploy.cluster.failure import FailureFile
from qttdm.deploy.cluster.preflight import describe_capacity
from qttdm.deploy.cluster.reporting import report_end, start_reporting
from qttdm.deploy.configs.cluster_config import NAMESPACE, SEED_STATE, SeedState
from qttdm.deploy.configs.run_config import RunConfig
from qttdm.deploy.runs.build import choose_device, exploration, make_learner, make_policy, make_task_env
from qttdm.learner.learner import NonFiniteLossError
from qttdm.learner.remote import LearnerActor, LearnerSettings
from qttdm.planner_service.policies.greedy import greedy_beside
from qttdm.planner_service.remote import PlannerActor, PlannerSettings, ServicePolicy
from qttdm.replay.limiter import Pace
from qttdm.replay.remote import CPU_ONLY, RemoteReplay, ReplaySettings, start_shards
from qttdm.replay.shard import ShardConfig

RESTARTED = {"max_restarts": -1, "max_task_retries": -1}
DRAIN_SECONDS = 10.0  # at a stop, for episodes in flight to end
FLUSH_SECONDS = 15.0  # at most, for the processes to tell their last counts, before they are ended
ENDED: tuple[SeedState, ...] = ("finished", "stopped", "failed")


class SeedRun:
    """Run one seed: `reserve`, then `poll` until `state` is one of ENDED; only its files are left then."""

    def __init__(self, name: str, config: RunConfig, run_dir: RunDir, spec: TaskSpec) -> None:
        self.name, self.config, self.run_dir, self.spec = f"{name}/seed-{config.seed}", config, run_dir, spec
        self.agent = config.make_agent(spec)
        self.state: SeedState = "queued"
        self.status: dict[str, Any] = {}
        self.restarts: dict[str, int] = {}
        """processes that were killed here because they did not answer, by name"""
        self.error = ""
        self.accept_losses = False
        """go on also if the shards have less than the checkpoint counts on"""
        self.events = EventLog(run_dir.events_path, "driver")
        self.failure = FailureFile(run_dir.path)
        self.run_name = name
        self.telemetry = Telemetry.silent("driver")
        self._group: Any = None
        self._actors: dict[str, Any] = {}
        self._pings: dict[str, tuple[ray.ObjectRef, float]] = {}
        self._waiting = Waiting(self.events, config.cluster.timeout_seconds)  # for the seed, then for its processes
        self._starting: list[str] = []
        self._pinged_at = 0.0
        self._fill: dict[str, float] = {}
        self._answers: dict[str, ray.ObjectRef] = {}
        self._deadline = math.inf

    def reserve(self) -> None:
        """Queue for a placement group; Ray grants all of it at once."""
        self.telemetry = self._make_telemetry("driver", 0)
        self.telemetry.before_report(self._report_state)
        self._group = placement_group(self.config.cluster.bundles(), strategy="PACK", name=self.name)

    def has_place(self) -> bool:
        """Has Ray granted the placement group? Until then events.log says now and then what the seed waits for."""
        if self._group.wait(timeout_seconds=0.01):
            self._waiting.over()
            return True
        self._waiting.still(lambda: f"a place: {describe_capacity(self.config.cluster.bundles())}")
        return False

    def start(self) -> None:
        """Create the actors in their place and set them to work."""
        c, s = self.config.cluster, self.config
        self.state = "starting"
        self.events.write("starts")
        self.failure.keep_room()
        shards = start_shards(
            self.name,
            self.run_dir.path / "replay",
            self._replay_settings(),
            derive_seed(s.seed, "replay"),
            c.shards,
            num_cpus=c.shard_cpus,
            **self._place(0),
        )
        self._actors |= {f"replay-{i}": shard for i, shard in enumerate(shards)}
        names = [f"{self.name}/{name}" for name in self._actors]
        learner, evaluator = f"{self.name}/learner", f"{self.name}/evaluator"
        collectors = [f"{self.name}/actor-{i}" for i in range(c.actors)]
        planners = [f"{self.name}/planner-{i}" for i in range(c.planners)] if c.planning == "service" else []
        own = self._actor_settings(evaluator=True)
        self._create(EvaluatorActor, "evaluator", 0, c.evaluator_cpus, own, gpus=c.planning_gpus)
        self._create(
            LearnerActor,
            "learner",
            0,
            c.learner_cpus,
            self._learner_settings(),
            names,
            evaluator,
            [*planners, *collectors],
            gpus=c.learner_gpus,
        )
        for i in range(len(planners)):
            settings = self._planner_settings()
            self._create(PlannerActor, f"planner-{i}", 0, c.planner_cpus, settings, learner, i, gpus=c.planning_gpus)
        for i in range(c.actors):
            own = self._actor_settings(evaluator=False, planner=planners[i % len(planners)] if planners else None)
            self._create(CollectorActor, f"actor-{i}", 1 + i, c.actor_cpus, own, i, learner, names)
        self._answers = {name: a.run.remote() for name, a in self._actors.items() if hasattr(a, "run")}
        self.state = "running"

    def poll(self) -> None:
        """Start when there is a place, then check all processes; never raises. A seed that fails ends only its own."""
        try:
            if self.state == "queued" and self.has_place():
                self.start()
            elif self.state in ("running", "stopping"):
                self._check_processes()
        except Exception as error:
            self.fail(error)

    def stop(self) -> None:
        """Save, let the episodes in flight end for a while, and remove everything."""
        if self.state == "running":
            self.state = "stopping"
            self._control("learner", "stop").remote()
            self._deadline = time.monotonic() + self.config.cluster.timeout_seconds
        elif self.state == "queued":
            self._leave("stopped")

    def fail(self, error: BaseException) -> None:
        """Give up this seed and write the reason to failure.txt; the run's other seeds go on."""
        kind = "non_finite" if isinstance(root_of(error), NonFiniteLossError) else "seed"
        self.telemetry.inc(FAILURES, kind=kind)
        self.error = in_one_line(error)
        text = "".join(traceback.format_exception(error))
        self.failure.write(text)
        self.events.write(f"failed: {self.error}; all of it is in failure.txt")
        self._leave("failed")

    def _check_processes(self) -> None:
        """Take what ended; remove everything when all has, else check that the others answer."""
        learner = self._answers["learner"]
        ended, _ = ray.wait(list(self._answers.values()), num_returns=len(self._answers), timeout=0)
        for name, answer in self._answers.items():
            if answer in ended:
                result_of(name, answer)  # raises what ended it, if anything did
        if learner in ended:
            self._deadline = min(self._deadline, time.monotonic() + DRAIN_SECONDS)
        if len(ended) == len(self._answers) or (learner in ended and time.monotonic() > self._deadline):
            last = self._control("learner", "status").remote()
            if ray.wait([last], timeout=FLUSH_SECONDS)[0]:
                self.status |= ray.get(last)
            self._leave(ray.get(learner))
        elif time.monotonic() > self._deadline:
            raise TimeoutError(f"the learner did not stop within {self.config.cluster.timeout_seconds:g} s")
        else:
            self._heartbeats()

    def _heartbeats(self) -> None:
        """Ask every process for a sign of life now and then; kill those that give none, for Ray to start anew."""
        now = time.monotonic()
        for name, (answer, asked) in list(self._pings.items()):
            if ray.wait([answer], timeout=0)[0]:
                del self._pings[name]
                reply = result_of(name, answer)
                if name == "learner":
                    self.status |= reply
                elif name.startswith("replay-"):
                    self._fill[name] = reply
                    self.status["replay_fill"] = sum(self._fill.values()) / self.config.cluster.shards
            elif now - asked > self.config.cluster.heartbeat_seconds:
                del self._pings[name]
                self.restarts[name] = self.restarts.get(name, 0) + 1
                self.telemetry.inc(FAILURES, kind="unresponsive")
                self.events.write(f"{name} has not answered for {now - asked:.0f} s: killed, to be started again")
                ray.kill(self._actors[name], no_restart=False)
        if now - self._pinged_at < (1.0 if self.state == "running" else 0.2):
            return
        self._pinged_at = now
        self._wait_for_starts(now)
        if self.state == "stopping" and "learner" not in self._pings:  # again: it may have been killed since
            self._control("learner", "stop").remote()
        for name in self._actors.keys() - self._pings.keys():
            method = "status" if name == "learner" else "fill" if name.startswith("replay-") else "__ray_ready__"
            self._pings[name] = (self._control(name, method).remote(), now)

    def _wait_for_starts(self, now: float) -> None:
        """Extend the deadline of processes that start, or wait for a place since their node died; log long waits."""
        starting = sorted(name for name in self._pings if not ray_private.is_alive(self._actors[name]))
        for name in starting:
            self._pings[name] = self._pings[name][0], now
        if starting != self._starting:
            self._waiting.over()
        self._starting = starting
        if starting:
            bundles = self.config.cluster.bundles()
            self._waiting.still(lambda: f"{', '.join(starting)} to start; {describe_capacity(bundles)}")

    def _leave(self, state: SeedState) -> None:
        """Remove every actor and the placement group, when all have reported what they counted."""
        if self.config.cluster.metrics_port is not None and self._actors:
            told = [self._control(name, "flush").remote() for name in self._actors]
            ray.wait(told, num_returns=len(told), timeout=FLUSH_SECONDS)
        for actor in self._actors.values():
            ray.kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)
        self._actors, self._answers, self._pings, self._group = {}, {}, {}, None
        self.state = state
        self.events.write(state)
        self.failure.give_back()
        if self.telemetry.reporter is not None:
            self.telemetry.reporter.close()
            report_end(self.run_name, self.config.seed)

    def _report_state(self) -> None:
        """Set the gauges before each report."""
        for state in get_args(SeedState):
            self.telemetry.set(SEED_STATE, float(state == self.state), state=state)
        self.telemetry.set(CALLS, len(self._pings), call="heartbeats")

    @property
    def _make_telemetry(self) -> MakeTelemetry:
        """Make the telemetry of this seed's processes."""
        if self.config.cluster.metrics_port is None:
            return Telemetry.silent
        return partial(start_reporting, self.run_name, self.config.seed, self.config.task)

    def _create(self, kind: type, name: str, bundle: int, cpus: float, *arguments: Any, gpus: float = 0.0) -> None:
        """Create a named actor in one of the seed's bundles."""
        options: dict[str, Any] = {
            **RESTARTED,
            "name": f"{self.name}/{name}",
            "num_cpus": cpus,
            "num_gpus": gpus,
            **self._place(bundle),
        }
        if kind is not PlannerActor:  # which is async: its methods do not wait for each other
            options["concurrency_groups"] = {"control": 2}
        if gpus == 0:
            options["runtime_env"] = CPU_ONLY
        self._actors[name] = ray.remote(**options)(kind).remote(*arguments)

    def _place(self, bundle: int) -> dict[str, Any]:
        return {
            "namespace": NAMESPACE,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle),
        }

    def _control(self, name: str, method: str) -> Any:
        """Get a method of an actor that is answered while the actor works."""
        if name.startswith("planner-"):
            return getattr(self._actors[name], method)
        return getattr(self._actors[name], method).options(concurrency_group="control")

    def _replay_settings(self) -> ReplaySettings:
        c = self.config
        share = c.replay.model_copy(update={"capacity": -(-c.replay.capacity // c.cluster.shards)})
        return ReplaySettings(
            ShardConfig(replay=share, fsync=c.cluster.fsync, keep_states=c.training.keep_checkpoints + 1),
            self.agent.data,
            self._make_telemetry,
        )

    def _planner_settings(self) -> PlannerSettings:
        c = self.config
        return PlannerSettings(
            run_dir=self.run_dir.path,
            service=c.cluster.service,
            make_policy=partial(policy_here, c, self.spec),
            data=self.agent.data,
            threads=c.threads or max(1, int(c.cluster.planner_cpus)),
            hang_seconds=c.cluster.hang_seconds,
            telemetry=self._make_telemetry,
        )

    def _actor_settings(self, evaluator: bool, planner: str | None = None) -> ActorSettings:
        c = self.config
        cpus = c.cluster.evaluator_cpus if evaluator else c.cluster.actor_cpus
        return ActorSettings(
            run_dir=self.run_dir.path,
            seed=c.seed,
            make_env=partial(make_task_env, c, self.spec, training=not evaluator),
            make_policy=partial(evaluating_policy, c, self.spec)
            if evaluator
            else partial(acting_policy, c, self.spec, planner),
            data=self.agent.data,
            envs=c.training.eval_episodes if evaluator else c.cluster.envs_per_actor,
            threads=c.threads or max(1, int(cpus)),
            max_staleness=c.cluster.max_staleness,
            random_actions=c.training.random_actions,
            hang_seconds=c.cluster.hang_seconds,
            timeout_seconds=c.cluster.timeout_seconds,
            telemetry=self._make_telemetry,
        )

    def _learner_settings(self) -> LearnerSettings:
        c = self.config
        return LearnerSettings(
            run_dir=self.run_dir.path,
            training=c.training,
            make_learner=partial(fresh_learner, c, self.spec),
            make_replay=partial(
                RemoteReplay,
                seed=derive_seed(c.seed, "draw"),
                batch_size=self.agent.batch_size,
                prefetch=c.cluster.prefetch,
                timeout_s=c.cluster.timeout_seconds,
            ),
            make_pace=partial(Pace, c.cluster.pace, c.training.update_ratio, c.training.seed_decisions),
            exploration=partial(exploration, c, self.spec),
            publish_every=c.cluster.publish_every,
            hang_seconds=c.cluster.hang_seconds,
            timeout_seconds=c.cluster.timeout_seconds,
            telemetry=self._make_telemetry,
            make_sinks=partial(make_sinks, c.sinks, self.run_dir.path, c.model_dump(by_alias=True)),
            accept_losses=self.accept_losses,
        )


def result_of(name: str, answer: ray.ObjectRef) -> Any:
    """Get what a process answered; what it raised is raised with its name noted."""
    try:
        return ray.get(answer)
    except Exception as error:
        error.add_note(name)
        raise


def root_of(error: BaseException) -> BaseException:
    """Unwrap what a process raised from Ray's error around it."""
    while isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
    return error


def in_one_line(error: BaseException) -> str:
    """Say which process failed, as `result_of` notes it, and why, without tracebacks."""
    root = root_of(error)
    words = str(root).strip()
    if isinstance(root, ray.exceptions.RayError):  # of a process that could not start; ends with what it raised
        words = (words.splitlines() or [type(root).__name__])[-1]
    elif not type(root).__module__.startswith("qttdm."):
        words = f"{type(root).__name__}: {words}"
    return ": ".join([*getattr(error, "__notes__", ()), " ".join(words.split())[:400]])


def fresh_learner(config: RunConfig, spec: TaskSpec) -> Learner:
    """Make the seed's learner with its first weights, on the device that this process was given."""
    torch.set_num_threads(config.threads or max(1, int(config.cluster.learner_cpus)))
    torch.manual_seed(derive_seed(config.seed, "learner"))
    return make_learner(config, spec, choose_device(config.device))


def policy_here(config: RunConfig, spec: TaskSpec) -> Policy:
    """Make the agent's policy on the device that this process was given."""
    return make_policy(config, spec, choose_device(config.device))


def evaluating_policy(config: RunConfig, spec: TaskSpec, still_waiting: Callable[[], object]) -> Policy:
    """Make the evaluator's policy, for all its episodes at once; it compiles here, where no deadline is."""
    policy = policy_here(config, spec)
    policy.warm_up(config.training.eval_episodes)
    return policy


def acting_policy(
    config: RunConfig, spec: TaskSpec, planner: str | None, still_waiting: Callable[[], object]
) -> Policy:
    """Make an actor's policy: on its CPUs, or asking the named planner service. still_waiting: see ServicePolicy.

    It compiles here, as the evaluator's.
    """
    local = make_policy(config, spec, torch.device("cpu"))
    if planner is None:
        local.warm_up(config.cluster.envs_per_actor)
        return local
    c, greedy = config.cluster, greedy_beside(local)
    return ServicePolicy(c.asking, planner, local, greedy, c.max_staleness, still_waiting)
