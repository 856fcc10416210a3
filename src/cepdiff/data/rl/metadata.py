"""Metadata of a dataset: a schema of the values that this package reads, and its check."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cepdiff.data.rl.task import REWARD_RULES
from cepdiff.errors import DataError, shortened

# Longer arrays are network weights, not metadata.
MAX_VALUES = 256


class Unreadable:
    """Placeholder for a value that is not plain or cannot be read."""

    def __repr__(self) -> str:
        return "not a plain value"


def checked_metadata(metadata: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the plain values without None: those that this package reads are converted to their types.

    Raises `DataError` for the first value that has a wrong type or makes no sense.
    """
    found = {name: plain(value) for name, value in metadata.items() if value is not None}
    for name, (convert, expected) in _SCHEMA.items():
        if name not in found:
            continue
        value = found[name]
        try:
            found[name] = convert(value)
        except (TypeError, ValueError, OverflowError) as error:
            shown = shortened(repr(value))
            raise DataError(
                f"{source}: metadata '{name}' is {shown}; expected {expected}: correct it, or delete it"
            ) from error
    low, high = found.get("reference_min"), found.get("reference_max")
    if low is not None and high is not None and not low < high:
        raise DataError(
            f"{source}: metadata 'reference_min' is {low:g} and 'reference_max' {high:g}; expected the return of a "
            "random policy below that of an expert: correct them, or delete both"
        )
    return {name: value for name, value in found.items() if not isinstance(value, Unreadable)}


def plain(value: Any) -> Any:
    """Convert to a Python number, string, dictionary or tuple; `Unreadable` for anything else."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray):
        if value.ndim == 0:
            return plain(value[()])
        value = value.tolist() if value.ndim == 1 and value.size <= MAX_VALUES else object()
    if isinstance(value, np.generic):
        item = value.item()
        return item if isinstance(item, (bool, int, float, str)) else Unreadable()
    if isinstance(value, (list, tuple)):
        items = tuple(map(plain, value))
        return Unreadable() if any(isinstance(item, (Unreadable, tuple)) for item in items) else items
    return value if isinstance(value, (str, bool, int, float, dict)) else Unreadable()


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def _text(value: Any) -> str:
    value = _single(value)
    if not isinstance(value, str) or not value.strip():
        raise TypeError
    return value


def _object(value: Any) -> dict[str, Any]:
    value = _single(value)
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise TypeError
    return found


def _number(value: Any) -> float:
    value = _single(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError
    return value


def _steps(value: Any) -> int:
    steps = _number(value)
    if steps != int(steps) or steps < 1:
        raise ValueError
    return int(steps)


def _bound(value: Any) -> float | tuple[float, ...]:
    return tuple(map(_number, value)) if isinstance(value, tuple) and value else _number(value)


def _rule(value: Any) -> str:
    rule = _text(value)
    if rule not in REWARD_RULES:
        raise ValueError
    return rule


_SCHEMA: dict[str, tuple[Callable[[Any], Any], str]] = {
    "env_id": (_text, "text"),
    "env_kwargs": (_object, "a JSON object"),
    "horizon": (_steps, "a whole number of steps"),
    "timeouts_from_horizon": (_steps, "a whole number of steps"),
    "action_low": (_bound, "a finite number, or one for each action"),
    "action_high": (_bound, "a finite number, or one for each action"),
    "reward_rule": (_rule, f"one of {', '.join(REWARD_RULES)}"),
    "reference_min": (_number, "a finite number"),
    "reference_max": (_number, "a finite number"),
}
