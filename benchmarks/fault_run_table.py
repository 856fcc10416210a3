"""The table of damage to a run folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fault_executions import Damage, Payload, Random

STAGES = ("behavior", "critic", "guidance")


def damages(files: list[str]) -> Iterator[tuple[str, Damage]]:
    """Damage to a finished run with these files."""
    for name in files:
        yield from of_file(name)
    for name in (*STAGES, "support"):
        for kind, change in FOLDERS.items():
            yield f"{name}/ {kind}", partial(on_folder, name, change)
        yield f"{name}/ of another seed", partial(other_folder, name, "seed")
        yield f"{name}/ with another K", partial(other_folder, name, "fewer")
    for first, second in permutations(STAGES, 2):
        for name in ("final.ckpt", "stage.json"):
            yield f"{first} has {second}'s {name}", partial(copied, f"{second}/{name}", f"{first}/{name}")
    for name in (*(f"{stage}/stage.json" for stage in (*STAGES, "support")), "results.json", "diagnostics.json"):
        for index in range(10):
            yield f"{name}: an odd leaf ({index})", partial(odd_leaf, name)
        for text in ("[]", "null", "7", '"text"', "{}", "NaN", "[" * 5000, '{"format": 99}', "{" * 50):
            yield f"{name} is {text[:20]}", partial(with_text, name, text)
    for name in (*(f"{stage}/final.ckpt" for stage in STAGES), "policy.pt"):
        for kind, rewrite in CONTENTS.items():
            yield f"{name}: {kind}", partial(rewritten, name, rewrite)
    for name in ("support/actions.npy", "support/state_ids.npy", "guidance/energies.npy"):
        for kind, rewrite in ARRAYS.items():
            yield f"{name}: {kind}", partial(edited, name, rewrite)
    for text in ("", "0", "-1", "seven", "1e3", "100000000000000000000", "1", "31", "\0", "32 32"):
        yield f"support/chunk_size is {text!r}", partial(with_text, "support/chunk_size", text)
    for text in ("", "<0>\n", "<99>\n", "<-1>\n", "nonsense", "<" * 99, "<0><0><0>", "<1>\n<2>\n", f"<{10**20}>\n"):
        yield f"marks are {text[:20]!r}", partial(with_text, "support/drawn-0.txt", text)
    for name in ADDED:
        yield f"{name} added, binary", partial(on_file, name, randomised)
        yield f"{name} added, a folder", partial(on_file, name, as_folder)


ADDED = (
    ".lock", ".last.ckpt.1234", "behavior/.last.ckpt.1234", "behavior/last.ckpt", "support/drawn-1.txt", "notes.txt",
    "evaluation.json", "scores.json",
)  # fmt: skip


def stopped_damages() -> Iterator[tuple[str, Damage]]:
    """Damage to a run that was stopped in its critic stage."""
    yield "unchanged", nothing
    yield from of_file("critic/last.ckpt")
    for kind, rewrite in CONTENTS.items():
        yield f"last.ckpt: {kind}", partial(rewritten, "critic/last.ckpt", rewrite)
    odds: list[Any] = [None, "seven", [], {}, -1, 10**20, float("nan")]
    for key in ("global_step", "optimizer_states", "loops", "callbacks", "lr_schedulers", "state_dict", "epoch"):
        for odd in odds:
            yield f"last.ckpt: {key} is {odd!r}", partial(rewritten, "critic/last.ckpt", partial(with_entry, key, odd))
        yield f"last.ckpt without {key}", partial(rewritten, "critic/last.ckpt", partial(without_entry, key))
    yield "a temporary file of a kill", partial(on_file, "critic/.last.ckpt.99", randomised)


def of_file(name: str) -> Iterator[tuple[str, Damage]]:
    """Damage that any file can have."""
    for kind, change in CHANGES.items():
        yield f"{name} {kind}", partial(on_file, name, change)
    for index in range(3):
        yield f"{name} one bit flipped ({index})", partial(on_file, name, flip)
    yield f"{name} of another seed", partial(other_file, name)


def nothing(run: Path, shared: Path, rng: Random) -> None:
    """No damage."""


def on_file(name: str, change: Callable[[Path, Random], object], run: Path, shared: Path, rng: Random) -> None:
    change(run / name, rng)


def on_folder(name: str, change: Callable[[Path], object], run: Path, shared: Path, rng: Random) -> None:
    change(run / name)


def with_text(name: str, text: str, run: Path, shared: Path, rng: Random) -> None:
    (run / name).write_text(text)


def copied(source: str, target: str, run: Path, shared: Path, rng: Random) -> None:
    shutil.copy(run / source, run / target)


def randomised(path: Path, rng: Random) -> None:
    path.write_bytes(rng.bytes(path.stat().st_size if path.exists() else 99))


def as_folder(path: Path, rng: Random) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def linked_to(target: str, path: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def with_bytes(change: Callable[[bytes], bytes], path: Path, rng: Random) -> None:
    path.write_bytes(change(path.read_bytes()))


def flip(path: Path, rng: Random, count: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for place in rng.integers(len(data), size=count):
        data[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(data))


CHANGES: dict[str, Callable[[Path, Random], object]] = {
    "missing": lambda path, rng: path.unlink(),
    "empty": partial(with_bytes, lambda data: b""),
    "cut off": partial(with_bytes, lambda data: data[: len(data) // 2]),
    "one byte short": partial(with_bytes, lambda data: data[:-1]),
    "random": randomised,
    "zeros": partial(with_bytes, lambda data: bytes(len(data))),
    "longer": partial(with_bytes, lambda data: data + bytes(64)),
    "a folder": as_folder,
    "a link to nothing": lambda path, rng: linked_to("nothing", path),
    "a link to itself": lambda path, rng: linked_to(path.name, path),
    "unreadable": lambda path, rng: path.chmod(0),
    "16 bits flipped": partial(flip, count=16),
}


def replaced_by_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("x")


def emptied(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def moved_and_linked(path: Path) -> None:
    shutil.move(path, path.parent.parent / f"elsewhere-{path.name}")
    path.symlink_to(path.parent.parent / f"elsewhere-{path.name}")


FOLDERS: dict[str, Callable[[Path], object]] = {
    "missing": shutil.rmtree,
    "a file": replaced_by_file,
    "empty": emptied,
    "a link elsewhere": moved_and_linked,
    "renamed": lambda path: path.rename(path.with_name("old")),
    "read-only": lambda path: path.chmod(0o500),
}


def other_file(name: str, run: Path, shared: Path, rng: Random) -> None:
    if (shared / "seed" / name).exists():
        shutil.copy(shared / "seed" / name, run / name)


def other_folder(name: str, other: str, run: Path, shared: Path, rng: Random) -> None:
    shutil.rmtree(run / name)
    shutil.copytree(shared / other / name, run / name)


def odd_leaf(name: str, run: Path, shared: Path, rng: Random) -> None:
    """Replace one value anywhere in a JSON file with one of another kind."""
    content = json.loads((run / name).read_text())
    places = list(leaves(content))
    holder, key = places[int(rng.integers(len(places)))]
    odd: list[Any] = ["seven", 7, -1.5, None, [], {}, True, [1, 2], {"a": 1}, float("nan"), 10**20, ""]
    kinds = [value for value in odd if type(value) is not type(holder[key])] + [float("inf")]
    holder[key] = kinds[int(rng.integers(len(kinds)))]
    (run / name).write_text(json.dumps(content))


def leaves(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of all values in plain data."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from leaves(value)


def rewritten(name: str, change: Callable[[Any, Random], Any], run: Path, shared: Path, rng: Random) -> None:
    """Change the content of a torch file."""
    torch.save(change(torch.load(run / name, weights_only=True), rng), run / name)


def with_entry(key: str, value: Any, content: dict[str, Any], rng: Random) -> dict[str, Any]:
    return {**content, key: value}


def without_entry(key: str, content: dict[str, Any], rng: Random) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != key}


def weights(content: Any) -> dict[str, Any]:
    """The tensors of a checkpoint or policy file, by name."""
    found = content.get("state_dict") or next(iter(content["weights"].values()))
    assert isinstance(found, dict)
    return found


def first(content: Any, change: Callable[[Any], Any]) -> Any:
    """The content with its first float tensor replaced."""
    held = weights(content)
    name = next(name for name, value in held.items() if value.is_floating_point() and value.ndim)
    held[name] = change(held[name])
    return content


def without_first(content: Any) -> Any:
    held = weights(content)
    del held[next(iter(held))]
    return content


CONTENTS: dict[str, Callable[[Any, Random], Any]] = {
    "NaN weights": lambda c, rng: first(c, lambda w: w * float("nan")),
    "an infinite weight": lambda c, rng: first(c, lambda w: w.index_fill(0, torch.tensor([0]), float("inf"))),
    "edited weights": lambda c, rng: first(c, lambda w: w * 1.01),
    "weights of zero": lambda c, rng: first(c, torch.zeros_like),
    "another shape": lambda c, rng: first(c, lambda w: w[:-1]),
    "float64 weights": lambda c, rng: first(c, lambda w: w.double()),
    "integer weights": lambda c, rng: first(c, lambda w: w.long()),
    "complex weights": lambda c, rng: first(c, lambda w: w.to(torch.complex64)),
    "sparse weights": lambda c, rng: first(c, lambda w: w.to_sparse()),
    "a number for weights": lambda c, rng: first(c, lambda w: 3),
    "a weight less": lambda c, rng: without_first(c),
    "a weight more": lambda c, rng: (weights(c).update(more=torch.ones(1)), c)[1],
    "a list": lambda c, rng: [c],
    "a number": lambda c, rng: 3,
    "nothing": lambda c, rng: {},
    "a tensor": lambda c, rng: torch.ones(3),
    "no names": lambda c, rng: {1: 2},
    "text for weights": lambda c, rng: {**c, "state_dict": "text", "weights": "text"},
    "a pickle": lambda c, rng: Payload(),
    "a pickle inside": lambda c, rng: {**c, "more": Payload()},
}


def edited(name: str, change: Callable[[Any, Random], Any], run: Path, shared: Path, rng: Random) -> None:
    """Change the array of a NumPy file."""
    np.save(run / name, change(np.load(run / name), rng), allow_pickle=True)


ARRAYS: dict[str, Callable[[Any, Random], Any]] = {
    "reversed": lambda a, rng: a[::-1].copy(),
    "shuffled": lambda a, rng: rng.permutation(a),
    "a row less": lambda a, rng: a[:-1],
    "a row more": lambda a, rng: np.concatenate([a, a[:1]]),
    "no rows": lambda a, rng: a[:0],
    "an axis more": lambda a, rng: a[..., None],
    "flat": lambda a, rng: a.reshape(-1),
    "a column less": lambda a, rng: a[:, :-1] if a.ndim > 1 else a,
    "float64": lambda a, rng: a.astype(np.float64),
    "float16": lambda a, rng: a.astype(np.float16),
    "integers": lambda a, rng: a.astype(np.int8),
    "complex": lambda a, rng: a.astype(complex),
    "texts": lambda a, rng: a.astype(str),
    "objects": lambda a, rng: np.array([Payload()], dtype=object),
    "structured": lambda a, rng: np.zeros(len(a), [("a", "f4")]),
    "big-endian": lambda a, rng: a.astype(a.dtype.newbyteorder(">")),
    "Fortran's order": lambda a, rng: np.asfortranarray(a),
    "negative": lambda a, rng: -np.abs(a) - 1,
    "zeros": lambda a, rng: np.zeros_like(a),
    "doubled": lambda a, rng: a * 2,
    "one value changed": lambda a, rng: with_value(a, a.reshape(-1)[0] / 2 + 1),
    "NaN": lambda a, rng: with_value(a.astype(np.float32), np.nan),
    "large": lambda a, rng: with_value(a.astype(np.float64), 1e39),
    "a scalar": lambda a, rng: a.reshape(-1)[0],
}


def with_value(array: Any, value: float) -> Any:
    array = array.copy()
    array.reshape(-1)[len(array) // 2] = value
    return array
