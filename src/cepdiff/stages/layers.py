"""Merging of configurations: the files and overrides as layers, of which the later wins."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from omegaconf import OmegaConf


def forget_replaced(merged: Any, layer: Any) -> None:
    """Drops the arguments of a named class that a later layer replaces by another: they were meant for the first."""
    if not (OmegaConf.is_dict(merged) and OmegaConf.is_dict(layer)):
        return
    if "class_path" in layer and merged.get("class_path", layer["class_path"]) != layer["class_path"]:
        for name in list(merged):
            del merged[name]
    for name in layer:
        if name in merged and not OmegaConf.is_interpolation(layer, name):
            forget_replaced(merged._get_node(name), layer._get_node(name))


def lifted(layer: Any, components: Iterable[str]) -> Any:
    """A layer whose components' `init_args` stand beside `class_path`: one spelling, so that the later layer wins.

    Likewise the arguments that are classes themselves, and the paths in `${...}`.
    """

    def lift(section: Any) -> Any:
        if not isinstance(section, dict) or not isinstance(section.get("init_args"), dict):
            return section
        return {**section["init_args"], **{name: value for name, value in section.items() if name != "init_args"}}

    def unspell(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: unspell(item) for name, item in value.items()}
        if isinstance(value, list):
            return [unspell(item) for item in value]
        if isinstance(value, str):
            return re.sub(r"\$\{[^}]*\}", lambda match: match.group().replace(".init_args.", "."), value)
        return value

    tree: Any = unspell(OmegaConf.to_container(layer, resolve=False))
    for key in components:
        section = lift(tree.get(key))
        if isinstance(section, dict):
            tree[key] = {name: lift(value) for name, value in section.items()}
    return OmegaConf.create(tree)
