"""Fill in the defaults and types of docs/configuration.md from the signatures: python docs/site/configuration.py

The meaning of a key is written by hand. A row names a class in parentheses if its key is not one of the default class.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cepdiff.components import import_class
from cepdiff.ranges import Range, argument_hints
from cepdiff.runs.config import Config, load_config, sections_of
from cepdiff.runs.logs import KEY
from cepdiff.runs.processes import TrainerSettings

PAGE = Path(__file__).parent.parent / "configuration.md"
# Heading of a part of the page -> the configuration whose keys its tables explain.
PARTS = {
    "## Keys": ["data.dataset=x"],
    "## Images": ["data.class_path=cepdiff.ImageDataModule", "data.dataset=digits", "data.energy=labels"],
    "## Data with energies": ["data.class_path=cepdiff.EnergyDataModule", "data.dataset=moons"],
}
GIVEN = ("data.dataset", "data.energy")  # have the values of PARTS, not their defaults
# Classes besides the default ones that rows name.
CLASSES = ("ResidualUNet", "ResidualMLPScore", "MLPScore", "ResidualEnergy", "EnergyMLP")
HEADER = "| key | default | type and range | meaning |"
TEMPERED = "cepdiff.modules.tempered.TemperedGuidance"
NAMES = {bool: "true, false", int: "integer", float: "number", str: "text", Any: "any"}


def kind(hint: Any) -> str:
    """An annotation in words: choices, a number and its range, a list of such, a class."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else kind(part) for part in arguments)
    if origin is typing.Literal:
        return ", ".join(str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in arguments)
    if origin is typing.Annotated:
        allowed = next((part for part in arguments[1:] if isinstance(part, Range)), None)
        return kind(arguments[0]) + (interval(allowed) if allowed else "")
    if hint in NAMES:
        return NAMES[hint]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        item, space, limits = kind(arguments[0]).partition(" ")
        return f"list of {item}s{space}{limits}"
    return "class"


def interval(allowed: Range) -> str:
    """The range as an inequality or an interval, e.g. ` >= 1` or ` in (0, 1]`."""
    even = ", even" if allowed.step else ""
    if allowed.high == float("inf"):
        return f" {'>' if allowed.ends[0] == '(' else '>='} {allowed.low:g}{even}"
    return f" in {allowed.ends[0]}{allowed.low:,.10g}, {allowed.high:,.10g}{allowed.ends[1]}{even}"


def value(found: Any) -> str:
    """A default as YAML writes it on one line."""
    if isinstance(found, Mapping):
        return f"`{found['class_path']}`"
    return str(found) if isinstance(found, str) else json.dumps(found).replace('"', "")


def row(config: Config, key: str, meaning: str) -> tuple[str, str]:
    """(default, type and range) of a dotted key."""
    section, *names = key.split(".")
    settings = {name: known.annotation for name, known in sections_of(config.problem)[1].items()}
    settings["trainer"] = TrainerSettings
    tree: Any = config.values.get(section)
    if not names:
        plain = {
            "problem": (f"`{tree}`", "class"),
            "seed": (value(tree), "integer"),
            "run_dir": ("null", "text or null"),
        }
        return plain.get(section) or (value(tree), "class")
    if names == ["class_path"]:
        return f"`{tree['class_path']}`", "class"
    if section in settings:
        hint: Any = settings[section]
        for name in names:
            hint, tree = argument_hints(hint)[name], tree[name]
        return value(tree), kind(hint)
    other = next((word for word in re.findall(r"\((\w+)\)", meaning) if word in CLASSES), None)
    for name in names[:-1]:
        tree = tree["init_args"][name]
    cls = import_class(tree["class_path"], object, key)
    name = names[-1]
    if other is not None:
        cls = getattr(importlib.import_module(cls.__module__), other)
    if name in tree["init_args"] and cls is import_class(tree["class_path"], object, key) and key not in GIVEN:
        found = tree["init_args"][name]
    else:
        found = inspect.signature(cls).parameters[name].default
    if found is inspect.Parameter.empty:
        return "(required)", kind(argument_hints(cls)[name])
    words = kind(argument_hints(cls)[name])
    if found is not None:  # null is how the signature says that the default is made from something else
        words = words.removesuffix(" or null")
    return value(list(found) if isinstance(found, tuple) else found), words


def filled_in(page: str) -> str:
    """The page with the second and third cell of each row of its key tables as the signatures say."""
    lines, config, inside = [], None, False
    for line in page.splitlines():
        if line in PARTS:
            config = load_config([], PARTS[line])
        if line.startswith("#### Tempered"):
            config = load_config([], [*PARTS["## Keys"], f"guidance.class_path={TEMPERED}"])
        if line == "### distillation":
            config = load_config([], PARTS["## Keys"])
        inside = line == HEADER or (inside and line.startswith("|"))
        key = re.match(r"\| `([\w.]+)` \|", line)
        if config and inside and key and key[1] not in ("callbacks", KEY):  # classes of Lightning, made later
            meaning = re.split(r"(?<!\\)\|", line)[4].strip()
            line = f"| `{key[1]}` | {' | '.join(row(config, key[1], meaning))} | {meaning} |"
        lines.append(line)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(filled_in(PAGE.read_text()))
