"""Import a user's own modules, from the working directory or installed."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any


def import_own(name: str) -> ModuleType:
    """Import a module by name; raises what importing it raises.

    The working directory comes before what is installed, but after Python's own modules: a `random.py` in it must not
    become everybody's. Nothing changes where the name is one of qttdm's own.
    """
    if os.getcwd() not in sys.path and not name.startswith("qttdm."):
        installed = (i for i, path in enumerate(sys.path) if path.endswith("-packages"))  # site-, Debian's dist-
        sys.path.insert(next(installed, len(sys.path)), os.getcwd())
    return importlib.import_module(name)


def find_own(place: str) -> Any:
    """Find what MODULE:NAME names; raises what importing the module raises.

    AttributeError if it is not there: names both files if the working directory's was not the one that was read.
    """
    module_name, _, name = place.partition(":")
    module = import_own(module_name)
    if not hasattr(module, name):
        top = module_name.partition(".")[0]
        mine = PathFinder.find_spec(top, [os.getcwd()])
        read = getattr(sys.modules[top], "__file__", None) or "a part of Python"
        hidden = (
            f"; it is {read}, which hides {mine.origin}: rename that"
            if mine and mine.origin not in (None, read)
            else ""
        )
        raise AttributeError(f"module {module_name!r} has no {name!r}{hidden}")
    return getattr(module, name)


def imported_here() -> list[Path]:
    """List the .py files and packages of the working directory that have been imported: what others need of it."""
    here = Path.cwd()
    found: set[Path] = set()
    for name, module in [*sys.modules.items()]:
        if "." not in name and name not in ("qttdm", "__main__"):
            places = [*getattr(module, "__path__", ()), getattr(module, "__file__", None) or ""]
            found |= {Path(place) for place in places if Path(place).parent == here}
    return sorted(path for path in found if path.is_dir() or path.suffix == ".py")
