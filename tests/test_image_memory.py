"""The benchmark of memory-mapped images, on a small set."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import image_memory


def test_it_trains_on_a_mapped_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The child runs in this process, which has loaded the libraries."""

    def in_this_process(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        arguments = command[2:]
        arguments[arguments.index("--group") + 1] = ""
        code = image_memory.main(arguments)
        return subprocess.CompletedProcess(command, code, capsys.readouterr().out)

    monkeypatch.setattr(subprocess, "run", in_this_process)
    output = tmp_path / "memory.json"
    few = ["--images", "3000", "--side", "8", "--batch_size", "8", "--block", "2", "--blocks", "2", "--steps", "2"]
    assert image_memory.main([*few, "--folder", str(tmp_path), "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["file"] == 3000 * 192
    assert 0 < found["own_memory"] < 8 * image_memory.GIB
    assert set(found["seconds"]) == {"make and hash", "open again", "gather a batch", "step of the small prior"}
    assert "3,000 images of 8 pixels" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [output]  # the set is gone
