"""Choose how MuJoCo draws: EGL where it works without a display. Training never needs it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from functools import cache

from qttdm.common.config import ConfigError

WINDOW = ("glfw", "on", "enable", "enabled", "true", "1")
OFF = ("off", "disable", "disabled", "false", "0")
"""values of MUJOCO_GL that MuJoCo and dm_control both understand, besides egl and osmesa"""


class RenderError(RuntimeError):
    """A frame cannot be drawn on this machine; the text says what to install or to set."""


@cache
def choose_gl() -> None:
    """Settle MUJOCO_GL, once and before dm_control is imported: EGL on Linux where it loads, no rendering elsewhere.

    A value the user set is kept. macOS and Windows are left alone: MuJoCo's own choice works there.
    Raises ConfigError when the user asked for what there is not, or what does not load here.
    """
    wanted = os.environ.get("MUJOCO_GL") or None
    if sys.platform != "linux" or wanted in OFF or importlib.util.find_spec("mujoco") is None:
        return
    if wanted in WINDOW:
        _check_window(wanted)
        return
    if wanted not in (None, "egl", "osmesa"):
        raise ConfigError(
            f"MUJOCO_GL={wanted}: there is none of that name; want egl, osmesa, glfw (with a display), or disabled"
        )
    backend = wanted or "egl"
    # MuJoCo and dm_control load it as they are imported, and fail as a whole without it: try it apart from them.
    os.environ["MUJOCO_GL"] = "disabled"
    try:
        importlib.import_module(f"mujoco.{backend}")
    except Exception as error:  # a missing library surfaces as ImportError, AttributeError or OSError
        if wanted:
            os.environ["MUJOCO_GL"] = wanted
            raise ConfigError(
                f"MUJOCO_GL={wanted}, but it does not load here ({error}): install libegl1 and libgl1 for egl, "
                "libosmesa6 for osmesa, or set MUJOCO_GL=disabled to train without rendering"
            ) from error
    else:
        os.environ["MUJOCO_GL"] = backend


def _check_window(wanted: str) -> None:
    """Raise ConfigError unless a window can be opened: MuJoCo and dm_control only notice when they draw."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in which the library says what failed
        try:
            works = bool(importlib.import_module("glfw").init())
        except Exception:  # a missing library surfaces as ImportError or OSError
            works = False
    if not works:
        raise ConfigError(
            f"MUJOCO_GL={wanted} opens a window, and there is no display here; want MUJOCO_GL=egl or osmesa, which "
            "need none, or MUJOCO_GL=disabled to train without rendering"
        )


def gl_error(error: Exception) -> RenderError:
    """Name the cause in one line, followed by what the user can do about it."""
    backend = os.environ.get("MUJOCO_GL") or "not set"
    cause = " ".join(str(error).split()) or type(error).__name__
    return RenderError(
        f"cannot render ({cause}); MUJOCO_GL is {backend}. On Linux without a display install libegl1 and libgl1 and "
        "set MUJOCO_GL=egl, or libosmesa6 and MUJOCO_GL=osmesa; with a display, set MUJOCO_GL=glfw"
    )
