"""Choose Ray's authentication mode. Without importing Ray, which reads it once, when it is imported.

A local `ray.init()` turns token mode on for good and leaves a token in the home directory, which a later `ray start
--head` takes up silently; so neither mode may be left to whatever happened on this machine before.
"""

from __future__ import annotations

import os
from pathlib import Path

from qttdm.common.config import ConfigError
from qttdm.common.extras import need

WANT = "want the cluster's in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"


def choose_mode() -> None:
    """Set RAY_AUTH_MODE, unless it is given: `token` where there is one, else `disabled`. Call before importing Ray.

    ConfigError where Ray is not installed, and for token mode without a token, which ends Ray's own code with a stack
    trace.
    """
    need("cluster", "a cluster")
    mode = os.environ.setdefault("RAY_AUTH_MODE", "token" if has_token() else "disabled")
    if mode == "token" and not has_token():
        raise ConfigError(f"RAY_AUTH_MODE=token, but there is no cluster token here: {WANT}")


def has_token() -> bool:
    """Is there a cluster token where Ray looks for one?"""
    if os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return True
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return bool(path.read_text().strip())
    except OSError:
        return False
