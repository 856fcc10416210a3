"""The tutorials' own files and commands run in order, with few training steps, and print what the pages show."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from cepdiff.cli import main
from docs_pages import ROOT, Block, blocks, titled

TINY = """
behavior: {batch_size: 8, net: {init_args: {width: 8, depth: 1}}}
critic: {batch_size: 8, net: {hidden: [8]}}
guidance: {batch_size: 8, net: {hidden: [8]}}
stages:
  behavior: {max_steps: 2}
  support: {max_rows: 400, num_actions: 2}
  critic: {max_steps: 2}
  guidance: {max_steps: 2}
solver: {num_steps: 3}
evaluation: {episodes: 1, scales: [0, 1], max_episode_steps: 20}
trainer: {accelerator: cpu, progress_bar: false}
"""


def follow(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the commands of a tutorial; those of `data check` must print the text block that follows them."""
    page = ROOT / "docs/tutorials" / f"{name}.md"
    for title, text in titled(page).items():
        (folder / title).write_text(text)
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "configs").symlink_to(ROOT / "configs")
    found = blocks(page)
    for block, after in zip(found, [*found[1:], Block("", None, "")], strict=True):
        for line in block.text.replace("\\\n", " ").splitlines() if block.language == "bash" else ():
            word, *arguments = shlex.split(re.sub(r"--stages\S+ \S+", "", line))  # few steps instead
            capsys.readouterr()
            if word == "python":
                runpy.run_path(arguments[0])
            elif word == "cepdiff":
                fast = {
                    "fit": ["--config", "tiny.yaml"],
                    "evaluate": ["--episodes", "1", "--max_episode_steps", "20"],
                }.get(arguments[0], [])
                assert main([*arguments, *fast]) == 0, line
            if arguments[:2] == ["data", "check"]:
                assert capsys.readouterr().out.strip() == after.text.strip()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_own_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    follow("own_data", folder, capsys)
    importlib.import_module("use_policy")
    action = float(capsys.readouterr().out.splitlines()[-1].strip("[]"))
    assert -2.0 <= action <= 2.0
    rows = json.loads((folder / "runs/offline/results.json").read_text())["rows"]
    assert {row["metric"] for row in rows} & {"mean_return", "offline_value"} == {"offline_value"}


def test_own_environment(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    follow("own_environment", folder, capsys)
    assert (folder / "runs/reach/evaluation.json").is_file()
