"""Optimiser steps as CUDA graphs: small networks are bound by launching kernels, not by running them.

A step is captured once, with forward, backward, clipping, optimiser and averages, and replayed for each minibatch of a
block. It finds its minibatch and its random numbers in fixed memory, by a counter that it advances itself. The host has
nothing to do between two steps, and the numbers equal those of single steps (with the learning rate in float32). A
replay does not call hooks around backward and the optimiser's step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from cepdiff.errors import ConfigError
from cepdiff.modules.noise import RandomStream, RandomTape
from cepdiff.types import STEP_SEEDS, Batch, Metrics

WARM_UPS = 3  # steps before the capture, in which libraries choose their kernels and memory is laid out

# Turns a function of tensors in fixed memory into one that replays it.
Capture = Callable[[Callable[[], None]], Callable[[], None]]


class Trained(Protocol):
    """The part of a stage's module that a step needs."""

    def accumulate(self, batch: Batch, noise: RandomStream, backward: Callable[[Tensor], None]) -> Metrics: ...
    def check_gradients(self) -> None: ...
    def clip(self) -> None: ...
    def after_step(self) -> None: ...
    def buffers(self) -> Any: ...
    def parameters(self) -> Any: ...


def cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Capture `step` after `WARM_UPS` runs of it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def captured(capture: Capture, step: Callable[[], None], name: str, advice: str) -> Callable[[], None]:
    """`capture(step)`; raises ConfigError, with the `name` of what cannot be captured, the reason and `advice`."""
    try:
        return capture(step)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{name} cannot be captured as a CUDA graph ({reason}); {advice}") from error


class CapturedSteps:
    """The optimiser steps of a module on blocks of the shape of `block`, captured.

    Making it leaves weights, averages and the optimiser's state as they were. Raises ConfigError for a loss that cannot
    be captured, because it waits for the device or changes its shapes.

    Args:
        module: whose steps.
        optimizer: of torch, over the module's parameters.
        block: tensors (T, B, ...) and the seeds (T,) of the steps.
        capture: `cuda_graph`; anything else is for tests without a GPU.
    """

    def __init__(
        self, module: Trained, optimizer: torch.optim.Optimizer, block: Batch, capture: Capture = cuda_graph
    ) -> None:
        self._module = module
        self._optimizer = optimizer
        self._fields = {name: values.clone() for name, values in block.items() if name != STEP_SEEDS}
        some = next(iter(self._fields.values()))
        self._num_steps = len(some)
        self._turn = torch.zeros(1, dtype=torch.int64, device=some.device)
        self._noise = RandomTape(self._num_steps, self._turn)
        self._names: list[str] = []
        self._history = torch.empty(0)
        make_capturable(optimizer, some.device)
        advice = "its loss must not wait for the device (.item(), boolean masks); mend it, or set cuda_graphs: false"
        before = snapshot(module, optimizer)
        try:
            self._step()  # allocates what the loss draws and reports
            module.check_gradients()
            self._replay = captured(capture, self._step, f"an optimiser step of {type(module).__name__}", advice)
        finally:
            restore(module, optimizer, before)

    def fits(self, block: Batch) -> bool:
        """True if `block` can be run: no longer, and with the same fields and minibatches."""
        fields = {name: values for name, values in block.items() if name != STEP_SEEDS}
        return fields.keys() == self._fields.keys() and all(
            len(values) <= self._num_steps
            and values.shape[1:] == self._fields[name].shape[1:]
            and values.dtype == self._fields[name].dtype
            for name, values in fields.items()
        )

    def run(self, block: Batch, after: Callable[[], None]) -> dict[str, Tensor]:
        """One step per minibatch, each followed by `after`; returns the metrics, (T,) each."""
        seeds = block[STEP_SEEDS].tolist()
        for name, values in self._fields.items():
            values[: len(seeds)].copy_(block[name])
        self._noise.fill(seeds)
        self._turn.zero_()
        for _ in seeds:
            self._replay()
            after()
        history = self._history[: len(seeds)].clone()
        return dict(zip(self._names, history.unbind(1), strict=True))

    def _step(self) -> None:
        self._noise.rewind()
        batch = {name: values.index_select(0, self._turn).squeeze(0) for name, values in self._fields.items()}
        self._optimizer.zero_grad(set_to_none=True)
        metrics = self._module.accumulate(batch, self._noise, torch.autograd.backward)
        self._module.clip()
        self._optimizer.step()
        self._module.after_step()
        if not self._names:
            self._names = list(metrics)
            self._history = torch.zeros(self._num_steps, len(metrics), device=self._turn.device)
        self._history.index_copy_(0, self._turn, torch.stack([metrics[name].float() for name in self._names])[None])
        self._turn.add_(1).remainder_(self._num_steps)


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep the learning rate on the device, where a captured step sees a schedule change it."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        group["capturable"] = device.type == "cuda"


def make_portable(optimizer_state: dict[str, Any]) -> None:
    """Undo `make_capturable` in a state dict, so that a checkpoint resumes on any device."""
    for group in optimizer_state["param_groups"]:
        group["lr"] = float(group["lr"])
        group["capturable"] = False


def snapshot(module: Trained, optimizer: torch.optim.Optimizer) -> tuple[list[Tensor], dict[str, Any]]:
    """Copies of all tensors of the module, and of the optimiser's state."""
    tensors = [tensor.detach().clone() for tensor in (*module.parameters(), *module.buffers())]
    return tensors, copy.deepcopy(optimizer.state_dict())


@torch.no_grad()
def restore(module: Trained, optimizer: torch.optim.Optimizer, before: tuple[list[Tensor], dict[str, Any]]) -> None:
    """Put a snapshot back into the same memory; state that the optimiser did not have becomes zero."""
    tensors, state = before
    for tensor, value in zip((*module.parameters(), *module.buffers()), tensors, strict=True):
        tensor.copy_(value)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        known = state["state"].get(index, {})
        for name, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                value.copy_(known[name]) if name in known else value.zero_()
