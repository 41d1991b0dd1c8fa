"""The planners that a configuration may choose by `kind`. A new one is its own file and a line here."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from qttdm.planner_service.planners.mppi import MPPIConfig
from qttdm.planner_service.planners.random_shooting import RandomShootingConfig


def _kind(raw: Any) -> Any:
    """Read the kind of a section of settings, or of settings."""
    return raw.get("kind", "mppi") if isinstance(raw, dict) else getattr(raw, "kind", None)


PlannerConfig = Annotated[
    Annotated[MPPIConfig, Tag("mppi")] | Annotated[RandomShootingConfig, Tag("random-shooting")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="a mapping of settings of kind mppi or random-shooting",
    ),
]
"""Settings of one of them; each has `horizon`, `compile` and `make(..)`."""
