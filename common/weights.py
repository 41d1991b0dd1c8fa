"""Network weights as they travel from the learner to the policies: one contiguous array and a version."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import nn

GENERATION = 10**9
"""More updates than any run makes: what a learner's start adds to its versions."""


def version_of(generation: int, updates: int) -> int:
    """Compute the version of the weights after `updates` updates of the learner's start number `generation`.

    A learner that is killed starts again from its last checkpoint, with fewer updates than it had. Its versions go on
    growing all the same, so that old weights never pass for new ones.
    """
    return generation * GENERATION + updates


def updates_of(version: int) -> int:
    """Return the update count in a version."""
    return version % GENERATION


@dataclass(frozen=True)
class Weights:
    """A snapshot of some networks' parameters, in the order in which the networks list them."""

    values: np.ndarray
    """float32 [P], every parameter, one behind the other"""
    version: int
    """`version_of` the learner's update count; only grows"""
    checksum: int
    """XXH3 of the bytes of `values`: 64 bits in a tenth of the time that CRC-32 takes, once here and once there"""

    @staticmethod
    @torch.no_grad()
    def of(networks: nn.Module, version: int) -> Weights:
        """Take a snapshot of all parameters."""
        parameters = [p.detach().flatten() for p in networks.parameters()] or [torch.zeros(0)]
        flat = torch.cat(parameters).float().cpu().numpy()
        return Weights(flat, version, xxhash.xxh3_64_intdigest(flat.data))

    @torch.no_grad()
    def copy_into(self, networks: nn.Module) -> None:
        """Overwrite the networks' parameters. ValueError if the array is damaged or of another architecture."""
        if xxhash.xxh3_64_intdigest(np.ascontiguousarray(self.values).data) != self.checksum:
            raise ValueError(f"weights version {self.version}: checksum differs, the snapshot is damaged")
        parameters = list(networks.parameters())
        want = sum(p.numel() for p in parameters)
        if self.values.size != want:
            raise ValueError(f"weights version {self.version}: got {self.values.size} parameters, want {want}")
        with warnings.catch_warnings():  # out of Ray's store the array is read-only, which is all that is done here
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            flat = torch.from_numpy(self.values)
        start = 0
        for p in parameters:
            p.copy_(flat[start : start + p.numel()].view_as(p))
            start += p.numel()


def read_generation(run_dir: Path) -> int:
    """Read the number of the newest learner that a cluster started in this directory; 0 if none was."""
    path = run_dir / "generation"
    return int(path.read_text()) if path.exists() else 0
