"""Offline RL data: a buffer, with support actions once they are drawn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from cepdiff.data.blocks import StageDataModule
from cepdiff.data.checks.defects import findings_of
from cepdiff.data.checks.findings import Finding
from cepdiff.data.rl.arrays import NEEDS_GOAL, RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.lookahead import Lookahead, look_ahead
from cepdiff.data.rl.parts import Choice, some_episodes
from cepdiff.data.rl.rewards import Scaling, usable_scaling
from cepdiff.data.rl.settings import Settings, settings_of
from cepdiff.data.rl.source import load_dataset, part_names, resolve, short_name
from cepdiff.data.rl.support_cache import SupportCache
from cepdiff.data.rl.tasks import TASKS, Task
from cepdiff.errors import ConfigError, DataError
from cepdiff.ranges import Count, Fraction, Range, Repeats, check_arguments
from cepdiff.types import Batch, DataSpec


class OfflineDataModule(StageDataModule):
    """D4RL tasks, your own HDF5 files and Minari datasets, for every stage.

    To serve other data, subclass and override `load_buffer` or `rewards`.

    Args:
        dataset: a D4RL task ("hopper-medium-v2"), a dataset of OGBench ("cube-single-play-singletask-v0"), a path to a
            file in D4RL's, robomimic's or OGBench's layout, the name of a file in `dataset_dir`, or "minari:" and a
            Minari dataset id; several, separated by commas, are parts of one dataset.
        env_id: Gymnasium id of the environment to evaluate in; default: from the task or the file's metadata.
        env_kwargs: keyword arguments of the environment.
        dataset_dir: dataset folder; default: $D4RL_DATASET_DIR or ~/.d4rl/datasets.
        reward_rule: "return_range" (r * 1000 / (max return - min return)), "minus_one" (r - 1) or "none"; default:
            by the environment, else "return_range".
        normalize_observations: standardise observations by the buffer's mean and standard deviation.
        action_low: lower bound of the actions (a number or A of them); default: from the file's metadata, else -1.
        action_high: upper bound of the actions; default: from the file's metadata, else +1.
        fraction: fraction of the rows to train on, in whole episodes; 1 is all.
        choose: which episodes `fraction` takes: "random" (by the seed) or "best" (the highest returns).
        margin: with `choose` "best", also take all episodes with a return below the highest by at most this fraction of
            the range of returns.
        critic_rows: rows of the critic: those "chosen" by `fraction`, or "all": the policy then imitates the chosen
            episodes, and the critic also knows worse ones.
        action_steps: consecutive actions that the networks see as one. The policy takes the first and decides again.
        block_size: minibatches per `training_step`.
        seed: seed of the row order and of the random episodes.
    """

    problem = "cepdiff.problems.offline.problem.OfflineRL"

    def __init__(
        self,
        dataset: str,
        env_id: str | None = None,
        env_kwargs: dict[str, Any] | None = None,
        dataset_dir: str | None = None,
        reward_rule: str | None = None,
        normalize_observations: bool = False,
        action_low: float | list[float] | None = None,
        action_high: float | list[float] | None = None,
        fraction: Annotated[float, Range(0, 1, "(]")] = 1.0,
        choose: Choice = "random",
        margin: Fraction = 0.0,
        critic_rows: Literal["chosen", "all"] = "chosen",
        action_steps: Repeats = 1,
        block_size: Count = 50,
        seed: int = 0,
    ) -> None:
        super().__init__(block_size, seed)
        check_arguments(OfflineDataModule, locals(), "data")
        if margin and (choose != "best" or fraction == 1):
            raise ConfigError('data.margin: needs data.choose "best" and a data.fraction below 1')
        self.fraction, self.choose, self.margin = fraction, choose, margin
        self.critic_rows, self.action_steps = critic_rows, action_steps
        self.dataset = dataset
        self.env_id, self.env_kwargs = env_id, env_kwargs
        self.dataset_dir = dataset_dir
        self.reward_rule = reward_rule
        self.normalize_observations = normalize_observations
        self.action_low, self.action_high = action_low, action_high
        self.metadata: dict[str, Any] = {}  # of the file; set by setup()
        self.findings: list[Finding] = []  # as in `cepdiff data check`; set by setup()
        self.scaling: Scaling | None = None  # applied by rewards(); None if a subclass does not
        self._buffer: TransitionBuffer | None = None
        self._whole: TransitionBuffer | None = None  # all rows, if only a fraction is used
        self._whole_scaling: Scaling | None = None
        self._rewards: Tensor | None = None
        self._support: SupportCache | None = None
        self._energies: Tensor | None = None
        self._lookahead: Lookahead | None = None

    @property
    def task(self) -> Task | None:
        """The registered task, or None for other datasets."""
        return TASKS.get(self.dataset)

    @property
    def settings(self) -> Settings:
        """Default reward rule, K, guidance scales and episodes for the environment; needs loaded data."""
        return settings_of(self.env_id, self.task, self.metadata)

    @property
    def dataset_name(self) -> str:
        return "+".join(map(short_name, part_names(self.dataset)))

    @property
    def buffer(self) -> TransitionBuffer:
        """The transitions, loaded by `setup`."""
        if self._buffer is None:
            raise DataError("the buffer is not loaded yet: call prepare_data() and setup() first")
        return self._buffer

    @cached_property  # statistics take a pass over the buffer
    def spec(self) -> DataSpec:
        return self.buffer.spec(normalize=self.normalize_observations)

    @property
    def content_hash(self) -> str:
        return self.buffer.content_hash

    def prepare_data(self) -> None:
        """Download a missing file; Lightning calls this on one process per node."""
        own_data = type(self).load_buffer is not OfflineDataModule.load_buffer
        if own_data and self.fraction != 1:
            raise ConfigError(f"data.fraction: {type(self).__name__} loads its own buffer, so all of it is used")
        for name in () if own_data else part_names(self.dataset):
            if not name.startswith("minari:"):
                resolve(name, self.dataset_dir, allow_download=True)

    def setup(self, stage: str | None = None) -> None:
        """Load the buffer and its rewards; only once."""
        if self._buffer is None:
            self._buffer = self._in_sequences(self.load_buffer())
            self._rewards = self.rewards()  # fail before training if the rule does not fit

    def load_buffer(self) -> TransitionBuffer:
        """Read and validate the dataset. Override it to serve other data."""
        raw, chosen = self.load_arrays(), []
        self.metadata = raw.metadata
        if self.fraction != 1:
            # Rewards are scaled as on all rows: the best episodes have nearly equal returns.
            whole = TransitionBuffer.from_arrays(raw, action_low=self.action_low, action_high=self.action_high)
            self._whole_scaling = usable_scaling(self._rule, whole)
            if self.critic_rows == "all":
                self._whole = self._in_sequences(whole)
            raw, finding = some_episodes(raw, self.fraction, self.choose, self.seed, self.margin)
            chosen = [finding]
        self.findings = [*chosen, *self.inspect(raw)]
        return TransitionBuffer.from_arrays(raw, action_low=self.action_low, action_high=self.action_high)

    def inspect(self, raw: RawArrays) -> list[Finding]:
        """Return the findings of `cepdiff data check`. Override it if `load_arrays` changes what was recorded."""
        return findings_of(raw, self.task, self.env_id, self.action_low, self.action_high)

    def _in_sequences(self, buffer: TransitionBuffer) -> TransitionBuffer:
        return buffer if self.action_steps == 1 else buffer.with_action_steps(self.action_steps)

    @property
    def _rule(self) -> str:
        return self.reward_rule or self.settings.reward_rule

    def load_arrays(self) -> RawArrays:
        """Read the dataset's arrays."""
        raw = load_dataset(self.dataset, self.dataset_dir)
        if NEEDS_GOAL in raw.metadata:
            goals = "use data.class_path cepdiff.data.rl.goals.GoalDataModule"
            raise DataError(f"{raw.source}: no rewards without a goal; name a task (-singletask-v0), or {goals}")
        return raw

    def rewards(self) -> Tensor:
        """Return the scaled rewards (N,)."""
        self.scaling = self._whole_scaling or usable_scaling(self._rule, self.buffer)
        return self.scaling.apply(self.buffer.rewards)

    def summary(self) -> str:
        """Rows, episodes and their unscaled returns."""
        returns = self.buffer.episode_returns()[0]
        low, high, mean = (float(value) for value in (returns.min(), returns.max(), returns.mean()))
        size = f"{len(self.buffer):,} rows, {self.buffer.num_episodes:,} episodes"
        return f"{size}, returns {low:.5g} to {high:.5g}, mean {mean:.5g}"

    def notes(self) -> list[str]:
        """Lines to read before training: the warnings, and the reward rule with its factor and origin."""
        origin = "given as data.reward_rule" if self.reward_rule else self.settings.origin
        rewards = f"those of {type(self).__name__}" if self.scaling is None else f"{self.scaling}, {origin}"
        warnings = [f"warning: {found.name}: {found.message}" for found in self.findings if found.level == "warning"]
        return [*warnings, f"rewards: {rewards}"]

    def for_critic(self) -> OfflineDataModule:
        """This module, or if `critic_rows` is "all" a copy with all rows, normalised in the same way."""
        if self._whole is None:
            return self
        module = copy.copy(self)
        module.spec = self.spec
        module._buffer, module._whole = self._whole, None
        module._rewards = module.rewards()
        return module

    def with_support(self, support: SupportCache, energies: Tensor | None = None) -> OfflineDataModule:
        """Return a copy (sharing the buffer) with support actions and, if given, their energies (M, K).

        Stages after the support stage draw from the rows whose states are in the cache.
        """
        module = copy.copy(self)
        module._support, module._energies = support, energies
        return module

    def with_lookahead(self, discount: float, num_steps: int | Literal["episode"]) -> OfflineDataModule:
        """Return a copy whose transitions span up to `num_steps` steps, see `look_ahead`.

        Rewards are discounted sums, next states and terminals are those of the last step, and `discounts` are the
        factors of the next states' values.
        """
        module = copy.copy(self)
        module._lookahead = look_ahead(self.buffer, self._scaled_rewards, discount, num_steps)
        return module

    @property
    def _scaled_rewards(self) -> Tensor:
        return self.rewards() if self._rewards is None else self._rewards

    def rows(self, fields: Sequence[str]) -> Tensor:
        buffer = self.buffer
        rows = torch.arange(len(buffer.actions))
        if "next_observations" in fields:
            rows = buffer.transitions
        if buffer.action_steps > 1 and "actions" in fields:
            # A critic needs the rows before a terminal one, where actions after the end do not matter.
            ends = buffer.terminals[buffer.episode_ends - 1][buffer.episode_index] & ("terminals" in fields)
            rows = rows[(buffer.whole_sequences | ends)[rows]]
        if "support_actions" in fields:
            rows = rows[self._slots()[rows] >= 0]
        if "next_support_actions" in fields:
            rows = rows[self._slots()[self._next_index[rows]] >= 0]
        return rows

    @property
    def _next_index(self) -> Tensor:
        index = self.buffer.next_index
        return index if self._lookahead is None else index[self._lookahead.last]

    def gatherer(self, fields: Sequence[str], device: torch.device | str = "cpu") -> Callable[[Tensor], Batch]:
        buffer, next_index, ahead = self.buffer, self._next_index, self._lookahead
        states = self.normalize(buffer.states).to(device)
        sources: dict[str, Callable[[], tuple[Tensor, Tensor | None]]] = {  # field -> (table, from row to its entry)
            "observations": lambda: (states, None),
            "next_observations": lambda: (states, next_index),
            "actions": lambda: (buffer.actions, None),
            "rewards": lambda: (self._scaled_rewards if ahead is None else ahead.returns, None),
            "terminals": lambda: (buffer.terminals.float(), None if ahead is None else ahead.last),
            "support_actions": lambda: (torch.from_numpy(self._cache().actions), self._slots()),
            "next_support_actions": lambda: (torch.from_numpy(self._cache().actions), self._slots()[next_index]),
            "energies": lambda: (self._support_energies(), self._slots()),
        }
        if ahead is not None:
            sources["discounts"] = lambda: (ahead.discounts, None)
        tables: dict[str, tuple[Tensor, Tensor | None]] = {}
        for field in fields:
            if field not in sources:
                raise ConfigError(f"the module needs the batch field '{field}', which this data module does not have")
            table, index = sources[field]()
            tables[field] = table.to(device), None if index is None else index.to(device)
        return lambda rows: {
            field: table[rows if index is None else index[rows]] for field, (table, index) in tables.items()
        }

    def normalize(self, observations: Tensor) -> Tensor:
        """Observations (..., S) as the networks see them."""
        spec = self.spec
        if spec.observation_mean is None or spec.observation_std is None:
            return observations
        return (observations - torch.tensor(spec.observation_mean)) / torch.tensor(spec.observation_std)

    def _cache(self) -> SupportCache:
        if self._support is None:
            raise DataError("this stage needs support actions: draw them first and pass them to with_support()")
        return self._support

    def _slots(self) -> Tensor:
        return self._cache().slots

    def _support_energies(self) -> Tensor:
        if self._energies is None:
            raise DataError("no energies of the support actions: pass them to with_support()")
        return self._energies
