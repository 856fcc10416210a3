"""One configuration for a whole run: files and overrides merged by OmegaConf, types checked by jsonargparse."""

from __future__ import annotations

import copy
import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cepdiff.components import Component, check_spec, class_path_of, import_class
from cepdiff.data.blocks import StageDataModule
from cepdiff.errors import CepdiffError, ConfigError
from cepdiff.ranges import check_settings
from cepdiff.runs.classes import class_arguments, component_class, parameters_of, refuse_other, supply
from cepdiff.runs.logs import KEY, LabBook, logger_of
from cepdiff.runs.merging import forget_replaced, lifted, spelled_out
from cepdiff.runs.messages import (
    readable,
    refuse_null,
    refuse_quoted,
    refuse_reserved,
    refuse_unholdable,
    refuse_unknown,
    refuse_unknown_nested,
)
from cepdiff.runs.problem import Problem
from cepdiff.runs.processes import TrainerSettings
from cepdiff.runs.recipes import read_layer, unresolved

DEFAULT_DATA = "cepdiff.data.rl.datamodule.OfflineDataModule"
LOGGER = KEY.rpartition(".")[2]  # of the trainer, but no argument of Lightning's Trainer: each stage has its own


@dataclass(frozen=True)
class Config:
    """A checked configuration.

    `values` is plain and complete: every default filled in, every component as `class_path` and `init_args`; it is
    what `--print_config` shows and the run folder keeps. `components` and `settings` are the problem's sections, ready
    to use. `given` is what was checked.
    """

    given: dict[str, Any]
    values: dict[str, Any]
    problem: type[Problem]
    components: dict[str, Component[Any]]
    settings: dict[str, Any]
    trainer: TrainerSettings
    logger: Component[Any]
    callbacks: list[Callback]
    seed: int
    run_dir: str | None

    @property
    def sections(self) -> dict[str, Any]:
        """The arguments of the problem's constructor after the run and the data."""
        return {key: value for key, value in {**self.components, **self.settings}.items() if key != "data"}

    def supplied(self, arguments: Mapping[str, Mapping[str, Any]]) -> Config:
        """This configuration with arguments of components' networks that are known by now, see `check_config`."""
        return check_config(self.given, arguments) if arguments else self

    def to_yaml(self, loaded: bool = True) -> str:
        """The complete configuration, which `load_config` can read; unless `loaded`, without values from the data."""
        values = copy.deepcopy(self.values)
        for key, names in () if loaded else self.problem.from_data.items():
            own = (self.given.get(key) or {}).get("net") or {}
            net = values[key]["init_args"]["net"]["init_args"]
            for name in names:
                if name not in own:
                    net.pop(name, None)
        return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def load_config(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """Merge YAML files or recipes in order, then dotted `overrides` ("critic.discount=0.97"); resolve and check all.

    Raises:
        ConfigError: a missing or unreadable file, an unknown key (with the nearest names), a value of a wrong type, a
            class that cannot be used.
    """
    layers = [read_layer(name) for name in files]
    named = []
    for override in overrides:
        try:
            named.append(OmegaConf.from_dotlist([override]))
        except (OmegaConfBaseException, ValueError, yaml.YAMLError, RecursionError) as error:
            key, _, value = override.partition("=")
            raise ConfigError(f"{key[:100]}: the value '{value[:100]}' is not valid YAML") from error
    return merge_config(layers, named)


def merge_config(layers: Sequence[Any], overrides: Sequence[Any] = ()) -> Config:
    """`load_config` for layers in memory (mappings); the order of `overrides` makes no difference."""
    try:
        layers = [layer if OmegaConf.is_dict(layer) else OmegaConf.create(layer) for layer in layers]
        for key in sorted(key for layer in overrides for key in OmegaConf.missing_keys(layer)):
            raise ConfigError(f"{key} is ???; expected a value")
        problem = problem_of(OmegaConf.merge({}, *(spelled_out(layer, ["data"]) for layer in (*layers, *overrides))))
        components, _ = sections_of(problem)
        sections, nested = [*components, "trainer"], {**problem.nested, "trainer": [LOGGER]}

        def read(layer: Any) -> Any:
            return lifted(spelled_out(layer, components), sections, nested)

        merged: Any = OmegaConf.create()
        for layer in (*map(read, layers), OmegaConf.merge({}, *map(read, overrides))):
            forget_replaced(merged, layer)
            merged = OmegaConf.merge(merged, layer)
        tree = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except RecursionError as error:
        raise ConfigError("the configuration is nested too deeply, or a part of it contains itself") from error
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(unresolved(error)) from error
    assert isinstance(tree, dict)
    return check_config({str(key): value for key, value in tree.items()})


def problem_of(tree: Any) -> type[Problem]:
    """The problem that a configuration names, or the one its data module is for."""
    abstract: Any = Problem
    if isinstance(name := OmegaConf.select(tree, "problem"), str):
        return import_class(name, abstract, "problem")
    if name is not None:
        raise ConfigError(f"problem is {name!r}; expected package.module.Class")
    section = OmegaConf.select(tree, "data")
    path = section.get("class_path") if OmegaConf.is_dict(section) else None
    base: Any = StageDataModule
    data = import_class(str(path or DEFAULT_DATA), base, "data")
    if data.problem is None:
        raise ConfigError(f"{path} does not say which problem it is for: name one under 'problem'")
    return import_class(data.problem, abstract, "problem")


def sections_of(
    problem: type[Problem],
) -> tuple[dict[str, tuple[type, Component[Any]]], dict[str, inspect.Parameter]]:
    """(section -> (base class, default); section -> parameter of its settings), by the problem's constructor.

    A constructor with `**sections` has those of its base class too. The annotations of the parameters are resolved.
    """
    components: dict[str, tuple[type, Component[Any]]] = {}
    settings: dict[str, inspect.Parameter] = {}
    constructors = [cls.__init__ for cls in problem.__mro__ if "__init__" in vars(cls) and issubclass(cls, Problem)]
    complete = (
        not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(c).parameters.values()) for c in constructors
    )
    last = next((index for index, found in enumerate(complete) if found), len(constructors) - 1)
    for constructor in reversed(constructors[: last + 1]):
        hints = typing.get_type_hints(constructor)
        for name, parameter in inspect.signature(constructor).parameters.items():
            hint = hints.get(name)
            if name in ("self", "run") or parameter.kind is parameter.VAR_KEYWORD:
                continue
            if name == "data":
                if inspect.isclass(hint) and issubclass(hint, StageDataModule):
                    components[name] = (hint, Component(hint))
                components.setdefault(name, (StageDataModule, Component(StageDataModule)))
            elif typing.get_origin(hint) is Component:
                base = typing.get_args(hint)[0]
                default = parameter.default
                components[name] = (base, default if isinstance(default, Component) else Component(base))
            else:
                settings[name] = parameter.replace(annotation=hint)
    return components, settings


def check_config(tree: dict[str, Any], supplied: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """Check types and classes of a plain merged configuration.

    `supplied` are arguments of a component's `net` that are known by now (channels of the data's images), used if the
    network's class has them. Raises ConfigError if the configuration has other values.
    """
    problem = problem_of(OmegaConf.create({key: tree[key] for key in ("problem", "data") if key in tree}))
    components, parameters = sections_of(problem)
    whole, trainer = tree, tree.get("trainer")
    logger = logger_of({"class_path": class_path_of(LabBook)})
    if isinstance(trainer, Mapping) and LOGGER in trainer:
        logger = logger_of(trainer[LOGGER])
        tree = {**tree, "trainer": {key: value for key, value in trainer.items() if key != LOGGER}}
    settings = {**{key: parameter.annotation for key, parameter in parameters.items()}, "trainer": TrainerSettings}
    refuse_unknown(tree, ["problem", "seed", "run_dir", *components, *settings, "callbacks"], "")
    classes = {key: component_class(key, tree.get(key), base, known.cls) for key, (base, known) in components.items()}
    refuse_reserved([*components, *settings], "")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run_dir", type=str | None, default=None)
    for key, cls in classes.items():
        base, default = components[key]
        skipped = set(getattr(base, "supplied", ())) | set(getattr(cls, "supplied", ()))
        refuse_reserved(set(parameters_of(cls, key)) - skipped, f"{key}.")
        try:
            parser.add_class_arguments(cls, key, skip=skipped, instantiate=False)
        except ValueError as error:
            raise ConfigError(f"{key}: {readable(error)}") from error
        if cls is default.cls:
            parser.set_defaults({f"{key}.{name}": value for name, value in default.arguments.items()})
    for key, kind in settings.items():
        if is_dataclass(kind):
            parser.add_class_arguments(kind, key)
            if key in parameters and is_dataclass(given := parameters[key].default) and not isinstance(given, type):
                parser.set_defaults(dict(leaves(asdict(given), key)))
        else:
            parser.add_argument(f"--{key}", type=kind, default=parameters[key].default)
    parser.add_argument("--callbacks", type=list[Callback], default=[])
    defaults = {**{key: {} for key in components}, **plain(parser.get_defaults())}  # a class may have no options
    groups = [*components, *(key for key, kind in settings.items() if is_dataclass(kind))]
    given = sections_given(tree, defaults, problem.nested, list(components), groups)
    known = {key: supply(given[key]["net"], arguments) for key, arguments in (supplied or {}).items()}
    for key in components:
        for name, value in (given.get(key) or {}).items():
            if isinstance(value, Mapping) and "class_path" in value and isinstance(defaults[key].get(name), Mapping):
                # Another class than the default must not inherit the default's arguments.
                parser.set_defaults({f"{key}.{name}": {"class_path": value["class_path"]}})
    written = copy.deepcopy(given)  # the parser converts lists in place
    try:
        parsed = parser.parse_object(given)
        built = parser.instantiate(parsed) if hasattr(parser, "instantiate") else parser.instantiate_classes(parsed)
    except CepdiffError:
        raise
    except Exception as error:  # jsonargparse raises many kinds; all of them are about the user's values
        raise ConfigError(readable(error)) from error
    values = {"problem": class_path_of(problem), **plain(parsed)}
    values["trainer"][LOGGER] = logger.spec
    for key, cls in classes.items():
        values[key] = {"class_path": class_path_of(cls), "init_args": values.get(key) or {}}
    for key, arguments in known.items():
        refuse_other(values[key]["init_args"]["net"]["init_args"], arguments, f"{key}.net")
    found = {key: built[key] for key in settings}
    refuse_quoted(written, plain(parsed), "")
    if built.run_dir is not None and not built.run_dir.strip():
        raise ConfigError("run_dir is empty; leave it out for the default")
    refuse_unholdable(values, "")
    for key, value in found.items():
        check_settings(value, key)
    for key in components:
        check_spec(values[key], key)
    if any(isinstance(callback, EarlyStopping) for callback in built.callbacks):
        raise ConfigError("callbacks: EarlyStopping acts at the end of an epoch, but a stage is one: set max_steps")
    problem.check(found)
    arguments_of = {key: dict(vars(built.get(key) or SimpleNamespace())) for key in components}
    return Config(
        given=copy.deepcopy(whole),
        values=values,
        problem=problem,
        components={key: Component(cls, arguments_of[key], values[key]) for key, cls in classes.items()},
        settings={key: value for key, value in found.items() if key != "trainer"},
        trainer=found["trainer"],
        logger=logger,
        callbacks=list(built.callbacks),
        seed=built.seed,
        run_dir=built.run_dir,
    )


def sections_given(
    tree: Mapping[str, Any],
    defaults: Mapping[str, Any],
    nested: Mapping[str, Mapping[str, Any]],
    components: Sequence[str],
    groups: Sequence[str],
) -> dict[str, Any]:
    """The configuration as jsonargparse reads it, completed by the `nested` classes that it leaves out.

    `groups` are the sections that are mappings of options: `components`, and groups of settings. Raises ConfigError for
    unknown keys, a null without meaning, and missing data.
    """
    given = {key: value for key, value in tree.items() if key != "problem"}
    for key, value in given.items():
        default = defaults[key]
        if key in components:
            value = given[key] = class_arguments(value, {**default, **nested.get(key, {})}, key)
        if key in groups:
            if isinstance(value, Mapping):
                refuse_unknown_nested(value, default, key)
                refuse_null(value, default, key)
            elif value is not None:
                raise ConfigError(f"{key} is {value!r}; expected a mapping of options")
    given = {key: value for key, value in given.items() if value is not None and (value or key not in components)}
    if "dataset" in defaults["data"] and not (given.get("data", {}).get("dataset") or defaults["data"]["dataset"]):
        raise ConfigError("data.dataset is missing: name a D4RL task or a file, e.g. --data.dataset hopper-medium-v2")
    for key, classes in nested.items():
        for name, default in classes.items():
            if name in defaults[key] and not given.get(key, {}).get(name):
                given.setdefault(key, {})[name] = copy.deepcopy(default)
    return given


def leaves(tree: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all values in nested mappings."""
    for name, value in tree.items():
        key = f"{where}.{name}" if where else str(name)
        yield from leaves(value, key) if isinstance(value, Mapping) else [(key, value)]


def named(values: Mapping[str, Any]) -> dict[str, Any]:
    """All values by dotted key, as on the command line: a class by its section, and its arguments below."""
    return {key.replace(".init_args", "").removesuffix(".class_path"): value for key, value in leaves(values)}


def plain(value: Any) -> Any:
    """Namespaces and dataclasses as dicts, tuples as lists: what YAML and JSON hold."""
    if isinstance(value, Namespace):
        return {key: plain(item) for key, item in vars(value).items()}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
