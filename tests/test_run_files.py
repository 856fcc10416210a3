"""The files of a run folder keep their own hashes: whatever was changed, swapped or damaged is refused in one line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from cepdiff.errors import ConfigError, RunError
from cepdiff.files import path_aside, write_text
from cepdiff.runs.folder import RunFolder, StageFolder
from cepdiff.runs.report import report
from cepdiff.runs.results import Results, Row
from cepdiff.schema import typed
from cepdiff.seals import SEAL, content_hash, save_sealed, unsealed

RECORD = {"dataset": "abc", "seed": 0, "solver": {"num_steps": 15}}


def make_stage(run: Path, name: str = "support", content: bytes = b"actions") -> StageFolder:
    """A finished stage of two files."""
    folder = RunFolder(run).stage(name)
    folder.claim(RECORD)
    (folder.path / "actions.npy").write_bytes(content)
    (folder.path / "state_ids.npy").write_bytes(b"ids")
    folder.finish(1.25)
    return folder


def forge(path: Path, **changes: Any) -> None:
    """Change a sealed file as somebody does who knows of the seal."""
    content = {**json.loads(path.read_text()), **changes}
    del content[SEAL]
    path.write_text(json.dumps({**content, SEAL: content_hash(content)}))


def test_a_hash_does_not_depend_on_the_order_of_a_set(tmp_path: Path) -> None:
    """A callback may keep sets in its state; read back, they are in another order."""
    content = {"state_dict": {}, "hash": "a key of the user's own", "seen": {f"{i}" for i in range(50)}}
    save_sealed(tmp_path / "last.ckpt", content)
    assert unsealed(torch.load(tmp_path / "last.ckpt", weights_only=True)) == content


# stages


def test_a_finished_stage_is_claimed_again(tmp_path: Path) -> None:
    folder = make_stage(tmp_path)
    folder.claim(RECORD)
    assert folder.done
    assert folder.seconds == 1.2
    assert sorted(folder.files) == ["actions.npy", "state_ids.npy"]


@pytest.mark.parametrize("how", ["changed", "swapped", "lost", "folder"])
def test_a_file_that_is_not_as_it_was_is_refused(tmp_path: Path, how: str) -> None:
    folder = make_stage(tmp_path)
    file = folder.path / "actions.npy"
    content = file.read_bytes()
    file.unlink()
    if how == "changed":
        file.write_bytes(content[:-1] + b"!")
    elif how == "swapped":
        os.link(make_stage(tmp_path / "other", content=b"other actions").path / "actions.npy", file)
    elif how == "folder":
        file.mkdir()
    (tmp_path / "critic").mkdir()
    with pytest.raises(RunError) as refused:
        folder.claim(RECORD, ["critic", "guidance"])
    line = f"{file} was changed, swapped or lost after it was made; delete {folder.path}, {tmp_path / 'critic'} to"
    assert str(refused.value).startswith(line)


def test_a_changed_record_is_refused(tmp_path: Path) -> None:
    folder = make_stage(tmp_path)
    text = folder.record_file.read_text()
    folder.record_file.write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(RunError, match=r"stage\.json is damaged, or was changed .* delete .*support to make"):
        folder.claim({**RECORD, "seed": 1})


DAMAGES: list[Mapping[str, Any]] = [
    {"done": "yes"}, {"seconds": "1"}, {"seconds": None}, {"made_from": [1]}, {"made_from": None}, {"files": 3},
    {"files": {"final.ckpt": 1}}, {"files": {"../../secret": "abc"}}, {"files": {"/etc/passwd": "abc"}}, {"more": 1},
]  # fmt: skip


@pytest.mark.parametrize("changes", DAMAGES, ids=str)
def test_a_record_of_wrong_types_is_refused(tmp_path: Path, changes: Mapping[str, Any]) -> None:
    folder = make_stage(tmp_path)
    forge(folder.record_file, **changes)
    for use in (lambda: folder.done, lambda: folder.claim(RECORD), lambda: folder.finish(1.0)):
        with pytest.raises(RunError, match=r"stage\.json is damaged"):
            use()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"format": 3}', "NaN", "[" * 100_000, "\x00"])
def test_a_torn_record_is_refused(tmp_path: Path, text: str) -> None:
    folder = make_stage(tmp_path)
    folder.record_file.write_text(text)
    with pytest.raises(RunError, match=r"stage\.json is damaged"):
        folder.claim(RECORD)


def test_records_and_folders_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "critic").write_text("a file")
    with pytest.raises(RunError, match=r"critic is a file; expected the stage's folder"):
        RunFolder(tmp_path).stage("critic").claim(RECORD)
    (tmp_path / "behavior" / "stage.json").mkdir(parents=True)
    with pytest.raises(RunError, match=r"stage\.json is damaged"):
        RunFolder(tmp_path).stage("behavior").claim(RECORD)


def test_only_the_files_of_the_stage_are_taken_over(tmp_path: Path) -> None:
    other = make_stage(tmp_path / "old")
    for name in (".last.ckpt.0123abcd.ckpt", "last.ckpt", "notes.txt"):
        (other.path / name).touch()
    new = RunFolder(tmp_path / "new").stage("support")
    new.path.parent.mkdir()
    assert new.adopt(other, RECORD) == ""
    names = ["actions.npy", "last.ckpt", "stage.json", "state_ids.npy"]
    assert sorted(file.name for file in new.path.iterdir()) == names
    new.claim(RECORD)
    assert new.done
    (other.path / "actions.npy").unlink()
    (other.path / "actions.npy").write_bytes(b"edited")
    with pytest.raises(RunError, match=r"actions\.npy was changed, swapped or lost .*; leave out --reuse"):
        RunFolder(tmp_path / "newer").stage("support").adopt(other, RECORD)


# results


def write_results(folder: Path, **more: Any) -> Path:
    """Results of a run with one number."""
    path = folder / "results.json"
    rows = [Row(1.0, "mean_return", 12.0, error=1.0)]
    columns = {"mean_return": ("return", ".1f")}
    Results("cepdiff.problems.offline.problem.OfflineRL", "a-task", 0, "a-task", rows, columns, **more).write(path)
    return path


def test_an_edited_number_is_refused(tmp_path: Path) -> None:
    path = write_results(tmp_path)
    path.write_text(path.read_text().replace("12.0", "99.0"))
    with pytest.raises(RunError, match="is damaged, or was changed after it was made"):
        Results.read(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": "0"}, {"seed": True}, {"rows": [{"scale": "1", "metric": "a"}]}, {"rows": [{"metric": "a"}]},
        {"rows": {}}, {"rows": [{"scale": 1.0, "metric": 3}]}, {"columns": {"mean_return": ["return"]}},
        {"columns": {"mean_return": ["return", "wrong"]}}, {"marks": {"one": "best"}}, {"seconds": {"critic": "long"}},
        {"made_from": []}, {"sources": "here"}, {"files": {"samples.npz": None}}, {"folder": "elsewhere"},
        {"real": {"a": None}}, {"inverse_temperature": "3"}, {"problem": None},
    ],
    ids=str,
)  # fmt: skip
def test_results_of_wrong_types_are_refused(tmp_path: Path, changes: Mapping[str, Any]) -> None:
    path = write_results(tmp_path)
    forge(path, **changes)
    with pytest.raises(RunError, match="is damaged"):
        Results.read(path)


def test_results_of_other_checkpoints_or_samples_are_not_reported(tmp_path: Path) -> None:
    folder = make_stage(tmp_path, "behavior")
    final = folder.final
    final.write_bytes(b"weights")
    folder.finish(1.0)
    facts = {"made_from": {"behavior_checkpoint": folder.files["final.ckpt"]}, "seconds": {"behavior": 1.0}}
    path = write_results(tmp_path, **facts)
    Results.read(path).check_folder()
    final.write_bytes(b"others")
    folder.finish(1.0)
    with pytest.raises(RunError, match="the results are not of the behavior stage there"):
        report([tmp_path], tmp_path / "report")
    samples = tmp_path / "samples.npz"
    samples.write_bytes(b"samples")
    write_results(tmp_path, files={"samples.npz": "of other samples"})
    with pytest.raises(RunError, match=r"samples\.npz was changed or swapped after it was made"):
        report([tmp_path], tmp_path / "report")


def test_a_problem_is_imported_only_from_trusted_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "report_test_problem.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('executed').touch()\n"
    )
    path = write_results(tmp_path, sources=[str(tmp_path / "mine")])
    forge(path, problem="report_test_problem.Own")
    with pytest.raises(ConfigError, match=f"add --trust_sources {tmp_path / 'mine'}"):
        report([tmp_path], tmp_path / "report")
    assert not (tmp_path / "executed").exists()
    forge(path, problem="torch.nn.Linear")
    with pytest.raises(ConfigError, match="is not a subclass of Problem"):
        report([tmp_path], tmp_path / "report")


# leftovers


def test_what_killed_commands_left_is_removed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / "config.yaml").touch()
    (tmp_path / "critic").mkdir()
    (tmp_path / ".guidance.adopted").mkdir()
    removed = [".diagnostics.png.0123abcd.png", "critic/.last.ckpt.0123abcd.ckpt", "critic/.chunk_size.0123abcd"]
    kept = [".best.mp4.0123abcd.mp4", ".notes.txt", "critic/last.ckpt", "critic/.mine.0123abcd.ckpt"]
    for name in (*removed, *kept):
        (tmp_path / name).touch()
    (tmp_path / ".old.mp4.0123abcd.mp4").touch()
    os.utime(tmp_path / ".old.mp4.0123abcd.mp4", (time.time() - 7200,) * 2)
    with run.locked():
        found = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert found == {*kept, "config.yaml", ".lock"}
    assert not (tmp_path / ".guidance.adopted").exists()


def test_a_writer_removes_what_a_killed_writer_of_the_same_file_left(tmp_path: Path) -> None:
    for name, age in ((".a.hdf5.0123abcd.hdf5", 7200), (".a.hdf5.89abcdef.hdf5", 0), (".b.hdf5.0123abcd.hdf5", 7200)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with path_aside(tmp_path / "a.hdf5") as aside:
        aside.write_bytes(b"whole")
    write_text(tmp_path / "c.txt", "")
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == [".a.hdf5.89abcdef.hdf5", ".b.hdf5.0123abcd.hdf5", "a.hdf5", "c.txt"]


@pytest.mark.parametrize("name", [".lock", "config.yaml", "results.json", "logs"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.yaml").touch()
    place = tmp_path / name
    place.unlink(missing_ok=True)
    if name == "logs":
        place.touch()
    else:
        place.mkdir()
    with pytest.raises(RunError, match=f"{name} is "), RunFolder(tmp_path).locked():
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    (run.path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match=r"\.lock is not a regular file"), run.locked():
        pass
    assert (tmp_path / "precious").read_text() == "precious"


# types


@dataclass(frozen=True)
class Inner:
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Outer:
    name: str
    count: int = 0
    inner: Inner | None = None
    by_scale: Mapping[float, str] = field(default_factory=dict)


def test_plain_values_become_dataclasses() -> None:
    plain = {"name": "a", "inner": {"values": [1, 2.5]}, "by_scale": {"0.5": "half"}}
    assert typed(Outer, plain) == Outer("a", 0, Inner([1.0, 2.5]), {0.5: "half"})
    assert typed(Outer, {"name": "a", "inner": None}) == Outer("a")


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ([], r"is \[\]; expected mapping"),
        ({}, "name is missing"),
        ({"name": 3}, "name is 3; expected str"),
        ({"name": "a", "count": True}, "count is True; expected int"),
        ({"name": "a", "count": 1.0}, "count is 1.0; expected int"),
        ({"name": "a", "cout": 1}, "cout is unknown"),
        ({"name": "a", "inner": {"values": [0, "x"]}}, r"inner\.values\[1\] is 'x'; expected float"),
        ({"name": "a", "inner": {"values": [1e999]}}, r"inner\.values\[0\] is inf; expected float"),
        ({"name": "a", "inner": {"values": [10**400]}}, "expected float"),
        ({"name": "a", "by_scale": {"half": "x"}}, "half"),
        ({"name": "a", "by_scale": {0.5: "x"}}, "expected Mapping"),
    ],
)
def test_wrong_types_are_named(plain: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        typed(Outer, plain)
