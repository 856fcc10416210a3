"""A prior conditioned on classes, and mixed precision of image networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from cepdiff.diffusion.schedule import LinearVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.errors import ConfigError
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.images.half_unet import HalfUNet
from cepdiff.networks.images.unet import UNetScore
from cepdiff.policy.images import ImageSampler
from cepdiff.policy.sampler import GuidedSampler, SamplerParts

CLASSES, A = 3, 64
SMALL: dict[str, Any] = {"channels": 1, "block_channels": (8, 8), "layers_per_block": 1}


def make(num_classes: int | None = CLASSES, **options: Any) -> UNetScore:
    torch.manual_seed(0)
    return UNetScore(0, A, **{**SMALL, "num_classes": num_classes, **options})


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_each_image_gets_its_class() -> None:
    net, x, t = make().eval(), normal(4, A), torch.full((4,), 0.5)
    classes = torch.tensor([[0], [1], [2], [1]])
    found = net(x, t, classes)
    unet: Any = net.unet
    direct = unet(x.reshape(4, 1, 8, 8), 1000 * t, classes.squeeze(-1), return_dict=False)[0].flatten(1)
    assert torch.equal(found, direct)
    assert (net(x, t, classes.flip(0)) - found).abs().amin(0).max() > 1e-4
    torch.testing.assert_close(net(x, torch.tensor([0.5]), classes[:1]), net(x, t, classes * 0))  # both broadcast
    with pytest.raises(ConfigError, match="needs the class of each image"):
        net(x, t, None)
    again = UNetScore(0, A, **{**SMALL, "num_classes": CLASSES, **net.rebuild_args})
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(x, t, classes), found)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"config": {"num_class_embeds": 4}}, "embeds 4 classes; expected num_class_embeds 3"),
        ({"config": {}}, "embeds no classes; expected num_class_embeds 3"),
        ({"config": {"num_class_embeds": 3, "class_embed_type": "identity"}}, "embeds classes as identity"),
        ({"num_classes": None, "config": {"num_class_embeds": 4}}, "unconditional UNet2DModel, or num_classes 4"),
    ],
)
def test_other_numbers_of_classes(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(**options)


def test_the_prior_is_trained_on_labels() -> None:
    module = BehaviorDiffusion(0, A, lambda *sizes: make(), batch_size=6)
    assert module.batch_fields == ("labels", "samples")
    batch = {"samples": normal(6, A).clamp(-1, 1), "labels": torch.tensor([0, 0, 0, 2, 2, 2])}
    loss, _ = module.loss(batch, RandomStream(0, torch.device("cpu"), 0, 1))
    loss.backward()  # type: ignore[no-untyped-call]
    embedding: Any = module.net.unet.class_embedding  # type: ignore[union-attr]
    assert (embedding.weight.grad.abs().sum(-1) > 0).tolist() == [True, False, True]
    with pytest.raises(ConfigError, match="unconditional"):
        BehaviorDiffusion(0, A, lambda *sizes: make(), average_targets=True)


def sampler(net: UNetScore) -> ImageSampler:
    torch.manual_seed(1)
    networks = {"behavior": net, "energy": HalfUNet(0, A, num_heads=CLASSES, **SMALL)}
    parts = SamplerParts(A, networks, LinearVP(), DPMSolver(num_steps=3), headed=True)
    return ImageSampler((1, 8, 8), ("a", "b", "c"), GuidedSampler(parts))


def test_a_head_is_the_class_of_its_samples() -> None:
    """At scale 0 samples of a head are those of the prior with this class."""
    net = make().eval()
    guided, noise = sampler(net).sampler, normal(2, A)
    for head in range(CLASSES):
        heads = torch.full((2, 1), head)
        found = guided.sample(heads, noise, torch.zeros(2))
        plain = make(None)
        plain.forward = lambda x, t, condition, heads=heads: net(x, t, heads)  # type: ignore[method-assign]
        alone = sampler(plain).sampler.sample(heads, noise, torch.zeros(2))
        assert torch.equal(found, alone)
    with pytest.raises(ConfigError, match="choose a head, its class"):
        sampler(net).sample(1, None, 0.0)


@pytest.mark.parametrize("num_classes", [None, CLASSES])
def test_mixed_precision_keeps_outputs_in_float32(num_classes: int | None) -> None:
    net, x = make(num_classes).eval(), normal(4, A)
    condition = torch.zeros(4, 1, dtype=torch.int64)
    exact = net(x, torch.full((4,), 0.5), condition).detach()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        rough = net(x, torch.full((4,), 0.5), condition)
        samples = sampler(net).sampler.sample(condition, x, torch.ones(4))
    assert rough.dtype == samples.dtype == torch.float32
    assert not torch.equal(rough, rough.bfloat16().float())  # not rounded at the end
    torch.testing.assert_close(rough, exact, rtol=0, atol=0.1 * float(exact.abs().max()))
