"""Engines that run a policy: torch operator by operator, a CUDA graph of the whole sampler, or onnxruntime.

All give the same actions up to rounding. The networks are small, so a control step is bound by starting some thousand
operators; a graph starts once, and onnxruntime starts operators at less cost than torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cepdiff.errors import ConfigError, nearest
from cepdiff.modules.graphs import Capture, captured, cuda_graph
from cepdiff.policy.checks import require_finite_actions, require_finite_observations
from cepdiff.policy.export.check import load
from cepdiff.policy.export.graph import onnx_file, require_onnx, trace
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.sampler import is_static
from cepdiff.types import Policy


class OnnxPolicy:
    """An exported policy, run by onnxruntime on as many threads as torch uses.

    `policy` may be on any device; copies of its networks on the CPU are exported. Raises ConfigError for a network that
    cannot be exported, MissingExtraError if packages of the extra "onnx" are missing.
    """

    def __init__(self, policy: GuidedPolicy) -> None:
        require_onnx()
        self._policy = policy = policy.on("cpu")
        self.action_size, self.noise_size = policy.action_size, policy.noise_size
        sampler = trace(policy, "noise")
        self._names = list(sampler.inputs)
        self._run = load(onnx_file(sampler), "onnx")

    def act(self, observations: Tensor, *, guidance_scale: float | Tensor = 1.0, noise: Tensor) -> Tensor:
        """As `GuidedPolicy.act`."""
        self._policy.sampler.require_energy(guidance_scale)
        require_finite_observations(observations)
        scale = torch.as_tensor(guidance_scale, dtype=torch.float32).cpu().expand(len(noise)).contiguous()
        every = {"observations": observations.cpu().float(), "guidance_scale": scale, "noise": noise.cpu().float()}
        actions = self._run({name: every[name] for name in self._names})
        require_finite_actions(actions, scale)
        return actions


class CapturedPolicy:
    """A policy on a GPU, whose sampler is captured once per power of two of rows, and replayed.

    Rows up to the next power of two are computed and dropped; every row pays for a gradient, even at scale 0. A
    `capture` other than `cuda_graph` is for tests without a GPU.
    """

    def __init__(self, policy: GuidedPolicy, capture: Capture = cuda_graph) -> None:
        self.action_size, self.noise_size = policy.action_size, policy.noise_size
        self._policy = policy
        self._capture = capture
        self._captured: dict[int, tuple[dict[str, Tensor], Callable[[], None]]] = {}

    def act(self, observations: Tensor, *, guidance_scale: float | Tensor = 1.0, noise: Tensor) -> Tensor:
        """As `GuidedPolicy.act`; raises ConfigError for networks that cannot be captured."""
        self._policy.sampler.require_energy(guidance_scale)
        require_finite_observations(observations)
        rows = len(noise)
        size = 1 << (rows - 1).bit_length()
        if size not in self._captured:
            self._captured[size] = self._captured_sampler(size)
        memory, replay = self._captured[size]
        memory["noise"][:rows].copy_(noise)
        memory["condition"][:rows].copy_(self._policy.condition(observations))
        memory["scale"][:rows] = torch.as_tensor(guidance_scale, dtype=torch.float32, device=noise.device)
        replay()
        actions = self._policy.in_bounds(memory["samples"][:rows])
        require_finite_actions(actions, guidance_scale)
        return actions

    def _captured_sampler(self, size: int) -> tuple[dict[str, Tensor], Callable[[], None]]:
        policy = self._policy
        shapes = {
            "noise": (size, policy.noise_size),
            "condition": (size, policy.spec.observation_size),
            "scale": (size,),
            "samples": (size, policy.spec.modeled_size),
        }
        memory = {name: torch.zeros(shape, device=policy.device) for name, shape in shapes.items()}

        def sample() -> None:
            samples = policy.sampler.sample(memory["condition"], memory["noise"], memory["scale"], static=True)
            memory["samples"].copy_(samples)

        with torch.no_grad():
            advice = "run them with the engine torch"
            return memory, captured(self._capture, sample, "this policy's networks", advice)


ENGINES: dict[str, Callable[[GuidedPolicy], Policy]] = {
    "torch": lambda policy: policy,
    "cuda_graph": CapturedPolicy,
    "onnx": OnnxPolicy,
}


def run_by(policy: GuidedPolicy, engine: str | None = None) -> Policy:
    """`policy` run by that engine; None is a CUDA graph on a GPU, if the policy can be captured, and torch elsewhere.

    Raises as `require_engine`.
    """
    own = own_method(policy.sampler.sample, type(policy).act)
    require_engine(engine, policy.device, own)
    capture = policy.device.type == "cuda" and own is None
    return ENGINES[engine or ("cuda_graph" if capture else "torch")](policy)


def own_method(sample: Callable[..., Tensor], act: Callable[..., Any] = GuidedPolicy.act) -> str | None:
    """A user's own method that only torch can run, and why; None if every engine can run this policy."""
    if act is not GuidedPolicy.act:
        return f"{act.__qualname__}, which replaces GuidedPolicy.act"
    return None if is_static(sample) else f"{sample.__qualname__}, which takes no `static`"


def require_engine(engine: str | None, device: torch.device, own: str | None = None) -> None:
    """Raise what `run_by` would, before any work.

    Raises:
        ConfigError: an unknown engine, a CUDA graph without a GPU, or the user's `own` method that it cannot run.
        MissingExtraError: packages of the extra "onnx" are missing.
    """
    check_engine(engine)
    if engine == "onnx":
        require_onnx()
    if engine == "cuda_graph" and device.type != "cuda":
        raise ConfigError(f"the engine cuda_graph needs a GPU; the policy is on {device}")
    if own is not None and engine in ("onnx", "cuda_graph"):
        raise ConfigError(f"the engine {engine} cannot run {own}: use the engine torch")


def check_engine(engine: str | None) -> None:
    """Raise ConfigError for an unknown engine."""
    if engine is not None and engine not in ENGINES:
        raise ConfigError(f"no engine '{engine}'; there are {', '.join(ENGINES)}.{nearest(engine, ENGINES)}")
