"""The notebook: ten cells that run from top to bottom, and end in a picture."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def test_the_notebook_has_ten_cells_and_shows_what_came_out():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert len(cells) == 10
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for number, cell in enumerate(code, 1):
        assert "".join(cell["source"]).startswith(f"# ({number}) ")
        compile("".join(cell["source"]), f"cell {number}", "exec")
    assert "image/png" in code[-1]["outputs"][0]["data"]
    assert not [o for cell in code for o in cell["outputs"] if o["output_type"] == "error"]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="extra `notebook` is not installed")
    client = pytest.importorskip("nbclient", reason="extra `notebook` is not installed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    before = [printed(cell) for cell in notebook.cells]
    client.NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert (tmp_path / "runs/quickstart/checkpoints").is_dir()
    assert [printed(cell) for cell in notebook.cells[:6]] == before[:6], "until a model is tuned all is exact"
    assert "value+anchor0.5" in printed(notebook.cells[7])
    assert "image/png" in notebook.cells[8]["outputs"][-1]["data"]


def printed(cell):
    """What a cell's code printed or returned, without progress and warnings."""
    said = ""
    for output in cell.get("outputs", ()):
        if output["output_type"] == "stream" and output["name"] == "stdout":
            said += "".join(output["text"])
        elif output["output_type"] == "execute_result":
            said += "".join(output["data"]["text/plain"])
    return said
