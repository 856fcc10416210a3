"""Classes by name: what a configuration calls `class_path` and `init_args`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from cepdiff.errors import ConfigError, nearest

T = TypeVar("T")


def import_class(class_path: str, base: type[T], where: str) -> type[T]:
    """The class at "package.module.Name"; raises ConfigError unless it is a subclass of `base`.

    `where` names the configuration key in messages.
    """
    found = _import_name(class_path, where, "class")
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ConfigError(f"{where}: {class_path} is not a subclass of {base.__name__}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ConfigError(f"{where}: {class_path} cannot be built, because it does not define {missing}")
    return found


def import_function(path: str, where: str) -> Callable[..., Any]:
    """The function at "package.module.name"; raises ConfigError where there is none."""
    found = _import_name(path, where, "function")
    if not callable(found):
        raise ConfigError(f"{where}: {path} is no function")
    return found  # type: ignore[no-any-return]


def _import_name(path: str, where: str, kind: str) -> Any:
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ConfigError(f"{where}: '{path}' is no {kind} path; expected package.module.{path}")
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
        raise ConfigError(f"{where}: '{module_name}' has no {kind} '{name}'.{nearest(name, vars(module))}")
    return found


def class_path_of(cls: type) -> str:
    """Inverse of `import_class`."""
    return f"{cls.__module__}.{cls.__qualname__}"


def build(spec: dict[str, Any], base: type[T], where: str, *args: Any, parts: tuple[type, ...] = ()) -> T:
    """Instantiates `{"class_path": ..., "init_args": {...}}` with `args` first; nested specs likewise.

    A nested class must be a subclass of one of `parts`, so that a specification from a file cannot call any class.
    """
    cls = import_class(spec["class_path"], base, where)
    init_args: dict[str, Any] = {}
    for name, value in spec.get("init_args", {}).items():
        if isinstance(value, dict) and "class_path" in value:
            part = import_class(value["class_path"], object, f"{where}.{name}")
            if not issubclass(part, parts):
                raise ConfigError(f"{where}.{name}: {value['class_path']} cannot be a part of {spec['class_path']}")
            value = build(value, part, f"{where}.{name}", parts=parts)
        init_args[name] = value
    return cls(*args, **init_args)
