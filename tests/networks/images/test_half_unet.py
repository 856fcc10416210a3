"""The energy network for images: shapes, heads, what the encoder sees, pooling, options, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from cepdiff.diffusion.guidance import logits_gradient
from cepdiff.diffusion.schedule import CosineVP, LinearVP
from cepdiff.errors import ConfigError
from cepdiff.networks.images.half_unet import AttentionPool, HalfUNet
from cepdiff.networks.images.unet import UNetScore

C, SIDE, B, T, H = 1, 8, 3, 2, 5
A = C * SIDE * SIDE
POOLINGS = ("average", "attention")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(**options: Any) -> HalfUNet:
    torch.manual_seed(0)
    small = {"num_heads": H, "channels": C, "block_channels": (8, 12), "layers_per_block": 1}
    return HalfUNet(0, A, **{**small, **options})


@pytest.mark.parametrize("pooling", POOLINGS)
def test_shapes_and_broadcasting(pooling: str) -> None:
    """A batch, one row, one time for all, and T times for the same B images."""
    net = make(pooling=pooling)
    x, t = normal(B, A), torch.rand(B)
    rows = net(x, t, None)
    assert rows.shape == (B, H)
    torch.testing.assert_close(net(x[:1], t[:1], None), rows[:1])
    torch.testing.assert_close(net(x[0], t[0], None), rows[0])
    torch.testing.assert_close(net(x, t[0], None), net(x, t[:1].expand(B), None))
    times, many = torch.rand(T, 1), normal(T, B, A)
    for images in (many, x):
        shared = net(images, times, None)
        flat = net(images.expand(T, B, A).reshape(-1, A), times.expand(T, B).reshape(-1), None)
        assert shared.shape == (T, B, H)
        torch.testing.assert_close(shared, flat.reshape(T, B, H))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("options", [{}, {"attention": (0,), "gradient_checkpointing": True}])
def test_every_input_and_every_parameter_matters_from_the_first_step(pooling: str, options: dict[str, Any]) -> None:
    net, x, t = make(pooling=pooling, **options), normal(B, A).requires_grad_(True), torch.rand(B)
    logits = net(x, t, None)
    assert bool((net(x, t / 2.0, None) != logits).all())
    logits.square().sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0.0).any(-1).all())
    silent = [n for n, p in net.named_parameters() if p.grad is None or not bool((p.grad != 0.0).any())]
    assert [name for name in silent if not name.endswith("to_k.bias")] == []  # biases that cancel in the softmax


def test_heads_have_gradients_of_their_own() -> None:
    net, x, t = make(), normal(B, A), torch.rand(B)
    gradients = [logits_gradient(lambda x, t, s, h=h: net(x, t, s)[..., h], x, t, None) for h in range(H)]
    assert all(gradient.shape == (B, A) for gradient in gradients)
    assert len({gradient.sum().item() for gradient in gradients}) == H


def test_the_encoder_is_that_of_the_unet() -> None:
    """The same names and shapes as a U-Net with the same options, without its decoder."""
    half, whole = make().state_dict(), UNetScore(0, A, C, (8, 12), 1).unet.state_dict()
    encoder = {
        name: value.shape for name, value in whole.items() if not name.startswith(("up_", "conv_out", "conv_norm"))
    }
    own = ("norm.", "pool.", "output.")
    assert {name: value.shape for name, value in half.items() if not name.startswith(own)} == encoder


def test_the_network_sees_the_signal() -> None:
    """Images enter as alpha_t x_t: two processes with the same signal at the same time agree."""
    net, other = make(), make(schedule=CosineVP())
    assert isinstance(net.schedule, LinearVP)
    x, t = normal(B, A), torch.rand(B, 1).squeeze(-1)
    ratio = (LinearVP().alpha(t) / CosineVP().alpha(t)).unsqueeze(-1)
    torch.testing.assert_close(other(x * ratio, t, None), net(x, t, None))
    assert not torch.allclose(other(x, t, None), net(x, t, None))


def test_pixels_are_told_apart_by_their_place() -> None:
    """Attention pooling is not a mean: the same features at other positions are pooled differently."""
    torch.manual_seed(0)
    pool, hidden = AttentionPool(16, 4), normal(B, 16, 2, 2)
    assert pool(hidden).shape == (B, 16)
    torch.testing.assert_close(pool(hidden)[1:2], pool(hidden[1:2]))
    assert not torch.allclose(pool(hidden.flip(-1)), pool(hidden), rtol=1e-3, atol=1e-3)
    # An odd number of channels gives one head.
    assert AttentionPool(17, 4)(normal(B, 17, 2, 2)).shape == (B, 17)


def test_gradient_checkpointing_changes_the_memory_alone() -> None:
    nets = [make(), make(gradient_checkpointing=True)]
    x, t, runs = normal(B, A), torch.rand(B), []
    for net in nets:
        calls: list[int] = []
        net.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        net(x, t, None).square().mean().backward()
        runs.append(len(calls))
    assert runs == [1, 2]
    for first, second in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert first.grad is not None
        assert second.grad is not None
        torch.testing.assert_close(first.grad, second.grad)
    gradients = [logits_gradient(lambda x, t, s, net=net: net(x, t, s)[..., 1], x, t, None) for net in nets]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_channels_last_changes_the_memory_format_alone() -> None:
    plain, last = make(), make(channels_last=True)
    assert last.down_blocks[0].resnets[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    seen: list[Tensor] = []
    last.conv_in.register_forward_hook(lambda module, args, output: seen.append(output))
    x, t = normal(B, A), torch.rand(B)
    torch.testing.assert_close(last(x, t, None), plain(x, t, None), rtol=1e-4, atol=1e-5)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 3}, "64 values do not form a square image of 3 channels"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"pooling": "max"}, "pooling is 'max'; expected average or attention"),
        ({"block_channels": (8,) * 5}, "half U-Net halves 8 x 8 pixels too often: the side must be a multiple of 16"),
    ],
)
def test_what_makes_no_network_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_data_with_a_condition_are_refused() -> None:
    with pytest.raises(ConfigError, match="HalfUNet takes no condition, but the data's observations have 5 values"):
        HalfUNet(5, A, channels=C)
