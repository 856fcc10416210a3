"""Merging of configurations: files and overrides are layers, and the later one wins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import OmegaConf

from cepdiff.components import is_dotted
from cepdiff.errors import ConfigError


def forget_replaced(merged: Any, layer: Any) -> None:
    """Drop the arguments of a class that a later layer replaces by another class.

    A class given by its name only (`objective: MSE`) becomes a mapping if a later layer gives it arguments.
    """
    if not (OmegaConf.is_dict(merged) and OmegaConf.is_dict(layer)):
        return
    if "class_path" in layer and not same_class(merged.get("class_path", layer["class_path"]), layer["class_path"]):
        for name in list(merged):
            del merged[name]
    for name in layer:
        if name in merged and not OmegaConf.is_interpolation(layer, name):
            alone = not OmegaConf.is_interpolation(merged, name) and is_dotted(str(merged[name]))
            if alone and OmegaConf.is_dict(layer[name]):
                merged[name] = {"class_path": merged[name]}
            forget_replaced(merged._get_node(name), layer._get_node(name))


def same_class(first: Any, second: Any) -> bool:
    """True if two `class_path` are the same; one of them may be a bare name."""
    if "." in str(first) and "." in str(second):
        return bool(first == second)
    return str(first).rpartition(".")[2] == str(second).rpartition(".")[2]


def spelled_out(layer: Any, components: Iterable[str]) -> Any:
    """Make a component that is given as the name of its class alone a mapping with that `class_path`."""
    tree: Any = OmegaConf.to_container(layer, resolve=False)
    for key in components:
        if isinstance(tree.get(key), str) and is_dotted(tree[key]):
            tree[key] = {"class_path": tree[key]}
    return OmegaConf.create(tree)


def lifted(layer: Any, components: Iterable[str], nested: Mapping[str, Iterable[str]]) -> Any:
    """Move `init_args` up, next to `class_path`, so that there is one spelling and the later layer wins.

    The same for arguments that are classes themselves, and for the paths in `${...}`. `nested` has, per component, the
    arguments besides `net` that may be given as the bare name of a class (`objective: MSE`).
    """

    def lift(section: Any, key: str) -> Any:
        if not isinstance(section, dict) or "init_args" not in section:
            return section
        init_args = {} if section["init_args"] is None else section["init_args"]
        if not isinstance(init_args, dict):
            raise ConfigError(f"{key}: its arguments are {init_args!r}; expected a mapping of options")
        return {**init_args, **{name: value for name, value in section.items() if name != "init_args"}}

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
        section = lift(tree.get(key), key)
        if isinstance(section, dict):
            classes = {"net", *nested.get(key, ())}
            tree[key] = {
                name: {"class_path": value}
                if name in classes and isinstance(value, str)
                else lift(value, f"{key}.{name}")
                for name, value in section.items()
            }
    return OmegaConf.create(tree)
