"""The settings of runs: all that differs between them except the task, the seed and the machine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cepdiff.errors import RunError, one_line
from cepdiff.runs.config import named
from cepdiff.runs.logs import KEY
from cepdiff.runs.results import Results
from cepdiff.runs.search import planned_runs

SEED = "seed"
# Last words of keys that change where and how fast a run trains, not what it learns.
OF_THE_MACHINE = frozenset({
    "run_dir", "accelerator", "devices", "num_nodes", "strategy", "num_threads", "profiler", "progress_bar",
    "checkpoint_every", "chunk_size", "block_size", "max_envs", "num_workers", "cuda_graphs", "micro_batch_size",
    "every_n_steps", "engine", "cache_dir",
})  # fmt: skip
ABSENT = "-"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where PyYAML was built with it

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """The settings of a list of runs.

    Args:
        labels: a short name per run, equal for runs of one setting.
        order: the distinct labels.
        values: label -> key -> value, for all keys that differ.
        between_tasks: keys that differ from task to task but not within one; they are part of the task.
        planned: for each run, the number of seeds that its sweep plans for it; 1 outside sweeps.
    """

    labels: Sequence[str]
    order: Sequence[str]
    values: Mapping[str, Values]
    between_tasks: Sequence[str]
    planned: Sequence[int]


def settings_of(runs: Sequence[Results], task_keys: Iterable[str]) -> Settings:
    """The settings of `runs`: the values of their sweep's axes if all are of sweeps, else of their configurations.

    A key of the configuration counts if it differs between runs of one task. `task_keys` name the task.
    Raises RunError for a configuration that cannot be read.
    """
    configs, sweeps = [configuration(run.folder) for run in runs], sweep_values(runs)
    planned = [sweep for sweep in sweeps if sweep is not None]
    swept = len(planned) == len(runs)
    values: list[Values] = [axes for axes, _ in planned] if swept else [*configs]
    left_out = {SEED, *task_keys}
    differing = [key for key in keys_of(values) if key not in left_out and count(values, [key]) > 1]
    tasks = {run.dataset for run in runs}
    groups = [[found for run, found in zip(runs, values, strict=True) if run.dataset == task] for task in tasks]
    keys = [key for key in differing if swept or any(count(group, [key]) > 1 for group in groups)]
    labels = labels_of(values, separating(values, keys), keys_of([*configs, *values]))
    methods = {run.method for run in runs}
    if not keys:
        labels = [(methods.pop() if len(methods) == 1 else "") or "all runs"] * len(runs)
    found = dict(zip(labels, values, strict=True))
    return Settings(
        labels=labels,
        order=sorted(found, key=lambda label: [by_size(identity(found[label].get(key, ABSENT))) for key in keys]),
        values={label: {key: value[key] for key in keys if key in value} for label, value in found.items()},
        between_tasks=[key for key in differing if key not in keys],
        planned=[1 if sweep is None else sweep[1] for sweep in sweeps],
    )


def separating(values: Sequence[Values], keys: Iterable[str]) -> list[str]:
    """The `keys` that tell apart all that `keys` tell apart, without those that add nothing to the ones before."""
    chosen: list[str] = []
    for key in keys:
        if count(values, [*chosen, key]) > count(values, chosen):
            chosen.append(key)
    return chosen


def labels_of(values: Sequence[Values], keys: Sequence[str], known: Sequence[str]) -> list[str]:
    """A label by `keys` for each of `values`: equal for equal values, and different for others.

    Keys are cut to what no other key in `known` ends with. Two classes of one name get numbers.
    """
    names = {key: short_key(key, known) for key in keys}
    labels: dict[tuple[str, ...], str] = {}
    used: Counter[str] = Counter()
    for found in values:
        setting = tuple(identity(found.get(key, ABSENT)) for key in keys)
        if setting not in labels:
            label = ", ".join(f"{names[key]} {text(found[key])}" for key in keys if key in found) or "default"
            used[label] += 1
            labels[setting] = f"{label} #{used[label]}" if used[label] > 1 else label
    return [labels[tuple(identity(found.get(key, ABSENT)) for key in keys)] for found in values]


def configuration(folder: Path) -> dict[str, Any]:
    """The configuration of a run by dotted key, as on the command line; empty if the folder has none."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        plain = named(yaml.load(path.read_text(encoding="utf-8"), LOADER))
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise RunError(f"{path} is damaged ({one_line(error)}); run the same `cepdiff fit` again") from error
    return {
        key: value
        for key, value in plain.items()
        if key.rpartition(".")[2] not in OF_THE_MACHINE and not key.startswith(KEY)
    }


def sweep_values(runs: Sequence[Results]) -> list[tuple[Values, int] | None]:
    """For each run of a sweep its values, and how many of its runs differ in the seed only; None for other runs."""
    places = [run.folder.resolve() for run in runs]
    known: dict[Path, tuple[Values, int]] = {}
    for sweep in dict.fromkeys(parent for place in places for parent in place.parents[:3]):
        planned = {path.resolve(): run.settings for path, run in planned_runs(sweep).items()}
        seeds = Counter(map(without_seed, planned.values()))
        known |= {path: (values, seeds[without_seed(values)]) for path, values in planned.items()}
    return [known.get(place) for place in places]


def without_seed(values: Values) -> str:
    """All values but the seed, as text."""
    return json.dumps({key: value for key, value in values.items() if key != SEED}, sort_keys=True)


def keys_of(values: Sequence[Values]) -> list[str]:
    """All keys, in the order in which they first appear."""
    return list(dict.fromkeys(key for found in values for key in found))


def count(values: Sequence[Values], keys: Sequence[str]) -> int:
    """The number of distinct combinations of the keys' values."""
    return len({tuple(identity(found.get(key, ABSENT)) for key in keys) for found in values})


def short_key(key: str, known: Iterable[str]) -> str:
    """The fewest last words of `key` that no other key ends with."""
    words, others = key.split("."), [other for other in known if other != key]
    ends = (".".join(words[-length:]) for length in range(1, len(words)))
    return next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), key)


def identity(value: Any) -> str:
    """A text that is equal only for equal values; 3 and 3.0 are equal."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return repr(float(value)) if is_number else json.dumps(value, sort_keys=True, default=str)


def text(value: Any) -> str:
    """A value in a label; a class by its name."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value.rpartition(".")[2] if value.replace(".", "_").isidentifier() else " ".join(value.split())
    return json.dumps(value, default=str)


def by_size(value: str) -> tuple[int, float, str]:
    """Sort key of an identity: numbers by size, then text."""
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value
