"""The random numbers of optimiser steps."""

from __future__ import annotations

import torch
from torch import Tensor

from cepdiff.errors import ConfigError
from cepdiff.randomness import generator


class RandomStream:
    """The random numbers of one optimiser step, drawn for the global batch and cut for this rank.

    Two processes together therefore see the numbers of a single one. Without a seed (a plain DataLoader's batch) they
    come from torch's global generator.
    """

    def __init__(self, seed: int | None, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self._seed = seed
        self._generator = None if seed is None else generator(seed, "noise", device=device)
        self._device = device
        self._rank = rank
        self.world = world  # number of processes that share the global batch

    def parts(self, count: int) -> list[RandomStream]:
        """The same numbers for `count` equal parts of this rank's batch: part p has rows p, p + count, ..."""
        seed, rank, world = self._seed, self._rank, self.world
        return [RandomStream(seed, self._device, rank + world * part, world * count) for part in range(count)]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers (B, ...) of this rank."""
        return self._draw(True, (shape[0] * self.world, *shape[1:]))[self._rank :: self.world]

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) of this rank."""
        return self._draw(False, (shape[0] * self.world, *shape[1:]))[self._rank :: self.world]

    def shared_uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), the same on every rank."""
        return self._draw(False, shape)

    def _draw(self, normal: bool, shape: tuple[int, ...]) -> Tensor:
        """The next numbers of the global batch, standard normal or uniform."""
        draw = torch.randn if normal else torch.rand
        return draw(shape, generator=self._generator, device=self._device)


def seed_global(seed: int, device: torch.device) -> None:
    """Seed torch's global generators, from which dropout draws; `torch.manual_seed` takes 70 times longer."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


class RandomTape(RandomStream):
    """The random numbers of a block of steps in fixed memory, for a step that reads them at its `turn`.

    The first step's calls tell what to draw; from then on `fill` draws it for a whole block, with the numbers of a
    `RandomStream` for each seed. For one process only. `num_steps` are those of the longest block; `turn` (1,) int64 is
    the number of the step within the block.
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

    def parts(self, count: int) -> list[RandomStream]:
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

    def _draw(self, normal: bool, shape: tuple[int, ...]) -> Tensor:
        if not self._complete:
            self._drawn.append((normal, torch.full((self._num_steps, *shape), 0.5, device=self._device)))
        kind, numbers = self._drawn[self._next] if self._next < len(self._drawn) else (None, self._turn)
        if kind is not normal or numbers.shape[1:] != shape:
            raise ConfigError("a loss that draws other numbers in each step cannot be captured; set cuda_graphs: false")
        self._next += 1
        return numbers.index_select(0, self._turn).squeeze(0)  # (T, ...) -> (...)


class _TapePart(RandomStream):
    """A part of `RandomStream.parts`, read from a tape: each part begins with the first number again."""

    def __init__(self, tape: RandomTape, part: int, count: int) -> None:
        super().__init__(None, tape._device, part, count)
        self._tape = tape
        self._begun = False

    def _draw(self, normal: bool, shape: tuple[int, ...]) -> Tensor:
        if not self._begun:
            self._tape.rewind()
            self._begun = True
        return self._tape._draw(normal, shape)
