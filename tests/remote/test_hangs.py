"""What hangs or raises is noticed, replaced and counted, the log says why, and training goes on."""

from __future__ import annotations

import re
import signal

import pytest

from qttdm.deploy.cluster.cluster_run import count_hung
from tests.remote.faulty import FAULTS, to_come
from tests.remote.live import Live, check_books, settings

pytestmark = pytest.mark.ray


def test_an_environment_that_hangs_or_raises(cluster, tmp_path):
    config = settings(
        "cluster={actors: 1, shards: 1, hang_seconds: 20, timeout_seconds: 19}",
        "training.eval_every=1000000",
        task="gym/tests.remote.faulty:Faulty-v0",
    )
    to_come().mkdir()
    hangs, others = [*FAULTS][:2], [*FAULTS][2:]
    for name in hangs:  # each happens once
        (to_come() / name).touch()
    with Live(cluster, tmp_path / "run", [config]) as live:
        live.until(lambda: not list(to_come().iterdir()), "it has hung twice")
        live.progress()
        for name in others:
            (to_come() / name).touch()
        live.end()  # they were three in a row
    seed = live.seeds[0]
    counters = check_books(seed).meta["counters"]
    assert (counters["environment_failures"], counters["actor_restarts"]) == (5, 2)
    assert live.events().count("actor 0 replaced its environments: hung, see") == 2
    assert live.events().count("the simulation has become unstable") == 1
    assert live.events().count("observation[0] is nan") == 1
    assert seed.state == "failed"
    assert re.fullmatch(
        r"learner: gym/tests\.remote\.faulty:Faulty-v0 failed at decision \d+ of the episode with seed \d+: "
        r"ValueError: observation has 2 numbers, its space declares 3; that was 3 times in a row of actor 0; .*",
        seed.error,
    )
    stacks = "".join(path.read_text() for path in (live.seeds[0].run_dir.path / "hung").glob("actor-0.*.txt"))
    assert re.search(r"faulty.py.* in sleep", stacks)
    assert re.search(r"faulty.py.* in hold_the_lock", stacks)


def test_an_environment_that_hangs_or_raises_in_evaluations(cluster, tmp_path):
    """Of one seed in all tries of its evaluation, of the other in all but the last."""
    configs = [
        settings(
            "cluster={actors: 1, shards: 1, hang_seconds: 20, timeout_seconds: 19}",
            "training={env_steps: 800, eval_every: 800}",
            task="gym/tests.remote.faulty:FaultyEvaluations-v0",
            seed=seed,
        )
        for seed in range(2)
    ]
    to_come().mkdir(exist_ok=True)
    for name in ("0-1-fail", "0-2-hold_the_lock", "0-3-sleep", "1-1-sleep", "1-2-fail"):
        (to_come() / name).touch()
    with Live(cluster, tmp_path / "run", configs) as live:
        live.end()
    assert [(seed.state, count_hung(seed.run_dir)) for seed in live.seeds] == [("finished", 2), ("finished", 1)]
    assert [len(check_books(seed).evals) for seed in live.seeds] == [0, 1]
    for seed, hung, given_up in ((0, 2, 1), (1, 1, 0)):
        events = live.seeds[seed].run_dir.events_path.read_text()
        assert len(re.findall("evaluator: replaces its environments, .* has become unstable", events)) == 1
        assert len(re.findall(r"evaluator: hung, .* see .*/hung/evaluator\.\d\.txt", events)) == hung
        assert len(re.findall("evaluator: gives up the evaluation after", events)) == given_up


@pytest.fixture(scope="module")
def live(cluster, tmp_path_factory):
    """One run, in which one process after the other hangs."""
    with Live(cluster, tmp_path_factory.mktemp("hangs") / "run", [settings("cluster.heartbeat_seconds=5")]) as run:
        yield run


@pytest.mark.parametrize("name", ["actor-0", "replay-0", "learner", "evaluator"])
def test_a_process_that_no_longer_answers(live, name):
    live.progress()
    restarts = live.seeds[0].restarts.get(name, 0)
    pid = live.kill(name, signal.SIGSTOP)
    live.replaced(name, pid)
    live.progress()
    assert live.seeds[0].restarts[name] > restarts
    assert f"driver: {name} has not answered for" in live.events()


def test_the_books_are_right_after_all_that(live):
    live.progress()
    live.stop()
    check_books(live.seeds[0])
