"""Messages about a wrong configuration: one line that begins with the key."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jsonargparse import Namespace

from cepdiff.errors import CepdiffError, ConfigError, nearest, one_line

FLOATS = torch.finfo(torch.float32)


def refuse_unknown(found: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise ConfigError for the first unknown key, with the nearest known ones."""
    for key in found:
        if key not in known:
            hint = nearest(str(key), known)
            raise ConfigError(f"unknown key '{where}{key}'.{hint or ' There are ' + (', '.join(known) or 'none')}")


def refuse_reserved(names: Iterable[str], where: str) -> None:
    """Raise ConfigError for a name that jsonargparse cannot hold as a key: a method of its Namespace."""
    for name in names:
        if hasattr(Namespace, name):
            raise ConfigError(f"{where}{name}: an argument cannot have this name in a configuration; rename it")


def refuse_unknown_nested(found: Mapping[str, Any], default: Mapping[str, Any], where: str) -> None:
    """`refuse_unknown` for nested settings; jsonargparse checks the arguments of classes."""
    refuse_unknown(found, list(default), f"{where}.")
    for key, value in found.items():
        below = default[key]
        if isinstance(below, Mapping) and below and "class_path" not in below and value is not None:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}.{key} is {value!r}; expected a mapping of options")
            refuse_unknown_nested(value, below, f"{where}.{key}")


def refuse_null(found: Mapping[str, Any], default: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for a null if the default is not null; jsonargparse would accept it."""
    for key, value in found.items():
        below = default.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            refuse_null(value, below, f"{where}.{key}")
        elif value is None and below is not None:
            kind = "mapping of options" if isinstance(below, Mapping) else type(below).__name__
            raise ConfigError(f"{where}.{key} is null; expected {kind}, or leave it out for the default")


def refuse_quoted(found: Any, parsed: Any, where: str) -> None:
    """Raise ConfigError for text where a number or a boolean is expected; jsonargparse would convert it."""
    if isinstance(found, Mapping) and isinstance(parsed, Mapping):
        for key in found.keys() & parsed.keys():
            refuse_quoted(found[key], parsed[key], where if key == "init_args" else f"{where}.{key}" if where else key)
    elif isinstance(found, (list, tuple)) and isinstance(parsed, (list, tuple)):
        for value, number in zip(found, parsed, strict=False):
            refuse_quoted(value, number, where)
    elif isinstance(found, str) and isinstance(parsed, str) and not found.strip():
        raise ConfigError(f"{where} is empty; leave it out for the default")
    elif isinstance(found, (str, bytes)) and isinstance(parsed, (bool, int, float, list)):
        raise ConfigError(
            f"{where} is the text {found!r}; expected {type(parsed).__name__}, without quotes (an environment "
            "variable is read as ${oc.decode:${oc.env:NAME}})"
        )


def refuse_unholdable(value: Any, where: str) -> None:
    """Raise ConfigError for numbers that float32 or int64 cannot hold, and for values that YAML cannot."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            refuse_unholdable(item, where if name == "init_args" else f"{where}.{name}" if where else name)
        return
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, (list, Mapping)):
            refuse_unholdable(item, where)
        elif isinstance(item, float) and not math.isfinite(item):
            raise ConfigError(f"{where} is {value}; expected finite numbers")
        elif isinstance(item, float) and item and not FLOATS.tiny <= abs(item) <= FLOATS.max:
            raise ConfigError(f"{where} is {value}; expected sizes that float32 can hold, 1e-37 to 3e38")
        elif isinstance(item, int) and not -(2**63) <= item < 2**63:
            raise ConfigError(f"{where} is {value}; expected integers of at most 64 bits, up to 9e18")
        elif isinstance(item, str) and "\0" in item:
            raise ConfigError(f"{where} is {value!r}; expected text without NUL characters")
        elif not isinstance(item, (str, int, float, type(None))):
            raise ConfigError(f"{where} is {value!r}; expected text and numbers")


def readable(error: BaseException) -> str:
    """jsonargparse's message as one short line, with the key as the user wrote it."""
    cause: BaseException | None = error
    while cause is not None:  # a constructor's own complaint, under jsonargparse's wrapping
        if isinstance(cause, CepdiffError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    text = one_line(error)
    keys = [key.replace(".init_args", "") for key in re.findall(r'Parser key "([^"]+)"', text)]
    where = f"{'.'.join(keys)}: " if keys else ""
    if untyped := re.search(r"Parameter '(\w+)' from '(\S+)\.__init__' does not specify a type", text):
        return f"{where}parameter '{untyped.group(1)}' of {untyped.group(2)} needs a type annotation"
    option = re.search(r"Option '([^']+)' is not accepted", text)
    if option:
        return f"{where}unknown option '{option.group(1)}'"
    for pattern in (
        r"Expected '([^']+)' to be a subclass of <class '(?:\w+\.)*(\w+)'>",
        r"Import path (\S+) does not correspond to a subclass of (\w+)",
    ):
        if foreign := re.search(pattern, text):
            return f"{where}{foreign.group(1)} is not a subclass of {foreign.group(2)}"
    given = re.search(r"(?:Given value|Got value): (.*?)(?= - Expected|\. Got value|$)", text)
    found = f", found {given.group(1)}" if given and "Namespace" not in given.group(1) else ""
    choices = re.search(r"Expected an? typing\.Literal\[(.*?)\]", text)
    if choices:
        return f"{where}expected one of {choices.group(1)}{found}".replace("'", "")
    expected = re.findall(r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|(\w[^.]*?))(?=[. ])", text)
    if expected and given:
        names = dict.fromkeys((a or b).replace("NoneType", "null").replace("Sequence", "list") for a, b in expected)
        return f"{where}expected {' or '.join(names)}{found}"
    return where + re.sub(r'^Parser key "[^"]+": ?| Subclass types expect one of: .*', "", text)
