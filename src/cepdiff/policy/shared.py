"""The shared form of a policy file: its recipe as JSON beside its weights in safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cepdiff.errors import MissingExtraError, RunError
from cepdiff.files import path_aside, write_text
from cepdiff.seals import TENSOR_SEAL, tree_hash

SHARED_FILE = "policy.json"
WEIGHTS_FILE = "model.safetensors"  # the name by which the hub shows sizes and types of the weights


def safetensors() -> Any:
    """Import `safetensors.torch`; raises MissingExtraError if it is not installed."""
    try:
        return import_module("safetensors.torch")
    except ImportError:
        raise MissingExtraError("A shared policy", "hub") from None


def write_shared(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the `content` of a policy file (format, recipe, weights by network) as two files, and the hash of both.

    Raises RunError for options that JSON cannot hold.
    """
    recipe = json.loads(json.dumps(content["recipe"]))
    weights = {name: dict(sorted(content["weights"][name].items())) for name in recipe["networks"]}
    if tree_hash(recipe) != tree_hash(content["recipe"]):
        raise RunError("this policy cannot be shared: an option of its classes has keys that are not text")
    tensors = {f"{name}.{key}": value for name, some in weights.items() for key, value in some.items()}
    plain = {**content, "recipe": recipe, "weights": weights}
    with path_aside(folder / WEIGHTS_FILE) as aside:
        copies = {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
        safetensors().save_file(copies, aside, metadata={"format": "pt"})
    facts = {key: value for key, value in plain.items() if key != "weights"}
    write_text(folder / SHARED_FILE, json.dumps({**facts, TENSOR_SEAL: tree_hash(plain)}, indent=2) + "\n")


def read_shared(path: Path) -> dict[str, Any]:
    """Return what `write_shared` got, and its hash, from the JSON file at `path` and the weights beside it.

    Nothing is checked yet; a damaged file raises errors of many kinds.
    """
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    weights: dict[str, dict[str, Tensor]] = {name: {} for name in found["recipe"]["networks"]}
    for key, value in sorted(safetensors().load_file(path.with_name(WEIGHTS_FILE)).items()):
        name, _, rest = key.partition(".")
        weights[name][rest] = value
    seal = found.pop(TENSOR_SEAL)
    return {**found, "weights": weights, TENSOR_SEAL: seal}
