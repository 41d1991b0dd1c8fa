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
