"""Choose how MuJoCo draws: EGL where it works without a display. Training never needs it."""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache

from qttdm.common.config import ConfigError


class RenderError(RuntimeError):
    """A frame cannot be drawn on this machine; the text says what to install or to set."""


@cache
def choose_gl() -> None:
    """Settle MUJOCO_GL, once and before dm_control is imported: EGL on Linux where it loads, no rendering elsewhere.

    A value the user set is kept. macOS and Windows are left alone: MuJoCo's own choice works there.
    Raises ConfigError when the user asked for egl or osmesa and it does not load.
    """
    wanted = os.environ.get("MUJOCO_GL") or None
    if sys.platform != "linux" or wanted not in (None, "egl", "osmesa"):
        return
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


def gl_error(error: Exception) -> RenderError:
    """Name the cause in one line, followed by what the user can do about it."""
    backend = os.environ.get("MUJOCO_GL") or "not set"
    cause = " ".join(str(error).split()) or type(error).__name__
    return RenderError(
        f"cannot render ({cause}); MUJOCO_GL is {backend}. On Linux without a display install libegl1 and libgl1 and "
        "set MUJOCO_GL=egl, or libosmesa6 and MUJOCO_GL=osmesa; with a display, set MUJOCO_GL=glfw"
    )
