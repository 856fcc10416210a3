"""The energy network for images: the encoder half of a U-Net, with one logit per head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cepdiff.diffusion.schedule import LinearVP, NoiseSchedule
from cepdiff.networks.images.architecture import HEAD_SIZE, build_unet, check_unet, checkpoint_gradients, unet_config
from cepdiff.networks.images.layout import as_images, refuse_condition, square_side
from cepdiff.networks.images.timesteps import scaled_times
from cepdiff.networks.mlp import OutputLinear
from cepdiff.ranges import Count, Fraction, Repeats, Width, check_arguments


class HalfUNet(nn.Module):
    """Time embedding, down blocks and middle block of diffusers' `UNet2DModel`, pooled to logits of several energies.

    x (..., A) with A = C * H * W flattened channel first, t (...) with broadcasting leading axes -> (..., H); head h
    stands for -E_t of energy h. The condition is ignored. Images are scaled by alpha_t, so that pure noise always looks
    the same, as in `ResidualEnergy`. The output layer is initialised randomly: from zero the encoder would get no
    gradient.

    Args:
        condition_size: must be 0.
        data_size: A.
        num_heads: H.
        channels: C; like the options that are not listed here, as in `UNetScore`.
        pooling: "average" over pixels, or "attention": the mean attends to all pixels (Radford et al. 2021; used by the
            classifier of Dhariwal & Nichol 2021).
        schedule: noise schedule of alpha_t; None is `LinearVP()`.

    Raises:
        ConfigError: sizes do not fit.
        MissingExtraError: diffusers is not installed.
    """

    down_blocks: nn.ModuleList

    def __init__(
        self,
        condition_size: int,
        data_size: int,
        num_heads: Count = 1,
        channels: Count = 3,
        block_channels: Sequence[Width] = (64, 128, 128),
        layers_per_block: Repeats = 2,
        attention: Sequence[int] = (),
        dropout: Fraction = 0.0,
        pooling: Literal["average", "attention"] = "attention",
        schedule: NoiseSchedule | None = None,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        refuse_condition(condition_size, "HalfUNet")
        check_arguments(HalfUNet, locals(), "guidance.net")
        side = square_side(data_size, channels)
        config = unet_config(side, channels, block_channels, layers_per_block, attention, dropout)
        check_unet(config, channels, side, "the half U-Net")
        unet = build_unet(config, "half U-Net")
        if gradient_checkpointing:
            checkpoint_gradients(unet)
        if channels_last:
            unet.to(memory_format=torch.channels_last)
        self.channels = channels
        self.channels_last = channels_last
        self.schedule = schedule or LinearVP()
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        self.conv_in, self.down_blocks, self.mid_block = unet.conv_in, unet.down_blocks, unet.mid_block
        width, coarsest = block_channels[-1], side // 2 ** (len(block_channels) - 1)
        self.norm = nn.Sequential(nn.GroupNorm(config["norm_num_groups"], width), nn.SiLU())
        self.pool = AttentionPool(width, coarsest**2) if pooling == "attention" else AveragePool()
        self.output = OutputLinear(width, num_heads)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        images, times, leading = as_images(self.schedule.alpha(t).unsqueeze(-1) * x, t, self.channels)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        # The sinusoids are float32 whatever the weights' type.
        embedding = self.time_embedding(self.time_proj(scaled_times(times)).to(images.dtype))
        hidden = self.conv_in(images)
        for block in self.down_blocks:
            hidden, _ = block(hidden, embedding)
        hidden = self.norm(self.mid_block(hidden, embedding))
        logits: Tensor = self.output(self.pool(hidden))
        return logits.reshape(*leading, -1)  # (N, H) -> (..., H)


class AveragePool(nn.Module):
    """The mean over pixels: (N, C, H, W) -> (N, C)."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.mean((-2, -1))


class AttentionPool(nn.Module):
    """The mean over pixels attends to itself and all pixels, with learned positions: (N, C, H, W) -> (N, C)."""

    def __init__(self, width: int, num_pixels: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(num_pixels + 1, width) / width**0.5)
        self.attention = nn.MultiheadAttention(width, math.gcd(width, width // HEAD_SIZE), batch_first=True)

    def forward(self, hidden: Tensor) -> Tensor:
        pixels = hidden.flatten(2).transpose(1, 2)  # (N, C, H, W) -> (N, H*W, C)
        tokens = torch.cat([pixels.mean(1, keepdim=True), pixels], 1) + self.positions
        pooled: Tensor = self.attention(tokens[:, :1], tokens, tokens, need_weights=False)[0]
        return pooled.squeeze(1)
