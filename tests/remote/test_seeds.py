"""Six seeds on two invented GPUs of a simulated node: placed as meant, queued, and apart from each other."""

from __future__ import annotations

import os
import re
import resource
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray

from qttdm.deploy.chaos.audit import read_shard
from qttdm.deploy.cluster.seed_run import ENDED, SeedRun
from qttdm.deploy.configs.cluster_config import NAMESPACE
from tests.remote.live import PATIENCE, Live, check_books, settings, until

pytestmark = pytest.mark.ray

SEEDS, PLACES = 6, 4
POISONED, BROKEN = 1, 5  # its rewards overflow in the loss; its environment cannot be made where it is collected
FULL = 4  # the disk refuses its replay
TASKS = {POISONED: "gym/tests.fakes:FakePointPoisoned-v0", BROKEN: "gym/tests.remote.faulty:BrokenForActors-v0"}
FAILING = {*TASKS, FULL}


@dataclass
class Record:
    """What was seen while they ran."""

    directory: Path
    seeds: list[SeedRun]
    started: list[int] = field(default_factory=list)
    """seeds, as they got their place"""
    ended_before: dict[int, int] = field(default_factory=dict)
    """how many had ended when each got it"""
    nodes: dict[int, set[str]] = field(default_factory=dict)
    """of each seed's placement group"""
    gpus: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """(node, GPU) of each seed's learner"""
    evaluators: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """the same, of its evaluator"""
    others_see: dict[int, str] = field(default_factory=dict)
    """CUDA_VISIBLE_DEVICES of one of each seed's shards"""


def place(actor) -> tuple[str, ...]:
    """Runs in an actor: its node and GPUs."""
    context = ray.get_runtime_context()
    return context.get_node_id(), *context.get_accelerator_ids()["GPU"]


def fill(actor) -> None:
    """Runs in an actor: its files cannot grow any more."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def visible(actor) -> str:
    """Runs in an actor."""
    return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.fixture(scope="module")
def record(cluster, tmp_path_factory):
    """All of them, run to their ends."""
    node = cluster.add_node(num_cpus=8, num_gpus=2, object_store_memory=150 * 2**20)  # the head has CPUs, too
    configs = [
        settings(
            "cluster={actors: 1, shards: 1, gpus_per_seed: 0.5}",
            "training={env_steps: 800, eval_every: 1000000}",
            *(["env={action_repeat: 1, episode_steps: 20}"] if seed == POISONED else []),
            task=TASKS.get(seed, "gym/tests.fakes:FakePoint-v0"),
            seed=seed,
        )
        for seed in range(SEEDS)
    ]
    asked: dict[tuple[int, str], ray.ObjectRef] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAY_MAKE_ENVIRONMENTS", "here")
        run = Live(cluster, tmp_path_factory.mktemp("seeds") / "run", configs)
    seen = Record(run.run.directory, run.seeds)
    with run:

        def look() -> bool:
            for number, seed in enumerate(run.seeds):
                if seed.state == "running" and number not in seen.started:
                    seen.started.append(number)
                    seen.ended_before[number] = sum(other.state in ENDED for other in run.seeds)
                    of_shard = fill if number == FULL else visible
                    for name, question in (("learner", place), ("evaluator", place), ("replay-0", of_shard)):
                        actor = ray.get_actor(f"{seed.name}/{name}", namespace=NAMESPACE)
                        call = actor.__ray_call__.options(concurrency_group="control")
                        asked[number, name] = call.remote(question)
                    groups = ray.util.placement_group_table().values()
                    [group] = [g for g in groups if g["name"] == seed.name and g["state"] == "CREATED"]
                    seen.nodes[number] = set(group["bundles_to_node_id"].values())
            return all(seed.state in ENDED for seed in run.seeds)

        until(look, "all have ended", seconds=4 * PATIENCE)
        run.end()
    for (number, name), answer in asked.items():
        if number not in (BROKEN, FULL):  # which may be gone before they answer
            where = {"learner": seen.gpus, "evaluator": seen.evaluators, "replay-0": seen.others_see}[name]
            where[number] = ray.get(answer)
    yield seen
    cluster.remove_node(node)


def test_each_has_half_a_gpu_and_is_whole_on_one_node(record):
    halves = Counter(record.gpus[number] for number in range(PLACES))
    assert all(len(gpus) == 2 for gpus in halves)  # a node, and one of its GPUs
    assert list(halves.values()) == [2, 2]
    assert record.evaluators == record.gpus
    assert all(len(nodes) == 1 for nodes in record.nodes.values())
    assert set(record.others_see.values()) == {""}  # Ray would let them see every GPU


def test_those_that_do_not_fit_wait_for_a_place(record):
    assert sorted(record.started[:PLACES]) == list(range(PLACES))
    for waited, number in enumerate(record.started[PLACES:], start=1):
        assert record.ended_before[number] >= waited
    assert sorted(record.started) == list(range(SEEDS))


def test_those_that_fail_take_no_other_with_them(record):
    states = {seed.config.seed: seed.state for seed in record.seeds}
    assert states == {n: "failed" if n in FAILING else "finished" for n in range(SEEDS)}
    why = {n: (record.directory / f"seed-{n}" / "failure.txt").read_text() for n in FAILING}
    assert all("Traceback" in text for text in why.values())
    assert "NonFiniteLossError" in why[POISONED]
    assert "faulty.py" in why[BROKEN]
    assert "no licence on this machine" in why[BROKEN]
    assert "no licence on this machine" in record.seeds[BROKEN].error
    refused = r"seed-4/replay/shard-0/0+\.log: cannot write [\d,]+ bytes \(File too large\)"
    assert re.search(refused, why[FULL])
    assert re.search(refused, record.seeds[FULL].error)
    for seed in record.seeds:
        assert not (seed.run_dir.path / ".failure-room").exists()
        if seed.config.seed not in FAILING:
            assert check_books(seed).meta["finished"]
    full = [read_shard(folder, i) for i, folder in enumerate((record.directory / "seed-4/replay").glob("shard-*"))]
    assert full
    assert [shard.wrong for shard in full] == [[]] * len(full)  # what was acknowledged is intact
