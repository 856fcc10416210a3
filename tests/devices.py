"""What tests of captured steps and samplers share: a mark for those on a GPU, and what stands for one without it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cepdiff.modules import base
from cepdiff.modules.base import StageModule
from cepdiff.modules.graphs import Capture, CapturedSteps

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Operators that make the host wait for the result, whose output shape depends on values, or that copy from the host.
WAITING = (
    "_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "bincount", "repeat_interleave",
    "lift_fresh",
)  # fmt: skip


class NoWaiting(TorchDispatchMode):
    """Fails at the first operator that a CUDA graph cannot hold."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in WAITING), f"{func} waits for the device or copies from the host"
        assert not (
            func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)
            and any(index is not None and index.dtype == torch.bool for index in args[1])
        ), "a boolean mask makes shapes that hang on values"
        return func(*args, **(kwargs or {}))


def same(step: Callable[[], None]) -> Callable[[], None]:
    """The step itself, in place of `cuda_graph`."""
    return step


def capture_steps(monkeypatch: pytest.MonkeyPatch, capture: Capture = same) -> None:
    """Make modules train by captured steps on the CPU too."""
    monkeypatch.setattr(base, "CapturedSteps", partial(CapturedSteps, capture=capture))
    monkeypatch.setattr(StageModule, "_are_captured", lambda self, block: True)
