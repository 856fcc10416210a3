"""Random numbers as a function of (seed, stage, step), never of history.

Each use of random numbers has its own generator, named by its purpose. So a resumed run, a run on more processes and an
uninterrupted run see the same numbers.
"""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for the stream that `labels` name, e.g. `stream_seed(0, "critic", 1200)`.

    Labels are hashed (BLAKE2b), so neighbouring steps and seeds give unrelated streams.
    """
    text = "/".join(str(label) for label in (seed, *labels))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *labels: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded by `stream_seed`."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, *labels))
