"""Lossless conversion between files in D4RL's layout and Minari datasets.

A file made from a Minari dataset has every array with its own type, `next_observations` for all rows, D4RL's
`metadata/`, and a group `minari` for the rest: `metadata` (JSON: authors, spaces, environment spec),
`episode_lengths` (E,), `open_episodes` (ended without a flag; their last row becomes a timeout), `final_infos/` (the
last of an episode's T + 1 infos), `episode_infos/<episode>/` (infos that are not one row per step) and
`episodes/<episode>` (seed, options and other attributes). See `write` for the other direction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cepdiff.data.minari.episodes import MINARI_GROUP, Progress
from cepdiff.data.minari.read import (
    LAYOUT_FILE,
    Array,
    episode_infos,
    flat,
    foreign_successors,
    import_minari,
    is_row_array,
    layout_mark,
    minari_metadata,
    minari_root,
    observation_vectors,
    open_minari,
    reason,
    vector_parts,
)
from cepdiff.data.minari.write import OWN_METADATA, Environment, bare_environment, check_minari_target, write_minari
from cepdiff.data.rl.arrays import BLOCK_ROWS
from cepdiff.data.rl.conversion import Conversion, bytes_of, check_target, check_unnamed, convert_files
from cepdiff.data.rl.hdf5 import (
    COMPRESSION,
    new_file,
    open_file,
    read_header,
    stored_metadata,
    write_metadata,
)
from cepdiff.data.rl.layouts import is_robomimic
from cepdiff.data.rl.source import MINARI_PREFIX, part_names, resolve
from cepdiff.data.rl.tasks import TASKS
from cepdiff.errors import ConfigError, DataError

# (env_id, env_kwargs, module to import first) -> the environment; None if it is not installed.
DescribeEnvironment = Callable[[str, Mapping[str, Any], str | None], Environment | None]


def convert(
    source: str,
    target: str,
    dataset_dir: str | Path | None = None,
    *,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    describe: DescribeEnvironment = lambda *_: None,
    overwrite: bool = False,
    compress: bool = True,
    progress: Progress = lambda done, total: None,
) -> Conversion:
    """Convert `source` (a task, a file or `minari:ID`) to `target` (`minari:ID` or a file in D4RL's layout).

    `dataset_dir` is the folder of tasks and files and the root of Minari's datasets; by default each has its own.
    `env_id` and `env_kwargs` are for sources that do not name their environment. The target appears only when
    complete. Raises `ConfigError` for a pair that cannot be converted, or if the source names another environment;
    `DataError` like the readers, or if the target exists (unless `overwrite`) or cannot be written.
    """
    several = len(part_names(source)) > 1
    from_minari, to_minari = source.startswith(MINARI_PREFIX) and not several, target.startswith(MINARI_PREFIX)
    if from_minari and to_minari:
        raise ConfigError("source and target are both Minari datasets; one of them must be a .hdf5 file")
    given = {"env_id": env_id, "env_kwargs": None if env_kwargs is None else dict(env_kwargs)}
    if not (from_minari or to_minari):
        return convert_files(source, Path(target).expanduser(), dataset_dir, given, overwrite, compress)
    if from_minari:
        return _to_file(source, Path(target).expanduser(), dataset_dir, given, overwrite, compress, progress)
    dataset_id = target.removeprefix(MINARI_PREFIX)
    import_minari()
    with minari_root(dataset_dir):
        check_minari_target(dataset_id, overwrite)  # before downloading gigabytes
    path = source if several else resolve(source, dataset_dir)
    if isinstance(path, str) or path.suffix == ".npz" or is_robomimic(path):
        raise ConfigError(f"{source} is not one file in D4RL's layout: convert it to a .hdf5 file first")
    facts, module = _facts(source, path, env_id, env_kwargs)
    known = {**facts, **read_header(path)[1]}
    found = environment = None
    if "env_id" in known:
        kwargs = known.get("env_kwargs", {})
        found = describe(known["env_id"], kwargs, module)
        environment = found or bare_environment(known["env_id"], kwargs, known.get("horizon"))
    rows, episodes, folder = write_minari(
        path, dataset_id, dataset_dir, facts=facts, environment=environment, overwrite=overwrite, progress=progress
    )
    return Conversion(
        str(path),
        str(folder),
        rows,
        episodes,
        bytes_of(path),
        bytes_of(folder),
        known.get("env_id"),
        found is not None,
    )


def _facts(
    source: str, path: Path, env_id: str | None, env_kwargs: Mapping[str, Any] | None
) -> tuple[dict[str, Any], str | None]:
    """Return (facts from the task or caller that the file lacks, module that registers the environment)."""
    task = TASKS.get(source)
    facts: dict[str, Any] = {}
    if task is not None:
        facts = {
            "env_id": task.env_id,
            "env_kwargs": task.env_kwargs or None,
            "horizon": task.horizon,
            "reference_min": task.reference_min,
            "reference_max": task.reference_max,
        }
    if env_id is not None:
        facts |= {"env_id": env_id, "env_kwargs": None}
    if env_kwargs is not None:
        facts["env_kwargs"] = dict(env_kwargs)
    _, stored = read_header(path)
    check_unnamed(source, stored.get("env_id"), env_id, env_kwargs)
    if "env_id" in stored:  # its arguments are for this environment
        facts.pop("env_kwargs", None)
    module = task.env_module if task is not None and {**facts, **stored}["env_id"] == task.env_id else None
    return {k: v for k, v in facts.items() if v is not None and k not in stored}, module


def _to_file(
    source: str,
    path: Path,
    root: str | Path | None,
    given: Mapping[str, Any],
    overwrite: bool,
    compress: bool,
    progress: Progress,
) -> Conversion:
    check_target(path, overwrite)
    with open_minari(source.removeprefix(MINARI_PREFIX), root) as dataset, new_file(path) as file:
        writer = _FileWriter(file, dataset, source, compress, progress)
        writer.write()
        folder, mark = Path(dataset.storage.data_path), writer.mark
        if mark is not None:
            _copy_rest(folder / LAYOUT_FILE, file)
        derived = minari_metadata(dataset) if mark is None else {}
        named = {**derived, **stored_metadata(file)}.get("env_id")
        check_unnamed(source, named, **given)
        write_metadata(file, {**(given if named is None else {}), **derived})
        episodes = len(writer.lengths)
    _, metadata = read_header(path)
    return Conversion(
        source, str(path), writer.done, episodes, bytes_of(folder), bytes_of(path), metadata.get("env_id")
    )


def _copy_rest(layout_file: Path, file: h5py.File) -> None:
    """Restore what the conversion from D4RL's layout kept in the `LAYOUT_FILE`."""
    with open_file(layout_file) as layout:
        file.attrs.update(layout.attrs)
        for name, item in layout.items():
            if name == "infos":
                for other in item:
                    layout.copy(item[other], file.require_group("infos"), other)
            elif name != "successors":
                layout.copy(item, file, name)


class _FileWriter:
    """Writes the rows of a Minari dataset in blocks, and the group `minari`."""

    def __init__(self, file: h5py.File, dataset: Any, source: str, compress: bool, progress: Progress) -> None:
        self.file, self.dataset, self.source, self.progress = file, dataset, source, progress
        self.options = COMPRESSION if compress else {}
        self.parts = vector_parts(dataset, source)
        self.mark = layout_mark(dataset, source)
        self.group = file.create_group(MINARI_GROUP)
        self.pending: list[dict[str, Array]] = []
        self.types: dict[str, tuple[Any, tuple[int, ...]]] = {}
        self.finals: dict[str, list[Array]] = {}
        self.lengths: list[int] = []
        self.open_episodes: list[int] = []
        self.done = self.waiting = 0

    def write(self) -> None:
        """Write all episodes. Raises `DataError` for damaged data and for array types that differ between episodes."""
        episodes = iter(self.dataset.iterate_episodes())
        while (episode := self._next(episodes)) is not None:
            self._add(episode)
            if self.waiting >= BLOCK_ROWS:
                self._flush()
        if self.waiting:
            self._flush()
        if not self.lengths or self.done != self.dataset.total_steps:
            raise DataError(
                f"{self.source}: its episodes have {self.done} steps, its metadata say {self.dataset.total_steps}"
            )
        self._restore_layout()
        self._describe()

    def _next(self, episodes: Any) -> Any:
        try:
            return next(episodes, None)
        except (OSError, RuntimeError, KeyError, AssertionError) as error:
            raise DataError(f"{self.source}: cannot be read ({reason(error)})") from error

    def _add(self, episode: Any) -> None:
        number, steps = len(self.lengths), len(episode.rewards)
        if steps == 0:
            raise DataError(f"{self.source}: episode {number} has no steps; a file cannot store empty episodes")
        observations = observation_vectors(episode.observations, self.parts)
        timeouts = np.array(episode.truncations)
        if not (timeouts[-1] or episode.terminations[-1]):
            last = number == self.dataset.total_episodes - 1
            if not (last and self.mark is not None and self.mark.cut_last_episode):
                self.open_episodes.append(number)
                timeouts[-1] = True
        rows = {
            "observations": observations[:-1],
            "actions": episode.actions,
            "rewards": episode.rewards,
            "terminals": episode.terminations,
            "timeouts": timeouts,
            "next_observations": observations[1:],
        }
        self._check(number, rows, steps)
        rows |= self._infos(number, steps, episode_infos(episode, self.parts))
        self.pending.append(rows)
        self.lengths.append(steps)
        self.waiting += steps

    def _infos(self, number: int, steps: int, infos: Mapping[str, Any]) -> dict[str, Array]:
        rows = {}
        for name, value in infos.items():
            path = f"infos/{name}"
            if path in self.types or (number == 0 and is_row_array(value, steps)):
                rows[path] = value[:steps]
                self.finals.setdefault(name, []).extend(value[steps:])
            else:
                self.group.create_dataset(f"episode_infos/{number}/{name}", data=value, dtype=value.dtype)
        self._check(number, rows, steps)
        return rows

    def _check(self, number: int, rows: Mapping[str, Array], steps: int) -> None:
        for name, array in rows.items():
            found = (array.dtype, array.shape[1:])
            if found != self.types.setdefault(name, found) or len(array) != steps:
                raise DataError(
                    f"{self.source}: '{name}' of episode {number} is {array.dtype} of shape {array.shape}; "
                    f"expected {self.types[name][0]} of shape {(steps, *self.types[name][1])} as in episode 0"
                )

    def _flush(self) -> None:
        total = self.dataset.total_steps
        if self.done + self.waiting > total:
            raise DataError(f"{self.source}: its episodes have more than the {total} steps in its metadata")
        for name, (dtype, shape) in self.types.items():
            if any(name not in rows for rows in self.pending):
                raise DataError(f"{self.source}: '{name}' is missing in some episodes")
            if name == "next_observations" and self.mark is not None and self.mark.unknown_final_observations:
                continue
            if name not in self.file:
                self.file.create_dataset(name, (total, *shape), dtype, **self.options)
            block = np.concatenate([rows[name] for rows in self.pending])
            self.file[name][self.done : self.done + self.waiting] = block
        self.done += self.waiting
        self.pending, self.waiting = [], 0
        self.progress(self.done, total)

    def _restore_layout(self) -> None:
        """Restore the types, shapes and next observations of the file that the dataset was converted from."""
        if self.mark is None:
            return
        for name, (dtype, shape) in self.mark.types.items():
            if name == "next_observations" and self.mark.unknown_final_observations:
                continue
            values = self.file[name][()]
            del self.file[name]
            self.file.create_dataset(name, data=values.astype(dtype).reshape(-1, *shape), **self.options)
        if self.mark.foreign_successors:
            rows, values = foreign_successors(Path(self.dataset.storage.data_path) / LAYOUT_FILE)
            target = self.file["next_observations"]
            for start in range(0, len(target), BLOCK_ROWS):  # h5py's fancy indexing is slow
                block = target[start : start + BLOCK_ROWS]
                inside = (rows >= start) & (rows < start + BLOCK_ROWS)
                block[rows[inside] - start] = values[inside]
                target[start : start + BLOCK_ROWS] = block

    def _describe(self) -> None:
        """Write the rest of the group `minari`."""
        from minari.dataset.minari_storage import MinariStorage

        storage, group = self.dataset.storage, self.group
        stored = MinariStorage.read_raw_metadata(storage.data_path)
        for name in ("author", "author_email"):  # sets, which Minari writes in arbitrary order
            if name in stored:
                stored[name] = sorted(stored[name])
        group["metadata"] = json.dumps({k: v for k, v in stored.items() if k not in OWN_METADATA}, sort_keys=True)
        group["episode_lengths"] = np.array(self.lengths, dtype=np.int64)
        group["open_episodes"] = np.array(self.open_episodes, dtype=np.int64)
        for name, values in self.finals.items():
            if len(values) == len(self.lengths):
                group.create_dataset(f"final_infos/{name}", data=np.stack(values), **self.options)
            elif values:
                raise DataError(f"{self.source}: 'infos/{name}' has T + 1 rows in only some episodes")
        for number, attributes in enumerate(storage.get_episode_metadata(range(len(self.lengths)))):
            own = {k: v for k, v in flat(attributes) if k not in ("id", "total_steps")}
            if own:
                group.create_group(f"episodes/{number}").attrs.update(own)
