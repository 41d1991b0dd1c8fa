"""`make docs`: docs/metrics.md, written from what the modules of declared.py declare."""

from __future__ import annotations

from pathlib import Path

import qttdm.deploy.monitoring.exporter  # noqa: F401 - with it every metric is declared
from qttdm.common.metrics.instruments import COMMON, COMPONENTS, INSTRUMENTS, Component, Instrument, series_of
from qttdm.common.metrics.lines import NUMBERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"

INTRODUCTION = """# Metrics

Written by `make docs` from the declarations beside the code that computes each metric; a test keeps it up to date.

One address has everything: the exporter's, `http://127.0.0.1:9108/metrics` unless `cluster.metrics_port` and
`cluster.metrics_host` (or `qttdm train --metrics-port`) say otherwise. All processes report to it about every two
seconds.

- A **counter** goes on when its process is restarted, and so does a **histogram**. *Durable* ones count from the run's
  beginning, from what is on disk, so that they are exact whatever is killed when; the others lose what a killed process
  had not reported yet, two seconds of it.
- A histogram whose lowest bound is negative has no `_sum`: it could fall, which Prometheus takes for a restart.
- A **gauge** is served while its process reports, and for 30 s after; a *lasting* one also later.
- Metrics of processes that ended in good order are served for an hour, of others for a day.
- A run on one machine (`qttdm train --metrics-port N`) is one process; its parts are measured when Prometheus asks.
  What was counted is kept in its directory, at each scrape and at the end, so that `--resume` counts on. If the port is
  taken it does not start: one line, exit status 2. It listens on 127.0.0.1 unless `--metrics-host` is given. `qttdm
  serve` is a planner; its metrics are at `/metrics` on its own port, for clients with the token where there is one.
- A number of a learner's part (a loss, a gradient norm, a mean Q) is declared beside the code that computes it, with
  `declare((name, unit, meaning))`. It is then in metrics.jsonl, in `qttdm_learner{name=".."}`, on this page and, by its
  prefix (`loss_`, `grad_norm_`, `q_`), on the dashboard. "Scaled" rewards and returns are times `learner.reward_scale`;
  returns with that are discounted.
"""


def page() -> str:
    """Write the text of docs/metrics.md."""
    lines = [INTRODUCTION, "## Labels", ""]
    lines += _table("label | meaning", [[f"`{label}`", meaning] for label, meaning in COMMON.items()])
    rows = [[f"`{name}`", meaning, str(series_of(name))] for name, meaning in COMPONENTS.items()]
    lines += ["", *_table("component | what it is | most series of one process", rows), ""]
    lines += ["A metric has at most one label more, whose values are bounded. So episodes and restarts add no series:"]
    lines += ["there are as many as processes, times the numbers above."]
    for component in [*COMPONENTS, None]:
        own = sorted((i for i in INSTRUMENTS.values() if _chapter(i) == component), key=lambda i: i.name)
        lines += ["", f"## {component.capitalize() if component else 'Several components'}", ""]
        lines += _table("metric | kind | unit | meaning", [_row(instrument) for instrument in own])
    buckets = [[f"`{i.name}`", ", ".join(f"{b:g}" for b in i.buckets)] for i in INSTRUMENTS.values() if i.buckets]
    lines += ["", "## Buckets", "", *_table("histogram | upper bounds", sorted(buckets))]
    numbers = [[f"`{n.name}`", n.unit, n.meaning] for n in sorted(NUMBERS.values(), key=lambda n: n.name)]
    lines += ["", "## metrics.jsonl", "", *_table("number | unit | meaning", numbers)]
    return "\n".join(lines) + "\n"


def _table(head: str, rows: list[list[str]]) -> list[str]:
    return [f"| {head} |", "|---" * (head.count("|") + 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _chapter(instrument: Instrument) -> Component | None:
    return instrument.components[0] if len(instrument.components) == 1 else None


def _row(instrument: Instrument) -> list[str]:
    kind = instrument.kind + (", durable" if instrument.durable else ", lasting" if instrument.lasting else "")
    meaning = instrument.meaning
    if instrument.label:
        values = ", ".join(f"`{value}`" for value in instrument.values) or f"at most {instrument.most} values"
        meaning += f"; {instrument.label}: {values}"
    if len(instrument.components) > 1:
        meaning += f" (of {', '.join(instrument.components)})"
    return [f"`{instrument.name}`", kind, instrument.unit, meaning]


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
