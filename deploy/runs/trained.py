"""A trained agent: the policy with the weights of a checkpoint, on its task. It needs no replay and no optimiser.

RUN/config.yaml   --> TrainedAgent (task, policy) --> evaluate, film; the planner service
RUN/checkpoints/  --> the newest good one when opened; `newer_weights` while the run goes on
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from qttdm.common.checkpoint import Checkpoint, CheckpointError, CheckpointStore, load_checkpoint
from qttdm.common.config import ConfigError
from qttdm.common.run_dir import RunDir
from qttdm.common.tensors import check_fits, prefixed, under
from qttdm.common.weights import Weights
from qttdm.deploy.configs.run_config import load_saved_config
from qttdm.deploy.runs.acting import ActingAgent
from qttdm.deploy.runs.pretrained import find_run
from qttdm.deploy.runs.saved_task import saved_task
from qttdm.learner.saved import check_state, check_weights


class TrainedAgent(ActingAgent):
    """The agent of a run directory, with the weights of its newest good checkpoint, or of the one that was named."""

    def __init__(self, path: Path, overrides: Sequence[str] = (), planner: str | None = None) -> None:
        """path: RUN, RUN/checkpoints/NAME or pretrained/NAME. overrides, planner: as `load_saved_config`.

        ConfigError if there is no usable checkpoint, or if it does not fit the settings.
        """
        path = find_run(path)
        named = (path / "checkpoint.json").is_file()
        self.run_dir = RunDir.open(path.absolute().parents[1] if named else path)
        config = load_saved_config(self.run_dir.config_path, overrides, planner)
        super().__init__(config, saved_task(self.run_dir, config))
        self.store = CheckpointStore(self.run_dir.checkpoints_dir)
        self._seen = self.store.newest()
        try:
            checkpoint = (
                load_checkpoint(path, blobs=False) if named else newest_checkpoint(self.run_dir, False, check_weights)
            )
            check_weights(checkpoint)
            self.loaded = checkpoint.folder
            self.policy.load(weights_in(checkpoint, self.policy.networks))
        except (CheckpointError, ValueError) as error:
            raise ConfigError(str(error)) from None

    def newer_weights(self) -> Weights | None:
        """Read the weights of a checkpoint saved since the last one read, for `policy.load`; None if there is none.

        Raises CheckpointError or ValueError when it cannot be read or does not fit; the next one may.
        """
        newest = self.store.newest()
        if newest in (None, self._seen):
            return None
        self._seen = newest
        checkpoint = self.store.load_latest(blobs=False, check=check_weights)
        if checkpoint is None or checkpoint.folder == self.loaded:  # all newer ones are damaged
            return None
        self.loaded = checkpoint.folder
        return weights_in(checkpoint, self.policy.networks)


def newest_checkpoint(
    run_dir: RunDir, blobs: bool = True, check: Callable[[Checkpoint], object] = check_state
) -> Checkpoint:
    """Load a run's newest good checkpoint, printing what is damaged; blobs as in CheckpointStore. ConfigError.

    check: what it must have; by default, what a run needs to go on from it.
    """
    store = CheckpointStore(run_dir.checkpoints_dir)
    try:
        checkpoint = store.load_latest(blobs, check)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    if checkpoint is None:
        raise ConfigError(f"{run_dir.path}: there is no checkpoint in it yet")
    for message in checkpoint.skipped:
        print(message)
    return checkpoint


def weights_in(checkpoint: Checkpoint, networks: nn.Module) -> Weights:
    """Return the learner's `weights` when its state was saved. ValueError, one line, if of other networks."""
    saved: dict[str, Tensor] = {}
    for name, network in networks.named_children():
        tensors = under(f"{name}/network", checkpoint.tensors)
        wanted = network.state_dict()
        try:
            check_fits(prefixed(f"{name}/network", tensors), prefixed(f"{name}/network", wanted))
        except ValueError as error:
            raise ValueError(
                f"{checkpoint.folder}: its checkpoint does not fit its settings ({error}); undo the change to "
                f"config.yaml or --set, or use the qttdm that saved it"
            ) from None
        saved |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
    ordered = [saved[name] for name, _ in networks.named_parameters()]
    return Weights.of(nn.ParameterList(ordered), int(checkpoint.tensors["updates"]))
