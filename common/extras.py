"""Packages that only some commands and tasks need: each is in an extra of qttdm's, and named by it where it is missing.

EXTRAS repeats pyproject.toml's, as the names to import; a test compares the two.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

from qttdm.common.config import ConfigError

Extra = Literal["dmc", "metaworld", "cluster", "serve", "monitor", "report", "export", "offline", "atari"]

EXTRAS: dict[Extra, tuple[str, ...]] = {
    "dmc": ("dm_control", "mujoco"),
    "metaworld": ("metaworld", "mujoco"),
    "cluster": ("ray", "grpc", "prometheus_client"),
    "serve": ("aiohttp", "websockets", "prometheus_client"),
    "monitor": ("prometheus_client",),
    "report": ("plotly", "tensorboard"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "offline": ("minari", "h5py"),
    "atari": ("minatar", "ale_py"),
}
"""what is imported of each"""


def missing(extra: Extra) -> list[str]:
    """Name the extra's packages that are not installed, without importing them."""
    return [package for package in EXTRAS[extra] if importlib.util.find_spec(package) is None]


def need(extra: Extra, what: str) -> None:
    """Check that `what` can run here. ConfigError naming the first missing package and the extra it is in."""
    if absent := missing(extra):
        raise ConfigError(f"{what} needs {absent[0]}: pip install 'qttdm[{extra}]'")
