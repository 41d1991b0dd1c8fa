"""docs/quickstart.ipynb: every cell runs, in a folder of its own, a shorter training, and what it prints is so."""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"


def test_the_notebook_runs(tmp_path):
    text = NOTEBOOK.read_text()
    assert "env_steps=4_000" in text
    notebook = nbformat.reads(text.replace("env_steps=4_000", "env_steps=2_200"), as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    (total,) = re.findall(r"return (-?[\d.]+) of 200", "".join(output.get("text", "") for output in outputs))
    assert float(total) > 0
    widgets = [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    assert widgets  # the table and bar of a training
    assert any("image/png" in output.get("data", {}) for output in outputs)
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "curve.png").is_file()
