"""What all trained parts do alike: save and load what they name, and let a target network follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from qttdm.common.batch import Batch
from qttdm.common.tensors import Tensors, prefixed, under
from qttdm.learner.parts.optimizer import AdamStep


class TrainedPart:
    """Fits nothing, and has no numbers but those of `update`; parts that do say so."""

    saved: Mapping[str, nn.Module | AdamStep]
    """networks and optimisers, by what begins the names of their tensors in a checkpoint"""

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Fit nothing."""

    def now(self) -> dict[str, Tensor]:
        """Return nothing: `update` returns all there is."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of all that is saved."""
        state: dict[str, Tensor] = {}
        for name, saved in self.saved.items():
            state |= prefixed(name, saved.state_dict())
        return state

    def load_state(self, state: Tensors) -> None:
        """Undo `state`."""
        for name, saved in self.saved.items():
            saved.load_state_dict(under(name, state))


@torch.no_grad()
def follow(target: nn.Module, network: nn.Module, share: float) -> None:
    """Move the parameters of a target that share of the way to the network's, buffers not."""
    torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), share)
