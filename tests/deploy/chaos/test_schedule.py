"""deploy/chaos/schedule.py: what is done to a run is a function of the seed alone."""

import random

from qttdm.deploy.chaos.schedule import KINDS, schedule


def test_the_same_seed_gives_the_same_faults_and_more_minutes_only_add_to_them():
    for seed in range(20):
        faults = schedule(seed, 2)
        random.seed(seed)  # whatever else draws
        assert schedule(seed, 5)[: len(faults)] == schedule(seed, 2) == faults
        assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
        assert faults[-1].at < 120
    assert len({str(schedule(seed, 1)) for seed in range(20)}) == 20


def test_seeds_that_were_written_down_stay_what_they_were():
    assert [str(fault).split(maxsplit=2)[2] for fault in schedule(6, 0.3)] == [
        "break hang",
        "break shape",
        "terminate service",
        "kill learner",
        "kill service",
        "be hostile a large first message for 5.5 s",
    ]


def test_each_fault_comes_once_before_any_comes_again():
    every = {(kind, whom) for kind, (those, _, _) in KINDS.items() for whom in those}
    faults = [(fault.kind, fault.whom) for fault in schedule(7, 10)]
    for start in range(0, len(faults) - len(every), len(every)):
        assert {*faults[start : start + len(every)]} == every
