"""Ranges of arguments, declared in signatures: `discount: Annotated[float, Range(0, 1)]`."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any

from cepdiff.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; a round bracket in `ends` excludes that end; `step` 2 allows only even ones.

    Infinity and NaN are never in range. A list whose items have a range must not be empty.
    """

    low: float
    high: float = math.inf
    ends: str = "[)"
    step: int | None = None

    def __contains__(self, value: float) -> bool:
        above = value > self.low or (value == self.low and self.ends[0] == "[")
        below = value < self.high or (value == self.high and self.ends[1] == "]")
        return above and below and (self.step is None or value % self.step == 0)

    def __str__(self) -> str:
        even = "an even number, " if self.step else ""
        if self.ends == "[]":
            return f"{even}at least {self.low:g} and at most {self.high:g}"
        if self.high < math.inf:
            return f"{even}a number in {self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"
        if self.ends[0] == "(":
            return f"{even}a number above {self.low:g}"
        return f"{even}at least {self.low:g}" if self.low else f"{even}0 or more"


Positive = Annotated[float, Range(0, ends="()")]
OpenUnit = Annotated[float, Range(0, 1, "()")]
Fraction = Annotated[float, Range(0, 1)]
NonNegative = Annotated[float, Range(0)]
Count = Annotated[int, Range(1)]
AtLeastTwo = Annotated[int, Range(2)]
Whole = Annotated[int, Range(0)]
Even = Annotated[int, Range(2, 2**16, "[]", step=2)]
EvenOrNone = Annotated[int, Range(0, 2**16, "[]", step=2)]
Width = Annotated[int, Range(1, 2**16, "[]")]  # of a layer; at the limit, a single matrix takes 16 GiB
Processors = Annotated[int, Range(1, 1024, "[]")]
Blocks = Annotated[int, Range(0, 1000, "[]")]  # they are built one by one: a typo of 10^9 would never end
Repeats = Annotated[int, Range(1, 1000, "[]")]


def check_arguments(cls: type, arguments: Mapping[str, Any], where: str = "") -> None:
    """Raise ConfigError for arguments of `cls` that are out of the ranges or not among the choices in its signature.

    The caller checks arguments that are classes (`{"class_path": ..., "init_args": {...}}`) or settings.
    """
    for name, hint in argument_hints(cls).items():
        if name in arguments:
            _check(arguments[name], hint, f"{where}.{name}" if where else name)


def check_settings(settings: Any, where: str) -> None:
    """Apply `check_arguments` to a dataclass and those in its fields; other values pass."""
    if is_dataclass(settings) and not isinstance(settings, type):
        values = {item.name: getattr(settings, item.name) for item in fields(settings)}
        check_arguments(type(settings), values, where)
        for name, value in values.items():
            check_settings(value, f"{where}.{name}")


@cache
def argument_hints(cls: type) -> dict[str, Any]:
    """Argument -> annotation for the constructor of `cls` and of the base classes that may get its `**options`."""
    hints: dict[str, Any] = {}
    for base in reversed(inspect.getmro(cls)):
        if "__init__" in vars(base):
            # The annotations of a dataclass's inherited fields can refer to names in its base's module.
            source: Any = base if is_dataclass(base) else vars(base)["__init__"]
            try:
                hints |= typing.get_type_hints(source, include_extras=True)
            except (NameError, TypeError):  # an annotation is imported only for type checkers
                continue
    return hints


def _check(value: Any, hint: Any, where: str) -> None:
    """Raise ConfigError if the annotation does not allow the value."""
    if value is None:  # where null is wrong, it was refused before
        return
    if typing.get_origin(hint) in (typing.Union, type(int | None)):
        is_list = isinstance(value, (list, tuple))
        parts = [part for part in typing.get_args(hint) if part is not type(None) and _is_list(part) == is_list]
        if len(parts) > 1:  # a number or a literal
            parts = [part for part in parts if (typing.get_origin(part) is typing.Literal) == isinstance(value, str)]
        if len(parts) != 1:
            return
        (hint,) = parts
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            others = ", ".join(map(str, choices[:-1])) or "a number"
            raise ConfigError(f"{where} is {value!r}; expected {others} or {choices[-1]}")
    elif _is_list(hint) and isinstance(value, (list, tuple)):
        item_hint = next(iter(typing.get_args(hint)), None)
        allowed = _range(item_hint)
        if allowed and not (value and all(_fits(item, item_hint, allowed) for item in value)):
            raise ConfigError(f"{where} is {list(value)}; expected one or more numbers, each {allowed}")
    elif (allowed := _range(hint)) and not _fits(value, hint, allowed):
        raise ConfigError(f"{where} is {value!r}; expected {allowed}")


def _is_list(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    return inspect.isclass(origin) and issubclass(origin, Sequence)


def _range(hint: Any) -> Range | None:
    return next((part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Range)), None)


def _fits(value: Any, hint: Any, allowed: Range) -> bool:
    kind = Integral if typing.get_args(hint)[0] is int else Real
    return not isinstance(value, bool) and isinstance(value, kind) and float(value) in allowed
