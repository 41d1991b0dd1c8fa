"""The dashboards that Grafana is given: the ones that their Python makes, as Grafana wants them, and readable."""

import itertools
import json
import re
from pathlib import Path

import jsonschema
import pytest

from qttdm.common.metrics.instruments import COMMON, INSTRUMENTS
from qttdm.deploy.monitoring.grafana.panels import of
from qttdm.deploy.monitoring.grafana.queries import DASHBOARDS, all_queries, of_dashboards, panels
from qttdm.deploy.monitoring.grafana.write import files

NAMES = ("training", "system", "planner")
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


def test_the_files_are_what_the_python_makes():
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
        assert panel["description"].endswith("."), panel["title"]
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
    title, *well = load(name)["panels"][:8]
    assert (title["type"], title["title"]) == ("row", "Is it well?")
    assert {p["type"] for p in well} == {"stat"}
    assert {p["gridPos"]["y"] for p in well} == {1}


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
                if label == instrument.label and re.fullmatch(r"[\w|]+", value):
                    assert set(value.split("|")) <= set(instrument.values), query
                if label == "component":
                    assert set(value.split("|")) & set(instrument.components), query


def test_a_metric_that_is_not_declared_is_refused_where_a_query_is_written():
    with pytest.raises(ValueError, match="qttdm_los: not declared"):
        of("qttdm_los")


def test_every_query_is_there_with_its_variables_replaced():
    queries = all_queries("walker-1")
    expected = sum(len(panel["targets"]) for name in NAMES for panel in panels(load(name))) + 3 * len(NAMES)
    assert len(list(of_dashboards())) == expected
    assert len(queries) == expected + sum(query.is_alert for query in queries)
    assert sum(query.is_alert for query in queries) == 12
    texts = {query.where: query.text for query in queries}
    assert texts["training.json: Losses, A"] == 'avg by (term) (qttdm_loss{run="walker-1",task=~".*",seed=~".*"})'
    assert texts["planner.json: variable task"] == 'group by (task) (qttdm_acted_total{run="walker-1"})'
