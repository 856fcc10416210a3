"""Check plain values read from a file and convert them to typed objects."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cepdiff.errors import shortened

T = TypeVar("T")


def typed(kind: type[T], value: Any, where: str = "") -> T:
    """Return `value` as a `kind`: a dataclass, a list or mapping of some type, a union, one of some words, or a
    plain type.

    Numbers must be finite, and whole where `kind` is int; keys must be text, as JSON has them. Raises ValueError, which
    names the key.
    """
    found: Any = _typed(kind, value, where)
    return found  # type: ignore[no-any-return]


def _typed(kind: Any, value: Any, where: str) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(parts, value, where)
    if origin is Literal:
        if isinstance(value, str) and value in parts:
            return value
        raise _unexpected(" or ".join(parts), value, where)
    if is_dataclass(kind):
        return _fields(kind, value, where)
    if origin in (list, Sequence) and isinstance(value, (list, tuple)):
        return [_typed(parts[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is tuple and isinstance(value, (list, tuple)):  # of one type and any length
        return tuple(_typed(parts[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        key_of = float if parts[0] is float else str
        return {key_of(key): _typed(parts[1], item, _below(where, key)) for key, item in value.items()}
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) < math.inf and abs(value) <= 1e300:
            return float(value)
    elif isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise _unexpected(kind, value, where)


def _one_of(kinds: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    for kind in (kind for kind in kinds if kind is not types.NoneType):
        try:
            return _typed(kind, value, where)
        except ValueError:
            if len(kinds) == 2:  # X or null: the message about X is more helpful
                raise
    raise _unexpected(" or ".join(map(_name, kinds)), value, where)


def _fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _unexpected("mapping", value, where)
    hints = get_type_hints(kind)
    for item in fields(kind):
        if item.name not in value and item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{_below(where, item.name)} is missing")
    for key in value:
        if key not in hints:
            raise ValueError(f"{_below(where, str(key))} is unknown")
    return kind(**{key: _typed(hints[key], item, _below(where, key)) for key, item in value.items()})


def _below(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _name(kind: Any) -> str:
    return "null" if kind is types.NoneType else getattr(get_origin(kind) or kind, "__name__", str(kind))


def _unexpected(kind: Any, value: Any, where: str) -> ValueError:
    expected = kind if isinstance(kind, str) else _name(kind)
    return ValueError(f"{where} is {shortened(repr(value))}; expected {expected}")
