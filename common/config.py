"""Typed configuration: YAML in, frozen and validated objects out, and one clear line for every mistake.

Each component declares its own `Config` subclass beside the code it configures; this file only knows how to read,
merge, check and write them.

A preset holds only what differs from the defaults. It may end in `per_task:`, a mapping from a task pattern
(`dmc/walker-*`) to further settings; all patterns that match the task apply, in file order. Order of precedence:
field defaults, preset, per_task, `--set`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from textwrap import fill, indent
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """Something the user wrote cannot be used; its text, always one line, is all that is shown (exit status 2)."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


class Config(BaseModel):
    """Base of every component's settings: frozen, strict about types, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def for_content(
        cls, raw: Mapping[str, Any], command_line: Mapping[str, Any]
    ) -> tuple[type[Config], Mapping[str, Any]]:
        """Choose the class and the values to validate, where they depend on what `raw` says.

        ConfigError begins with the key that is wrong.
        """
        return cls, raw


C = TypeVar("C", bound=Config)

MOST_VALUES = 100_000
"""of a YAML file, written out; the longest preset has some hundred"""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2, and a repeated key is an error.

    PyYAML's own are those of 1.1: `3e-4` a string, `010` eight, `1:30` ninety, `no` false, 2020-01-01 a date.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name

    def get_single_node(self) -> yaml.Node | None:
        """Refuse aliases that stand for each other so often that what they stand for does not fit into memory."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _values(node, {}) > MOST_VALUES:
            problem = f"its aliases stand for more than {MOST_VALUES:,} values"
            raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return node

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Read `1e6` as the integer 1000000, so that it can be a number of steps; `1.0e6` stays a float."""
        number = self.construct_yaml_float(node)
        return int(number) if "." not in node.value and number.is_integer() else number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value} is repeated", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _values(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Count the values that a node is written out with, each alias as what it stands for; an alias to itself once.

    A string counts once for every 20 characters.
    """
    if node not in known:
        known[node] = size = 1 if isinstance(node, yaml.CollectionNode) else 1 + len(node.value) // 20
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        known[node] = size + sum(_values(part, known) for part in parts)
    return known[node]


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes a string which `_Loader` would read as a number, such as `1e6`."""


_FLOAT = re.compile(
    r"^(?:[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
for _tag, _pattern, _first in (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_yaml(text: str, source: str) -> Any:
    """Parse YAML; ConfigError naming `source` and the line when it is not valid."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two: `!!int x`, and [[[[... without end
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise ConfigError(f"{source}{where}: not valid YAML ({problem})") from None


def load_config(
    schema: type[C], path: Path, task: str | None = None, overrides: Sequence[str] = (), **top_level: Any
) -> C:
    """Read a preset, apply what matches the task, then `--set key=value` overrides, and validate once.

    `task` and `top_level` are values that have their own command-line option (task, seed); None means not given.
    `--set` wins over them. Raises ConfigError, one line that names the key, the value, and what would be accepted.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the configuration ({getattr(error, 'strerror', error)})") from None
    raw = read_yaml(text, str(path))
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: got a {type(raw).__name__}, want a mapping of settings")
    per_task = _per_task(raw.pop("per_task", {}), path)
    chosen = {key: value for key, value in {"task": task, **top_level}.items() if value is not None}
    explicit = merge(chosen, parse_overrides(overrides))
    task = explicit.get("task", raw.get("task"))
    for pattern, settings in per_task.items():
        if fnmatchcase(str(task), pattern):
            raw = merge(raw, settings)
    return validate(schema, merge(raw, explicit), str(path), command_line=explicit)


def _per_task(per_task: Any, path: Path) -> dict[str, dict[str, Any]]:
    """Check the shape of the whole per_task section, also of tasks that do not match, and return it."""
    if not isinstance(per_task, dict):
        raise ConfigError(f"{path}: per_task: got {per_task!r}, want a mapping from task pattern to settings")
    for pattern, settings in per_task.items():
        if not isinstance(pattern, str):
            raise ConfigError(f"{path}: per_task: got the pattern {pattern!r}, want a string such as dmc/walker-*")
        if not isinstance(settings, dict):
            raise ConfigError(f"{path}: per_task.{pattern}: got {settings!r}, want a mapping of settings")
        if "task" in settings:
            raise ConfigError(f"{path}: per_task.{pattern}: cannot set task, which chose this pattern")
    return per_task


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Parse ["env.action_repeat=5"] -> {"env": {"action_repeat": 5}}; values are YAML, the last of equal keys wins.

    ConfigError for an item that is not KEY=VALUE, and for two of which one sets keys inside the other's plain value.
    """
    result: dict[str, Any] = {}
    seen: list[tuple[list[str], Any, str]] = []
    for item in overrides:
        key, equals, text = item.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            raise ConfigError(f"--set {item}: want KEY=VALUE, for example --set training.eval_every=2000")
        value = read_yaml(text, f"--set {item}")
        seen.append((parts, value, item))
        for other, inner, earlier in seen:
            (short, plain), (long, _) = sorted([(parts, value), (other, inner)], key=lambda pair: len(pair[0]))
            if len(short) < len(long) and long[: len(short)] == short and not isinstance(plain, dict):
                raise ConfigError(f"--set {earlier} and --set {item} contradict each other; give one of them")
        for part in reversed(parts):
            value = {part: value}
        result = merge(result, value)
    return result


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `top` over `base`, mappings merged key by key, everything else replaced; neither is changed.

    A mapping whose `kind` is another than the one below replaces it: that one's settings are not for this kind.
    """
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and _of_one_kind(below, value):
            value = merge(below, value)
        merged[key] = value
    return merged


def _of_one_kind(below: Mapping[str, Any], top: Mapping[str, Any]) -> bool:
    return "kind" not in below or "kind" not in top or below["kind"] == top["kind"]


def validate(schema: type[C], raw: Mapping[str, Any], source: str, command_line: Mapping[str, Any] | None = None) -> C:
    """Build the frozen object, or raise a ConfigError whose one line names where, key, got and wanted.

    `command_line` is the part of `raw` that was given there and not in `source`. The values are checked as JSON, whose
    strict rules still take a list for a tuple, so that what `dump_config` writes can be read back.
    """
    given = command_line or {}
    try:
        chosen, raw = schema.for_content(raw, given)
    except ConfigError as error:
        where = "command line" if str(error).partition(":")[0] in given else source
        raise ConfigError(f"{where}: {error}") from None
    assert issubclass(chosen, schema)
    try:
        text = json.dumps(raw)
    except (TypeError, ValueError, RecursionError) as error:  # YAML's !!set and !!binary, or an alias to itself
        raise ConfigError(f"{source}: want plain numbers, strings, lists and mappings ({error})") from None
    try:
        return chosen.model_validate_json(text)
    except ValidationError as error:
        key, problem = _first_problem(chosen, json.loads(text), error)
        where = "command line" if key and _reaches(command_line or {}, key) else source
        raise ConfigError(f"{where}: {problem}") from None


def _first_problem(schema: type[Config], raw: Any, error: ValidationError) -> tuple[list[str | int], str]:
    """Return the first problem's key, and its text `key: got VALUE, want WHAT` with how many more there are."""
    problems = error.errors(include_url=False)
    keys = [_key_in(raw, problem["loc"]) for problem in problems]
    first, key = problems[0], keys[0]
    name = ".".join(str(part) for part in key)
    if first["type"] == "extra_forbidden":
        section = _section(schema, raw, key[:-1])
        text = f"unknown key {name}" + (f"; known keys here are {', '.join(sorted(section))}" if section else "")
    elif first["type"] == "missing":
        key = [*key, first["loc"][-1]]
        text = f"{'.'.join(str(part) for part in key)} is missing"
    elif first["type"] in ("value_error", "assertion_error"):  # our own validators, which name got and wanted
        text = f"{name}: {first['ctx']['error']}" if name else str(first["ctx"]["error"])
    else:  # a union reports each of its types at the same key
        wants = [_want(problem["msg"]) for problem, other in zip(problems, keys, strict=True) if other == key]
        got = repr(first["input"])
        text = f"{name}: got {got if len(got) <= 100 else got[:97] + '...'}, want {' or '.join(dict.fromkeys(wants))}"
    others = len({tuple(other) for other in keys}) - 1
    return key, " ".join(text.split()) + (f" (and {others} more)" if others else "")


def _want(message: str) -> str:
    """Say pydantic's sentence in the file's own words."""
    for theirs, ours in (
        ("Input should be ", ""),
        ("a valid boolean", "true or false"),
        ("a valid array", "a list"),
        ("an object", "a mapping of settings"),
        ("a valid ", ""),
        ("greater than or equal to", ">="),
        ("less than or equal to", "<="),
        ("greater than", ">"),
        ("less than", "<"),
    ):
        message = message.replace(theirs, ours)
    return message


def _key_in(raw: Any, location: Sequence[str | int]) -> list[str | int]:
    """Keep the parts of pydantic's location that are keys of the input; the rest name branches of a union."""
    key: list[str | int] = []
    for part in location:
        if (isinstance(raw, dict) and part in raw) or (isinstance(raw, list) and isinstance(part, int)):
            raw = raw[part]  # type: ignore[index]
            key.append(part)
    return key


def _reaches(command_line: Mapping[str, Any], key: Sequence[str | int]) -> bool:
    """Say whether the value at `key` came from the command line."""
    value: Any = command_line
    for part in key:
        if not isinstance(value, Mapping):
            return True  # a list or another whole value given there, of which `key` is a part
        if part not in value:
            return False
        value = value[part]
    return True


def _fields(schema: type[Config]) -> dict[str, Any]:
    """List the fields by the keys that stand for them."""
    return {field.alias or name: field for name, field in schema.model_fields.items()}


def _section(schema: type[Config], raw: Any, key: Sequence[str | int]) -> list[str]:
    """List the known keys of the Config at a nested key, looking through `| None` and lists; [] if ambiguous.

    Where there are several kinds it is the one that `raw` names, or the first.
    """
    for part in key:
        raw = raw[part]
        if isinstance(part, int):
            continue
        field = _fields(schema).get(str(part))
        types = (field.annotation, *get_args(field.annotation)) if field else ()
        types = (*types, *(inner for kind in types for inner in get_args(kind)))  # Annotated[.., Tag]
        nested = [kind for kind in dict.fromkeys(types) if isinstance(kind, type) and issubclass(kind, Config)]
        if isinstance(raw, Mapping) and "kind" in raw:
            named = [kind for kind in nested if "kind" in kind.model_fields]
            nested = [kind for kind in named if kind.model_fields["kind"].default == raw["kind"]] or nested
        elif nested and all("kind" in kind.model_fields for kind in nested):
            nested = nested[:1]
        if len(nested) != 1:
            return []
        schema = nested[0]
    return list(_fields(schema))


def dump_config(config: Config) -> str:
    """Write the resolved configuration as YAML; `load_config` reads it back to an equal object."""
    return yaml.dump(config.model_dump(mode="json", by_alias=True), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def commented_yaml(config: Config) -> str:
    """As `dump_config`, with the docstring of each field as a comment above it."""
    lines = []
    for name, field in type(config).model_fields.items():
        value, key = getattr(config, name), field.alias or name
        comment = field.description or (isinstance(value, Config) and type(value).__doc__) or ""
        lines += fill(comment, 118, initial_indent="# ", subsequent_indent="# ").splitlines()
        if isinstance(value, Config) and type(value).model_fields:
            lines += [f"{key}:", indent(commented_yaml(value), "  ").rstrip()]
        else:
            plain = config.model_dump(mode="json", by_alias=True, include={name})
            lines.append(yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True).rstrip())
    return "\n".join(lines) + "\n"
