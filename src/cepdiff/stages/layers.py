"""Merging of configurations: the files and overrides as layers, of which the later wins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import OmegaConf


def forget_replaced(merged: Any, layer: Any) -> None:
    """Drops the arguments of a named class that a later layer replaces by another: they were meant for the first.

    A class that was named alone (`objective: MSE`) becomes a mapping where a later layer gives it arguments.
    """
    if not (OmegaConf.is_dict(merged) and OmegaConf.is_dict(layer)):
        return
    if "class_path" in layer and not same_class(merged.get("class_path", layer["class_path"]), layer["class_path"]):
        for name in list(merged):
            del merged[name]
    for name in layer:
        if name in merged and not OmegaConf.is_interpolation(layer, name):
            alone = not OmegaConf.is_interpolation(merged, name) and isinstance(merged[name], str)
            if alone and OmegaConf.is_dict(layer[name]):
                merged[name] = {"class_path": merged[name]}
            forget_replaced(merged._get_node(name), layer._get_node(name))


def same_class(first: Any, second: Any) -> bool:
    """Whether two `class_path` are the same, where one of them may be a bare name."""
    if "." in str(first) and "." in str(second):
        return bool(first == second)
    return str(first).rpartition(".")[2] == str(second).rpartition(".")[2]


def lifted(layer: Any, components: Iterable[str], nested: Mapping[str, Iterable[str]]) -> Any:
    """A layer whose components' `init_args` stand beside `class_path`: one spelling, so that the later layer wins.

    Likewise the arguments that are classes themselves, and the paths in `${...}`. `nested` names, a component each, the
    arguments beside `net` that stand for a class also where it is given by its name alone (`objective: MSE`).
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
            classes = {"net", *nested.get(key, ())}
            tree[key] = {
                name: {"class_path": value} if name in classes and isinstance(value, str) else lift(value)
                for name, value in section.items()
            }
    return OmegaConf.create(tree)
