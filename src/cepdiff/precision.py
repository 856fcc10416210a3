"""Exceptions from mixed precision: sums that cancel, and values that are exponentiated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

# Asked once: a compiled loss cannot ask (torch below 2.13).
AUTOCAST = frozenset(device for device in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(device))


@contextmanager
def uncached_casts() -> Iterator[None]:
    """A context in which autocast does not cache casts of weights, which an optimiser step would leave stale."""
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


def float32_products(values: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the device of `values`; the caller's tensors must be float32 themselves."""
    device = values.device.type
    if device in AUTOCAST and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
