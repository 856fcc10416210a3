"""Damaged and odd HDF5 files: `data check`, `data info` and the start of a `fit` are run on each."""

from __future__ import annotations

import json
from pathlib import Path

from cepdiff.data.rl.datamodule import OfflineDataModule
from fault_buffer_arrays import ARRAYS
from fault_buffer_files import FILES, RANDOM
from fault_cases import Case, Part, Verdict, call, chosen, random_of
from fault_toy import EITHER, LINE, SAME, TOLD, Damage, Numbers, flavours, numbers_of, on_file, write_toy

TRAINING = """
data: {{dataset: {file}, block_size: 2}}
behavior: {{net: {{class_path: cepdiff.networks.score.MLPScore, hidden: [8]}}, batch_size: 8}}
stages: {{behavior: {{max_steps: 2}}, critic: {{max_steps: 2}}, guidance: {{max_steps: 2}}}}
evaluation: {{episodes: 0}}
trainer: {{progress_bar: false}}
"""


def numbers_used(path: Path) -> Numbers:
    """The numbers that `fit` trains with."""
    data = OfflineDataModule(str(path))
    data.setup()
    rewards = data.buffer.rewards
    row = int(rewards.abs().argmax())
    return Numbers(
        data.buffer.num_episodes,
        len(data.buffer.transitions),
        float(data.rewards()[row] / rewards[row]),
        data.content_hash,
    )


def warnings_of(path: Path) -> set[str]:
    """The warnings of `data check`."""
    found = json.loads(call("data", "check", path, "--json").out)
    return {f"{item['name']}: {item['message']}" for item in found if item["level"] == "warning"}


def prepare(folder: Path) -> None:
    """Write the two undamaged buffers, with and without next observations, and their known numbers."""
    for name, arrays in flavours().items():
        write_toy(folder / f"{name}.hdf5", arrays)
        used, by_definition = numbers_used(folder / f"{name}.hdf5"), numbers_of(arrays)
        assert not by_definition.differ(used), by_definition.differ(used)
        facts = {**vars(used), "warnings": sorted(warnings_of(folder / f"{name}.hdf5"))}
        (folder / f"{name}.json").write_text(json.dumps(facts))


def examine(folder: Path, flavour: str, expected: str | Numbers, path: Path) -> Verdict:
    """Run three commands on one file and judge their numbers."""
    facts = json.loads((folder / f"{flavour}.json").read_text())
    usual = set(facts.pop("warnings"))
    place = path.parent if path.parent.is_dir() else path
    (place / "fit.yaml").write_text(TRAINING.format(file=path))
    checked = call("data", "check", path, "--json")
    described = call("data", "info", path, "--json")
    fitted = call("fit", "--config", place / "fit.yaml", "--run_dir", place / "run", "--stage", "behavior")
    for called in (checked, described, fitted):
        if called.kind == "traceback":
            return Verdict("traceback", called.detail)
    if fitted.kind == "line":
        if checked.kind == "valid" and not new_warnings(checked.out, usual):
            return Verdict("silent", f"check accepts what fit refuses: {fitted.line}")
        return Verdict("line", fitted.line)
    if checked.kind == "line":
        return Verdict("silent", f"fit accepts what check refuses: {checked.line}")
    told = new_warnings(checked.out, usual)
    if expected == LINE and not told:
        return Verdict("silent", "used as it is")
    if told or expected == EITHER:
        return Verdict("valid", "; ".join(sorted(told)))
    wanted = expected if isinstance(expected, Numbers) else Numbers(**facts)
    different = wanted.differ(numbers_used(path))
    if expected == TOLD:
        return Verdict("silent", f"no finding names it; {different or 'same numbers'}")
    return Verdict("silent", different) if different else Verdict("valid")


def new_warnings(printed: str, usual: set[str]) -> set[str]:
    """Warnings that the undamaged file does not have."""
    found = {f"{item['name']}: {item['message']}" for item in json.loads(printed) if item["level"] == "warning"}
    return found - usual


def cases(folder: Path, seed: int, count: int) -> list[Case]:
    """Undamaged buffers, then every named kind of damage on both, then random bytes."""

    def case(flavour: str, name: str, damage: Damage, index: int) -> Case:
        def run(place: Path) -> Verdict:
            path = place / "buffer.hdf5"
            expected = damage(path, flavours()[flavour], random_of(f"buffers {name}", seed, index))
            return examine(folder, flavour, expected, path)

        return Case(f"{flavour}: {name}" + (f" ({index})" if name in RANDOM else ""), run)

    whole = [case(flavour, "unchanged", on_file(lambda file: None, SAME), 0) for flavour in flavours()]
    named = [case(flavour, name, damage, 0) for name, damage in {**ARRAYS, **FILES}.items() for flavour in flavours()]
    few = chosen("buffers", named, seed, max(count * 2 // 3, count - 200) - len(whole))
    random = [
        case(list(flavours())[index % 2], name, RANDOM[name], index)
        for index in range(count) for name in [list(RANDOM)[index % len(RANDOM)]]
    ]  # fmt: skip
    return [*whole, *few, *random[: count - len(whole) - len(few)]]


PART = Part("buffers", 1200, 50, 20, prepare, cases)
