"""The dashboards that Grafana reads: written from the table of panels, as Grafana wants them, and readable."""

import itertools
import json
import re
from pathlib import Path

import jsonschema
import pytest

from qttdm.common.metrics.instruments import COMMON, INSTRUMENTS
from qttdm.common.metrics.lines import NUMBERS
from qttdm.deploy.monitoring.grafana.boards import DASHBOARDS, chosen, files
from qttdm.deploy.monitoring.grafana.boards import panel as build
from tests.deploy.monitoring.queries import all_queries, of_dashboards, panels

ROOT = Path(__file__).parents[3]
NAMES = ("training", "system")
SCHEMA = json.loads((Path(__file__).parent / "grafana.schema.json").read_text())


def load(name):
    return json.loads((DASHBOARDS / f"{name}.json").read_text())


def check(dashboard):
    """Against Grafana's schema, the options of each kind of panel too."""
    jsonschema.validate(dashboard, SCHEMA)
    for panel in panels(dashboard):
        parts = {"Options": panel["options"], "FieldConfig": panel["fieldConfig"]["defaults"].get("custom")}
        for part, value in parts.items():
            if value is None:  # a table's columns have their settings in overrides; a number has none
                continue
            jsonschema.validate(value, {**SCHEMA, "$ref": f"#/definitions/{panel['type']}_{part}"})


def test_there_are_few_enough_panels_to_know_them_all():
    assert sum(p["type"] != "row" for name in NAMES for p in panels(load(name))) <= 40


def test_the_files_are_what_the_table_makes():
    assert {path: path.read_text() for path in DASHBOARDS.iterdir()} == files(), "run `make docs`"


@pytest.mark.parametrize("name", NAMES)
def test_grafana_knows_every_field(name):
    check(load(name))


@pytest.mark.parametrize(
    ("place", "field"),
    [("dashboard", "titel"), ("panel", "titel"), ("options", "legends"), ("custom", "fill"), ("variable", "auto")],
)
def test_a_field_that_grafana_does_not_know_is_refused(place, field):
    dashboard = load("training")
    panel = next(p for p in panels(dashboard) if p["type"] == "timeseries")
    places = {
        "dashboard": dashboard,
        "panel": panel,
        "options": panel["options"],
        "custom": panel["fieldConfig"]["defaults"]["custom"],
        "variable": dashboard["templating"]["list"][1],
    }
    check(dashboard)
    places[place][field] = 1
    with pytest.raises(jsonschema.ValidationError):
        check(dashboard)


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_says_what_it_shows_in_which_unit_and_what_is_bad(name):
    for panel in panels(load(name)):
        defaults = panel["fieldConfig"]["defaults"]
        assert "?" in panel["description"], panel["title"]  # the question that it answers
        assert defaults["unit"], panel["title"]
        first, *limits = defaults["thresholds"]["steps"]
        assert first["value"] is None
        values = [step["value"] for step in limits]
        assert values == sorted(values), panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_panels_do_not_overlap_and_have_numbers_and_titles_of_their_own(name):
    content = load(name)["panels"]
    cells = [
        (x, y)
        for p in content
        for x, y in itertools.product(
            range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"]),
            range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"]),
        )
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({p["id"] for p in content}) == len(content)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_row_answers_whether_it_is_well_at_a_glance(name):
    title, *well = itertools.takewhile(lambda p: p["gridPos"]["y"] < 5, load(name)["panels"])
    assert (title["type"], title["title"]) == ("row", "Is it well?")
    assert {p["type"] for p in well} == {"stat"}
    assert {p["gridPos"]["y"] for p in well} == {1}
    assert 4 <= len(well) <= 8


@pytest.mark.parametrize("name", NAMES)
def test_run_task_and_seed_are_chosen_and_every_query_of_ours_obeys(name):
    variables = [v["name"] for v in load(name)["templating"]["list"]]
    assert variables == ["datasource", "run", "task", "seed"]
    for panel in panels(load(name)):
        for target in panel["targets"]:
            for series in re.findall(r"qttdm_\w+(?:\{[^}]*\})?", target["expr"]):
                assert 'run="$run",task=~"$task",seed=~"$seed"' in series, panel["title"]


def test_queries_ask_for_metrics_that_are_declared_and_by_their_labels():
    for query in all_queries("run"):
        for name, labels in re.findall(r"(qttdm_\w+)(?:\{([^}]*)\})?", query.text):
            base = name if name in INSTRUMENTS else re.sub("_(bucket|count|sum)$", "", name)
            instrument = INSTRUMENTS[base]
            for label, value in re.findall(r'(\w+)[=!~]+"([^"]*)"', labels):
                assert label in COMMON or label == instrument.label, query
                if label == instrument.label and instrument.most:
                    assert [number for number in NUMBERS if re.fullmatch(value, number)], query
                elif label == instrument.label and re.fullmatch(r"[\w|]+", value):
                    assert set(value.split("|")) <= set(instrument.values), query
                if label == "component":
                    assert set(value.split("|")) & set(instrument.components), query


def test_what_is_not_declared_is_refused_where_a_query_is_written():
    assert chosen('sum(rate(qttdm_learner{name="loss_q"}[5m]))') == (
        'sum(rate(qttdm_learner{run="$run",task=~"$task",seed=~"$seed",name="loss_q"}[5m]))'
    )
    with pytest.raises(ValueError, match="qttdm_los: not declared"):
        chosen("sum(qttdm_los)")
    row = {"title": "Losses", "question": "?", "unit": "short", "queries": "qttdm_learner"}
    with pytest.raises(ValueError, match="Losses: got colour, want"):
        build(row | {"colour": "red"}, "lines", 8)


def test_every_query_is_there_with_its_variables_replaced():
    queries = all_queries("walker-1")
    expected = sum(len(panel["targets"]) for name in NAMES for panel in panels(load(name))) + 3 * len(NAMES)
    assert len(list(of_dashboards())) == expected
    assert len(queries) == expected + sum(query.is_alert for query in queries)
    assert any(query.is_alert for query in queries)
    texts = {query.where: query.text for query in queries}
    assert texts["training.json: Losses, A"] == (
        'avg by (name) (qttdm_learner{run="walker-1",task=~".*",seed=~".*",name=~"loss_.*"})'
    )
    assert texts["system.json: variable task"] == 'group by (task) (qttdm_env_steps_total{run="walker-1"})'


def test_every_metric_is_read_by_a_panel_an_alert_or_top():
    read = " ".join(query.text for query in all_queries("run")) + (ROOT / "deploy" / "screens" / "top.py").read_text()
    unread = [name for name in INSTRUMENTS if not re.search(rf"{name}(_bucket|_count|_sum)?\b", read)]
    assert unread == []
    number = re.compile("|".join(re.findall(r'name=~"([^"]+)"', read)))
    losses = [name for name in NUMBERS if name.startswith(("loss_", "grad_norm_", "q_"))]
    assert [name for name in losses if not number.fullmatch(name)] == []
