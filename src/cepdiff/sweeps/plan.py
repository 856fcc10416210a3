"""The runs of a sweep, each with its complete configuration, and the stages that they take from each other."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cepdiff.errors import CepdiffError, ConfigError
from cepdiff.runs.config import Config, leaves, load_config
from cepdiff.runs.logs import KEY as LOGGER
from cepdiff.runs.problem import Problem
from cepdiff.runs.recipes import find, read_layer
from cepdiff.seals import content_hash
from cepdiff.sweeps.settings import Axes, SweepSettings, combinations, override, products, spelled

LONGEST = 150  # characters of a label; its run's log has a suffix
APART = ("run_dir", "trainer.progress_bar", "trainer.num_threads")  # keys in which the same run may differ


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep.

    Args:
        label: its folder's name: the values of all axes.
        settings: dotted key -> value, for all axes.
        arguments: of `cepdiff fit`, without `--run_dir` and `--reuse`.
        values: the complete configuration, `comparable`.
        apart: keys that are not compared: they are known once the data are loaded.
        stages: its stages that other runs can take over, each with a hash of all that it and the ones before are made
            from, as far as the configuration says.
    """

    label: str
    settings: Mapping[str, Any]
    arguments: Sequence[str]
    values: Mapping[str, Any]
    apart: frozenset[str]
    stages: Mapping[str, str]


@dataclass(frozen=True)
class Source:
    """Where a run takes stages from.

    Args:
        label: of the other run.
        stage: the last stage that both have in common; the run can start when the other has finished it.
        depth: number of stages that both have in common.
    """

    label: str
    stage: str
    depth: int


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep.

    Args:
        recipe: the merged files and overrides, before the axes.
        axes: dotted key -> all its values.
        runs: in the order of the axes.
    """

    recipe: Mapping[str, Any]
    axes: Axes
    runs: Sequence[PlannedRun]


def make_plan(
    sweep: SweepSettings,
    folder: Path,
    overrides: Sequence[str] = (),
    chosen: Sequence[Mapping[str, Any]] | None = None,
    checked: dict[str, Checked] | None = None,
) -> Plan:
    """Check the configuration of every run.

    Args:
        sweep: the content of SWEEP.yaml.
        folder: where its paths start from.
        overrides: "key=value", for all runs.
        chosen: settings of each run, in place of all combinations of the axes.
        checked: configurations that were checked before, to which new ones are added.

    Raises:
        ConfigError: a configuration that `cepdiff fit` would refuse, two axes of one key, two runs that are the same.
    """
    files = [find(name, folder).absolute() for name in sweep.configs]
    layers = [*map(read_layer, files), *map(dotted, overrides)]
    recipe: Any = OmegaConf.to_container(OmegaConf.merge({}, *layers), resolve=False)
    if chosen is None:
        chosen = [found for part in products(sweep.axes) for found in combinations(part)]
    axes: Axes = {}
    for settings in chosen:
        for key, value in settings.items():
            if value not in (values := axes.setdefault(key, [])):
                values.append(value)
    for text in overrides:
        if (key := spelled(text.partition("=")[0])) in axes:
            raise ConfigError(f"--{key} is an axis of the sweep; change its values there")
    names = short_names(list(axes))
    own_seed = "${" not in json.dumps([recipe, axes], default=str)  # no other key may follow from it
    checked = {} if checked is None else checked  # by all settings but the seed
    runs: dict[str, PlannedRun] = {}
    same: dict[str, str] = {}
    for settings in chosen:
        label, seed = label_of(settings, names), settings.get("seed")
        known = content_hash({**settings, "seed": None if own_seed and type(seed) is int else [seed]})
        if known not in checked:
            changes = [*overrides, *(override(key, value) for key, value in settings.items())]
            checked[known] = check(label, files, changes, sweep.resources.cpus)
        run = checked[known].run(label, settings, [f"--config={file}" for file in files], overrides)
        content = content_hash(run.values)
        if content in same:
            raise ConfigError(f"axes: the runs {same[content]} and {label} are the same")
        same[content] = label
        runs[label] = run
    return Plan(recipe, axes, list(runs.values()))


@dataclass(frozen=True)
class Checked:
    """A configuration that can be run.

    Args:
        config: the configuration.
        more: overrides that the sweep adds.
    """

    config: Config
    more: Sequence[str]

    def run(
        self, label: str, settings: Mapping[str, Any], files: Sequence[str], overrides: Sequence[str]
    ) -> PlannedRun:
        """A run with this configuration, at the seed among its settings."""
        problem = self.config.problem
        loaded = frozenset(f"{section}.net.{name}" for section, names in problem.from_data.items() for name in names)
        values = comparable({**self.config.values, "seed": settings.get("seed", self.config.seed)}, loaded)
        changes = [*overrides, *(override(key, value) for key, value in settings.items()), *self.more]
        arguments = [*files, *(f"--{change}" for change in changes)]
        return PlannedRun(label, dict(settings), arguments, values, loaded, stage_hashes(values, problem))


def check(label: str, files: Sequence[Path], changes: Sequence[str], cpus: int) -> Checked:
    """Check a configuration; `changes` are its overrides. Raises ConfigError, which names the run."""
    more = ["trainer.progress_bar=false"]
    try:
        config = load_config(files, [*changes, *more])
    except CepdiffError as error:
        raise ConfigError(f"run {label}: {error}") from error
    if config.trainer.num_threads is None:  # one thread too many, and the runs of a machine fight for its cores
        more.append(f"trainer.num_threads={max(1, cpus // config.trainer.devices)}")
    return Checked(config, more)


def dotted(text: str) -> Any:
    """An override as a layer; `load_config` checks it later."""
    try:
        return OmegaConf.from_dotlist([text])
    except Exception as error:  # of several libraries; all are about the value
        raise ConfigError(f"--{text[:100]} is not valid YAML") from error


def comparable(values: Mapping[str, Any], apart: Collection[str]) -> dict[str, Any]:
    """Dotted key -> value of a complete configuration, without the keys in which the same run may differ."""
    plain = {spelled(key): value for key, value in leaves(json.loads(json.dumps(values, default=str)))}
    return {
        key: value
        for key, value in plain.items()
        if key not in apart and key not in APART and not key.startswith(LOGGER)
    }


def stage_hashes(values: Mapping[str, Any], problem: type[Problem]) -> dict[str, str]:
    """Stage -> hash of all keys that it or a stage before it depends on; not for the last, which judges.

    Stages that are switched off (0 steps) are left out.
    """
    order = list(dict.fromkeys(problem.used_from.values()))
    if not order:
        return {}
    parts: dict[str, list[tuple[str, Any]]] = {stage: [] for stage in order}
    for key, value in values.items():
        parts[first_use(key, problem.used_from, order[0])].append((key, value))
    found, digest = {}, hashlib.blake2b(digest_size=16)
    for stage in order[:-1]:
        digest.update(json.dumps(sorted(parts[stage]), sort_keys=True).encode())
        if values.get(f"stages.{stage}.max_steps") != 0:
            found[stage] = digest.hexdigest()
    return found


def first_use(key: str, used_from: Mapping[str, str], default: str) -> str:
    """The first stage that depends on a key, by the longest entry that holds it."""
    parts = key.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((used_from[prefix] for prefix in prefixes if prefix in used_from), default)


def share(runs: Sequence[PlannedRun], finished: Mapping[str, int]) -> dict[str, Source]:
    """The run from which each run takes stages, for those that can take any.

    The run with the most finished stages (`finished`, by label) makes the stages that several have in common, else the
    first one.
    """
    leaders: dict[str, str] = {}
    sources: dict[str, Source] = {}
    for run in sorted(runs, key=lambda run: -finished.get(run.label, 0)):
        common = [stage for stage, digest in run.stages.items() if digest in leaders]
        if common:
            sources[run.label] = Source(leaders[run.stages[common[-1]]], common[-1], len(common))
        for digest in run.stages.values():
            leaders.setdefault(digest, run.label)
    return sources


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Key -> its last part, or the whole key if another has the same last part."""
    last = {key: key.rpartition(".")[2] for key in keys}
    count = Counter(last.values())
    return {key: key if count[name] > 1 else name for key, name in last.items()}


def label_of(settings: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """A name for a folder: "dataset=hopper-medium-v2,seed=0". Different settings have different labels."""
    label = ",".join(f"{names[key]}={in_words(value)}" for key, value in settings.items())
    return label if len(label) <= LONGEST else f"{label[: LONGEST - 9]}-{_short_hash(settings)}"


def in_words(value: Any) -> str:
    """A value as part of a file's name; with a hash if that loses anything."""
    text = value if isinstance(value, str) else json.dumps(value)
    plain = re.sub(r"[^\w.+-]+", "-", text.rpartition("/")[2], flags=re.ASCII).strip("-.")[:60]
    return plain if plain and plain == text else f"{plain}-{_short_hash(value)}".lstrip("-")


def _short_hash(value: Any) -> str:
    return content_hash(value)[:8]
