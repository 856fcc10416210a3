"""The U-Net as a noise predictor: shapes, inputs, conversion of its prediction, options, refusals."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")

from cepdiff.diffusion.schedule import CosineVP, LinearVP, NoiseSchedule
from cepdiff.errors import ConfigError, MissingExtraError
from cepdiff.networks.images.unet import UNetScore

C, SIDE, B, T = 3, 8, 3, 2
A = C * SIDE * SIDE
SMALL: dict[str, Any] = {"channels": C, "block_channels": (8, 12), "layers_per_block": 1}
LINEAR = {"beta_schedule": "linear"}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(**options: Any) -> UNetScore:
    torch.manual_seed(0)
    return UNetScore(0, A, **{**SMALL, **options})


class PerfectUNet(nn.Module):
    """The exact prediction for pixels that are independently N(mean, variance), at the timesteps of `abar` (N,)."""

    def __init__(self, abar: Tensor, prediction: str, mean: float, variance: float) -> None:
        super().__init__()
        self.abar, self.prediction, self.mean, self.variance = abar, prediction, mean, variance

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
        steps = timestep.round().long()
        torch.testing.assert_close(timestep, steps.to(timestep.dtype), rtol=0.0, atol=1e-3)
        abar = self.abar[steps].reshape(-1, 1, 1, 1)
        alpha, sigma = abar.sqrt(), (1.0 - abar).sqrt()
        gain = alpha * self.variance / (abar * self.variance + sigma**2)
        x0 = self.mean + gain * (sample - alpha * self.mean)
        eps = (sample - alpha * x0) / sigma
        return ({"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}[self.prediction],)


def test_shapes_and_broadcasting() -> None:
    """A batch, one row, one time for all, and T times for the same B images."""
    net = make()
    x, t = normal(B, A), torch.rand(B)
    rows = net(x, t, None)
    assert rows.shape == (B, A)
    torch.testing.assert_close(net(x[:1], t[:1], None), rows[:1])
    torch.testing.assert_close(net(x, t[0], None), net(x, t[:1].expand(B), None))
    torch.testing.assert_close(net(x[0], t[0], None), rows[0])
    times, many = torch.rand(T, 1), normal(T, B, A)
    for images in (many, x):
        shared = net(images, times, None)
        flat = net(images.expand(T, B, A).reshape(-1, A), times.expand(T, B).reshape(-1), None)
        assert shared.shape == (T, B, A)
        torch.testing.assert_close(shared, flat.reshape(T, B, A))


def test_a_condition_is_not_looked_at() -> None:
    net, x = make(), normal(B, A)
    assert torch.equal(net(x, torch.tensor(0.5), torch.zeros(B, 0)), net(x, torch.tensor(0.5), None))


def test_from_scratch_the_unet_sees_images_and_thousandths() -> None:
    net, x, t = make(), normal(B, A), torch.rand(B)
    expected = net.unet(x.reshape(B, C, SIDE, SIDE), 1000.0 * t).sample
    assert torch.equal(net(x, t, None), expected.flatten(1))
    assert net.rebuild_args["config"]["sample_size"] == SIDE


def test_every_input_and_every_parameter_matters() -> None:
    net, x, t = make(attention=(0,)), normal(B, A).requires_grad_(True), torch.rand(B)
    output = net(x, t, None)
    assert bool((net(x, t / 2.0, None) != output).flatten(1).any(-1).all())
    output.square().sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0.0).any(-1).all())
    silent = [n for n, p in net.named_parameters() if p.grad is None or not bool((p.grad != 0.0).any())]
    assert [name for name in silent if not name.endswith("to_k.bias")] == []  # biases that cancel in the softmax


@pytest.mark.parametrize("schedule", [LinearVP(), CosineVP()], ids=["linear VP", "cosine VP"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_becomes_the_noise_of_a_gaussian(prediction: str, schedule: NoiseSchedule) -> None:
    """eps_pred = sigma_t (x - alpha_t m) / (alpha_t² v + sigma_t²) for pixels N(m, v), at the process's steps."""
    mean, variance = 0.3, 0.2
    net = make(scheduler={**LINEAR, "prediction_type": prediction}, schedule=schedule).double()
    assert net.timesteps is not None
    abar = torch.linspace(1e-4, 0.02, 1000).neg().add(1.0).cumprod(0).double()
    net.unet = PerfectUNet(abar, prediction, mean, variance)
    steps = torch.tensor([0, 10, 300, 990])
    t = schedule.inverse_lambda(0.5 * torch.logit(abar[steps]))
    x = normal(4, A).double()
    alpha, sigma = abar[steps].sqrt().unsqueeze(-1), (1.0 - abar[steps]).sqrt().unsqueeze(-1)
    expected = sigma * (x - alpha * mean) / (abar[steps].unsqueeze(-1) * variance + sigma**2)
    torch.testing.assert_close(net(x, t, None), expected, rtol=1e-4, atol=1e-4)


def test_beyond_the_process_the_prediction_is_that_of_its_end() -> None:
    """x_1 is treated as the noisiest step, and the prediction is read with that step's alpha and sigma."""
    few = {"trained_betas": [0.01, 0.02, 0.1], "prediction_type": "v_prediction"}
    net, x = make(scheduler=few), normal(B, A)
    end = LinearVP().inverse_lambda(0.5 * torch.logit(torch.tensor(0.99 * 0.98 * 0.9)))
    torch.testing.assert_close(net(x, torch.tensor(1.0), None), net(x, end, None), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(x, 0.7 * end, None), net(x, end, None), rtol=1e-2, atol=1e-2)


def test_prediction_overrides_what_the_scheduler_says() -> None:
    assert make().prediction == "epsilon"
    assert make(prediction="sample").prediction == "sample"
    assert make(scheduler={**LINEAR, "prediction_type": "v_prediction"}).prediction == "v_prediction"
    assert make(scheduler={**LINEAR, "prediction_type": "sample"}, prediction="epsilon").prediction == "epsilon"


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradient_checkpointing_changes_the_memory_alone(dropout: float) -> None:
    """The same gradients, with the same dropout, although the blocks run twice."""
    nets = [make(dropout=dropout), make(dropout=dropout, gradient_checkpointing=True)]
    x, t, runs = normal(B, A), torch.rand(B), []
    for net in nets:
        calls: list[int] = []
        net.unet.mid_block.resnets[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(1)
        net(x, t, None).square().mean().backward()
        runs.append(len(calls))
    assert runs == [1, 2]
    for first, second in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert first.grad is not None
        assert second.grad is not None
        torch.testing.assert_close(first.grad, second.grad)


def test_channels_last_changes_the_memory_format_alone() -> None:
    plain, last = make(), make(channels_last=True)
    assert last.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    seen: list[Tensor] = []
    last.unet.conv_in.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    x, t = normal(B, A), torch.rand(B)
    torch.testing.assert_close(last(x, t, None), plain(x, t, None), rtol=1e-4, atol=1e-5)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_a_copy_stands_for_itself() -> None:
    """The moving average is a deep copy and must not refer back to the original network."""
    net = make(scheduler=LINEAR, gradient_checkpointing=True)
    average = copy.deepcopy(net)
    x, t = normal(B, A), torch.rand(B)
    before = average(x, t, None)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    assert torch.equal(average(x, t, None), before)


@pytest.mark.parametrize(
    "options", [{"attention": (1,), "dropout": 0.1}, {"scheduler": LINEAR, "prediction": "v_prediction"}]
)
def test_rebuilt_from_its_arguments(options: dict[str, Any]) -> None:
    net = make(**options).eval()
    arguments = json.loads(json.dumps(net.rebuild_args))
    again = UNetScore(0, A, **{**SMALL, **arguments}).eval()
    again.load_state_dict(net.state_dict())
    x, t = normal(B, A), torch.rand(B)
    assert torch.equal(again(x, t, None), net(x, t, None))
    assert again.rebuild_args == arguments


def test_a_config_of_the_library_replaces_the_options() -> None:
    config = {**make().rebuild_args["config"], "resnet_time_scale_shift": "scale_shift", "block_out_channels": [8, 8]}
    net = UNetScore(0, A, channels=C, config={**config, "norm_num_groups": 1})
    assert net.unet.down_blocks[0].resnets[0].time_embedding_norm == "scale_shift"
    assert net.unet.down_blocks[1].resnets[0].out_channels == 8


@pytest.mark.parametrize(("channels", "groups"), [((8, 12), 1), ((32, 64, 64), 8), ((128, 256), 32), ((96, 96), 8)])
def test_groups_of_four_channels_or_more(channels: tuple[int, ...], groups: int) -> None:
    assert make(block_channels=channels).rebuild_args["config"]["norm_num_groups"] == groups


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 1}, "192 values do not form a square image of 1 channels"),
        ({"channels": 0}, "channels is 0"),
        ({"block_channels": (8, 8, 8, 8, 8)}, "8 x 8 pixels too often: the side must be a multiple of 16"),
        ({"block_channels": ()}, r"block_channels is \[\]"),
        ({"block_channels": (8, 4)}, r"block_channels is \[8, 4\]; expected 8 or more"),
        ({"layers_per_block": 0}, "layers_per_block is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"attention": (0, 2)}, "attention names level 2; block_channels has levels 0 to 1"),
        ({"prediction": "velocity"}, "prediction is 'velocity'; expected one of epsilon, v_prediction, sample"),
        ({"config": {"block_channels": [8]}}, "config: UNet2DModel has no option 'block_channels'. Did you mean"),
        ({"config": {"block_out_channels": [32]}}, "config: cannot build a UNet2DModel"),
        ({"config": {"num_class_embeds": 10}}, "conditioned on classes"),
        ({"config": {"time_embedding_type": "fourier"}}, "embeds timesteps as 'fourier'"),
        ({"config": {"out_channels": 6}}, "3 input and 6 output channels"),
        ({"config": {"sample_size": [8, 4]}}, "images of 8 x 4 pixels; the data have 8 x 8"),
        ({"config": {}, "pretrained": "somewhere"}, "both pretrained and config"),
        ({"scheduler": {"beta_schedule": "linear", "prediction_type": "flow"}}, "prediction is 'flow'"),
    ],
)
def test_what_makes_no_network_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_data_with_a_condition_are_refused() -> None:
    with pytest.raises(ConfigError, match="UNetScore takes no condition, but the data's observations have 5 values"):
        UNetScore(5, A)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[images\]"):
        make()


def test_the_library_is_imported_when_a_network_is_made() -> None:
    code = (
        "import sys, cepdiff.networks.images.unet, cepdiff.networks.images.half_unet; print('diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
