"""Damaged and odd HDF5 files: each is checked, described and taken to the first stage of a fit."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cepdiff.data.rl.datamodule import OfflineDataModule
from fault_cases import Case, Part, Verdict, call, chosen, random_of

HORIZON = 20
LENGTHS = (20, 7, 20, 12, 20, 20, 9, 20, 15, 20, 11, 20, 20, 6)  # of the toy's episodes; those of 20 ended by time
METADATA = {
    "env_id": "Toy-v0", "env_kwargs": "{}", "horizon": HORIZON, "action_low": [-1.0, -1.0], "action_high": [1.0, 1.0],
    "reference_min": -5.0, "reference_max": 5.0,
}  # fmt: skip
NAMES = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
LINE, TOLD, SAME, EITHER = "line", "told", "same", "either"
"""Refused; refused or named by a warning; used with the same numbers; anything but a traceback or a hang."""
Arrays = dict[str, NDArray[Any]]
TRAINING = """
data: {{dataset: {file}, block_size: 2}}
behavior: {{net: {{class_path: cepdiff.networks.score.MLPScore, hidden: [8]}}, batch_size: 8}}
stages: {{behavior: {{max_steps: 2}}, critic: {{max_steps: 2}}, guidance: {{max_steps: 2}}, support: {{num_actions: 2}}}}
evaluation: {{episodes: 0}}
trainer: {{progress_bar: false}}
"""


@dataclass(frozen=True)
class Numbers:
    """The numbers that training depends on."""

    episodes: int
    transitions: int
    factor: float  # of the reward rule
    content: str = ""  # hash of all arrays

    def differ(self, other: Numbers) -> str:
        """The first difference, "" if there is none."""
        for name in ("episodes", "transitions", "factor", "content"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine and theirs and (mine != theirs if name != "factor" else abs(mine / theirs - 1) > 1e-4):
                return f"{name} {theirs} instead of {mine}"
        return ""


def toy() -> Arrays:
    """A buffer of episodes by number: a chain of states, distinct rewards, half of the episodes ended by time."""
    rng = np.random.default_rng(0)
    rows = sum(LENGTHS)
    ends = np.zeros(rows, dtype=bool)
    ends[np.cumsum(LENGTHS) - 1] = True
    limits = np.repeat(np.asarray(LENGTHS) == HORIZON, LENGTHS) & ends
    observations = rng.normal(size=(rows, 4)).astype(np.float32)
    following = np.roll(observations, -1, axis=0)
    following[ends] = rng.normal(size=(int(ends.sum()), 4))
    return {
        "observations": observations,
        "actions": rng.uniform(-0.95, 0.95, size=(rows, 2)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": ends & ~limits,
        "timeouts": limits,
        "next_observations": following,
    }


def write_toy(path: Path, arrays: Arrays | None = None, packed: bool = True, **changes: Any) -> Path:
    """Write a buffer with the toy's metadata; None in `changes` leaves an entry of the metadata out."""
    with h5py.File(path, "w") as file:
        for name, array in (toy() if arrays is None else arrays).items():
            packing: dict[str, Any] = {"compression": "gzip", "shuffle": True} if packed and array.ndim else {}
            file.create_dataset(name, data=array, **packing)
        for name, value in {**METADATA, **changes}.items():
            if value is not None:
                file[f"metadata/{name}"] = value
    return path


def numbers_of(arrays: Arrays) -> Numbers:
    """Numbers of arrays by their definition: an episode ends at a flag, or where the chain of states breaks."""
    terminals, timeouts = (arrays[name].reshape(-1) != 0 for name in ("terminals", "timeouts"))
    ends = terminals | timeouts
    if "next_observations" in arrays:
        ends[:-1] |= (arrays["next_observations"][:-1] != arrays["observations"][1:]).any(axis=1)
    ends[-1] = True
    starts = np.concatenate(([0], np.flatnonzero(ends)[:-1] + 1))
    returns = np.add.reduceat(arrays["rewards"].reshape(-1).astype(np.float64), starts)
    known = len(ends) if "next_observations" in arrays else int((~ends | terminals).sum())
    return Numbers(len(starts), known, 1000 / float(returns.max() - returns.min()))


def numbers_used(path: Path) -> Numbers:
    """Numbers that `fit` trains with."""
    data = OfflineDataModule(str(path))
    data.setup()
    rewards = data.buffer.rewards
    row = int(rewards.abs().argmax())
    return Numbers(
        data.buffer.num_episodes, len(data.buffer.transitions), float(data.rewards()[row] / rewards[row]), data.content_hash
    )


def warnings_of(path: Path) -> set[str]:
    """Warnings of `data check`."""
    found = json.loads(call("data", "check", path, "--json").out)
    return {f"{item['name']}: {item['message']}" for item in found if item["level"] == "warning"}


def prepare(folder: Path) -> None:
    """Write both whole buffers, with and without next observations, and what is known about them."""
    for name, arrays in flavours().items():
        write_toy(folder / f"{name}.hdf5", arrays)
        used, by_definition = numbers_used(folder / f"{name}.hdf5"), numbers_of(arrays)
        assert not by_definition.differ(used), by_definition.differ(used)
        facts = {**vars(used), "warnings": sorted(warnings_of(folder / f"{name}.hdf5"))}
        (folder / f"{name}.json").write_text(json.dumps(facts))


def flavours() -> dict[str, Arrays]:
    """The toy with and without next observations."""
    arrays = toy()
    return {"chained": arrays, "plain": {name: array for name, array in arrays.items() if name != "next_observations"}}


def examine(folder: Path, flavour: str, expected: str | Numbers, path: Path) -> Verdict:
    """The verdict on one file: three commands, and the numbers they lead to."""
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
            return Verdict("silent", f"check calls usable what fit refuses: {fitted.line}")
        return Verdict("line", fitted.line)
    if checked.kind == "line":
        return Verdict("silent", f"fit trains on what check refuses: {checked.line}")
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
    """Warnings that the whole file does not have."""
    found = {f"{item['name']}: {item['message']}" for item in json.loads(printed) if item["level"] == "warning"}
    return found - usual


Damage = Callable[[Path, Arrays, np.random.Generator], "str | Numbers"]
"""(path to write, arrays, random numbers) -> expectation."""


def on_arrays(change: Callable[[Arrays, np.random.Generator], Any], expected: str | None, **metadata: Any) -> Damage:
    """Damage of the arrays; without an expectation, their numbers by definition are expected."""

    def damage(path: Path, arrays: Arrays, rng: np.random.Generator) -> str | Numbers:
        arrays = {name: array.copy() for name, array in arrays.items()}
        changed = change(arrays, rng)
        arrays = changed if isinstance(changed, dict) else arrays
        write_toy(path, arrays, **metadata)
        return numbers_of(arrays) if expected is None else expected

    return damage


def on_file(change: Callable[[h5py.File, np.random.Generator], Any], expected: str) -> Damage:
    """Damage through HDF5."""

    def damage(path: Path, arrays: Arrays, rng: np.random.Generator) -> str:
        write_toy(path, arrays)
        with h5py.File(path, "r+") as file:
            change(file, rng)
        return expected

    return damage


def on_bytes(change: Callable[[bytes, np.random.Generator], bytes], expected: str) -> Damage:
    """Damage of the bytes."""

    def damage(path: Path, arrays: Arrays, rng: np.random.Generator) -> str:
        write_toy(path, arrays)
        path.write_bytes(change(path.read_bytes(), rng))
        return expected

    return damage


def on_metadata(name: str, value: Any, expected: str) -> Damage:
    """One odd entry of the metadata; a function writes it itself."""

    def damage(path: Path, arrays: Arrays, rng: np.random.Generator) -> str:
        write_toy(path, arrays, **{name: None})
        with h5py.File(path, "r+") as file:
            if callable(value):
                value(file, f"metadata/{name}")
            else:
                file[f"metadata/{name}"] = value
        return expected

    return damage


def cases(folder: Path, seed: int, count: int) -> list[Case]:
    """Whole buffers, every damage by name on both, then random bytes."""
    from fault_buffer_table import DAMAGES, RANDOM

    def case(flavour: str, name: str, damage: Damage, index: int) -> Case:
        def run(place: Path) -> Verdict:
            path = place / "buffer.hdf5"
            expected = damage(path, flavours()[flavour], random_of(f"buffers {name}", seed, index))
            return examine(folder, flavour, expected, path)

        return Case(f"{flavour}: {name}" + (f" ({index})" if name in RANDOM else ""), run)

    whole = [case(flavour, "unchanged", on_file(lambda file, rng: None, SAME), 0) for flavour in flavours()]
    named = [case(flavour, name, damage, 0) for name, damage in DAMAGES.items() for flavour in flavours()]
    few = chosen("buffers", named, seed, max(count * 2 // 3, count - 200) - len(whole))
    random = [
        case(list(flavours())[index % 2], name, RANDOM[name], index)
        for index in range(count) for name in [list(RANDOM)[index % len(RANDOM)]]
    ]  # fmt: skip
    return [*whole, *few, *random[: count - len(whole) - len(few)]]


PART = Part("buffers", 500, 60, 20, prepare, cases)
