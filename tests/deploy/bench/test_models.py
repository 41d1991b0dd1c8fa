"""The benchmark's options, and what it holds decisions and updates against."""

import pytest
import torch

from qttdm.deploy.bench import models as bench
from qttdm.deploy.bench.timing import cpu_threads


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--device", "typo"], ["device=typo"]),
        (["--only", "typo"], ["--only typo", *(shape.name for shape in bench.SHAPES)]),
        (["--threads", "0"], ["--threads 0"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, names, capsys):
    assert bench.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(name in error for name in names)


@pytest.mark.parametrize(("arguments", "want"), [([], 1), (["--threads", "2"], 2)])
def test_a_shape_runs_on_its_presets_threads_and_is_held_against_as_many(arguments, want, capsys, monkeypatch):
    measured, used = [], []
    monkeypatch.setattr(bench, "product_rate", lambda device, dtype, threads: measured.append(threads) or 1e9)
    monkeypatch.setattr(bench, "timings", lambda *_: used.append(torch.get_num_threads()) or [1.0])
    with cpu_threads(3):
        assert bench.main(["--device", "cpu", "--only", "laptop", *arguments]) == 0
        assert torch.get_num_threads() == 3
    assert set(measured) == set(used) == {want}
    shown = capsys.readouterr().out
    assert f"float32{want:8}" in shown


def test_on_a_gpu_the_compiled_is_measured_too_and_counted_by_the_plain(capsys, monkeypatch):
    measured, counted = [], []

    def prepare(what):
        return lambda c, spec, device, environments=1: (what, c.make_agent(spec).settings.planner.compile, environments)

    monkeypatch.setattr(bench, "product_rate", lambda device, dtype, threads: 1e9)
    monkeypatch.setattr(bench, "prepare_decision", prepare("decision"))
    monkeypatch.setattr(bench, "prepare_update", prepare("update"))
    monkeypatch.setattr(bench, "timings", lambda action, device, repeats: measured.append(action) or [1.0])
    monkeypatch.setattr(bench, "operations", lambda action: counted.append(action) or 1e9)
    bench.print_shape(bench.SHAPES[1], torch.device("cuda"), 1, [])
    plain = [("decision", False, 1), ("update", False, 1)]
    assert measured == [*plain, ("decision", True, 1), ("decision", True, 16), ("update", True, 1)]
    assert counted == [*plain, ("decision", False, 1), ("decision", False, 16), ("update", False, 1)]
    rows = [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()]
    assert rows == ["decision", "update", "decision, compiled", "16 decisions, compiled", "update, compiled"]
