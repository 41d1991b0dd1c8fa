import pytest

from qttdm.deploy.cluster import wait_for_nodes as module
from qttdm.deploy.cluster.wait_for_nodes import wait_for_nodes


def answers(monkeypatch, *sequence):
    """`alive_nodes` says these, one after the other; an exception is raised. Nobody sleeps."""
    left = list(sequence)

    def alive_nodes():
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(module, "alive_nodes", alive_nodes)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return left


def test_waits_for_a_head_that_does_not_answer_yet_and_then_for_the_nodes(monkeypatch):
    left = answers(monkeypatch, ConnectionError("no"), Exception("No node info"), 1, 2, 3)
    wait_for_nodes(3)
    assert left == [3]


def test_more_nodes_than_wanted_will_do(monkeypatch):
    answers(monkeypatch, 5)
    wait_for_nodes(3, timeout_seconds=0)


@pytest.mark.parametrize(
    ("last", "words"),
    [(2, "waited 0 s for 3 nodes to join Ray: 2 did"), (ConnectionError("no\nRay"), "ConnectionError: no Ray")],
)
def test_says_how_it_was_at_the_end(monkeypatch, last, words):
    answers(monkeypatch, last)
    with pytest.raises(TimeoutError, match=words):
        wait_for_nodes(3, timeout_seconds=-1 if isinstance(last, Exception) else 0)
