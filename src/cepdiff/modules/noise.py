"""The random numbers of optimiser steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cepdiff.errors import ConfigError
from cepdiff.randomness import generator


class Noise:
    """The random numbers of one optimiser step, drawn for the global batch and cut for this rank.

    Two processes together therefore see the numbers of a single one. Without a seed (a plain DataLoader's batch) they
    come from torch's global generator.
    """

    def __init__(self, seed: int | None, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self._seed = seed
        self._generator = None if seed is None else generator(seed, "noise", device=device)
        self._device = device
        self._rank = rank
        self._world = world

    def parts(self, count: int) -> list[Noise]:
        """The same numbers for `count` equal parts of this rank's batch: part p has rows p, p + count, ..."""
        seed, rank, world = self._seed, self._rank, self._world
        return [Noise(seed, self._device, rank + world * part, world * count) for part in range(count)]

    @property
    def world(self) -> int:
        """Number of processes that share the global batch."""
        return self._world

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers (B, ...) of this rank."""
        return self._cut(torch.randn(shape[0] * self._world, *shape[1:], **self._where()))

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) of this rank."""
        return self._cut(torch.rand(shape[0] * self._world, *shape[1:], **self._where()))

    def shared_uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), the same on every rank."""
        return torch.rand(*shape, **self._where())

    def _where(self) -> dict[str, Any]:
        return {"generator": self._generator, "device": self._device}

    def _cut(self, values: Tensor) -> Tensor:
        return values[self._rank :: self._world]


class NoiseTape(Noise):
    """The random numbers of a block of steps in fixed memory, for a step that reads them at its `turn`.

    The first step's calls tell what to draw; from then on `fill` draws it for a whole block, with the numbers of
    `Noise` for each seed. For one process only.

    Args:
        num_steps: steps of the longest block.
        turn: (1,) int64, the number of the step within the block.
    """

    def __init__(self, num_steps: int, turn: Tensor) -> None:
        super().__init__(None, turn.device)
        self._num_steps = num_steps
        self._turn = turn
        self._drawn: list[tuple[bool, Tensor]] = []  # (normal or uniform, numbers (T, ...)) in the order of the calls
        self._next = 0
        self._complete = False

    def rewind(self) -> None:
        """Begin a step, whose calls come in the same order as those of the first."""
        self._complete = bool(self._drawn)
        self._next = 0

    def parts(self, count: int) -> list[Noise]:
        return [_TapePart(self, part, count) for part in range(count)]

    def fill(self, seeds: list[int]) -> None:
        """Draw the numbers of the next steps, one seed each."""
        for step, seed in enumerate(seeds):
            stream = generator(seed, "noise", device=self._device)
            for normal, numbers in self._drawn:
                if normal:
                    numbers[step].normal_(generator=stream)
                else:
                    numbers[step].uniform_(generator=stream)

    def normal(self, *shape: int) -> Tensor:
        return self._at_turn(True, shape)

    def uniform(self, *shape: int) -> Tensor:
        return self._at_turn(False, shape)

    def shared_uniform(self, *shape: int) -> Tensor:
        return self._at_turn(False, shape)

    def _at_turn(self, normal: bool, shape: tuple[int, ...]) -> Tensor:
        if not self._complete:
            self._drawn.append((normal, torch.full((self._num_steps, *shape), 0.5, device=self._device)))
        kind, numbers = self._drawn[self._next] if self._next < len(self._drawn) else (None, self._turn)
        if kind is not normal or numbers.shape[1:] != shape:
            raise ConfigError("a loss that draws other numbers in each step cannot be captured; set cuda_graphs: false")
        self._next += 1
        return numbers.index_select(0, self._turn).squeeze(0)  # (T, ...) -> (...)


class _TapePart(Noise):
    """A part of `Noise.parts`, read from a tape: each part begins with the first number again."""

    def __init__(self, tape: NoiseTape, part: int, count: int) -> None:
        super().__init__(None, tape._device, part, count)
        self._tape = tape
        self._begun = False

    def _whole(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        if not self._begun:
            self._tape.rewind()
            self._begun = True
        return draw(*shape)

    def normal(self, *shape: int) -> Tensor:
        return self._cut(self._whole(self._tape.normal, (shape[0] * self._world, *shape[1:])))

    def uniform(self, *shape: int) -> Tensor:
        return self._cut(self._whole(self._tape.uniform, (shape[0] * self._world, *shape[1:])))

    def shared_uniform(self, *shape: int) -> Tensor:
        return self._whole(self._tape.shared_uniform, shape)
