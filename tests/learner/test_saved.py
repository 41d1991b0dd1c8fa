"""What a checkpoint must say before a run goes on from it."""

from pathlib import Path

import pytest
import torch

from qttdm.common.checkpoint import Checkpoint
from qttdm.learner.saved import check_state

WHOLE = {
    "counters": {"env_steps": 5, "decisions": 5, "wall_seconds": 1.5},
    "pace": {"decisions": 5, "updates": 0, "seed_decisions": 10},
    "cursors": [1],
    "accepted_losses": [[]],
    "evaluated_updates": -1,
    "due": [{"env_steps": 5}],
    "handed_in": [[{"env_steps": 5}, 10**9, 2**63]],
    "metrics_bytes": 0,
    "finished": False,
}


def check(meta, tensors=None):
    check_state(Checkpoint(Path("x"), 5, {"updates": torch.tensor(3)} if tensors is None else tensors, meta, {}))


def test_a_whole_one_passes():
    check(WHOLE | {"more": 1})


@pytest.mark.parametrize("tensors", [{}, {"updates": torch.zeros(2)}])
def test_tensors_without_the_number_of_updates_are_one_line(tensors):
    with pytest.raises(ValueError, match=r"^tensors\.safetensors: updates: want a number"):
        check(WHOLE, tensors)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(({key: None}, f"meta: {key}: ") for key in WHOLE),
        ({"counters": {"env_steps": "many"}}, r"meta: counters\.env_steps: "),
        ({"counters": {}}, "meta: counters: got "),
        ({"counters": {"env_steps": 1, "env_stepz": 1}}, "meta: counters: got env_steps, env_stepz, want "),
        ({"accepted_losses": []}, "meta: accepted_losses: want a list for each"),
        ({"pace": {"decisions": 5, "updates": 0}}, r"meta: pace\.seed_decisions: "),
        ({"cursors": ["x"]}, r"meta: cursors\.0: "),
        ({"handed_in": [[1]]}, r"meta: handed_in\.0"),
    ],
)
def test_anything_else_is_one_line(change, words):
    with pytest.raises(ValueError, match=words) as error:
        check(WHOLE | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", WHOLE)
def test_a_missing_key_is_one_line(key):
    with pytest.raises(ValueError, match=f"meta: {key}: Field required"):
        check({name: value for name, value in WHOLE.items() if name != key})
