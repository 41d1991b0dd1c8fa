"""MkDocs calls this: the page of all settings, written from the fields of the configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from qttdm.common.config import Config
from qttdm.deploy.agents.registry import AGENTS
from qttdm.deploy.configs.run_config import load_run_config, preset_path
from qttdm.deploy.runs.serve import ServeConfig

INTRODUCTION = """# Settings

Every setting, with its value in the default preset, `laptop`. Give others by `--set KEY=VALUE` on the command line, as
`key=value` in Python, or in a preset of your own: a YAML file that names only what differs. `qttdm config` prints the
same for any preset and task, as YAML. A planner of another `kind` has other settings: see [Agents](agents.md).
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the site."""
    files.append(File.generated(config, "settings.md", content=page()))
    return files


def page() -> str:
    """Write the page: the sections that all runs have, then each agent's own."""
    lines = [INTRODUCTION]
    for agent in AGENTS:
        run = load_run_config(preset_path("laptop"), agent=agent)
        if agent == next(iter(AGENTS)):
            shared = [key for key in _fields(run) if key != run.section]
            plain = [key for key in shared if not _is_section(_fields(run)[key][0])]
            lines += ["## The run", "", *_table({key: _fields(run)[key] for key in plain})]
            for key in shared:
                if key not in plain:
                    value, field = _fields(run)[key]
                    lines += ["", f"## {key}", "", f"{field.description[0].upper()}{field.description[1:]}.", ""]
                    lines += _table(dict(_leaves(value, f"{key}.")))
        lines += ["", f"## Agent {agent}", "", *_table(dict(_leaves(run.settings, f"{run.section}.")))]
    lines += [
        "",
        "## qttdm serve",
        "",
        "Besides those of the run that is served.",
        "",
        *_table(dict(_leaves(ServeConfig()))),
    ]
    return "\n".join(lines) + "\n"


def _fields(config: Config) -> dict[str, tuple[Any, Any]]:
    """Return value and field of each key."""
    return {field.alias or name: (getattr(config, name), field) for name, field in type(config).model_fields.items()}


def _is_section(value: Any) -> bool:
    return isinstance(value, Config) and bool(type(value).model_fields)


def _leaves(config: Config, prefix: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield what is no section, by its dotted key."""
    for key, (value, field) in _fields(config).items():
        if _is_section(value):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", (value, field)


def _table(rows: dict[str, tuple[Any, Any]]) -> list[str]:
    lines = ["| setting | laptop | may be | meaning |", "|---|---|---|---|"]
    for key, (value, field) in rows.items():
        plain = value.model_dump(mode="json") if isinstance(value, Config) else value
        cells = [f"`{key}`", f"`{json.dumps(plain)}`", _wanted(field), field.description or ""]
        lines.append(
            "| " + " | ".join(" ".join(cell.replace("|", "\\|").replace("<", "&lt;").split()) for cell in cells) + " |"
        )
    return lines


def _wanted(field: Any) -> str:
    """Say what a field takes: its type, or its choices, and its bounds."""
    kinds = get_args(field.annotation) or (field.annotation,)
    names = ["null" if kind is type(None) else str(getattr(kind, "__name__", kind)) for kind in kinds]
    if get_origin(field.annotation) is tuple:
        names = ["list"]
    bounds = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
        if hasattr(bound, name)
    ]
    return ", ".join([" or ".join(names), *bounds])
