"""`python -m qttdm.deploy.bench.datasets`: a million logged steps, read as episodes and as bare arrays by h5py."""

from __future__ import annotations

import os
import tempfile
import tracemalloc
from collections.abc import Callable

import h5py
import numpy as np

from qttdm.common.contracts import TaskSpec
from qttdm.common.episode import Episode
from qttdm.deploy.bench.timing import in_turns, rate
from qttdm.replay.datasets import open_dataset, write_dataset

EPISODES, STEPS, OBS_DIM, ACTION_DIM = 1_000, 1_000, 17, 6  # halfcheetah's
ROUNDS = 5


def most_memory(read: Callable[[], object]) -> float:
    """Measure MiB while all that was read is kept."""
    tracemalloc.start()
    try:
        return tracemalloc.get_traced_memory()[1] / 2**20 if read() else 0.0
    finally:
        tracemalloc.stop()


def main() -> None:
    """Print both rates and both needs of memory."""
    with tempfile.TemporaryDirectory() as os.environ["MINARI_DATASETS_PATH"]:
        shapes, rng = ((STEPS + 1, OBS_DIM), (STEPS, ACTION_DIM), (STEPS,)), np.random.default_rng(0)
        seen, acted, paid = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes)
        task = TaskSpec(OBS_DIM, ACTION_DIM, 1, STEPS, terminates=False)
        folder = write_dataset("bench-v0", [Episode(seen, acted, paid, False, STEPS)] * EPISODES, task)

        def ours() -> object:
            return list(open_dataset("bench-v0").episodes())

        def bare() -> object:
            with h5py.File(folder / "data" / "main_data.hdf5") as file:
                names = ("observations", "actions", "rewards", "terminations", "truncations")
                return [[group[name][()] for name in names] for group in file.values()]

        speed = in_turns(lambda: rate(ours, 1), lambda: rate(bare, 1), ROUNDS)
        memory = most_memory(ours), most_memory(bare)
    steps = EPISODES * STEPS / 1e6
    print(
        f"million steps/s: {steps * speed.ours:.2f} as episodes, {steps * speed.other:.2f} by h5py: {speed.ratio:.2f}"
    )
    print(f"MiB for all of them: {memory[0]:.0f} as episodes, {memory[1]:.0f} by h5py: {memory[0] / memory[1]:.2f}")


if __name__ == "__main__":
    main()
