"""What a seed says of the process that ended it."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from qttdm.common.episode import EnvironmentFailure
from qttdm.deploy.cluster.seed_run import in_one_line, root_of

TRACEBACK = "Traceback (most recent call last):\n" + 50 * '  File "learner/loop.py", line 1, in run\n'


def told(cause: Exception) -> RayTaskError:
    """As Ray keeps what a process raised."""
    return RayTaskError("run", f"{TRACEBACK}{cause}", cause, proctitle="ray::LearnerActor.run", pid=7, ip="10.0.0.1")


def raised(cause: Exception) -> Exception:
    """As `ray.get` raises it: Ray's error and the cause's class in one."""
    return told(cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (raised(EnvironmentFailure("my:Env failed at decision 3")), "learner: my:Env failed at decision 3"),
        (raised(KeyError("reward")), "learner: KeyError: 'reward'"),
        (raised(RuntimeError("out of\nmemory")), "learner: RuntimeError: out of memory"),
        (ActorDiedError(told(ValueError("no licence"))), "learner: no licence"),
        (
            TimeoutError("the learner did not stop within 60 s"),
            "learner: TimeoutError: the learner did not stop within 60 s",
        ),
    ],
)
def test_it_is_one_line_of_who_and_why(error, line):
    error.add_note("learner")
    assert in_one_line(error) == line


def test_the_kind_of_error_is_seen_through_rays():
    assert type(root_of(raised(EnvironmentFailure("x")))) is EnvironmentFailure
