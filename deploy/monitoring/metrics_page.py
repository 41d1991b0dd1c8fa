"""`make docs`: docs/metrics.md, written from common/metrics/instruments.py."""

from __future__ import annotations

from pathlib import Path

from qttdm.common.metrics.instruments import COMMON, COMPONENTS, INSTRUMENTS, Component, Instrument, series_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"

INTRODUCTION = """# Metrics

Written from `common/metrics/instruments.py` by `make docs`; a test holds both together. What a run writes to its own
`metrics.jsonl` is listed in `common/metrics/lines.py`.

One address has everything: the exporter's, `http://127.0.0.1:9108/metrics` unless `cluster.metrics_port` and
`cluster.metrics_host` (or `qttdm train --metrics-port`) say otherwise. All processes report to it about every two
seconds.

- A **counter** goes on when its process is restarted, and so does a **histogram**. *Durable* ones count from the run's
  beginning, from what is on disk, so that they are exact whatever is killed when; the others lose what a killed process
  had not reported yet, two seconds of it.
- A histogram whose lowest bound is negative has no `_sum`: it could fall, which Prometheus takes for a restart.
- A **gauge** is served while its process reports, and for 30 s after; a *lasting* one also later.
- Metrics of processes that ended in good order are served for an hour, of others for a day.
- A run on one machine (`qttdm train --metrics-port N`) is one process; its parts report as those of a cluster would.
  What was counted is kept in its directory, so that `--resume` counts on. `qttdm serve --metrics-port N` is a planner.
  If the port is taken neither starts: one line, exit status 2. Both listen on 127.0.0.1 unless `--metrics-host` is
  given.
- Evaluations and models are in the agent's own unit: "scaled" rewards and returns are times `learner.reward_scale`,
  and returns with that are discounted.
"""


def page() -> str:
    """All of docs/metrics.md."""
    lines = [INTRODUCTION, "## Labels", ""]
    lines += ["Of every series but the exporter's own:", "", "| label | meaning |", "|---|---|"]
    lines += [f"| `{label}` | {meaning} |" for label, meaning in COMMON.items()]
    lines += ["", "| component | what it is | most series of one process |", "|---|---|---|"]
    lines += [f"| `{name}` | {meaning} | {series_of(name)} |" for name, meaning in COMPONENTS.items()]
    lines += [
        "",
        "A metric has at most one label more, whose values are listed with it. So `E` episodes and `R` restarts",
    ]
    lines += ["add no series: there are as many as processes, times the numbers above."]
    for component in COMPONENTS:
        own = [i for i in INSTRUMENTS.values() if _chapter(i) == component]
        if own:
            lines += ["", f"## {component.capitalize()}", "", "| metric | kind | unit | meaning |", "|---|---|---|---|"]
            lines += [_row(instrument) for instrument in own]
    lines += [
        "",
        "## Several components",
        "",
        "| metric | kind | unit | reported by | meaning |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(i, who=True) for i in INSTRUMENTS.values() if _chapter(i) is None]
    lines += ["", "## Buckets", "", "| histogram | upper bounds |", "|---|---|"]
    lines += [
        f"| `{i.name}` | {', '.join(f'{bound:g}' for bound in i.buckets)} |" for i in INSTRUMENTS.values() if i.buckets
    ]
    return "\n".join(lines) + "\n"


def _chapter(instrument: Instrument) -> Component | None:
    return instrument.components[0] if len(instrument.components) == 1 else None


def _row(instrument: Instrument, who: bool = False) -> str:
    kind = instrument.kind + (", durable" if instrument.durable else ", lasting" if instrument.lasting else "")
    label = f" `{{{instrument.label}}}`" if instrument.label else ""
    values = (
        f"; {instrument.label}: {', '.join(f'`{value}`' for value in instrument.values)}" if instrument.label else ""
    )
    reported_by = [", ".join(instrument.components)] if who else []
    cells = [f"`{instrument.name}`{label}", kind, instrument.unit, *reported_by, instrument.meaning + values]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
