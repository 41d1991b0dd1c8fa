"""QT-TDM: the one package that is installed. Its folders are links to those at the top of the repository.

`train`, `load`, `evaluate`, `metrics` and `plot` are deploy/api.py's, imported when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["evaluate", "load", "metrics", "plot", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'qttdm' has no attribute {name!r}")
    return getattr(importlib.import_module("qttdm.deploy.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
