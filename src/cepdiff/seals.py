"""JSON and torch files that carry a hash of their own content, so that damage or a change is noticed on reading."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cepdiff.files import write_json, written_aside

SEAL = "hash"
TENSOR_SEAL = "cepdiff_hash"  # beside the keys of Lightning and of users


def content_hash(values: Any) -> str:
    """BLAKE2b hash of plain values as canonical JSON, 16 hexadecimal digits."""
    plain = json.loads(json.dumps(values))  # keys become text, and sort as text
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=8).hexdigest()


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values and their hash."""
    write_json(path, {**values, SEAL: content_hash(values)})


def read_sealed(path: Path, made_by: int) -> dict[str, Any] | None:
    """Read a file of format `made_by`; None if it has another format. Raises ValueError if it is damaged."""
    if not path.is_file():  # also a folder, or an endless device
        raise ValueError("there is no such file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(values, dict):
        raise ValueError(f"holds a {type(values).__name__}")
    if not values:
        raise ValueError("holds nothing")
    if values.get("format") != made_by:
        return None
    if values.pop(SEAL, None) != content_hash(values):
        raise ValueError("its hash does not match its content")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"holds {text}")
    return value


def save_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values and tensors with `torch.save`, and their hash."""
    with written_aside(path) as file:
        torch.save({**content, TENSOR_SEAL: tree_hash(content)}, file)


def unsealed(content: Any) -> dict[str, Any]:
    """Return the values given to `save_sealed` from a file's content; raises ValueError if the hash does not match."""
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}")
    values = {key: value for key, value in content.items() if key != TENSOR_SEAL}
    if content.get(TENSOR_SEAL) != tree_hash(values):
        raise ValueError("its hash does not match its content")
    return values


def tree_hash(values: Any) -> str:
    """BLAKE2b hash of nested mappings and lists of plain values and tensors, 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for part in _parts(values):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[Any]:
    """The buffers to hash."""
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, (Mapping, list, tuple)):
        yield b"("
        for item in value.items() if isinstance(value, Mapping) else value:
            yield from _parts(item)
        yield b")"
    elif isinstance(value, (set, frozenset)):  # in any order
        yield from _parts(sorted(map(repr, value)))
    else:
        yield f"{value!r},".encode()
