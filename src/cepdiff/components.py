"""Classes by name: `class_path` and `init_args` in a configuration or a policy file."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from cepdiff.errors import CepdiffError, ConfigError, nearest
from cepdiff.ranges import argument_hints, check_arguments

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
# Packages whose version, not their source, says what they do.
PACKAGES = {"cepdiff", "torch", "lightning", "torchmetrics", "diffusers", "numpy", *sys.stdlib_module_names}


@dataclass(frozen=True)
class Component(Generic[T_co]):
    """A class and its options; call it to build one, with what only a run knows (sizes, schedule, data).

    A problem's constructor annotates a section with `Component[Base]` and defaults it to `Component(Default)`. The
    class attribute `supplied` of a base names the arguments that a run supplies; they are no options.

    Args:
        cls: the class.
        arguments: its options; nested classes are built.
        spec: the same in plain values, `{"class_path": ..., "init_args": {...}}`.
    """

    cls: type[T_co]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)

    def __call__(self, *args: Any, **supplied: Any) -> T_co:
        return self.cls(*args, **supplied, **self.arguments)

    @property
    def record(self) -> dict[str, Any]:
        """`spec`, with the hash of each source file of classes that are not this package's."""
        sources = sources_of(self.spec)
        return {**self.spec, "source": sources} if sources else self.spec


def is_default(class_path: str, argument: str, value: Any) -> bool:
    """True if `value` (plain) is the default of a class's argument, its own or one that it passes on."""
    for cls in inspect.getmro(import_class(class_path, object, class_path)):
        known = inspect.signature(vars(cls)["__init__"]).parameters if "__init__" in vars(cls) else {}
        if argument in known:
            return bool(json.loads(json.dumps(known[argument].default, default=str)) == value)
    return False


def sources_of(spec: Any) -> dict[str, str]:
    """File name -> hash of its text, for all classes that a specification names, their base classes, and the files next
    to theirs that these import.

    Classes of this package, of Python and of the libraries in `PACKAGES` are left out.
    """
    classes = [cls for path in class_paths(spec) for cls in inspect.getmro(import_class(path, object, path))]
    return dict(source for cls in classes for source in _source(cls, whole_file=True))


def class_record(cls: type) -> dict[str, Any]:
    """The record of a class that is not this package's: its name, and the hash of its own source text."""
    source = dict(source for base in inspect.getmro(cls) for source in _source(base, whole_file=False))
    return {"class_path": class_path_of(cls), "source": source} if source else {}


@cache  # as it was when the class was first used: an edit changes nothing in a running process
def _source(cls: type, whole_file: bool) -> list[tuple[str, str]]:
    if cls.__module__.partition(".")[0] in PACKAGES:
        return []
    try:
        file = Path(inspect.getsourcefile(cls) or "")
        if whole_file and file.is_file():
            texts = _texts(file, {})
        else:
            texts = {f"{file.name}, class {cls.__name__},": inspect.getsource(cls)}
    except (OSError, TypeError, SyntaxError):  # built in C, or typed at a prompt
        return []
    return [(name, hashlib.blake2b(text.encode(), digest_size=8).hexdigest()) for name, text in texts.items()]


def _texts(file: Path, found: dict[str, str]) -> dict[str, str]:
    """Name -> text of a file and of those next to it that it imports, and so on."""
    found[file.name] = file.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(found[file.name])):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        for name in [*names, *([node.module or ""] if isinstance(node, ast.ImportFrom) else [])]:
            other = file.with_name(f"{name.partition('.')[0]}.py")
            if other.is_file() and other.name not in found:
                _texts(other, found)
    return found


def class_paths(spec: Any) -> Iterator[str]:
    """Every `class_path` within plain values."""
    if isinstance(spec, Mapping):
        if isinstance(spec.get("class_path"), str):
            yield spec["class_path"]
        for value in spec.values():
            yield from class_paths(value)
    elif isinstance(spec, (list, tuple)):
        for value in spec:
            yield from class_paths(value)


def import_class(class_path: str, base: type[T], where: str) -> type[T]:
    """The class at "package.module.Name"; raises ConfigError unless it is a subclass of `base`.

    `where` names the configuration key in messages.
    """
    found = _import_name(class_path, where, "class")
    if not (inspect.isclass(found) and issubclass(found, base)):
        expected = "class" if base is object else f"subclass of {base.__name__}"
        raise ConfigError(f"{where}: {class_path} is not a {expected}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ConfigError(f"{where}: {class_path} cannot be built, because it does not define {missing}")
    return found


def import_function(path: str, where: str) -> Callable[..., Any]:
    """The function at "package.module.name"; raises ConfigError if there is none."""
    found = _import_name(path, where, "function")
    if not callable(found):
        raise ConfigError(f"{where}: {path} is not a function")
    return found  # type: ignore[no-any-return]


def is_dotted(text: str) -> bool:
    """True for text like `name` or `package.module.name`."""
    return all(part.isidentifier() for part in text.split("."))


def _import_name(path: str, where: str, kind: str) -> Any:
    module_name, _, name = path.rpartition(".")
    if not module_name or not is_dotted(path):
        raise ConfigError(f"{where}: '{path[:100]}' is not a {kind} path; expected package.module.{name or 'Name'}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ConfigError(
                f"{where}: there is no module '{module_name}'; a file next to the configuration, or an installed "
                f"package, is found by its name"
            ) from error
        raise ConfigError(f"{where}: {module_name} imports {missing}, which cannot be found") from error
    except SyntaxError as error:
        raise ConfigError(f"{where}: {error.filename}, line {error.lineno}: {error.msg}") from error
    except CepdiffError:
        raise
    except (Exception, SystemExit) as error:  # of the user's own code
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            f"{where}: importing {module_name[:100]} fails at {place.filename}, line {place.lineno}: {what}"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        raise ConfigError(f"{where}: '{module_name}' has no {kind} '{name}'.{nearest(name, vars(module))}")
    return found


def class_path_of(cls: type) -> str:
    """Inverse of `import_class`."""
    return f"{cls.__module__}.{cls.__qualname__}"


def check_spec(spec: Mapping[str, Any], where: str) -> None:
    """`check_arguments` of a class given as `class_path` and `init_args`, and of the classes among its arguments."""
    check_arguments(import_class(spec["class_path"], object, where), spec["init_args"], where)
    for name, value in spec["init_args"].items():
        if isinstance(value, Mapping) and "class_path" in value:
            check_spec({"init_args": {}, **value}, f"{where}.{name}")


def takes_function(cls: type, name: str) -> bool:
    """True if the argument `name` of a class is annotated as a callable."""
    return typing.get_origin(argument_hints(cls).get(name)) is Callable


def build(spec: dict[str, Any], base: type[T], where: str, *args: Any, parts: tuple[type, ...] = ()) -> T:
    """Instantiate `{"class_path": ..., "init_args": {...}}` with `args` first; nested specifications too.

    A nested class must be a subclass of one of `parts`, so that a specification from a file cannot call any class. An
    argument that is annotated as a callable gets a function that builds the class; other arguments get the instance.
    """
    cls = import_class(spec["class_path"], base, where)
    init_args: dict[str, Any] = {}
    for name, value in spec.get("init_args", {}).items():
        if isinstance(value, dict) and "class_path" in value:
            part = import_class(value["class_path"], object, f"{where}.{name}")
            if not issubclass(part, parts):
                raise ConfigError(f"{where}.{name}: {value['class_path']} cannot be a part of {spec['class_path']}")
            make = partial(build, value, part, f"{where}.{name}", parts=parts)
            value = make if takes_function(cls, name) else make()
        init_args[name] = value
    check_arguments(cls, init_args, where)
    return cls(*args, **init_args)
