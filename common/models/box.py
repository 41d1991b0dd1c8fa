"""Actions that are all of the box [-1, 1]: of models that know no bins."""

from __future__ import annotations

from torch import Tensor


class BoxActions:
    """The part of a DynamicsModel (common/contracts.py) that says which actions there are."""

    def quantise(self, actions: Tensor) -> Tensor:
        """Clip to the box."""
        return actions.clamp(-1.0, 1.0)

    def uniform(self, chance: Tensor) -> Tensor:
        """Spread [0, 1) over the box."""
        return 2.0 * chance - 1.0
