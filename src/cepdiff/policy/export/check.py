"""Compare an exported sampler with its policy: actions and latency."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cepdiff.policy.export.graph import Format
from cepdiff.policy.export.noise import noise_of_seed
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.tables import Table

SCALES = (0.0, 1.0, 3.0)
BATCH_SIZES = (1, 10, 256)
TOLERANCE = 1e-5  # of the action range
MIN_CALLS, MAX_CALLS, SECONDS = 3, 200, 0.2  # of a timing

# A loaded file: named inputs in, actions (B, A) out.
Sampler = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call, the median of several, for a batch of observations."""

    num_rows: int
    policy: float
    file: float


@dataclass(frozen=True)
class Check:
    """Largest difference from the policy per guidance scale, as a fraction of the action range, and latencies."""

    differences: dict[float, float]
    latencies: list[Latency]

    @property
    def passed(self) -> bool:
        """True if the file acts as the policy does."""
        return all(difference <= TOLERANCE for difference in self.differences.values())  # NaN fails

    def differences_text(self) -> str:
        """One line."""
        parts = ", ".join(f"{value:.1e} at scale {scale:g}" for scale, value in self.differences.items())
        return f"largest difference from the policy, as a fraction of the action range: {parts}"

    def table(self) -> str:
        """Latencies, for a terminal."""
        rows = [[str(row.num_rows), f"{row.policy:.2f}", f"{row.file:.2f}"] for row in self.latencies]
        return Table([["observations", "policy [ms]", "file [ms]"], *rows]).text()


def load(content: bytes, file_format: Format) -> Sampler:
    """The sampler in the content of a file, on as many threads as torch uses."""
    if file_format == "torch":
        module = torch.export.load(io.BytesIO(content)).module()

        def run_torch(inputs: dict[str, Tensor]) -> Tensor:
            actions: Tensor = module(**inputs)
            return actions

        return run_torch
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run_onnx(inputs: dict[str, Tensor]) -> Tensor:
        (actions,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(actions)

    return run_onnx


def check(policy: GuidedPolicy, sampler: Sampler, names: Sequence[str]) -> Check:
    """Differences over all batch sizes on random observations, and latencies at scale 1 (0 without an energy network).

    `names` are the file's inputs. Scales above the sampler's `max_scale` are left out.
    """
    largest = policy.sampler.max_scale if "guidance_scale" in names else 0.0
    scales = [scale for scale in SCALES if scale <= largest]
    differences = {
        scale: max(_difference(policy, sampler, names, rows, scale) for rows in BATCH_SIZES) for scale in scales
    }
    timed = min(1.0, largest)
    return Check(differences, [_latency(policy, sampler, names, rows, timed) for rows in BATCH_SIZES])


def example(
    policy: GuidedPolicy, names: Sequence[str], num_rows: int, scale: float
) -> tuple[dict[str, Tensor], Callable[[], Tensor]]:
    """Inputs of a file, and a function that returns the policy's actions (B, A) for them.

    Observations are normal, with the buffer's mean and standard deviation if the policy has them.
    """
    generator = torch.Generator().manual_seed(num_rows)
    seed = torch.tensor(1000 + num_rows)
    observations = torch.randn(num_rows, policy.spec.observation_size, generator=generator)
    mean, std = policy.spec.observation_mean, policy.spec.observation_std
    if mean is not None and std is not None:
        observations = torch.tensor(mean) + torch.tensor(std) * observations
    noise = noise_of_seed(seed, num_rows, policy.noise_size)
    scales = torch.full((num_rows,), scale)
    every = {"observations": observations, "guidance_scale": scales, "seed": seed, "noise": noise}
    act = partial(policy.act, observations, guidance_scale=scale, noise=noise)
    return {name: every[name] for name in names}, act


def _difference(policy: GuidedPolicy, sampler: Sampler, names: Sequence[str], num_rows: int, scale: float) -> float:
    inputs, act = example(policy, names, num_rows, scale)
    gap = (sampler(inputs) - act()).abs()
    extent = torch.tensor(policy.spec.action_high) - torch.tensor(policy.spec.action_low)
    return float((gap / extent).max())


def _latency(policy: GuidedPolicy, sampler: Sampler, names: Sequence[str], num_rows: int, scale: float) -> Latency:
    inputs, act = example(policy, names, num_rows, scale)
    return Latency(num_rows, _milliseconds(act), _milliseconds(lambda: sampler(inputs)))


def _milliseconds(call: Callable[[], object]) -> float:
    """Median of some calls, after a first one that prepares."""
    call()
    seconds: list[float] = []
    while len(seconds) < MIN_CALLS or (sum(seconds) < SECONDS and len(seconds) < MAX_CALLS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds)
