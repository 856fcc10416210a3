"""Networks: shapes, broadcasting over the K actions of a state, and unconditional use."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cepdiff.diffusion.schedule import CosineVP, LinearVP, NoiseSchedule
from cepdiff.networks.critic import QEnsemble
from cepdiff.networks.embeddings import FourierFeatures
from cepdiff.networks.energy import EnergyMLP, ResidualEnergy
from cepdiff.networks.mlp import (
    ACTIVATIONS,
    JointLinear,
    JointMLP,
    OutputLinear,
    all_finite,
    mlp,
    parameter_count,
)
from cepdiff.networks.score import MLPScore, ResidualMLPScore, ResidualUNet

S, A, B, K = 5, 3, 4, 6
SCORES = {
    "unet": lambda s: ResidualUNet(s, A, widths=(24, 16, 8), time_features=8, condition_features=8, embedding_size=12),
    "mlp": lambda s: MLPScore(s, A, hidden=(16, 8), time_features=8),
    "residual": lambda s: ResidualMLPScore(s, A, width=16, depth=2, time_features=8),
    "residual, position features": lambda s: ResidualMLPScore(s, A, width=16, depth=2, position_features=8),
}
ENERGIES = {
    "energy": lambda s: EnergyMLP(s, A, hidden=(16, 8), time_features=8),
    "residual-energy": lambda s: ResidualEnergy(s, A, width=16, depth=2, time_features=8),
    "residual-energy-positions": lambda s: ResidualEnergy(
        s, A, width=16, depth=2, time_features=8, position_features=6
    ),
}
TIMED = {**SCORES, **ENERGIES}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(name: str, condition_size: int = S) -> nn.Module:
    torch.manual_seed(0)
    return TIMED[name](condition_size).double()


def output_shape(name: str, *leading: int) -> tuple[int, ...]:
    return leading if name in ENERGIES else (*leading, A)


def test_joint_linear_is_a_linear_layer_on_the_concatenation() -> None:
    joint = JointLinear([2, 3, 4], 7).double()
    inputs = [normal(5, size, seed=size) for size in (2, 3, 4)]
    expected = nn.functional.linear(torch.cat(inputs, -1), joint.weight, joint.bias)
    torch.testing.assert_close(joint(*inputs), expected)


def test_joint_linear_shares_what_broadcasts() -> None:
    joint = JointLinear([A, S, 1], 7).double()
    x, s, t = normal(B, K, A), normal(B, 1, S, seed=1), normal(1, seed=2)
    expanded = joint(x, s.expand(B, K, S), t.expand(B, K, 1))
    torch.testing.assert_close(joint(x, s, t), expanded)


def test_joint_linear_starts_like_a_linear_layer_of_its_whole_width() -> None:
    torch.manual_seed(0)
    joint = JointLinear([2, 6], 4)
    torch.manual_seed(0)
    whole = nn.Linear(8, 4)
    assert torch.equal(joint.weight, whole.weight)
    assert torch.equal(joint.bias, whole.bias)


def test_joint_linear_refuses_a_wrong_number_of_inputs() -> None:
    with pytest.raises(ValueError, match="zip"):
        JointLinear([2, 3], 4)(torch.zeros(1, 2))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layers_of_an_mlp(activation: str) -> None:
    layers = [type(layer) for layer in mlp([3, 5, 7, 2], activation)]
    kind = ACTIVATIONS[activation]
    assert layers == [nn.Linear, kind, nn.Linear, kind, OutputLinear]
    joint = JointMLP([3, 4], (5, 7), 2, activation)
    assert [type(layer) for layer in joint.rest] == [kind, nn.Linear, kind, OutputLinear]
    assert joint(torch.zeros(6, 3), torch.zeros(6, 4)).shape == (6, 2)


@pytest.mark.parametrize("name", TIMED)
def test_shapes_of_a_batch_and_of_one_row(name: str) -> None:
    net = make(name)
    for rows in (B, 1):
        output = net(normal(rows, A), torch.rand(rows).double(), normal(rows, S))
        assert output.shape == output_shape(name, rows)


@pytest.mark.parametrize("name", TIMED)
def test_broadcasting_equals_the_expanded_computation(name: str) -> None:
    """One state and one time for K actions, as in guidance training; one time for all, as the solver calls it."""
    net = make(name)
    x, t, s = normal(B, K, A), torch.rand(B, 1).double(), normal(B, 1, S, seed=1)
    shared = net(x, t, s)
    flat = net(x.reshape(B * K, A), t.expand(B, K).reshape(-1), s.expand(B, K, S).reshape(-1, S))
    assert shared.shape == output_shape(name, B, K)
    torch.testing.assert_close(shared, flat.reshape(shared.shape))

    one_time = torch.tensor(0.3, dtype=torch.float64)
    scalar = net(x[:, 0], one_time, s[:, 0])
    torch.testing.assert_close(scalar, net(x[:, 0], one_time.expand(B), s[:, 0]))


@pytest.mark.parametrize("name", TIMED)
def test_rows_do_not_mix(name: str) -> None:
    net = make(name)
    x, t, s = normal(B, A), torch.rand(B).double(), normal(B, S, seed=1)
    together = net(x, t, s)
    for i in range(B):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1], s[i : i + 1]), together[i : i + 1])


@pytest.mark.parametrize("name", TIMED)
def test_every_input_matters(name: str) -> None:
    net = make(name)
    x, t, s = normal(B, A), torch.rand(B).double(), normal(B, S, seed=1)
    base = net(x, t, s)
    for changed in (net(x + 1.0, t, s), net(x, t / 2.0, s), net(x, t, s + 1.0)):
        assert bool((changed != base).flatten(1).any(-1).all() if changed.ndim > 1 else (changed != base).all())


@pytest.mark.parametrize("name", TIMED)
def test_unconditional(name: str) -> None:
    net = make(name, condition_size=0)
    x, t = normal(B, A), torch.rand(B).double()
    output = net(x, t, None)
    assert output.shape == output_shape(name, B)
    assert torch.equal(net(x, t, torch.zeros(B, 0, dtype=torch.float64)), output)  # as from a buffer with S = 0


def test_fourier_features_are_the_formula() -> None:
    features = FourierFeatures(8, scale=3.0).double()
    t = torch.rand(2, 3).double()
    output = features(t)
    assert output.shape == (2, 3, 8)
    for j, frequency in enumerate(features.frequencies.tolist()):
        torch.testing.assert_close(output[..., j], (2 * torch.pi * frequency * t).sin())
        torch.testing.assert_close(output[..., 4 + j], (2 * torch.pi * frequency * t).cos())
    assert list(features.parameters()) == []
    assert "frequencies" in features.state_dict()  # otherwise a loaded network would embed time differently


def test_fourier_features_of_a_vector_are_plane_waves() -> None:
    features = FourierFeatures(8, scale=3.0, input_size=2).double()
    x = torch.rand(5, 3, 2).double()
    output = features(x)
    assert output.shape == (5, 3, 8)
    for j, (first, second) in enumerate(features.frequencies.T.tolist()):
        phase = 2 * torch.pi * (first * x[..., 0] + second * x[..., 1])
        torch.testing.assert_close(output[..., j], phase.sin())
        torch.testing.assert_close(output[..., 4 + j], phase.cos())


def test_fourier_frequencies_have_the_given_scale() -> None:
    torch.manual_seed(0)
    assert float(FourierFeatures(20_000, scale=30.0).frequencies.std()) == pytest.approx(30.0, rel=0.03)


@pytest.mark.parametrize("position_features", [0, 16])
@pytest.mark.parametrize("schedule", [LinearVP(), CosineVP()], ids=["linear", "cosine"])
def test_the_gradient_of_a_residual_energy_vanishes_like_alpha(schedule: NoiseSchedule, position_features: int) -> None:
    """∇f(x_t, t) / alpha_t is the gradient in the signal alpha_t x_t, whose size does not vanish up to t = 1."""
    torch.manual_seed(0)
    net = ResidualEnergy(0, A, width=16, position_features=position_features, schedule=schedule).double()
    assert net.schedule is schedule
    norms = []
    for t in (0.1, 0.5, 0.9, 1.0):
        time, x = torch.full((50,), t, dtype=torch.float64), normal(50, A).requires_grad_(True)
        (gradient,) = torch.autograd.grad(net(x, time, None).sum(), x)
        norms.append((gradient / schedule.alpha(time).unsqueeze(-1)).norm(dim=-1).mean())
    assert float(torch.stack(norms).min()) > 0.3 * float(torch.stack(norms).max())
    assert float(schedule.alpha(torch.ones(()))) * float(norms[-1]) < 0.02 * float(norms[0])


def test_a_residual_energy_sees_the_signal_and_lambda_alone() -> None:
    """Two processes with the same alpha_t x_t and lambda_t give the same logit."""
    torch.manual_seed(0)
    net = ResidualEnergy(S, A, width=16, position_features=6).double()
    linear, cosine = LinearVP(), CosineVP()
    t, x, s = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64), normal(3, A), normal(3, S, seed=1)
    found = net(x, t, s)
    net.schedule = cosine
    torch.testing.assert_close(net(x, cosine.inverse_lambda(linear.lam(t)), s), found, rtol=1e-7, atol=1e-9)


def test_the_schedule_of_a_residual_energy_is_no_weight() -> None:
    assert isinstance(ResidualEnergy(S, A).schedule, LinearVP)
    assert not any("schedule" in name for name in ResidualEnergy(S, A, schedule=CosineVP()).state_dict())


@pytest.mark.parametrize("num_critics", [1, 2, 3])
def test_critics_are_independent_and_broadcast_over_actions(num_critics: int) -> None:
    torch.manual_seed(0)
    net = QEnsemble(S, A, hidden=(16, 8), num_critics=num_critics).double()
    s, a = normal(B, S), normal(B, K, A, seed=1)
    q = net(s.unsqueeze(1), a)
    assert q.shape == (num_critics, B, K)
    flat = net(s.unsqueeze(1).expand(B, K, S).reshape(-1, S), a.reshape(-1, A))
    torch.testing.assert_close(q, flat.reshape(q.shape))
    for i in range(num_critics):
        torch.testing.assert_close(q[i], net.critics[i](a, s.unsqueeze(1)).squeeze(-1))
        assert all(not torch.equal(q[i], q[j]) for j in range(i))
    assert net(s[:1], a[:1, 0]).shape == (num_critics, 1)


def test_parameters_are_counted_and_watched() -> None:
    net = nn.Linear(3, 2)
    assert parameter_count(net) == 8
    assert all_finite(net.parameters())
    with torch.no_grad():
        net.bias[1] = torch.inf
    assert not all_finite(net.parameters())
    net.bias.requires_grad_(False)
    assert parameter_count(net) == 6
