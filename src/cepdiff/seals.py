"""JSON files that carry a hash of their own content: a changed or torn one is noticed when it is read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cepdiff.files import write_json

SEAL = "hash"


def content_hash(values: Any) -> str:
    """BLAKE2b of plain values as canonical JSON, 16 hexadecimal digits."""
    plain = json.loads(json.dumps(values))  # keys are text from here on, and sort as such
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=8).hexdigest()


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values and their hash."""
    write_json(path, {**values, SEAL: content_hash(values)})


def read_sealed(path: Path, made_by: int) -> dict[str, Any] | None:
    """The values of a file of format `made_by`, None if it is of another format; raises ValueError if it is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(values, dict):
        raise ValueError(f"holds a {type(values).__name__}")
    if values.get("format") != made_by:
        return None
    if values.pop(SEAL, None) != content_hash(values):
        raise ValueError("the hash is of another content")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"holds {text}")
    return value
