"""One configuration for a whole run: files and overrides merged by OmegaConf, types checked by jsonargparse."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, LightningDataModule
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cepdiff.components import class_path_of, import_class
from cepdiff.data.datamodule import OfflineDataModule
from cepdiff.diffusion.schedule import LinearVP, NoiseSchedule
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.objectives import CEP
from cepdiff.errors import CepdiffError, ConfigError
from cepdiff.modules.base import StageModule
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.guidance import EnergyGuidance
from cepdiff.stages.layers import forget_replaced, lifted
from cepdiff.stages.messages import (
    one_line,
    readable,
    refuse_null,
    refuse_unknown,
    refuse_unknown_nested,
    unresolved,
)


@dataclass
class StageSettings:
    """Length of a trained stage.

    Args:
        max_steps: optimiser steps.
        checkpoint_every: steps between writes of `last.ckpt`.
    """

    max_steps: int
    checkpoint_every: int = 5000


@dataclass
class SupportSettings:
    """Drawing of support actions.

    Args:
        num_actions: K; null is the task's own number (16, AntMaze 32).
        max_rows: about how many rows to draw for, in whole episodes; null draws for all.
        chunk_size: states drawn at a time.
    """

    num_actions: int | None = None
    max_rows: int | None = None
    chunk_size: int = 4096


@dataclass
class StagesSettings:
    """The stages in their order, with the recipe's lengths."""

    behavior: StageSettings = field(default_factory=lambda: StageSettings(600_000))
    support: SupportSettings = field(default_factory=SupportSettings)
    critic: StageSettings = field(default_factory=lambda: StageSettings(500_000))
    guidance: StageSettings = field(default_factory=lambda: StageSettings(1_000_000))


@dataclass
class EvaluationSettings:
    """Rollouts in the environment.

    Args:
        scales: guidance scales; null is the task's own list.
        episodes: a scale; null is the task's own number, 0 never opens an environment.
        every_n_steps: also evaluate during the behavior and guidance stages, every so many steps; null only at the end.
        seed: of the episodes' starts and noise; null is the run's seed.
        max_envs: environments stepped side by side on a process.
    """

    scales: list[float] | None = None
    episodes: int | None = None
    every_n_steps: int | None = None
    seed: int | None = None
    max_envs: int = 128


@dataclass
class TrainerSettings:
    """What is passed to Lightning's Trainer, the same in every stage.

    Args:
        accelerator: "auto", "cpu", "gpu", ...
        devices: how many processes (GPUs) a node.
        num_nodes: machines.
        strategy: "auto", "ddp", ...
        precision: Lightning's, e.g. "32-true" or "bf16-mixed".
        matmul_precision: torch's float32 matrix products: "highest", "high" (TF32 on GPUs) or "medium".
        num_threads: CPU threads a process; null leaves torch's choice.
        deterministic: refuse operations that have no deterministic form.
        profiler: "simple", "advanced" or null.
        progress_bar: show progress bars.
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    matmul_precision: str = "highest"
    num_threads: int | None = None
    deterministic: bool = False
    profiler: str | None = None
    progress_bar: bool = True


# Sections that name a class: key -> (base, default class, arguments that the runner supplies).
COMPONENTS: dict[str, tuple[type, type, set[str]]] = {
    "data": (LightningDataModule, OfflineDataModule, {"seed"}),
    "schedule": (NoiseSchedule, LinearVP, set()),
    "behavior": (BehaviorDiffusion, BehaviorDiffusion, {"observation_size", "action_size", "schedule"}),
    "critic": (SoftmaxQCritic, SoftmaxQCritic, {"observation_size", "action_size"}),
    "guidance": (EnergyGuidance, EnergyGuidance, {"observation_size", "action_size", "schedule"}),
    "solver": (DPMSolver, DPMSolver, set()),
}
SETTINGS: dict[str, type] = {
    "stages": StagesSettings,
    "evaluation": EvaluationSettings,
    "trainer": TrainerSettings,
}
# Arguments that stand for a class although their signature's default is None.
NESTED_DEFAULTS = {"guidance": {"objective": {"class_path": class_path_of(CEP)}}}


@dataclass(frozen=True)
class Config:
    """A checked configuration.

    `values` is plain and complete: every default filled in, every component as `class_path` and `init_args`; it is
    what `--print_config` shows and the run folder keeps. `classes` and `arguments` are those of the components,
    nested classes instantiated or, where a constructor asks for a factory, made into one.
    """

    values: dict[str, Any]
    classes: dict[str, type]
    arguments: dict[str, dict[str, Any]]
    stages: StagesSettings
    evaluation: EvaluationSettings
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
    for override in overrides:
        try:
            trees.append(OmegaConf.from_dotlist([override]))
        except (OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
            key, _, value = override.partition("=")
            raise ConfigError(f"{key}: the value '{value}' is no readable YAML") from error
    try:
        merged: Any = OmegaConf.create()
        for layer in (lifted(tree, COMPONENTS) for tree in trees):
            forget_replaced(merged, layer)
            merged = OmegaConf.merge(merged, layer)
        tree = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(unresolved(error)) from error
    assert isinstance(tree, dict)
    return check_config({str(key): value for key, value in tree.items()})


def check_config(tree: dict[str, Any]) -> Config:
    """Types and classes of a plain merged configuration."""
    known = ["seed", "run_dir", *COMPONENTS, *SETTINGS, "callbacks"]
    refuse_unknown(tree, known, "")
    classes = {key: component_class(key, tree.get(key)) for key in COMPONENTS}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run_dir", type=str | None, default=None)
    for key, cls in classes.items():
        parser.add_class_arguments(cls, key, skip=COMPONENTS[key][2], instantiate=False)
    for key, cls in SETTINGS.items():
        parser.add_class_arguments(cls, key)
    parser.add_argument("--callbacks", type=list[Callback], default=[])
    defaults = plain(parser.get_defaults())
    flat = {key: flatten(tree[key], defaults, key) if key in COMPONENTS else tree[key] for key in tree}
    for key in (*COMPONENTS, *SETTINGS):
        if isinstance(flat.get(key), Mapping):
            refuse_unknown_nested(flat[key], defaults[key], key)
            refuse_null(flat[key], defaults[key], key)
        elif key in flat and flat[key] is not None:
            raise ConfigError(f"{key} is {flat[key]!r}; expected a mapping of options")
    flat = {key: value for key, value in flat.items() if value is not None}
    if "dataset" in defaults["data"] and not flat.get("data", {}).get("dataset"):
        raise ConfigError("data.dataset is missing: name a D4RL task or a file, e.g. --data.dataset hopper-medium-v2")
    for key, nested in NESTED_DEFAULTS.items():
        for name, default in nested.items():
            if name in defaults[key] and not flat.get(key, {}).get(name):
                flat.setdefault(key, {})[name] = default
    for key in COMPONENTS:
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
    check_settings(built)
    return Config(
        values=values,
        classes=classes,
        arguments={key: dict(vars(built[key])) for key in COMPONENTS},
        **{key: built[key] for key in SETTINGS},
        callbacks=list(built.callbacks),
        seed=built.seed,
        run_dir=built.run_dir,
    )


def component_class(key: str, section: Any) -> type:
    """The class that a section names, or its default."""
    base, default, _ = COMPONENTS[key]
    if isinstance(section, Mapping) and "class_path" in section:
        return import_class(str(section["class_path"]), base, key)
    return default


def flatten(section: Any, defaults: dict[str, Any], key: str) -> Any:
    """A component's section as its plain arguments, whichever way it was written.

    `{discount: 0.97}`, `{class_path: C, discount: 0.97}` and `{class_path: C, init_args: {discount: 0.97}}` are the
    same; a flat key (as an override makes it) wins over `init_args`. An argument that is itself a class may be written
    without `class_path` where its default is known.
    """
    if not isinstance(section, Mapping):
        return section
    init_args = section.get("init_args") or {}
    if not isinstance(init_args, Mapping):
        raise ConfigError(f"{key}: its arguments are {init_args!r}; expected a mapping of options")
    arguments = {**init_args}
    arguments |= {name: value for name, value in section.items() if name not in ("class_path", "init_args")}
    nested = {**defaults.get(key, {}), **NESTED_DEFAULTS.get(key, {})}
    for name, value in arguments.items():
        default = nested.get(name)
        known = default if isinstance(default, Mapping) and "class_path" in default else {}
        if known and value is not None and not isinstance(value, (Mapping, str)):
            raise ConfigError(f"{key}.{name} is {value!r}; expected a class_path and its options")
        if isinstance(value, Mapping) and ("class_path" in value or known):
            rest = {k: v for k, v in value.items() if k not in ("class_path", "init_args")}
            class_path = str(value.get("class_path", known.get("class_path")))
            init_args = {**(value.get("init_args") or {}), **rest}
            parameters = inspect.signature(import_class(class_path, object, f"{key}.{name}")).parameters
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                refuse_unknown(init_args, list(parameters), f"{key}.{name}.")
            arguments[name] = {"class_path": class_path, "init_args": init_args}
    return arguments


def check_settings(built: Namespace) -> None:
    """Ranges of the settings."""
    stages: StagesSettings = built.stages
    for name in ("behavior", "critic", "guidance"):
        settings: StageSettings = getattr(stages, name)
        for key in ("max_steps", "checkpoint_every"):
            if getattr(settings, key) < 1:
                raise ConfigError(f"stages.{name}.{key} is {getattr(settings, key)}; expected at least 1")
    positive = {
        "stages.support.num_actions": stages.support.num_actions,
        "stages.support.max_rows": stages.support.max_rows,
        "stages.support.chunk_size": stages.support.chunk_size,
        "evaluation.every_n_steps": built.evaluation.every_n_steps,
        "evaluation.max_envs": built.evaluation.max_envs,
        "trainer.devices": built.trainer.devices,
        "trainer.num_nodes": built.trainer.num_nodes,
        "trainer.num_threads": built.trainer.num_threads,
    }
    for key, value in positive.items():
        if value is not None and value < 1:
            raise ConfigError(f"{key} is {value}; expected at least 1")
    if built.trainer.matmul_precision not in ("highest", "high", "medium"):
        raise ConfigError(
            f"trainer.matmul_precision is '{built.trainer.matmul_precision}'; expected highest, high or medium"
        )
    if stages.support.num_actions == 1:
        raise ConfigError("stages.support.num_actions is 1; contrastive energies need at least 2 support actions")
    scales = built.evaluation.scales
    if scales is not None and (not scales or not all(0 <= scale < math.inf for scale in scales)):
        raise ConfigError(f"evaluation.scales is {scales}; expected one or more numbers of 0 or more")
    if built.evaluation.episodes is not None and built.evaluation.episodes < 0:
        raise ConfigError(f"evaluation.episodes is {built.evaluation.episodes}; expected 0 or more")


def plain(value: Any) -> Any:
    """Namespaces and dataclasses as dicts, tuples as lists: what YAML and JSON hold."""
    if isinstance(value, Namespace):
        return {key: plain(item) for key, item in vars(value).items()}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
