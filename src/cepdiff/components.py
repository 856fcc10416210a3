"""Classes by name: what a configuration calls `class_path` and `init_args`."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, TypeVar

from torch import nn

from cepdiff.errors import ConfigError, nearest

T = TypeVar("T")


def import_class(class_path: str, base: type[T], where: str) -> type[T]:
    """The class at "package.module.Name"; raises ConfigError unless it is a subclass of `base`.

    `where` names the configuration key in messages.
    """
    module_name, _, name = class_path.rpartition(".")
    if not module_name:
        raise ConfigError(f"{where}: '{class_path}' is no class path; expected package.module.{class_path}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ConfigError(
                f"{where}: there is no module '{module_name}'; a file beside the configuration, or an installed "
                f"package, is found by its name"
            ) from error
        raise
    except SyntaxError as error:
        raise ConfigError(f"{where}: {error.filename}, line {error.lineno}: {error.msg}") from error
    found = getattr(module, name, None)
    if found is None:
        raise ConfigError(f"{where}: '{module_name}' has no class '{name}'.{nearest(name, vars(module))}")
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ConfigError(f"{where}: {class_path} is not a subclass of {base.__name__}")
    return found


def class_path_of(cls: type) -> str:
    """Inverse of `import_class`."""
    return f"{cls.__module__}.{cls.__qualname__}"


def build(spec: dict[str, Any], base: type[T], where: str, *args: Any) -> T:
    """Instantiates `{"class_path": ..., "init_args": {...}}` with `args` first; nested specs likewise."""
    cls = import_class(spec["class_path"], base, where)
    init_args = {
        name: build(value, nn.Module, f"{where}.{name}") if isinstance(value, dict) and "class_path" in value else value
        for name, value in spec.get("init_args", {}).items()
    }
    return cls(*args, **init_args)
