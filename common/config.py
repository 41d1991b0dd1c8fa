"""Typed configuration: YAML in, frozen and validated objects out, and one clear line for every mistake.

Each component declares its own `Config` subclass beside the code it configures; this file only knows how to read,
merge, check and write them.

A preset holds only what differs from the defaults. It may end in `per_task:`, a mapping from a task pattern
(`dmc/walker-*`) to further settings; all patterns that match the task apply, in file order. Order of precedence:
field defaults, preset, per_task, `--set`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """Something the user wrote cannot be used; its text is the whole message shown, and the exit status is 2."""


class Config(BaseModel):
    """Base of every component's settings: frozen, strict about types, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `3e-4` and `1e6` as numbers, as YAML 1.2 does (plain PyYAML reads strings)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str, source: str) -> Any:
    """Parse YAML; ConfigError naming `source` and the line when it is not valid."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: not valid YAML ({getattr(error, 'problem', error)})") from None


def load_config(
    schema: type[C], path: Path, task: str | None = None, overrides: Sequence[str] = (), **top_level: Any
) -> C:
    """Read a preset, apply what matches the task, then `--set key=value` overrides, and validate once.

    `top_level` are values that have their own command-line option (task, seed); None means not given.
    Raises ConfigError, one line that names the key, the value, and what would be accepted.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error})") from None
    raw = read_yaml(text, str(path)) or {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: got a {type(raw).__name__}, want a mapping of settings")
    per_task = raw.pop("per_task", {})
    if not isinstance(per_task, dict):
        raise ConfigError(f"{path}: per_task: got {per_task!r}, want a mapping from task pattern to settings")
    chosen = {key: value for key, value in top_level.items() if value is not None}
    explicit = merge(chosen, parse_overrides(overrides))
    task = explicit.get("task", task) or raw.get("task")
    for pattern, settings in per_task.items():
        if fnmatch(str(task), pattern):
            raw = merge(raw, settings)
    return validate(schema, merge(raw, explicit), str(path))


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """["planner.horizon=5"] -> {"planner": {"horizon": 5}}; values are read as YAML."""
    result: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {item}: want KEY=VALUE, for example --set planner.horizon=5")
        nested = read_yaml(text, f"--set {item}")
        for part in reversed(key.split(".")):
            nested = {part: nested}
        result = merge(result, nested)
    return result


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` laid over `base`, mappings merged key by key, everything else replaced; neither is changed."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def validate(schema: type[C], raw: Mapping[str, Any], source: str) -> C:
    """Build the frozen object, or raise a ConfigError whose one line names key, got and wanted."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_one_line(schema, error)}") from None


def _one_line(schema: type[Config], error: ValidationError) -> str:
    """The first problem, as `key: got VALUE, want WHAT`, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = sorted(_section(schema, first["loc"][:-1]).model_fields)
        text = f"unknown key {key}; known keys here are {', '.join(known)}"
    elif first["type"] == "missing":
        text = f"{key} is missing"
    elif first["type"] == "value_error":  # raised by one of our own validators, which name the key themselves
        text = f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    else:
        want = first["msg"].removeprefix("Input should be ").replace("a valid ", "")
        text = f"{key}: got {first['input']!r}, want {want}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return " ".join(text.split()) + more


def _section(schema: type[Config], location: Sequence[str | int]) -> type[Config]:
    """The Config class found at a nested location of the schema."""
    for part in location:
        annotation = schema.model_fields[str(part)].annotation
        assert isinstance(annotation, type) and issubclass(annotation, Config), (part, annotation)
        schema = annotation
    return schema


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; `load_config` reads it back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
