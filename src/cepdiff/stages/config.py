"""One configuration for a whole run: files and overrides merged by OmegaConf, types checked by jsonargparse."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cepdiff.components import class_path_of, import_class
from cepdiff.errors import CepdiffError, ConfigError
from cepdiff.modules.base import StageModule
from cepdiff.stages.layers import forget_replaced, lifted
from cepdiff.stages.messages import (
    one_line,
    readable,
    refuse_null,
    refuse_unknown,
    refuse_unknown_nested,
    unresolved,
)
from cepdiff.stages.settings import (
    OFFLINE,
    DensityStages,
    EvaluationSettings,
    ImageEvaluationSettings,
    ImageStages,
    Layout,
    SampleSettings,
    StagesSettings,
    TrainerSettings,
    layout_of,
)


@dataclass(frozen=True)
class Config:
    """A checked configuration.

    `values` is plain and complete: every default filled in, every component as `class_path` and `init_args`; it is
    what `--print_config` shows and the run folder keeps. `classes` and `arguments` are those of the components,
    nested classes instantiated or, where a constructor asks for a factory, made into one. `given` is what was checked.
    """

    given: dict[str, Any]
    values: dict[str, Any]
    classes: dict[str, type]
    arguments: dict[str, dict[str, Any]]
    stages: StagesSettings | DensityStages | ImageStages
    evaluation: EvaluationSettings | SampleSettings | ImageEvaluationSettings
    trainer: TrainerSettings
    callbacks: list[Callback]
    seed: int
    run_dir: str | None

    def build(self, key: str, **supplied: Any) -> Any:
        """The component of section `key`, with what the runner supplies."""
        return self.classes[key](**supplied, **self.arguments[key])

    def module(self, key: str, sizes: tuple[int, int], **supplied: Any) -> StageModule:
        """The LightningModule of a stage for (observation size, action size)."""
        module: StageModule = self.classes[key](*sizes, **supplied, **self.arguments[key])
        return module

    def supplied(self, arguments: Mapping[str, Mapping[str, Any]]) -> Config:
        """This configuration with arguments of components' networks that are known by now, see `check_config`."""
        return check_config(self.given, arguments)

    def to_yaml(self) -> str:
        """The complete configuration; `load_config` reads it back to the same."""
        return str(yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True))


def load_config(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """Merges YAML files in order, then dotted `overrides` ("critic.discount=0.97"), resolves `${...}` and checks all.

    Raises:
        ConfigError: a missing or unreadable file, an unknown key (with the nearest names), a value of a wrong type, a
            class that cannot be used.
    """
    trees = []
    for name in files:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"there is no configuration file {path}")
        folder = str(path.parent.resolve())
        if folder not in sys.path:  # classes in a file beside the configuration
            sys.path.insert(0, folder)
        try:
            layer = OmegaConf.load(path)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{path}: {unresolved(error)}") from error
        except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no readable YAML: {one_line(error)}") from error
        if not OmegaConf.is_dict(layer):
            raise ConfigError(f"{path} holds a list; expected a mapping of sections")
        trees.append(layer)
    named = []
    for override in overrides:
        try:
            named.append(lifted(OmegaConf.from_dotlist([override]), OFFLINE.components, OFFLINE.nested))
        except (OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
            key, _, value = override.partition("=")
            raise ConfigError(f"{key}: the value '{value}' is no readable YAML") from error
    try:
        merged: Any = OmegaConf.create()
        layers = [lifted(tree, OFFLINE.components, OFFLINE.nested) for tree in trees]
        for layer in (*layers, OmegaConf.merge({}, *named)):  # overrides are one layer: their order makes no difference
            forget_replaced(merged, layer)
            merged = OmegaConf.merge(merged, layer)
        tree = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(unresolved(error)) from error
    assert isinstance(tree, dict)
    return check_config({str(key): value for key, value in tree.items()})


def check_config(tree: dict[str, Any], supplied: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """Types and classes of a plain merged configuration.

    `supplied` are arguments of a component's `net` that are known by now (channels of the data's images): those that
    the network's class has. Raises ConfigError where the configuration says otherwise.
    """
    layout = layout_of(component_class("data", tree.get("data"), OFFLINE))
    components, settings = layout.components, layout.settings
    refuse_unknown(tree, ["seed", "run_dir", *components, *settings, "callbacks"], "")
    classes = {key: component_class(key, tree.get(key), layout) for key in components}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run_dir", type=str | None, default=None)
    for key, cls in classes.items():
        parser.add_class_arguments(cls, key, skip=components[key][2], instantiate=False)
    for key, cls in settings.items():
        parser.add_class_arguments(cls, key)
    parser.add_argument("--callbacks", type=list[Callback], default=[])
    defaults = plain(parser.get_defaults())
    flat = {
        key: flatten(tree[key], {**defaults.get(key, {}), **layout.nested.get(key, {})}, key)
        if key in components
        else tree[key]
        for key in tree
    }
    for key in (*components, *settings):
        if isinstance(flat.get(key), Mapping):
            refuse_unknown_nested(flat[key], defaults[key], key)
            refuse_null(flat[key], defaults[key], key)
        elif key in flat and flat[key] is not None:
            raise ConfigError(f"{key} is {flat[key]!r}; expected a mapping of options")
    flat = {key: value for key, value in flat.items() if value is not None}
    if "dataset" in defaults["data"] and not flat.get("data", {}).get("dataset"):
        raise ConfigError("data.dataset is missing: name a D4RL task or a file, e.g. --data.dataset hopper-medium-v2")
    for key, nested in layout.nested.items():
        for name, default in nested.items():
            if name in defaults[key] and not flat.get(key, {}).get(name):
                flat.setdefault(key, {})[name] = default
    known = {key: supply(flat[key]["net"], arguments) for key, arguments in (supplied or {}).items()}
    for key in components:
        for name, value in (flat.get(key) or {}).items():
            if isinstance(value, Mapping) and "class_path" in value and isinstance(defaults[key].get(name), Mapping):
                # Another class than the default must not inherit the default's arguments.
                parser.set_defaults({f"{key}.{name}": {"class_path": value["class_path"]}})
    try:
        parsed = parser.parse_object(flat)
        built = parser.instantiate(parsed) if hasattr(parser, "instantiate") else parser.instantiate_classes(parsed)
    except CepdiffError:
        raise
    except Exception as error:  # jsonargparse raises many kinds; all of them speak of the user's values
        raise ConfigError(readable(error)) from error
    values = plain(parsed)
    for key, cls in classes.items():
        values[key] = {"class_path": class_path_of(cls), "init_args": values[key]}
    for key, arguments in known.items():
        refuse_other(values[key]["init_args"]["net"]["init_args"], arguments, f"{key}.net")
    layout.check(built)
    return Config(
        given=copy.deepcopy(tree),
        values=values,
        classes=classes,
        arguments={key: dict(vars(built[key])) for key in components},
        **{key: built[key] for key in settings},
        callbacks=list(built.callbacks),
        seed=built.seed,
        run_dir=built.run_dir,
    )


def component_class(key: str, section: Any, layout: Layout) -> type:
    """The class that a section names, or its default."""
    base, default, _ = layout.components[key]
    if isinstance(section, Mapping) and "class_path" in section:
        return import_class(str(section["class_path"]), base, key)
    return default


def flatten(section: Any, nested: dict[str, Any], key: str) -> Any:
    """A component's section as its plain arguments, whichever way it was written.

    `{discount: 0.97}`, `{class_path: C, discount: 0.97}` and `{class_path: C, init_args: {discount: 0.97}}` are the
    same; a flat key (as an override makes it) wins over `init_args`. An argument that is itself a class may be written
    without `class_path` where its default is known, and a sibling of the default by its bare name (`objective: MSE`).
    """
    if not isinstance(section, Mapping):
        return section
    init_args = section.get("init_args") or {}
    if not isinstance(init_args, Mapping):
        raise ConfigError(f"{key}: its arguments are {init_args!r}; expected a mapping of options")
    arguments = {**init_args}
    arguments |= {name: value for name, value in section.items() if name not in ("class_path", "init_args")}
    for name, value in arguments.items():
        default = nested.get(name)
        known = default if isinstance(default, Mapping) and "class_path" in default else {}
        if known and isinstance(value, str):
            value = {"class_path": value}
        if known and value is not None and not isinstance(value, (Mapping, str)):
            raise ConfigError(f"{key}.{name} is {value!r}; expected a class_path and its options")
        if isinstance(value, Mapping) and ("class_path" in value or known):
            rest = {k: v for k, v in value.items() if k not in ("class_path", "init_args")}
            class_path = str(value.get("class_path", known.get("class_path")))
            if known and "." not in class_path:  # a sibling of the default, by its bare name
                class_path = f"{known['class_path'].rpartition('.')[0]}.{class_path}"
            init_args = {**(value.get("init_args") or {}), **rest}
            parameters = inspect.signature(import_class(class_path, object, f"{key}.{name}")).parameters
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                refuse_unknown(init_args, list(parameters), f"{key}.{name}.")
            arguments[name] = {"class_path": class_path, "init_args": init_args}
    return arguments


def supply(net: dict[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Adds to a network's `init_args` what its class takes of `arguments`, unless it stands there; returns these."""
    parameters = inspect.signature(import_class(str(net["class_path"]), object, "net")).parameters
    taken = {name: value for name, value in arguments.items() if name in parameters}
    net["init_args"] = {**taken, **(net.get("init_args") or {})}
    return taken


def refuse_other(found: Mapping[str, Any], supplied: Mapping[str, Any], where: str) -> None:
    """ConfigError for an argument that the configuration gives another value than this run has."""
    for name, value in supplied.items():
        if found[name] != value:
            raise ConfigError(f"{where}.{name} is {found[name]}, but here it is {value}: leave it out, it is supplied")


def plain(value: Any) -> Any:
    """Namespaces and dataclasses as dicts, tuples as lists: what YAML and JSON hold."""
    if isinstance(value, Namespace):
        return {key: plain(item) for key, item in vars(value).items()}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
