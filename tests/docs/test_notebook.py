"""docs/notebook.ipynb runs as it is, in a kernel of its own, and is stored without outputs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs_of(notebook: Any, code: str) -> list[Any]:
    """Return the outputs of the cell that contains some code."""
    (cell,) = [cell for cell in notebook.cells if code in cell.source and cell.cell_type == "code"]
    return list(cell.outputs)


def test_it_is_stored_without_outputs() -> None:
    notebook = read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert NOTEBOOK.stat().st_size < 8000


@pytest.mark.long
def test_it_runs(tmp_path: Path) -> None:
    notebook = read()
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    (run,) = (tmp_path / "results").iterdir()
    assert (run / "report.html").is_file()

    progress = outputs_of(notebook, "run_search(")
    assert not [one for one in progress if one.get("name") == "stderr"]
    shown = "".join(one.get("text", "") or one["data"]["text/plain"] for one in progress)
    assert "trial 0" in shown
    assert "test accuracy" in shown or "accuracy" in shown
    assert any("text/html" in one.get("data", {}) for one in progress), "rich renders as HTML"
    (frame,) = outputs_of(notebook, "run.trials[[")
    assert "<table" in frame["data"]["text/html"]
    (report,) = outputs_of(notebook, "run.report()")
    assert report["data"]["text/html"].startswith("<iframe srcdoc=")
