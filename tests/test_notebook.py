"""The examples: the notebook runs from its first cell to its last."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from wanpipe.media.video import read_video

NOTEBOOK = Path(__file__).parent.parent / "examples" / "quickstart.ipynb"


def run(folder: Path) -> Any:
    """Run the notebook in a folder, and return it with what its cells print."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return notebook


def outputs(notebook: Any) -> list[Any]:
    """What the cells of a notebook show."""
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.long
def test_the_notebook_sweeps_guidance_over_one_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    shown = outputs(run(tmp_path))
    assert [one for one in shown if one.output_type in ("error", "stream")] == []
    assert sum("image/png" in one.data for one in shown) == 3  # the steps, and two plots
    cache = tmp_path / "cache"
    assert len(list((cache / "encode-text").iterdir())) == 1
    assert len(list((cache / "denoise").iterdir())) == 3 * 20
    assert len(read_video(tmp_path / "guidance-3.mp4")[0]) == 17


def test_the_notebook_is_stored_without_outputs() -> None:
    assert outputs(nbformat.read(NOTEBOOK, as_version=4)) == []
