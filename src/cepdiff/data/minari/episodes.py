"""Convert the rows of a D4RL file to Minari episodes: T steps, T + 1 observations, nested infos."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from cepdiff.data.minari.read import VECTOR_PARTS, Array, LayoutMark
from cepdiff.data.rl.arrays import BLOCK_ROWS, BoolArray
from cepdiff.data.rl.hdf5 import COMPRESSION, datasets_below, read_flags, row_arrays, stored_metadata, torn
from cepdiff.errors import DataError

# Group of a converted file for what only Minari stores; see `convert`.
MINARI_GROUP = "minari"
Progress = Callable[[int, int], None]


@dataclass
class EpisodeSource:
    """An open file with its row arrays, infos by path, flags and episode lengths."""

    path: Path
    file: h5py.File
    arrays: dict[str, h5py.Dataset]
    infos: dict[str, h5py.Dataset]
    terminals: BoolArray
    timeouts: BoolArray
    lengths: npt.NDArray[np.int64]
    facts: Mapping[str, Any]
    own: h5py.Group | None = None
    described: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, file: h5py.File, path: Path, facts: Mapping[str, Any]) -> EpisodeSource:
        arrays = row_arrays(file, path)
        for name in ("observations", "actions"):
            if arrays[name].dtype.kind != "f":
                raise DataError(f"{path}: '{name}' has type {arrays[name].dtype}; expected floating-point numbers")
        rows = arrays["observations"].shape[0]
        flags = {name: read_flags(arrays[name], path).reshape(-1) for name in ("terminals", "timeouts")}
        own = file.get(MINARI_GROUP)
        if own is None:
            ends = flags["terminals"] | flags["timeouts"]
            ends[-1] = True
            lengths = np.diff(np.flatnonzero(ends) + 1, prepend=0)
            described = {}
        else:
            lengths = own["episode_lengths"][()]
            described = json.loads(own["metadata"][()])
            if lengths.sum() != rows:
                raise DataError(
                    f"{path}: the episodes in its group '{MINARI_GROUP}' have {lengths.sum()} rows, its arrays {rows}; "
                    "delete the group if the rows were changed"
                )
            # The conversion added a timeout to episodes that ended without a flag; remove it again.
            flags["timeouts"][np.cumsum(lengths)[own["open_episodes"][()]] - 1] = False
        infos = {
            name: item
            for name, item in datasets_below(file.get("infos")).items()
            if item.dtype.kind in "fiub" and item.shape and item.shape[0] == rows
        }
        return cls(path, file, arrays, infos, flags["terminals"], flags["timeouts"], lengths, facts, own, described)

    @property
    def rows(self) -> int:
        return len(self.terminals)

    @property
    def metadata(self) -> dict[str, Any]:
        return {**self.facts, **stored_metadata(self.file)}


class EpisodeWriter:
    """Yields Minari episode buffers from blocks of rows, and stores what does not fit into them in `layout`."""

    def __init__(self, source: EpisodeSource, layout: h5py.File, progress: Progress) -> None:
        self.source, self.progress = source, progress
        self.foreign = 0
        wide = source.arrays.get("next_observations")
        if wide is not None:
            group = layout.create_group("successors")
            group.create_dataset("rows", (0,), np.int64, maxshape=(None,))
            group.create_dataset(
                "values", (0, wide.shape[1]), wide.dtype, maxshape=(None, wide.shape[1]), **COMPRESSION
            )
            self.successors = group
        self.parts = _parts(source)

    def mark(self) -> LayoutMark:
        """Return the mark; call after all episodes are written."""
        arrays = self.source.arrays
        end = not (self.source.terminals[-1] or self.source.timeouts[-1])
        own = self.source.own
        opened = own is not None and len(self.source.lengths) - 1 in own["open_episodes"][()]
        odd = {
            name: [item.dtype.str, list(item.shape[1:])]
            for name, item in arrays.items()
            if (name in ("terminals", "timeouts") and item.dtype != np.bool_)
            or (name in ("rewards", "terminals", "timeouts") and item.ndim == 2)
            or (name == "next_observations" and item.dtype != arrays["observations"].dtype)
        }
        return LayoutMark(self.source.rows, "next_observations" not in arrays, end and not opened, self.foreign, odd)

    def episodes(self) -> Iterator[Any]:
        """Yield one `EpisodeBuffer` per episode. Raises `DataError` for a damaged file."""
        from minari.data_collector import EpisodeBuffer

        stops = np.cumsum(self.source.lengths)
        first = 0
        while first < len(stops):
            begin = stops[first] - self.source.lengths[first]
            last = max(first + 1, int(np.searchsorted(stops, begin + BLOCK_ROWS, side="right")))
            block = slice(int(begin), int(stops[last - 1]))
            arrays, infos = self._load(block)
            successors = arrays.get("next_observations")
            if successors is not None:
                self._keep_foreign(arrays["observations"], successors, stops[first:last] - 1 - begin, block.start)
            for episode in range(first, last):
                stop = int(stops[episode] - begin)
                rows = slice(stop - int(self.source.lengths[episode]), stop)
                final = (arrays["observations"] if successors is None else successors)[stop - 1 : stop]
                observations = np.concatenate([arrays["observations"][rows], final], dtype=arrays["observations"].dtype)
                own_infos = self._infos(infos, rows, episode)
                yield EpisodeBuffer(
                    observations=self._observations(observations, own_infos),
                    actions=arrays["actions"][rows],
                    rewards=arrays["rewards"][rows].reshape(-1),  # (T, 1) -> (T,)
                    terminations=self.source.terminals[block][rows],
                    truncations=self.source.timeouts[block][rows],
                    infos=_nested(own_infos),
                )
            self.progress(block.stop, self.source.rows)
            first = last

    def _load(self, block: slice) -> tuple[dict[str, Array], dict[str, Array]]:
        wanted = ("observations", "actions", "rewards", "next_observations")
        arrays = {name: item for name, item in self.source.arrays.items() if name in wanted}
        try:
            return {k: v[block] for k, v in arrays.items()}, {k: v[block] for k, v in self.source.infos.items()}
        except (OSError, RuntimeError, KeyError) as error:
            raise torn(self.source.path, error) from error

    def _keep_foreign(self, observations: Array, successors: Array, ends: npt.NDArray[np.int64], start: int) -> None:
        held = np.empty_like(observations)
        held[:-1] = observations[1:]
        held[ends] = successors[ends]
        rows = np.flatnonzero((row_bits(held.astype(successors.dtype)) != row_bits(successors)).any(axis=1))
        total = self.foreign + len(rows)
        for name, values in (("rows", rows + start), ("values", successors[rows])):
            item = self.successors[name]
            item.resize(total, axis=0)
            item[self.foreign :] = values
        self.foreign = total

    def _infos(self, infos: dict[str, Array], rows: slice, episode: int) -> dict[str, Any]:
        found: dict[str, Any] = {name: array[rows] for name, array in infos.items()}
        if self.source.own is not None:
            finals = self.source.own.get("final_infos", {})
            for name in found:
                if name in finals:
                    found[name] = np.concatenate([found[name], finals[name][episode : episode + 1]])
            others = datasets_below(self.source.own.get(f"episode_infos/{episode}"))
            found |= {name: item[()] for name, item in others.items()}
        return found

    def _observations(self, vectors: Array, infos: dict[str, Any]) -> Any:
        """The vectors, or the dictionary they came from; its other parts move out of `infos`."""
        if not self.parts:
            return vectors
        joined = [(name, size, dtype) for name, size, dtype, in_vector in self.parts if in_vector]
        columns = np.split(vectors, np.cumsum([size for _, size, _ in joined])[:-1], axis=1)
        found = {name: column.astype(dtype) for (name, _, dtype), column in zip(joined, columns, strict=True)}
        return found | {name: infos.pop(name) for name, _, _, in_vector in self.parts if not in_vector}


def _parts(source: EpisodeSource) -> list[tuple[str, int, str, bool]]:
    """(name, size, dtype, is in the vector) of each part of a dictionary observation, in vector order."""
    space = json.loads(source.described.get("observation_space", '{"type": "Box"}'))
    if space["type"] != "Dict":
        return []
    order = VECTOR_PARTS[json.loads(source.described["env_spec"])["id"].split("_")[0]]
    names = [*order, *(name for name in space["subspaces"] if name not in order)]
    parts = [(name, space["subspaces"][name]) for name in names]
    return [(name, part["shape"][0], part["dtype"], name in order) for name, part in parts]


def _nested(infos: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in infos.items():
        *groups, name = path.split("/")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return nested


def row_bits(array: Array) -> Array:
    """Rows as bytes, so that -0 differs from 0 and NaN equals NaN."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(len(array), -1)
