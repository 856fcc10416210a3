"""Join several datasets into one, and choose episodes that make up a fraction of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from cepdiff.data.checks.findings import Finding, info
from cepdiff.data.rl.arrays import NOTES, RawArrays, layout_notes
from cepdiff.data.rl.buffer import action_bounds, leading_episodes
from cepdiff.data.rl.episodes import trajectories_of
from cepdiff.errors import DataError
from cepdiff.randomness import generator

Choice = Literal["random", "best"]
_BOUNDS = ("action_low", "action_high")
_SHARED = ("env_id", "env_kwargs", "horizon", "reference_min", "reference_max")


def joined(parts: Sequence[RawArrays]) -> RawArrays:
    """Return the rows of all parts, one after another; no episode goes on into the next part.

    Metadata on which parts disagree are dropped. Raises `DataError` if sizes, environments or action bounds differ, or
    only some have `next_observations`.
    """
    if len(parts) == 1:
        return parts[0]
    for other in parts[1:]:
        _check_alike(parts[0], other)
    fields = {name: np.concatenate([part.fields[name] for part in parts]) for name in parts[0].fields}
    ends = np.cumsum([len(part) for part in parts])[:-1] - 1  # the end of the last part stays as in its file
    fields["timeouts"][ends] |= ~fields["terminals"][ends]
    infos = {
        name: np.concatenate([part.infos[name] for part in parts])
        for name, array in parts[0].infos.items()
        if all(name in part.infos and part.infos[name].shape[1:] == array.shape[1:] for part in parts)
    }
    named: dict[str, Any] = {}
    for part in parts:
        named |= {key: value for key, value in part.metadata.items() if key not in named}
    metadata = {
        key: value
        for key, value in named.items()
        if key in _BOUNDS or all(part.metadata.get(key, value) == value for part in parts)
    }
    if notes := dict.fromkeys(note for part in parts for note in layout_notes(part)):
        metadata[NOTES] = "\n".join(notes)
    return RawArrays(**fields, metadata=metadata, infos=infos, source=", ".join(part.source for part in parts))


def _check_alike(first: RawArrays, other: RawArrays) -> None:
    expected = _facts(first)
    for name, found in _facts(other).items():
        if found != expected.get(name, found):
            differ = f"{other.source} has {name} {found}, but {first.source} has {expected[name]}"
            raise DataError(f"{differ}: the parts of a dataset must agree; train on them one by one")


def _facts(raw: RawArrays) -> dict[str, Any]:
    """The metadata and sizes on which all parts must agree."""
    sizes = {"observation size": raw.observations.shape[1], "action size": raw.actions.shape[1]}
    bounds = dict(zip(_BOUNDS, (bound.tolist() for bound in action_bounds(raw)), strict=True))
    shared = {name: raw.metadata[name] for name in _SHARED if name in raw.metadata}
    own = {"the arrays": ", ".join(raw.fields), "reward rule": raw.metadata.get("reward_rule")}
    return {**own, **sizes, **bounds, **shared}


def some_episodes(
    raw: RawArrays, fraction: float, choose: Choice, seed: int, margin: float = 0.0
) -> tuple[RawArrays, Finding]:
    """Return whole episodes with about `fraction` of the rows, in their order, and a finding that names them.

    At least one is chosen: at random, or the best by undiscounted return (the earlier one in a tie). `margin` adds to
    the best all episodes whose return is below the highest by at most this fraction of the range of returns. An episode
    does not end at terminal rows where the recording is `going_on`.
    """
    episodes = trajectories_of(raw)
    count, returns = len(episodes.lengths), episodes.returns(raw.rewards)
    if choose == "best":
        order = torch.from_numpy(np.argsort(-returns, kind="stable"))
        how = "the best by return"
    else:
        order = torch.randperm(count, generator=generator(seed, "fraction"))
        how = f"at random by seed {seed}"
    chosen = leading_episodes(order, torch.from_numpy(episodes.lengths), fraction * len(raw)).numpy()
    if margin > 0.0:
        chosen |= returns.max() - returns <= margin * np.ptp(returns)
    rows = np.repeat(chosen, episodes.lengths)
    part = replace(
        raw,
        **{name: array[rows] for name, array in raw.fields.items()},
        infos={name: array[rows] for name, array in raw.infos.items()},
    )
    worst, best = returns[chosen].min(), returns[chosen].max()
    number = f"{int(chosen.sum()):,} of {count:,} episodes, {len(part):,} of {len(raw):,} rows"
    return part, info("fraction", f"{number}, {how}; returns {worst:.6g} to {best:.6g}")
