import itertools
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, field_validator, model_validator

from qttdm.common.config import Config, ConfigError, dump_config, load_config, merge, parse_overrides, read_yaml


class Inner(Config):
    horizon: int = Field(3, ge=1, le=10)
    temperature: float = 0.5
    mode: Literal["mpc", "policy"] = "mpc"

    @model_validator(mode="after")
    def _check(self) -> "Inner":
        if self.horizon == 7:
            raise ValueError("horizon: got 7,\nwant anything else")
        return self


class Outer(Config):
    task: str
    seed: int = 0
    steps: int = 10
    rate: float = 0.1
    fast: bool = False
    planner: Inner = Inner()
    extra: Inner | None = None
    either: int | str | None = None
    sizes: tuple[int, ...] = (1, 2)
    stages: list[Inner] = Field(default=[])
    table: dict[str, float] = Field(default={})

    @model_validator(mode="after")
    def _check(self) -> "Outer":
        if self.seed > self.steps:
            raise ValueError(f"seed: got {self.seed}, want at most steps, {self.steps}")
        return self

    @field_validator("rate")
    @classmethod
    def _rate(cls, rate: float) -> float:
        if rate <= 0:
            raise ValueError(f"got {rate}, want a positive number")
        return rate


@pytest.fixture
def preset(tmp_path: Path):
    """Write a preset and load it: preset(text, "a.b=1", seed=2)."""

    def load(content: str | bytes, *overrides: str, **top_level: object) -> Outer:
        path = tmp_path / "preset.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return load_config(Outer, path, overrides=overrides, **top_level)

    return load


def refusal(load, *arguments: object, **keywords: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*arguments, **keywords)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sed=1", ["unknown key sed", "known keys here are", "seed"]),
        ("planner.horzon=1", ["unknown key planner.horzon", "horizon, mode, temperature"]),
        ("extra.kind=1", ["unknown key extra.kind", "horizon, mode, temperature"]),
        ("extra.horzon=1", ["unknown key extra.horzon", "horizon, mode, temperature"]),
        ("stages=[{horzon: 1}]", ["unknown key stages.0.horzon", "horizon, mode, temperature"]),
        ("seed=true", ["seed: got True", "want integer"]),
        ("seed=1.5", ["seed: got 1.5", "want integer"]),
        ("seed=", ["seed: got None", "want integer"]),
        ("rate=fast", ["rate: got 'fast'", "want number"]),
        ("rate='0.1'", ["rate: got '0.1'", "want number"]),
        ("rate=true", ["rate: got True", "want number"]),
        ("rate=.nan", ["rate: got nan", "finite"]),
        ("rate=.inf", ["rate: got inf", "finite"]),
        ("rate=1e999", ["rate: got inf", "finite"]),
        ("rate=-1", ["rate: got -1.0, want a positive number"]),
        ("fast=1", ["fast: got 1", "want true or false"]),
        ("fast=no", ["fast: got 'no'", "want true or false"]),
        ("planner=3", ["planner: got 3", "want a mapping"]),
        ("planner.horizon=0", ["planner.horizon: got 0, want >= 1"]),
        ("planner.horizon=11", ["planner.horizon: got 11, want <= 10"]),
        ("planner.mode=mcp", ["planner.mode: got 'mcp', want 'mpc' or 'policy'"]),
        ("planner.horizon=7", ["planner: horizon: got 7, want anything else"]),
        ("either=[1]", ["either: got [1], want integer or string"]),
        ("sizes=[1, x]", ["sizes.1: got 'x'", "want integer"]),
        ("sizes=3", ["sizes: got 3", "want a list"]),
        ("table={a: x}", ["table.a: got 'x'", "want number"]),
        ("task=2020", ["task: got 2020", "want string"]),
        ("per_task={}", ["unknown key per_task"]),
    ],
)
def test_a_bad_value_is_one_line_naming_key_value_and_wanted(preset, override: str, parts: list[str]) -> None:
    text = refusal(preset, "task: a\n", override)
    assert all(part in text for part in parts), text
    assert text.startswith("command line: ")


def test_a_mistake_in_the_file_names_the_file(preset) -> None:
    assert "preset.yaml: planner.horizon: got 'x'" in refusal(preset, "task: a\nplanner: {horizon: x}\n", "seed=1")
    assert "preset.yaml: task is missing" in refusal(preset, "seed: 1\n", "fast=true")
    assert "preset.yaml: seed: got 11, want at most steps, 10" in refusal(preset, "task: a\n", "seed=11")
    assert "(and 2 more)" in refusal(preset, "task: a\nseed: x\nsteps: x\nrate: x\n")


LISTS = "a0: &a0 [x, x]\n", "a{i}: &a{i} [*a{j}, *a{j}, *a{j}, *a{j}]\n"
MERGES = "a0: &a0 {x: 1}\n", "a{i}: &a{i} {{<<: [*a{j}, *a{j}, *a{j}, *a{j}]}}\n"


@pytest.mark.parametrize(("first", "then"), [LISTS, MERGES])
@pytest.mark.parametrize("depth", [10, 400])
def test_aliases_of_aliases_are_bounded(preset, first: str, then: str, depth: int) -> None:
    """Written out, ten lines are a million values; without the bound this takes gigabytes and minutes."""
    text = refusal(preset, first + "".join(then.format(i=i, j=i - 1) for i in range(1, depth)))
    assert "preset.yaml, line 1: not valid YAML (its aliases stand for more than 100,000 values)" in text


def test_aliases_of_a_long_text_are_bounded(preset) -> None:
    """Gigabytes without the bound."""
    text = refusal(preset, "a: &a " + "x" * 50_000 + "\nb: [" + ", ".join(["*a"] * 100) + "]\n")
    assert "not valid YAML (its aliases stand for more than 100,000 values)" in text


def test_aliases_are_what_they_stand_for(preset) -> None:
    text = "task: a\nplanner: &p {horizon: 4}\nextra: *p\nstages: [*p, {<<: *p, temperature: 0.1}]\n"
    with pytest.raises(ConfigError, match=r"unknown key stages\.1\.<<"):  # merging is YAML 1.1's
        preset(text)
    assert preset(text.replace("<<: *p, ", "")).extra == Inner(horizon=4)


def test_a_long_value_is_cut(preset) -> None:
    assert len(refusal(preset, "task: a\n", "seed=" + "x" * 5000)) < 250


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "task is missing"),
        ("# nothing\n", "task is missing"),
        ("- 1\n", "got a list, want a mapping"),
        ("false\n", "got a bool, want a mapping"),
        ("hello\n", "got a str, want a mapping"),
        (b"\xff\xfe\x00", "cannot read"),
        (b"\x00\x01", "not valid YAML"),
        ("task: [a\n", "line 2: not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("task: !!int x\n", "not valid YAML"),
        ("task: !!python/object:os.system {}\n", "not valid YAML"),
        ("task: a\nseed: 1\nseed: 2\n", "line 3: not valid YAML (key seed is repeated)"),
        ("task: a\nseed: !!timestamp 2020-01-01\n", "want plain numbers"),
        ("task: a\ntable: &x {a: *x}\n", "want plain numbers"),
        ("task: a\nplanner:\n", "planner: got None, want a mapping"),
        ("task: a\n1: 2\n", "unknown key 1"),
        ("task: a\nper_task: 3\n", "per_task: got 3, want a mapping"),
        ("task: a\nper_task:\n  b/*: 3\n", "per_task.b/*: got 3, want a mapping"),
        ("task: a\nper_task:\n  b/*:\n", "per_task.b/*: got None, want a mapping"),
        ("task: a\nper_task:\n  1: {seed: 1}\n", "pattern 1, want a string"),
        ("task: a\nper_task:\n  '*': {task: b}\n", "cannot set task"),
        ("task: a\nper_task:\n  '*': {sede: 1}\n", "unknown key sede"),
    ],
)
def test_a_bad_file_is_one_line(preset, content: str | bytes, part: str) -> None:
    text = refusal(preset, content)
    assert "preset.yaml" in text
    assert part in text


def test_a_missing_file_or_a_directory(tmp_path: Path) -> None:
    assert "No such file" in refusal(load_config, Outer, tmp_path / "none.yaml")
    assert "cannot read" in refusal(load_config, Outer, tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("1e6", 1_000_000),  # an integer, so that it can count steps
        ("1_000", 1000),
        ("1.0e6", 1e6),
        ("010", "010"),  # the next six are YAML 1.1's surprises: eight, ninety, booleans and a date
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("2020-01-01", "2020-01-01"),
        ("2020-99-99", "2020-99-99"),
        ("true", True),
        ("null", None),
        ("'1e6'", "1e6"),
        ("e5", "e5"),
        ("-", [None]),
    ],
)
def test_yaml_scalars(text: str, value: object) -> None:
    got = read_yaml(text, "test")
    assert got == value
    assert type(got) is type(value)


def test_counts_may_be_written_with_an_exponent(preset) -> None:
    assert preset("task: a\nsteps: 1e6\nrate: 1e6\n") == Outer(task="a", steps=1_000_000, rate=1e6)


def test_precedence_is_defaults_preset_per_task_in_file_order_then_command_line(preset) -> None:
    text = """
        task: dmc/walker-walk
        seed: 1
        steps: 1
        rate: 1
        per_task:
          dmc/*: {steps: 2, rate: 2, planner: {horizon: 2, temperature: 2}}
          metaworld/*: {rate: 9, planner: {horizon: 9}}
          dmc/walker-*: {rate: 3, planner: {horizon: 3}}
    """
    got = preset(text, "planner.horizon=4")
    assert (got.seed, got.steps, got.rate) == (1, 2, 3)
    assert got.planner == Inner(horizon=4, temperature=2)
    assert got.extra is None
    reordered = preset(text.replace("dmc/*", "later").replace("dmc/walker-*", "dmc/*").replace("later", "dmc/walker-*"))
    assert reordered.rate == 3, "file order decides, not how narrow a pattern is"


def test_the_task_option_reaches_the_config_and_chooses_the_patterns(preset) -> None:
    text = "task: a\nper_task:\n  a: {seed: 1}\n  b: {seed: 2}\n  c: {seed: 3}\n"
    assert (preset(text).task, preset(text).seed) == ("a", 1)
    assert (preset(text, task="b").task, preset(text, task="b").seed) == ("b", 2)
    assert (preset(text, "task=c", task="b").task, preset(text, "task=c", task="b").seed) == ("c", 3)
    assert preset(text, seed=5).seed == 5
    assert preset(text, "seed=6", seed=5).seed == 6
    assert preset(text, seed=None).seed == 1
    assert refusal(preset, text, seed="x").startswith("command line: seed: got 'x'")


@pytest.mark.parametrize("item", ["seed", "=1", "a..b=1", ".a=1", "a.=1", ""])
def test_an_override_that_is_not_key_value(item: str) -> None:
    assert f"--set {item}: want KEY=VALUE" in refusal(parse_overrides, [item])


def test_overrides_nest_and_the_last_of_equal_keys_wins() -> None:
    assert parse_overrides(["a.b=1", "a.c.d=x=y", "a.b=2", "e={f: 1}", "e.g=2"]) == {
        "a": {"b": 2, "c": {"d": "x=y"}},
        "e": {"f": 1, "g": 2},
    }
    assert "--set a=[1" in refusal(parse_overrides, ["a=[1"])


@pytest.mark.parametrize("items", itertools.permutations(["a=1", "a.b=2", "z=0"]))
def test_overrides_that_contradict_each_other_are_refused_in_any_order(items: tuple[str, ...]) -> None:
    text = refusal(parse_overrides, items)
    assert "--set a=1" in text
    assert "--set a.b=2" in text
    assert "contradict" in text


def test_merge_changes_neither_argument() -> None:
    base, top = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]}
    assert merge(base, top) == {"a": {"b": 3, "c": 2}, "d": [2]}
    assert base == {"a": {"b": 1, "c": 2}, "d": [1]}
    assert top == {"a": {"b": 3}, "d": [2]}


@pytest.mark.parametrize(
    "task", ["a", "1e6", "010", "no", "null", "2020-01-01", "", "ü: #x", "1:30", ".5", "~", "0x1f"]
)
def test_dump_and_load_are_inverse(preset, task: str) -> None:
    config = Outer(
        task=task, rate=1e-5, steps=10**7, extra=Inner(temperature=1e16), either="7", sizes=(3,), stages=[Inner()],
        table={"on": 1.0, "1": 2.0},
    )  # fmt: skip
    assert preset(dump_config(config)) == config


def test_configs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer(task="a").seed = 1  # type: ignore[misc]
