"""Import a user's own modules, installed or in the working directory."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType


def import_own(name: str) -> ModuleType:
    """Import a module by name; raises what importing it raises."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(name)
