"""Each notebook runs from the first cell to the last, with few steps."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def execute(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nbformat.NotebookNode:
    """The notebook with its outputs, run next to a copy of the configurations and benchmarks."""
    for folder in ("configs", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("CEPDIFF_NOTEBOOK_STEPS", "4")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own backend: figures in the notebook
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "notebooks")}})
    client.execute()
    return notebook


def number_of_figures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = execute("quickstart.ipynb", tmp_path, monkeypatch)
    assert (tmp_path / "runs/notebook/4-steps/results.json").is_file()
    assert number_of_figures(notebook) == 4  # scores, curves, paths, actions


@pytest.mark.slow
def test_exact_guidance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = execute("exact_guidance.ipynb", tmp_path, monkeypatch)
    assert (tmp_path / "runs/notebook-rings/4-steps/results.json").is_file()
    # diffused densities, error by NFE, gradients; errors and samples of shortcuts and of learned guidance; rings
    assert number_of_figures(notebook) == 8


@pytest.mark.slow
def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    notebook = execute("images.ipynb", tmp_path, monkeypatch)
    assert (tmp_path / "runs/notebook-images/4-steps/report/report.json").is_file()
    # grey and tinted digits; grids of classes, threes by scale; grids and histograms of hues; curves
    assert number_of_figures(notebook) == 7


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
