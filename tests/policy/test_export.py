"""Exported samplers: equal to the policy, independent of cepdiff, explicit about what cannot be exported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_policy import SPEC, A, S, make
from torch import Tensor, nn

from cepdiff.diffusion.schedule import CosineVP, LinearVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.objectives import CEP, DPS
from cepdiff.errors import CepdiffError, ConfigError, RunError
from cepdiff.networks.energy import EnergyMLP, ResidualEnergy
from cepdiff.networks.score import MLPScore, ResidualMLPScore, ResidualUNet
from cepdiff.policy.export import check as export_check
from cepdiff.policy.export.check import TOLERANCE, check, load
from cepdiff.policy.export.graph import input_names, onnx_file, torch_file, trace
from cepdiff.policy.export.noise import GOLDEN, mix, noise_of_seed
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.types import DataSpec

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
DENSITY = DataSpec(0, A, (-1.0, -1.0), (1.0, 1.0))
SCORES: dict[str, Any] = {
    "mlp": lambda s: MLPScore(s, A, hidden=[8]),
    "residual": lambda s: ResidualMLPScore(s, A, width=8, depth=1, position_features=4),
    "unet": lambda s: ResidualUNet(s, A, widths=(8, 6, 4), embedding_size=8),
}
ENERGIES: dict[str, Any] = {
    "mlp": lambda s: EnergyMLP(s, A, hidden=[8, 8]),
    "relu": lambda s: EnergyMLP(s, A, hidden=[8, 8], activation="relu"),
    "residual": lambda s: ResidualEnergy(s, A, width=8, depth=1, position_features=4, schedule=CosineVP()),
    "none": lambda s: None,
}
# The first prediction divides by alpha_1. Two steps of an untrained network do not undo the amplified rounding:
# another runtime sums in another order, so 1 / alpha_1 must be small (6 here, 150 in LinearVP).
MILD = CosineVP(t_max=0.9)
# Every shipped network, solver, schedule and policy at least once: a trace takes a second.
CASES = {
    "plain": ("mlp", "mlp", SPEC, DPMSolver(2), MILD, False),
    "raw observations": ("unet", "residual", DataSpec(S, A, (-2.0, 0.0), (1.0, 5.0)), DPMSolver(2), CosineVP(), False),
    "clean energy": ("residual", "relu", SPEC, DPMSolver(2, order=1), MILD, True),
    "singlestep": ("residual", "mlp", SPEC, DPMSolver(3, 3, "singlestep", denoise_to_zero=True), LinearVP(), False),
    "no energy": ("unet", "none", SPEC, DPMSolver(2, spacing="time_uniform"), CosineVP(), False),
    "density": ("residual", "residual", DENSITY, DPMSolver(2), MILD, False),
}


@pytest.fixture(autouse=True)
def one_timed_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep latency measurements short."""
    monkeypatch.setattr(export_check, "SECONDS", 0.0)
    monkeypatch.setattr(export_check, "MIN_CALLS", 1)


def build(name: str) -> GuidedPolicy:
    score, energy, spec, solver, schedule, on_clean = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = SCORES[score](spec.observation_size), ENERGIES[energy](spec.observation_size)
    networks = {name: net for name, net in zip(("behavior", "energy"), nets, strict=True) if net is not None}
    return GuidedPolicy(spec, GuidedSampler(SamplerParts(A, networks, schedule, solver, DPS() if on_clean else CEP())))


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def test_integers_are_those_of_splitmix64() -> None:
    """The first outputs of the published generator in state 0."""
    counters = torch.arange(1, 4) * GOLDEN
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix(counters).tolist() == [signed(value) for value in expected]


def test_noise_is_standard_normal() -> None:
    noise = noise_of_seed(torch.tensor(3), 50_000, 4)
    assert noise.dtype == torch.float32
    standard = torch.distributions.Normal(0.0, 1.0)
    quantiles = standard.cdf(noise.double().flatten().sort().values)
    ramp = (torch.arange(len(quantiles), dtype=torch.float64) + 0.5) / len(quantiles)
    assert float((quantiles - ramp).abs().max()) < 1.95 / len(quantiles) ** 0.5  # K-S, false alarm 1 in 1000
    assert float((noise.T.corrcoef() - torch.eye(4)).abs().max()) < 0.02


def test_noise_of_neighbouring_seeds_and_rows() -> None:
    seeds = [-(2**63), -2, -1, 0, 1, 2, 2**63 - 1]
    noise = torch.stack([noise_of_seed(torch.tensor(seed), 1000, 2).flatten() for seed in seeds])
    assert float((noise.corrcoef() - torch.eye(len(seeds))).abs().max()) < 0.1
    assert len(noise.flatten().unique()) > 0.999 * noise.numel()
    assert torch.equal(noise_of_seed(torch.tensor(5), 3, 2), noise_of_seed(torch.tensor(5), 9, 2)[:3])


@pytest.mark.parametrize("name", CASES)
def test_a_torch_file_acts_as_its_policy(name: str) -> None:
    policy = build(name)
    sampler = trace(policy)
    result = check(policy, load(torch_file(sampler), "torch"), list(sampler.inputs))
    assert result.passed, result.differences_text()
    assert len(result.differences) == (3 if policy.sampler.has_energy else 1)
    inputs = {"observations": None, "guidance_scale": None, "seed": None}
    absent = {"no energy": {"guidance_scale"}, "density": {"observations"}}.get(name, set())
    assert set(sampler.inputs) == set(inputs) - absent
    assert all(row.policy > 0 and row.file > 0 for row in result.latencies)


@pytest.mark.parametrize("name", ["clean energy", "density"])
def test_an_onnx_file_acts_as_its_policy(name: str) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    policy = build(name)
    sampler = trace(policy)
    result = check(policy, load(onnx_file(sampler), "onnx"), list(sampler.inputs))
    assert result.passed, result.differences_text()


def test_noise_as_input_and_a_scale_a_row() -> None:
    policy = build("plain")
    sampler = trace(policy, "noise")
    assert list(sampler.inputs) == ["observations", "guidance_scale", "noise"]
    run = load(torch_file(sampler), "torch")
    generator = torch.Generator().manual_seed(0)
    observations, noise = (torch.randn(5, size, generator=generator) for size in (S, A))
    scales = torch.tensor([0.0, 1.0, 3.0, 0.5, 0.0])
    actions = run({"observations": observations, "guidance_scale": scales, "noise": noise})
    expected = policy.act(observations, guidance_scale=scales, noise=noise)
    torch.testing.assert_close(actions, expected, rtol=0.0, atol=TOLERANCE)
    assert not torch.equal(actions, run({"observations": observations, "guidance_scale": scales, "noise": -noise}))


def test_a_check_sees_other_weights() -> None:
    policy = build("plain")
    sampler = trace(policy)
    run = load(torch_file(sampler), "torch")
    with torch.no_grad():
        policy.sampler.networks["energy"].net.rest[-1].weight.mul_(1.5)  # type: ignore[union-attr, index, operator]
    result = check(policy, run, list(sampler.inputs))
    assert not result.passed
    assert result.differences[0.0] <= TOLERANCE < result.differences[3.0]


def test_exporting_leaves_the_policy_alone() -> None:
    policy = build("plain")
    net = policy.sampler.networks["behavior"]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    trace(policy)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


class Branching(nn.Module):
    """Reads a number from a tensor."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class BranchingEnergy(nn.Module):
    """The same for logits."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return x.sum(-1) if bool(x.sum() > 0) else -x.sum(-1)


class BranchingSolver(DPMSolver):
    """A solver step that depends on values."""

    def sample(self, data_predictor: Any, schedule: Any, noise: Tensor, callback: Any = None) -> Tensor:
        return noise if noise.sum() > 0 else -noise


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"behavior": Branching()}, "Branching cannot"),
        ({"energy": BranchingEnergy()}, "BranchingEnergy cannot"),
        ({"solver": BranchingSolver(2)}, "BranchingSolver cannot"),
    ],
)
def test_what_cannot_be_traced_is_named(part: dict[str, Any], named: str) -> None:
    networks = {"behavior": MLPScore(S, A, [4]), "energy": EnergyMLP(S, A, [4]), "solver": DPMSolver(1), **part}
    solver = networks.pop("solver")
    policy = GuidedPolicy(SPEC, GuidedSampler(SamplerParts(A, networks, LinearVP(), solver)))
    with pytest.raises(ConfigError, match=named) as caught:
        trace(policy)
    assert "\n" not in str(caught.value)


def test_a_density_without_energy_needs_noise() -> None:
    parts = SamplerParts(A, {"behavior": MLPScore(0, A, [4])}, LinearVP(), DPMSolver(1))
    policy = GuidedPolicy(DENSITY, GuidedSampler(parts))
    with pytest.raises(RunError, match="--randomness noise"):
        trace(policy)
    assert input_names(policy, "noise") == ("noise",)


def test_an_opset_that_the_exporter_replaces_in_silence_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.13 does with opset 999."""
    pytest.importorskip("onnxscript")
    helper = pytest.importorskip("onnx.helper")
    empty = helper.make_graph([], "empty", [], [])
    model = helper.make_model(empty, opset_imports=[helper.make_opsetid("", 18)])
    monkeypatch.setattr("onnx.defs.onnx_opset_version", lambda: 999)
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: SimpleNamespace(model_proto=model))
    sampler: Any = SimpleNamespace(program=None, inputs={}, metadata={})
    with pytest.raises(ConfigError, match=r"cannot write opset 999, it wrote 18; use --opset 18"):
        onnx_file(sampler, opset=999)


def test_old_opsets_are_refused() -> None:
    pytest.importorskip("onnxscript")
    sampler: Any = None  # refused before use
    with pytest.raises(CepdiffError, match="opset is 17; expected 18"):
        onnx_file(sampler, opset=17)


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_the_page_shows_how_to_call_a_file_without_cepdiff(tmp_path: Path, kind: str) -> None:
    """Its example runs without cepdiff or Lightning importable, and gives the policy's actions."""
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    (example,) = re.findall(
        rf"```python title=\"with_{kind}\.py\"\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    policy = make()
    policy.sampler.solver = DPMSolver(2)
    sampler = trace(policy)
    content = torch_file(sampler) if kind == "torch" else onnx_file(sampler)
    (tmp_path / ("policy.pt2" if kind == "torch" else "policy.onnx")).write_bytes(content)
    blocked = "import sys\nfor name in ('cepdiff', 'lightning', 'pytorch_lightning'): sys.modules[name] = None\n"
    show = "\nprint(json.dumps([actions.tolist(), about]))\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + example + show], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    actions, about = json.loads(done.stdout)
    expected = policy.act(np.zeros((4, S)), noise=noise_of_seed(torch.tensor(7), 4, A))
    np.testing.assert_allclose(actions, expected, rtol=0.0, atol=TOLERANCE)
    assert about["observation_size"] == S
    assert about["action_high"] == list(SPEC.action_high)
    assert about["num_solver_steps"] == 2
    assert about["inputs"]["guidance_scale"] == {"shape": ["B"], "dtype": "float32"}
