"""The file SWEEP.yaml: the recipe, the axes, what a run needs and where the runs are carried out."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from cepdiff.errors import ConfigError, nearest
from cepdiff.ranges import Count, NonNegative, Whole, check_arguments, check_settings
from cepdiff.runs.recipes import read_layer
from cepdiff.schema import typed
from cepdiff.sweeps.presets import PRESETS

ENGINES = ("local", "ray", "slurm")
GIVEN = ("run_dir", "trainer.progress_bar")  # keys that the sweep sets itself
Axes = dict[str, list[Any]]


@dataclass(frozen=True)
class Resources:
    """The share of a machine that each run gets.

    Args:
        cpus: cores, and threads of the run.
        gpus: GPUs; a fraction lets several runs share one, 0 hides them.
    """

    cpus: Count = 1
    gpus: NonNegative = 0.0


@dataclass(frozen=True)
class LocalSettings:
    """Processes on this machine.

    Args:
        slots: runs at a time; null is as many as its cores and GPUs allow.
    """

    slots: Count | None = None


@dataclass(frozen=True)
class RaySettings:
    """Tasks of a Ray cluster.

    Args:
        address: of the cluster ("auto", "HOST:PORT"); null starts one on this machine.
    """

    address: str | None = None


@dataclass(frozen=True)
class SlurmSettings:
    """Job arrays of SLURM, through submitit.

    Args:
        cluster: "slurm"; "local" and "debug" are submitit's stand-ins on this machine, for tests.
        max_jobs: jobs of an array that run at a time.
        timeout_min: time limit of a job in minutes; a run that meets it starts again, and goes on.
        partition: of the cluster; null is its default.
        parameters: others of submitit's `update_parameters`, e.g. {slurm_account: ...}.
    """

    cluster: Literal["slurm", "local", "debug"] = "slurm"
    max_jobs: Count = 100
    timeout_min: Count = 24 * 60
    partition: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchSettings:
    """Search by Optuna (a tree-structured Parzen estimator), in place of all combinations.

    Args:
        trials: settings to try.
        metric: of a run's results: "offline_value", "normalized_score", ...; its mean over the runs of a trial counts.
        direction: whether more of it is better, or less.
        scale: "best" takes the best guidance scale, in hindsight; "offline_choice" the one chosen without rollouts.
        at_a_time: trials that are chosen together, before the outcome of any of them is known.
        seed: of the choices.
    """

    trials: Count
    metric: str = "offline_value"
    direction: Literal["maximize", "minimize"] = "maximize"
    scale: Literal["best", "offline_choice"] = "best"
    at_a_time: Count = 4
    seed: Whole = 0


@dataclass(frozen=True)
class SweepSettings:
    """The content of SWEEP.yaml.

    Args:
        axes: dotted key -> values; all combinations are run. A list of such mappings runs one after the other. In place
            of the values may stand the name of a preset; "0..4" among them is 0, 1, 2, 3, 4.
        configs: the recipe's files, merged in order; their paths start from the folder of SWEEP.yaml. Recipes of the
            package by their names.
        folder: of the sweep; null is `sweeps/NAME`, by the name of the file.
        resources: share of a machine per run.
        engine: where the runs are carried out; its options are in the section of the same name.
        retries: how often a run whose process was killed starts again.
        local: options of the engine.
        ray: options of the engine.
        slurm: options of the engine.
        search: search the axes that are a range or choices.
    """

    axes: Any
    configs: Sequence[str] = ()
    folder: str | None = None
    resources: Resources = field(default_factory=Resources)
    engine: Literal["local", "ray", "slurm"] = "local"
    retries: Whole = 1
    local: LocalSettings = field(default_factory=LocalSettings)
    ray: RaySettings = field(default_factory=RaySettings)
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    search: SearchSettings | None = None


def read_sweep(path: Path) -> SweepSettings:
    """Read SWEEP.yaml. Raises ConfigError for a file, key or value that cannot be used."""
    layer = read_layer(path)
    try:
        values = OmegaConf.to_container(layer, resolve=False)
        settings = typed(SweepSettings, values)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}{_nearest_key(str(error))}") from error
    check_arguments(SweepSettings, vars(settings))
    for name in ("resources", "search", *ENGINES):
        check_settings(getattr(settings, name), name)
    if settings.resources.gpus > 1 and settings.resources.gpus % 1:
        raise ConfigError(
            f"resources.gpus is {settings.resources.gpus:g}; expected a fraction of one, or a whole number"
        )
    return settings


def products(axes: Any) -> list[Axes]:
    """The axes as one mapping per product: dotted key (without `init_args`) -> values.

    Raises ConfigError for two axes of one key, an axis without values, and a value that stands twice in an axis.
    """
    parts = axes if isinstance(axes, list) else [axes]
    if not parts or not all(isinstance(part, Mapping) and part for part in parts):
        raise ConfigError(f"axes is {str(axes)[:60]}; expected dotted keys with lists of values, e.g. seed: [0, 1, 2]")
    return [_product(part) for part in parts]


def combinations(axes: Axes) -> Iterator[dict[str, Any]]:
    """All combinations of values; the last axis changes fastest."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def override(key: str, value: Any) -> str:
    """A key and a plain value as an override of `cepdiff fit`."""
    return f"{key}={json.dumps(value)}"


def spelled(key: str) -> str:
    """A dotted key without `init_args`, so that there is one spelling."""
    return key.replace(".init_args", "")


def _product(part: Mapping[Any, Any]) -> Axes:
    found: Axes = {}
    for name, values in part.items():
        key = spelled(str(name))
        if key in GIVEN:
            raise ConfigError(f"axis {key}: the sweep sets it itself")
        for other in found:
            if key == other or key.startswith(f"{other}.") or other.startswith(f"{key}."):
                raise ConfigError(f"two axes set {max(key, other, key=len)}: {other} and {name}")
        found[key] = _values(key, values)
    return found


def _values(key: str, values: Any) -> list[Any]:
    if isinstance(values, str):
        if values not in PRESETS:
            raise ConfigError(
                f"axis {key}: there is no preset '{values}'.{nearest(values, PRESETS)} "
                f"Expected a list of values, or one of {', '.join(PRESETS)}"
            )
        values = PRESETS[values]
    if not isinstance(values, list) or not values:
        raise ConfigError(f"axis {key} is {str(values)[:60]}; expected a list of values")
    found = [item for value in values for item in _range(value)]
    texts = [json.dumps(value, sort_keys=True) for value in found]
    for index, text in enumerate(texts):
        if text in texts[:index]:
            raise ConfigError(f"axis {key} has the value {text} twice")
    return found


def _range(value: Any) -> list[Any]:
    """ "0..4" as 0, 1, 2, 3, 4; any other value by itself."""
    ends = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", value) if isinstance(value, str) else None
    if ends is None:
        return [value]
    found = list(range(int(ends[1]), int(ends[2]) + 1))
    if not 0 < len(found) <= 10_000:
        raise ConfigError(f"the range {value} has {len(found)} values; expected FIRST..LAST")
    return found


def _nearest_key(message: str) -> str:
    """The known keys closest to an unknown one."""
    if not message.endswith(" is unknown"):
        return ""
    known = [
        name
        for kind in (SweepSettings, Resources, LocalSettings, RaySettings, SlurmSettings, SearchSettings)
        for name in kind.__dataclass_fields__
    ]
    return "." + nearest(message.removesuffix(" is unknown").rpartition(".")[2], known).rstrip()
