"""Where mixed precision must not go: sums that cancel, and what is exponentiated."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def float32_products(values: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the device of `values`; the caller's tensors must be float32 themselves."""
    device = values.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
