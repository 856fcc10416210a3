"""Transitions in memory, for `cepdiff.fit` from Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cepdiff.data.rl.arrays import OPTIONAL, REQUIRED, RawArrays, check_shapes
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.errors import ConfigError, DataError, nearest

# Gymnasium's and Minari's names of D4RL's arrays.
ALIASES = {"terminations": "terminals", "terminated": "terminals", "truncations": "timeouts", "truncated": "timeouts"}


class ArrayDataModule(OfflineDataModule):
    """A dict of arrays with D4RL's or Gymnasium's names, one row per step.

    Args:
        arrays: observations (N, S), actions (N, A), rewards (N,), terminals (N,), timeouts (N,) and perhaps
            next_observations (N, S).
        dataset: a name, for tables.
        options: those of `OfflineDataModule`.
    """

    supplied: ClassVar[frozenset[str]] = frozenset({"seed", "arrays"})

    def __init__(
        self, arrays: Mapping[str, npt.ArrayLike] | None = None, dataset: str = "arrays", **options: Any
    ) -> None:
        super().__init__(dataset, **options)
        if arrays is None:
            raise ConfigError("data.class_path ArrayDataModule holds arrays in memory: call cepdiff.fit(arrays, ...)")
        self._arrays = arrays

    def prepare_data(self) -> None:
        """Nothing to download."""

    def load_arrays(self) -> RawArrays:
        named: dict[str, Any] = {}
        for given, values in self._arrays.items():
            name = ALIASES.get(given, given)
            if name not in (*REQUIRED, *OPTIONAL):
                known = ", ".join((*REQUIRED, *OPTIONAL))
                raise DataError(f"unknown array '{name}'; expected {known}.{nearest(name, (*REQUIRED, *OPTIONAL))}")
            if name in named:
                raise DataError(f"'{given}' is another name of '{name}', which is there too: leave one out")
            try:
                named[name] = np.asarray(values)
            except ValueError as error:  # rows of different lengths
                raise DataError(f"'{given}' is no array: {error}") from error
        check_shapes({name: array.shape for name, array in named.items()}, self.dataset)
        return RawArrays(**named, source=self.dataset).validate()
