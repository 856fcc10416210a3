"""The table of damages to a run folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fault_cases import CANARY

STAGES = ("behavior", "critic", "guidance")
Random = np.random.Generator
Damage = Callable[[Path, Path, Random], Any]
"""(the run folder to damage, a folder with other runs, random numbers)."""
EVIL = f"""
open({CANARY!r}, "w").close()
from cepdiff.networks.score import MLPScore
class Net(MLPScore):
    pass
"""


class Payload:
    """An object whose unpickling runs a command."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {CANARY}",)


def damages(files: list[str]) -> Iterator[tuple[str, Damage]]:
    """Damages of a finished run with these files."""
    for name in files:
        yield from of_file(name)
    for name in ("behavior", "support", "critic", "guidance"):
        yield f"{name}/ missing", lambda run, shared, rng, n=name: shutil.rmtree(run / n)
        yield f"{name}/ a file", lambda run, shared, rng, n=name: (shutil.rmtree(run / n), (run / n).write_text("x"))
        yield f"{name}/ empty", lambda run, shared, rng, n=name: (shutil.rmtree(run / n), (run / n).mkdir())
        yield f"{name}/ of another seed", lambda run, shared, rng, n=name: other_folder(run, shared / "seed", n)
        yield f"{name}/ with another K", lambda run, shared, rng, n=name: other_folder(run, shared / "fewer", n)
        yield f"{name}/ a link elsewhere", lambda run, shared, rng, n=name: linked_folder(run, n)
        yield f"{name}/ renamed", lambda run, shared, rng, n=name: (run / n).rename(run / f"{n}-old")
        yield f"{name}/ read-only", lambda run, shared, rng, n=name: (run / n).chmod(0o500)
    for first in STAGES:
        for second in STAGES:
            if first != second:
                yield f"{first} has {second}'s weights", lambda run, shared, rng, a=first, b=second: shutil.copy(
                    run / b / "final.ckpt", run / a / "final.ckpt")  # fmt: skip
                yield f"{first} has {second}'s record", lambda run, shared, rng, a=first, b=second: shutil.copy(
                    run / b / "stage.json", run / a / "stage.json")  # fmt: skip
    for name in (*(f"{stage}/stage.json" for stage in (*STAGES, "support")), "results.json", "data_check.json",
                 "diagnostics.json"):  # fmt: skip
        if name in files:
            for index in range(10):
                yield f"{name}: an odd leaf ({index})", lambda run, shared, rng, n=name: odd_leaf(run / n, rng)
            for odd in ("[]", "null", "7", '"text"', "{}", "NaN", "[" * 5000, '{"format": 99}', "{" * 50):
                yield f"{name} is {odd[:20]}", lambda run, shared, rng, n=name, odd=odd: (run / n).write_text(odd)
    for name in (*(f"{stage}/final.ckpt" for stage in STAGES), "policy.pt"):
        for kind, change in CONTENTS.items():
            yield f"{name}: {kind}", lambda run, shared, rng, n=name, c=change: rewritten(run / n, c, rng)
    for name in ("support/actions.npy", "support/state_ids.npy", "guidance/energies.npy"):
        for kind, edit in ARRAYS.items():
            yield f"{name}: {kind}", lambda run, shared, rng, n=name, e=edit: edited(run / n, e, rng)
    for text in ("", "0", "-1", "seven", "1e3", "100000000000000000000", "1", "31", "\0", "32 32"):
        yield (
            f"support/chunk_size is {text!r}",
            lambda run, shared, rng, t=text: (run / "support/chunk_size").write_text(t),
        )
    for text in (
        "",
        "<0>\n",
        "<99>\n",
        "<-1>\n",
        "nonsense",
        "<" * 99,
        "<0><0><0>",
        "<1>\n<2>\n",
        "<999999999999999999999>\n",
    ):
        yield f"marks are {text[:20]!r}", lambda run, shared, rng, t=text: (run / "support/drawn-0.txt").write_text(t)
    for name in (".lock", ".last.ckpt.1234", "behavior/.last.ckpt.1234", "behavior/last.ckpt", "support/drawn-1.txt",
                 "notes.txt", "evaluation.json", "scores.json"):  # fmt: skip
        yield f"{name} added, binary", lambda run, shared, rng, n=name: (run / n).write_bytes(rng.bytes(99))
        yield f"{name} added, a folder", lambda run, shared, rng, n=name: as_folder(run / n)
    yield from executions()


def executions() -> Iterator[tuple[str, Damage]]:
    """Files that name code of their own, which must not run."""
    for section in ("networks.behavior", "networks.guidance", "schedule", "solver", "objective", "sampler"):
        yield f"policy.pt names a module for {section}", lambda run, shared, rng, s=section: evil_policy(run, s)
    yield "policy.pt names a module of its environment", lambda run, shared, rng: evil_environment(run)
    yield "policy.pt names an environment in a module", lambda run, shared, rng: evil_environment(run, "evil:Env-v0")
    yield "results.json names a module", lambda run, shared, rng: evil_results(run)
    yield "a module beside the run", lambda run, shared, rng: (run / "torch.py").write_text(EVIL)
    yield "the run's configuration names a module", lambda run, shared, rng: evil_config(run)
    yield (
        "data_check.json replaced by a pickle",
        lambda run, shared, rng: torch.save(Payload(), run / "data_check.json"),
    )


def stopped_damages() -> Iterator[tuple[str, Damage]]:
    """Damages of a run that was stopped in its critic stage."""
    yield "unchanged", lambda run, shared, rng: None
    yield from of_file("critic/last.ckpt")
    for kind, change in CONTENTS.items():
        yield f"last.ckpt: {kind}", lambda run, shared, rng, c=change: rewritten(run / "critic/last.ckpt", c, rng)
    for key in ("global_step", "optimizer_states", "loops", "callbacks", "lr_schedulers", "state_dict", "epoch"):
        for odd in (None, "seven", [], {}, -1, 10**20, float("nan")):
            yield f"last.ckpt: {key} is {odd!r}", lambda run, shared, rng, k=key, o=odd: rewritten(
                run / "critic/last.ckpt", lambda content, rng: {**content, k: o}, rng)  # fmt: skip
        yield (
            f"last.ckpt without {key}",
            lambda run, shared, rng, k=key: rewritten(
                run / "critic/last.ckpt", lambda content, rng: without(content, k), rng
            ),
        )
    yield (
        "a temporary file of a kill",
        lambda run, shared, rng: (run / "critic/.last.ckpt.99").write_bytes(rng.bytes(99)),
    )


def of_file(name: str) -> Iterator[tuple[str, Damage]]:
    """Damages that any file can have."""

    def on(change: Callable[[Path, Random], Any]) -> Damage:
        return lambda run, shared, rng: (change(run / name, rng), None)[1]

    yield f"{name} missing", on(lambda path, rng: path.unlink())
    yield f"{name} empty", on(lambda path, rng: path.write_bytes(b""))
    yield f"{name} cut off", on(lambda path, rng: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]))
    yield f"{name} one byte short", on(lambda path, rng: path.write_bytes(path.read_bytes()[:-1]))
    yield f"{name} random", on(lambda path, rng: path.write_bytes(rng.bytes(path.stat().st_size)))
    yield f"{name} zeros", on(lambda path, rng: path.write_bytes(bytes(path.stat().st_size)))
    yield f"{name} longer", on(lambda path, rng: path.write_bytes(path.read_bytes() + b"\0" * 64))
    yield f"{name} a folder", on(lambda path, rng: as_folder(path))
    yield f"{name} a link to nothing", on(lambda path, rng: (path.unlink(), path.symlink_to("nothing")))
    yield f"{name} a link to itself", on(lambda path, rng: (path.unlink(), path.symlink_to(path.name)))
    yield f"{name} unreadable", on(lambda path, rng: path.chmod(0))
    yield f"{name} of another seed", lambda run, shared, rng: other_file(run, shared / "seed", name)
    for index in range(3):
        yield f"{name} one bit flipped ({index})", on(flip)
    yield f"{name} 16 bytes changed", on(lambda path, rng: [flip(path, rng) for _ in range(16)])


def without(content: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != key}


def flip(path: Path, rng: Random) -> None:
    data = bytearray(path.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(data))


def as_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def other_file(run: Path, other: Path, name: str) -> None:
    if (other / name).exists():
        shutil.copy(other / name, run / name)


def other_folder(run: Path, other: Path, name: str) -> None:
    shutil.rmtree(run / name)
    shutil.copytree(other / name, run / name)


def linked_folder(run: Path, name: str) -> None:
    shutil.move(run / name, run.parent / f"elsewhere-{name}")
    (run / name).symlink_to(run.parent / f"elsewhere-{name}")


def odd_leaf(path: Path, rng: Random) -> None:
    """Replace one value of a JSON file, anywhere, by one of another kind."""
    content = json.loads(path.read_text())
    places = list(leaves(content))
    holder, key = places[int(rng.integers(len(places)))]
    odd: list[Any] = ["seven", 7, -1.5, None, [], {}, True, [1, 2], {"a": 1}, float("nan"), 10**20, ""]
    kinds = [value for value in odd if type(value) is not type(holder[key])] + [float("inf")]
    holder[key] = kinds[int(rng.integers(len(kinds)))]
    path.write_text(json.dumps(content))


def leaves(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of all values in plain data."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from leaves(value)


def rewritten(path: Path, change: Callable[[Any, Random], Any], rng: Random) -> None:
    """Change the content of a file of torch's."""
    torch.save(change(torch.load(path, weights_only=True), rng), path)


def weights(content: Any) -> dict[str, Any]:
    """The tensors of a checkpoint or policy file, by name."""
    found = content.get("state_dict") or next(iter(content["weights"].values()))
    assert isinstance(found, dict)
    return found


def first(content: Any, change: Callable[[Any], Any]) -> Any:
    """The content with another first tensor of floats."""
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


def edited(path: Path, edit: Callable[[Any, Random], Any], rng: Random) -> None:
    """Change the array of a file of NumPy's."""
    np.save(path, edit(np.load(path), rng), allow_pickle=True)


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


def evil_module(run: Path) -> Path:
    """A folder with a module that leaves a trace when it is imported."""
    folder = run.parent / "foreign"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL)
    return folder


def evil_policy(run: Path, where: str) -> None:
    """A policy file with a class of its own folder."""
    content = torch.load(run / "policy.pt", weights_only=True)
    recipe = content["recipe"]
    recipe["sources"] = [str(evil_module(run))]
    first, _, second = where.partition(".")
    held = recipe[first][second] if second else recipe[first]
    held["class_path"] = "evil.Net"
    torch.save(content, run / "policy.pt")


def evil_environment(run: Path, env_id: str | None = None) -> None:
    """A policy file with an environment in its own folder."""
    content = torch.load(run / "policy.pt", weights_only=True)
    content["recipe"]["sources"] = [str(evil_module(run))]
    content["recipe"]["environment"].update({"env_id": env_id} if env_id else {"module": "evil"})
    torch.save(content, run / "policy.pt")


def evil_results(run: Path) -> None:
    """Results of a problem in their own folder."""
    content = json.loads((run / "results.json").read_text())
    content.update(problem="evil.Net", sources=[str(evil_module(run))])
    (run / "results.json").write_text(json.dumps(content))


def evil_config(run: Path) -> None:
    """A run's configuration with a class beside it."""
    (run / "evil.py").write_text(EVIL)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("cepdiff.networks.score.MLPScore", "evil.Net"))
