"""Run folders with a file that was changed or swapped after it was made: one line, and nothing is computed from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cepdiff.cli import main
from cepdiff.files import file_hash
from cepdiff.seals import content_hash, save_sealed, unsealed


def flip(path: Path) -> None:
    """Change the last byte of a file."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def swap_weights(run: Path) -> None:
    """The behavior policy of another run, with a record that knows its hash."""
    final, record = run / "behavior" / "final.ckpt", run / "behavior" / "stage.json"
    content = unsealed(torch.load(final, weights_only=True))
    next(iter(content["state_dict"].values())).view(-1)[0] += 1.0
    save_sealed(final, content)
    values = json.loads(record.read_text())
    del values["hash"]
    values["files"]["final.ckpt"] = file_hash(final)
    record.write_text(json.dumps({**values, "hash": content_hash(values)}))


def take_a_file_for_a_folder(run: Path) -> None:
    shutil.rmtree(run / "guidance")
    (run / "guidance").touch()


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (lambda run: shutil.copy(run / "critic" / "final.ckpt", run / "behavior" / "final.ckpt"),
                "behavior/final.ckpt was changed, swapped or lost after it was made; delete "),
    "foreign weights": (swap_weights, "support was made from something else: behavior_checkpoint was "),
    "actions": (lambda run: flip(run / "support" / "actions.npy"), "support/actions.npy was changed, swapped or lost"),
    "ids": (lambda run: flip(run / "support" / "state_ids.npy"), "support/state_ids.npy was changed"),
    "results": (lambda run: (run / "results.json").write_text(
        (run / "results.json").read_text().replace('"value": 6.0', '"value": 9.0')),
        "results.json is damaged, or was changed after it was made"),
    "file": (take_a_file_for_a_folder, "guidance is a file; expected the stage's folder"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_run_is_not_gone_on_with(
    finished_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    config, finished = finished_run
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    make, expected = CHANGES[change]
    make(run)
    capsys.readouterr()
    assert main(["fit", "--config", str(config), "--run_dir", str(run)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cepdiff:")]
    assert line.startswith(f"cepdiff: {run}/{expected}")


def test_a_finished_run_stays_as_it_is(finished_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    config, run = finished_run
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "logs" not in path.parts}
    (run / "support" / ".actions.npy.0123abcd.npy").touch()
    assert main(["fit", "--config", str(config), "--run_dir", str(run)]) == 0
    assert capsys.readouterr().err.count("finished earlier, skipped") == 5
    assert {path for path in run.rglob("*") if path.is_file() and "logs" not in path.parts} == set(kept)
    assert all(path.read_bytes() == content for path, content in kept.items() if path.suffix != ".pt")


def test_a_policy_beside_foreign_weights_is_not_used(
    finished_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run[1], run)
    swap_weights(run)
    for command in (["evaluate", str(run)], ["export", str(run), "--format", "torch"]):
        assert main(command) == 2
        assert f"{run}/policy.pt was not made from {run}/behavior/final.ckpt" in capsys.readouterr().err
    assert main(["report", str(run), "--output", str(tmp_path / "report")]) == 2
    assert "the results are not of the behavior stage there" in capsys.readouterr().err
