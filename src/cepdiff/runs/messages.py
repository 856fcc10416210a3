"""Messages about a wrong configuration: one line that begins with the key."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from jsonargparse import Namespace

from cepdiff.errors import CepdiffError, ConfigError, nearest


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


def refuse_out_of_range(found: Any, where: str) -> None:
    """Raise ConfigError for a number below the `least` in the metadata of its dataclass field; null passes."""
    if not is_dataclass(found):
        return
    for item in fields(found):
        value, least, key = getattr(found, item.name), item.metadata.get("least"), f"{where}.{item.name}"
        refuse_out_of_range(value, key)
        if isinstance(value, list) and least is not None:
            if not value or not all(least <= number < math.inf for number in value):
                raise ConfigError(f"{key} is {value}; expected one or more numbers of {least} or more")
        elif value is not None and least is not None and not value >= least:
            raise ConfigError(f"{key} is {value}; expected {f'at least {least}' if least else '0 or more'}")


def one_line(error: BaseException) -> str:
    """An exception's text without line breaks."""
    return re.sub(r"\s+", " ", str(error)).strip()


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
    return where + re.sub(r'^Parser key "[^"]+": ?', "", text)


def unresolved(error: BaseException) -> str:
    """OmegaConf's message as one line that begins with the key."""
    text = str(getattr(error, "msg", None) or error).splitlines()[0]
    key = getattr(error, "full_key", None)
    return f"{key}: {text}" if key else text
