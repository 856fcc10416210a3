"""The campaign of faults can fail: what is planted is counted, and ends it with exit code 1."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

NAMES = ("fault_cases", "fault_toy", "fault_buffers", "fault_kills", "faults")


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    """The scripts as modules."""
    return {name: importlib.import_module(name) for name in NAMES}


@pytest.fixture
def planted(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs a campaign of these cases only; returns its row of the table, and checks the exit code."""
    cases, faults = scripts["fault_cases"], scripts["faults"]

    def run(output: Path, code: int, **runs: Callable[[Path], Any]) -> list[str]:
        made = [cases.Case(name, do) for name, do in runs.items()]
        part = cases.Part("planted", len(made), 1, 1, lambda folder: None, lambda folder, seed, count: made)
        monkeypatch.setattr(faults, "PARTS", {"planted": part})
        assert faults.main(["--only", "planted", "--workers", "2", "--output", str(output)]) == code
        row = (output / "faults.md").read_text().splitlines()[4]
        return [cell.strip() for cell in row.strip("| ").split("|")]

    return run


def test_good_outcomes_end_with_0(
    scripts: dict[str, ModuleType], planted: Callable[..., list[str]], tmp_path: Path
) -> None:
    verdict = scripts["fault_cases"].Verdict
    row = planted(tmp_path, 0, a=lambda place: verdict("line", "cepdiff: no"), b=lambda place: verdict("valid"))
    assert row == ["planted", "2", "1", "1", "0", "0", "0", "0", "0"]


def test_what_is_planted_is_counted(
    scripts: dict[str, ModuleType], planted: Callable[..., list[str]], tmp_path: Path
) -> None:
    cases = scripts["fault_cases"]

    def hang(place: Path) -> None:
        while True:
            pass

    def crash(place: Path) -> None:
        raise ZeroDivisionError("planted")

    def execute(place: Path) -> Any:
        (place / cases.CANARY).touch()
        return cases.Verdict("valid")

    row = planted(
        tmp_path, 1, crash=crash, hang=hang, execute=execute,
        silent=lambda place: cases.Verdict("silent"), leave=lambda place: cases.Verdict("valid", leftovers=2),
    )  # fmt: skip
    assert row == ["planted", "5", "0", "2", "1", "1", "1", "1", "2"]
    found = json.loads((tmp_path / "faults.json").read_text())
    assert {record["name"] for record in found["bad"]} == {"crash", "hang", "execute", "silent", "leave"}
    assert found["bad"][0]["repeat"].endswith("--case planted:0")


@pytest.mark.parametrize(
    ("code", "err", "error", "kind"),
    [
        (0, "", "", "valid"),
        (2, "a warning\ncepdiff: data.dataset is missing\n", "", "line"),
        (1, "cepdiff: the loss became NaN at step 3\n", "", "line"),
        (1, "cepdiff: an unforeseen error; the report is in x\n", "", "traceback"),
        (2, "cepdiff: one\nand another\n", "", "traceback"),
        (2, "", "", "traceback"),
        (0, "Traceback (most recent call last):\n", "", "traceback"),
        (None, "", "KeyError: 'a'", "traceback"),
    ],
)
def test_a_clear_line_is_the_only_and_the_last_one(
    scripts: dict[str, ModuleType], code: int | None, err: str, error: str, kind: str
) -> None:
    assert scripts["fault_cases"].Called(code, "", err, error).kind == kind


def test_a_buffer_used_with_another_number_is_silent(
    scripts: dict[str, ModuleType], planted: Callable[..., list[str]], tmp_path: Path
) -> None:
    buffers, toy = scripts["fault_buffers"], scripts["fault_toy"]
    shared = tmp_path / "shared"
    shared.mkdir()
    right = buffers.numbers_used(toy.write_toy(shared / "chained.hdf5"))
    assert right.episodes == len(toy.LENGTHS)
    assert not toy.numbers_of(toy.toy()).differ(right)
    facts = {**vars(right), "warnings": []}
    (shared / "chained.json").write_text(json.dumps(facts))

    def examine(place: Path) -> Any:
        return buffers.examine(shared, "chained", toy.SAME, toy.write_toy(place / "buffer.hdf5"))

    def examine_wrong(place: Path) -> Any:
        buffers.numbers_used = lambda path: replace(right, factor=right.factor * 1.01)
        return examine(place)

    assert planted(tmp_path / "right", 0, right=examine)[3] == "1"
    assert planted(tmp_path / "wrong", 1, wrong=examine_wrong)[5] == "1"


def test_the_seed_decides_the_cases(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    buffers = scripts["fault_buffers"]
    first, again, other = ([case.name for case in buffers.cases(tmp_path, seed, 60)] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(first) == 60
