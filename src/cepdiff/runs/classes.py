"""Classes in a configuration: the class that a section names, and its arguments as jsonargparse reads them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from cepdiff.components import class_path_of, import_class
from cepdiff.errors import ConfigError
from cepdiff.runs.messages import refuse_unknown


def component_class(key: str, section: Any, base: type, default: type) -> type:
    """The class that a section names, or its default."""
    if isinstance(section, Mapping) and "class_path" in section:
        return import_class(str(section["class_path"]), base, key)
    if inspect.isabstract(default):
        raise ConfigError(f"{key}.class_path is missing: name a subclass of {base.__name__}")
    return default


def class_arguments(section: Any, nested: Mapping[str, Any], key: str) -> Any:
    """The arguments of a component's class as jsonargparse reads them: nested classes with `init_args`.

    An argument that is itself a class may be written without `class_path` if its default is known, and a sibling of the
    default by its bare name (`objective: MSE`).
    """
    if not isinstance(section, Mapping):
        return section
    arguments = {name: value for name, value in section.items() if name != "class_path"}
    for name, value in arguments.items():
        default = nested.get(name)
        known = default if isinstance(default, Mapping) and "class_path" in default else {}
        if known and isinstance(value, str):
            value = {"class_path": value}
        if known and value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{key}.{name} is {value!r}; expected a class_path and its options")
        if isinstance(value, Mapping) and ("class_path" in value or known):
            class_path = str(value.get("class_path", known.get("class_path")))
            if known and "." not in class_path:  # a sibling of the default, by its bare name
                class_path = f"{known['class_path'].rpartition('.')[0]}.{class_path}"
            init_args = {name: given for name, given in value.items() if name != "class_path"}
            parameters = parameters_of(import_class(class_path, object, f"{key}.{name}"), f"{key}.{name}")
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                refuse_unknown(init_args, list(parameters), f"{key}.{name}.")
            arguments[name] = {"class_path": class_path, "init_args": init_args}
    return arguments


def parameters_of(cls: type, where: str) -> Mapping[str, inspect.Parameter]:
    """Parameters of a class's constructor; raises ConfigError for built-in classes, which have no signature."""
    try:
        return inspect.signature(cls).parameters
    except ValueError as error:
        raise ConfigError(f"{where}: {class_path_of(cls)} cannot be configured: it has no signature") from error


def supply(net: dict[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Add the `arguments` that a network's class takes to its `init_args`, unless given; return the added ones."""
    parameters = parameters_of(import_class(str(net["class_path"]), object, "net"), "net")
    taken = {name: value for name, value in arguments.items() if name in parameters}
    net["init_args"] = {**taken, **(net.get("init_args") or {})}
    return taken


def refuse_other(found: Mapping[str, Any], supplied: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for an argument whose value in the configuration differs from this run's."""
    for name, value in supplied.items():
        if found[name] != value:
            raise ConfigError(f"{where}.{name} is {found[name]}, but here it is {value}: leave it out, it is supplied")
