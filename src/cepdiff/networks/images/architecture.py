"""diffusers' `UNet2DModel`, built from a few options or its own config, and checked against the data."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.utils.checkpoint import checkpoint

from cepdiff.errors import ConfigError, nearest
from cepdiff.networks.images.library import image_library
from cepdiff.precision import float32_products

HEAD_SIZE = 8  # channels per attention head


def unet_config(
    side: int,
    channels: int,
    block_channels: Sequence[int],
    layers_per_block: int,
    attention: Sequence[int],
    dropout: float,
    num_classes: int | None = None,
) -> dict[str, Any]:
    """Arguments of `UNet2DModel` for square images; raises ConfigError for invalid options.

    Level 0 has the images' resolution, and each further level half the side of the one before. Group norms have at
    least four channels per group, so that the coarsest levels of tiny images are not normalised away.
    """
    levels = len(block_channels)
    if not levels or min(block_channels) < HEAD_SIZE:
        raise ConfigError(f"block_channels is {list(block_channels)}; expected {HEAD_SIZE} or more channels per level")
    if unknown := sorted(set(attention) - set(range(levels))):
        raise ConfigError(f"attention names level {unknown[0]}; block_channels has levels 0 to {levels - 1}")
    kinds = ["Attn" if level in attention else "" for level in range(levels)]
    return {
        **({} if num_classes is None else {"num_class_embeds": num_classes}),
        "sample_size": side,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": list(block_channels),
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "layers_per_block": layers_per_block,
        "attention_head_dim": HEAD_SIZE,
        "dropout": dropout,
        "norm_num_groups": math.gcd(32, max(1, math.gcd(*block_channels) // 4)),
    }


def build_unet(config: Mapping[str, Any], where: str) -> Any:
    """Build a `UNet2DModel` with random weights; raises ConfigError for invalid arguments, naming `where`."""
    cls = image_library().UNet2DModel
    known = list(inspect.signature(cls.__init__).parameters)
    for name in config:
        if name not in known:
            raise ConfigError(f"{where}: UNet2DModel has no option '{name}'.{nearest(name, known)}")
    try:
        return cls(**config)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: cannot build a UNet2DModel from these arguments ({error})") from error


class OutputConv(nn.Conv2d):
    """A U-Net's last convolution, which stays in float32 under mixed precision, as `OutputLinear`."""

    def forward(self, input: Tensor) -> Tensor:
        with float32_products(input):
            return super().forward(input.to(self.weight.dtype))

    @classmethod
    def of(cls, conv: nn.Conv2d) -> OutputConv:
        """One with the parameters of `conv`; draws no random numbers."""
        size: Any = (conv.in_channels, conv.out_channels, conv.kernel_size)
        found: OutputConv = skip_init(cls, *size, stride=conv.stride, padding=conv.padding)  # type: ignore[no-untyped-call]
        found.weight, found.bias = conv.weight, conv.bias
        return found


def checkpoint_gradients(unet: Any) -> None:
    """Make a `UNet2DModel` recompute its blocks' activations in the backward pass instead of keeping them.

    Random numbers are replayed only if there is dropout: replaying reads their state, which a CUDA graph cannot.
    """
    replay = unet.config["dropout"] > 0.0
    recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=replay)
    unet.enable_gradient_checkpointing(gradient_checkpointing_func=recompute)


def plain_config(unet: Any) -> dict[str, Any]:
    """Arguments that rebuild a `UNet2DModel`, as plain types."""
    known = inspect.signature(image_library().UNet2DModel.__init__).parameters
    return {name: list(v) if isinstance(v, tuple) else v for name, v in unet.config.items() if name in known}


def check_unet(config: Mapping[str, Any], channels: int, side: int, where: str, num_classes: int | None = None) -> None:
    """Raise ConfigError, naming `where`, unless `config` is a U-Net for such images, with an embedding per class if
    `num_classes` are given.
    """
    name = config.get("_class_name", "UNet2DModel")
    if name != "UNet2DModel":
        raise ConfigError(f"{where} is a {name}; expected an unconditional UNet2DModel")
    classes, kind = config.get("num_class_embeds"), config.get("class_embed_type")
    if classes != num_classes or kind is not None:
        if num_classes is None:
            wanted = f"an unconditional UNet2DModel, or num_classes {classes or ''}".strip()
            raise ConfigError(f"{where} is conditioned on classes; expected {wanted}")
        embedded = f"embeds classes as {kind}" if kind else f"embeds {classes or 'no'} classes"
        raise ConfigError(f"{where} {embedded}; expected num_class_embeds {num_classes}, as num_classes")
    embedding = config.get("time_embedding_type", "positional")
    if embedding != "positional":
        raise ConfigError(
            f"{where} embeds timesteps as '{embedding}'; expected 'positional', which takes any noise level"
        )
    found = config.get("in_channels", 3), config.get("out_channels", 3)
    if found != (channels, channels):
        raise ConfigError(
            f"{where} has {found[0]} input and {found[1]} output channels; expected channels = {channels} of both"
        )
    size = config.get("sample_size")
    sides = [side] if size is None else [size] if isinstance(size, int) else list(size)
    if any(value != side for value in sides):
        raise ConfigError(
            f"{where} is made for images of {sides[0]} x {sides[-1]} pixels; the data have {side} x {side}"
        )
    factor = 2 ** (len(config.get("block_out_channels", (0,) * 4)) - 1)
    if side % factor:
        raise ConfigError(f"{where} halves {side} x {side} pixels too often: the side must be a multiple of {factor}")
