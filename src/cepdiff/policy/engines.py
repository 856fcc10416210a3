"""What runs a policy in rollouts: torch operator by operator, a CUDA graph of the whole sampler, or onnxruntime.

All give the same actions up to rounding. The networks are small, so that a control step is bound by the start of some
thousand operators; a graph starts once, and onnxruntime starts operators at less cost than torch does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cepdiff.diffusion.sampling import sample_guided
from cepdiff.errors import ConfigError, nearest
from cepdiff.modules.graphs import Capture, cuda_graph
from cepdiff.policy.export.check import load
from cepdiff.policy.export.graph import onnx_file, require_onnx, trace
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.types import Policy


class OnnxPolicy:
    """An exported policy, run by onnxruntime on as many threads as torch has.

    Args:
        policy: on any device; what is exported are copies of its networks on the CPU.

    Raises:
        ConfigError: a network that cannot be exported.
        MissingExtraError: packages of the extra "onnx" are missing.
    """

    def __init__(self, policy: GuidedPolicy) -> None:
        require_onnx()
        policy = policy.on("cpu")
        self._policy = policy
        self.action_size = policy.action_size
        sampler = trace(policy, "noise")
        self._names = list(sampler.inputs)
        self._run = load(onnx_file(sampler), "onnx")

    def act(self, observations: Tensor, *, guidance_scale: float | Tensor = 1.0, noise: Tensor) -> Tensor:
        """Actions (B, A) for raw observations (B, S) and noise (B, A), as `GuidedPolicy.act` gives them."""
        self._policy.require_energy(guidance_scale)
        scale = torch.as_tensor(guidance_scale, dtype=torch.float32).cpu().expand(len(noise)).contiguous()
        every = {"observations": observations.cpu().float(), "guidance_scale": scale, "noise": noise.cpu().float()}
        return self._run({name: every[name] for name in self._names})


class CapturedPolicy:
    """A policy on a GPU, whose sampler is captured once for each power of two of rows, and replayed.

    Rows up to the next power of two are computed and not returned; every row pays for a gradient, also at scale 0.

    Args:
        policy: on the GPU.
        capture: `cuda_graph`; anything else is for tests without a GPU.
    """

    def __init__(self, policy: GuidedPolicy, capture: Capture = cuda_graph) -> None:
        self.action_size = policy.action_size
        self._policy = policy
        self._capture = capture
        self._captured: dict[int, tuple[dict[str, Tensor], Callable[[], None]]] = {}

    def act(self, observations: Tensor, *, guidance_scale: float | Tensor = 1.0, noise: Tensor) -> Tensor:
        """Actions (B, A) for raw observations (B, S) and noise (B, A), as `GuidedPolicy.act` gives them.

        Raises:
            ConfigError: networks that cannot be captured.
        """
        self._policy.require_energy(guidance_scale)
        rows = len(noise)
        size = 1 << (rows - 1).bit_length()
        if size not in self._captured:
            self._captured[size] = self._captured_sampler(size)
        memory, replay = self._captured[size]
        memory["noise"][:rows].copy_(noise)
        memory["condition"][:rows].copy_(self._policy.condition(observations))
        memory["scale"][:rows] = torch.as_tensor(guidance_scale, dtype=torch.float32, device=noise.device)
        replay()
        return self._policy.in_bounds(memory["samples"][:rows])

    def _captured_sampler(self, size: int) -> tuple[dict[str, Tensor], Callable[[], None]]:
        policy = self._policy
        shapes = {
            "noise": (size, policy.action_size),
            "condition": (size, policy.spec.observation_size),
            "scale": (size,),
            "samples": (size, policy.action_size),
        }
        memory = {name: torch.zeros(shape, device=policy.device) for name, shape in shapes.items()}

        def sample() -> None:
            samples = sample_guided(
                policy.eps_net,
                policy.schedule,
                policy.solver,
                memory["condition"],
                memory["noise"],
                logits=policy.logits,
                guidance_scale=memory["scale"],
                data_bound=1.0,
                guide_every_row=True,
            )
            memory["samples"].copy_(samples)

        try:
            with torch.no_grad():
                return memory, self._capture(sample)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"this policy's networks cannot be captured as a CUDA graph ({reason}); run them with the engine torch"
            ) from error


ENGINES: dict[str, Callable[[GuidedPolicy], Policy]] = {
    "torch": lambda policy: policy,
    "cuda_graph": CapturedPolicy,
    "onnx": OnnxPolicy,
}


def run_by(policy: GuidedPolicy, engine: str | None = None) -> Policy:
    """`policy` as that engine runs it; None is a CUDA graph on a GPU and torch elsewhere.

    Raises:
        ConfigError: as `require_engine`.
        MissingExtraError: likewise.
    """
    require_engine(engine, policy.device)
    return ENGINES[engine or ("cuda_graph" if policy.device.type == "cuda" else "torch")](policy)


def require_engine(engine: str | None, device: torch.device) -> None:
    """Raises what `run_by` would, before any work.

    Raises:
        ConfigError: an unknown engine, or a CUDA graph without a GPU.
        MissingExtraError: packages of the extra "onnx" are missing.
    """
    check_engine(engine)
    if engine == "onnx":
        require_onnx()
    if engine == "cuda_graph" and device.type != "cuda":
        raise ConfigError(f"the engine cuda_graph needs a GPU; the policy lies on {device}")


def check_engine(engine: str | None) -> None:
    """Raises ConfigError for an engine that is none."""
    if engine is not None and engine not in ENGINES:
        raise ConfigError(f"no engine '{engine}'; there are {', '.join(ENGINES)}.{nearest(engine, ENGINES)}")
