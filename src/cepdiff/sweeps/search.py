"""Hyper-parameter search: Optuna chooses the settings, sweeps carry them out, results of the runs are the objective."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from cepdiff.errors import ConfigError, MissingExtraError, RunError
from cepdiff.randomness import stream_seed
from cepdiff.runs.results import Results
from cepdiff.sweeps.engine import Engine
from cepdiff.sweeps.plan import Checked, Plan, make_plan
from cepdiff.sweeps.settings import SearchSettings, SweepSettings, combinations, products, spelled
from cepdiff.sweeps.state import FINISHED, SweepFolder
from cepdiff.sweeps.sweep import Sweep
from cepdiff.tables import Table, number

RANGE = {"low", "high", "log", "step"}


@dataclass(frozen=True)
class Tried:
    """Settings that were tried, and their objective; None if a run failed."""

    settings: Mapping[str, Any]
    value: float | None


class Search:
    """A search over the axes that are a range or choices; all values of the other axes are run for each trial.

    Args:
        settings: the content of SWEEP.yaml.
        base: where its paths start from.
        overrides: "key=value", for all runs.
        folder: of the runs.

    Raises:
        ConfigError: axes that cannot be searched.
        MissingExtraError: Optuna is not installed.
    """

    def __init__(self, settings: SweepSettings, base: Path, overrides: Sequence[str], folder: SweepFolder) -> None:
        try:
            import optuna
        except ImportError:
            raise MissingExtraError("A search", "search") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if settings.search is None or not isinstance(settings.axes, Mapping):
            raise ConfigError("search: expected a single mapping of axes")
        self._optuna: Any = optuna
        self.settings, self.base, self.overrides, self.folder = settings, base, overrides, folder
        self.search: SearchSettings = settings.search
        searched = {str(key): value for key, value in settings.axes.items() if isinstance(value, Mapping)}
        if not searched:
            raise ConfigError("search: no axis has a range ({low: 0.1, high: 1.0}) or choices ({choices: [a, b]})")
        self.space = {spelled(key): distribution(optuna, key, value) for key, value in searched.items()}
        every = {key: value for key, value in settings.axes.items() if key not in searched}
        self.every = list(combinations(products(every)[0])) if every else [{}]
        self._checked: dict[str, Checked] = {}
        self._failed: set[str] = set()  # runs that this command does not try again

    def plan(self, trials: Sequence[Mapping[str, Any]]) -> Plan:
        """All runs of these settings of the searched axes."""
        settings = {json.dumps(found): found for trial in trials for each in self.every if (found := {**each, **trial})}
        return make_plan(self.settings, self.base, self.overrides, list(settings.values()), self._checked)

    def __str__(self) -> str:
        ranges = ", ".join(f"{key} ({kind})" for key, kind in self.space.items())
        return f"{self.search.trials} trials of {len(self.every)} runs over {ranges}"

    def known(self) -> list[dict[str, Any]]:
        """Settings that earlier commands tried in this folder, in their order. Raises RunError for another sweep's."""
        runs = self.folder.known_settings()
        if other := [key for run in runs for key in self.space if key not in run]:
            raise RunError(
                f"{self.folder.path} is of another sweep: its runs have no {other[0]}; choose another --folder"
            )
        tried = [{key: run[key] for key in self.space} for run in runs]
        return [json.loads(text) for text in dict.fromkeys(map(json.dumps, tried))]

    def carry_out(self, engine: Callable[[], Engine]) -> list[Tried]:
        """Carry out all trials, `at_a_time` in parallel; return them from the best to the worst.

        Trials of earlier commands count, and tell the sampler as much as those of this one. Raises ConfigError if the
        results have no such metric; the runs stay.
        """
        trials = self.known()
        seed = stream_seed(self.search.seed, "search", len(trials)) % 2**32  # or it would ask for the same again
        sampler = self._optuna.samplers.TPESampler(seed=seed)
        study = self._optuna.create_study(direction=self.search.direction, sampler=sampler)
        pending: list[Any] = [None] * len(trials)  # Optuna's object of each, None for those of earlier commands
        told = 0
        while True:
            if trials:
                self._run(trials, engine)
                for trial, asked in zip(trials[told:], pending[told:], strict=True):
                    self._tell(study, trial, asked)
                told = len(trials)
            left = min(self.search.at_a_time, self.search.trials - len(trials))
            if left < 1:
                break
            for _ in range(left):
                asked = study.ask(self.space)
                pending.append(asked)
                trials.append({key: plain(value) for key, value in asked.params.items()})
        found = [
            Tried(json.loads(text), self.value(json.loads(text))) for text in dict.fromkeys(map(json.dumps, trials))
        ]
        sign = -1 if self.search.direction == "maximize" else 1
        return sorted(found, key=lambda tried: math.inf if tried.value is None else sign * tried.value)

    def value(self, trial: Mapping[str, Any]) -> float | None:
        """Mean of the metric over the trial's runs; None if one has not finished or measured nothing."""
        values = [self._metric(run.label) for run in self.plan([trial]).runs]
        return None if None in values else fmean(value for value in values if value is not None)

    def _run(self, trials: Sequence[Mapping[str, Any]], engine: Callable[[], Engine]) -> None:
        sweep = Sweep(self.settings, self.plan(trials), self.folder)
        if len(sweep.finished | self._failed) < len(sweep.runs):
            status = sweep.carry_out(engine(), self._failed)
            self._failed = {label for label, found in status.items() if found != FINISHED}

    def _tell(self, study: Any, trial: Mapping[str, Any], asked: Any) -> None:
        value, state = self.value(trial), self._optuna.trial.TrialState
        outcome = {"state": state.FAIL} if value is None else {"value": value}
        if asked is None:
            params = {key: text_of(trial[key]) if is_choice(self.space[key]) else trial[key] for key in self.space}
            with suppress(ValueError):  # it is outside of a range that is narrower now
                study.add_trial(self._optuna.trial.create_trial(params=params, distributions=self.space, **outcome))
        else:
            study.tell(asked, outcome.get("value"), state=outcome.get("state"))

    def _metric(self, label: str) -> float | None:
        folder = self.folder.run(label)
        if not folder.results.is_file():
            return None
        results = Results.read(folder.results)
        if self.search.metric not in (known := sorted({row.metric for row in results.rows})):
            raise ConfigError(
                f"search.metric is '{self.search.metric}'; the results of {label} have {', '.join(known)}"
            )
        values = results.values(self.search.metric)
        if self.search.scale == "offline_choice":
            choice = results.about.get("offline_choice")
            values = {scale: value for scale, value in values.items() if scale == choice}
        best = max if self.search.direction == "maximize" else min
        return best(values.values()) if values else None


def distribution(optuna: Any, key: str, given: Mapping[str, Any]) -> Any:
    """Optuna's distribution of a range or of choices. Raises ConfigError."""
    kinds = optuna.distributions
    try:
        if set(given) == {"choices"} and isinstance(given["choices"], list) and given["choices"]:
            return kinds.CategoricalDistribution([text_of(value) for value in given["choices"]])
        if {"low", "high"} <= set(given) <= RANGE:
            whole = isinstance(given["low"], int) and isinstance(given["high"], int)
            return (kinds.IntDistribution if whole else kinds.FloatDistribution)(**given)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"axis {key}: {error}") from error
    raise ConfigError(f"axis {key} is {dict(given)}; expected {{low: ..., high: ..., log: true}} or {{choices: [...]}}")


def is_choice(distribution: Any) -> bool:
    """True for one of some values."""
    return hasattr(distribution, "choices")


def text_of(value: Any) -> str:
    """A choice as Optuna keeps it: text, so that it may be a list."""
    return json.dumps(value)


def plain(value: Any) -> Any:
    """The value of a parameter that Optuna chose."""
    return json.loads(value) if isinstance(value, str) else value


def table(tried: Sequence[Tried], search: SearchSettings) -> Table:
    """Trials and their objective, the best first."""
    keys = list(tried[0].settings)
    lines = [[*keys, search.metric]]
    for each in tried:
        lines.append([*(format_value(each.settings[key]) for key in keys), number(each.value, ".4g")])
    return Table(lines, labels=len(keys))


def format_value(value: Any) -> str:
    """A setting for a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
