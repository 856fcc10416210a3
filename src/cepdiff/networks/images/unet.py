"""The image prior: diffusers' `UNet2DModel` as a noise predictor, from scratch or pretrained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cepdiff.diffusion.process import noise_from_data, noise_from_velocity
from cepdiff.diffusion.schedule import LinearVP, NoiseSchedule
from cepdiff.errors import ConfigError, nearest
from cepdiff.networks.images.architecture import (
    OutputConv,
    build_unet,
    check_unet,
    checkpoint_gradients,
    plain_config,
    unet_config,
)
from cepdiff.networks.images.layout import as_images, refuse_condition, square_side
from cepdiff.networks.images.pretrained import find_pretrained
from cepdiff.networks.images.timesteps import MatchedTimesteps, alphas_cumprod, scaled_times
from cepdiff.ranges import AtLeastTwo, Count, Fraction, Repeats, Width, check_arguments
from cepdiff.types import Predictor

# Prediction type in diffusers' terms -> conversion to a noise prediction.
PREDICTIONS: dict[str, Callable[[NoiseSchedule, Predictor], Predictor]] = {
    "epsilon": lambda schedule, predictor: predictor,
    "v_prediction": noise_from_velocity,
    "sample": noise_from_data,
}


class UNetScore(nn.Module):
    """A U-Net on square images as a noise predictor.

    x (..., A) with A = C * H * W flattened channel first, t (...) with broadcasting leading axes -> (..., A). The
    condition (..., 1) is the class of an image if there are `num_classes`, and ignored otherwise.

    The architecture comes from `pretrained`, `config`, or the options from `block_channels` to `dropout`. A pretrained
    network was trained at the timesteps of its scheduler, to which `MatchedTimesteps` maps the times of `schedule`; a
    network from scratch gets 1000 t. `rebuild_args` replaces arguments that name files, so that a finished run does not
    need those files.

    Args:
        condition_size: must be 0.
        data_size: A.
        channels: C.
        block_channels: channels per level; each level has half the side of the one before.
        layers_per_block: residual blocks per level.
        attention: levels with self-attention; level 0 has the images' resolution. The middle block always has it.
        dropout: dropout in the residual blocks.
        pretrained: a folder of `UNet2DModel.save_pretrained` or of a `DDPMPipeline`, or a hub id, with safetensors.
        revision: branch, tag or commit of a hub id.
        cache_dir: folder for the hub's files; None is the hub's default.
        config: arguments of `UNet2DModel`, instead of `block_channels` to `dropout`.
        scheduler: the network's training process as in a diffusers scheduler's config (`beta_schedule`,
            `prediction_type`, ...); None is the one saved with the pretrained weights.
        prediction: "epsilon", "v_prediction" or "sample"; None is the scheduler's, or epsilon without one.
        schedule: noise schedule of the times t; None is `LinearVP()`.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        channels_last: memory format of weights and activations that suits tensor cores.
        num_classes: an embedding of each class is added to that of the time; None makes an unconditional model.

    Raises:
        ConfigError: sizes do not fit, a class is missing, or as `find_pretrained` and `PretrainedUNet.load`.
        MissingExtraError: diffusers is not installed.
    """

    def __init__(
        self,
        condition_size: int,
        data_size: int,
        channels: Count = 3,
        block_channels: Sequence[Width] = (64, 128, 128),
        layers_per_block: Repeats = 2,
        attention: Sequence[int] = (),
        dropout: Fraction = 0.0,
        pretrained: str | None = None,
        revision: str | None = None,
        cache_dir: str | None = None,
        config: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
        prediction: str | None = None,
        schedule: NoiseSchedule | None = None,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
        num_classes: AtLeastTwo | None = None,
    ) -> None:
        super().__init__()
        refuse_condition(condition_size, "UNetScore")
        check_arguments(UNetScore, locals(), "behavior.net")
        side = square_side(data_size, channels)
        if pretrained is not None:
            if config is not None:
                raise ConfigError("both pretrained and config are given; expected one of the two")
            found = find_pretrained(pretrained, revision, cache_dir)
            scheduler = found.scheduler if scheduler is None else scheduler
            if scheduler is None:
                raise ConfigError(
                    f"{pretrained} has no scheduler_config.json, so the noise it was trained on is unknown: give "
                    f"scheduler, e.g. {{beta_schedule: linear, prediction_type: epsilon}}"
                )
            unet = found.load(channels, side, num_classes)
        else:
            if config is None:
                config = unet_config(side, channels, block_channels, layers_per_block, attention, dropout, num_classes)
            check_unet(config, channels, side, "the U-Net", num_classes)
            unet = build_unet(config, "config")
        if gradient_checkpointing:
            checkpoint_gradients(unet)
        unet.conv_out = OutputConv.of(unet.conv_out)
        self.unet: nn.Module = unet.to(memory_format=torch.channels_last) if channels_last else unet
        self.channels = channels
        self.channels_last = channels_last
        self.num_classes = num_classes
        self.schedule = schedule or LinearVP()
        self.scheduler = scheduler
        self.timesteps = None
        if scheduler is not None:
            self.timesteps = MatchedTimesteps(alphas_cumprod(scheduler, "scheduler"), self.schedule)
        self.prediction = prediction or (scheduler or {}).get("prediction_type", "epsilon")
        if self.prediction not in PREDICTIONS:
            raise ConfigError(
                f"the network's prediction is '{self.prediction}'; expected one of {', '.join(PREDICTIONS)}."
                f"{nearest(self.prediction, PREDICTIONS)}"
            )

    @property
    def rebuild_args(self) -> dict[str, Any]:
        """Plain constructor arguments that rebuild the network, apart from its weights, without the original files."""
        files = dict.fromkeys(("pretrained", "revision", "cache_dir"))
        return {**files, "config": plain_config(self.unet), "scheduler": self.scheduler, "prediction": self.prediction}

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        if self.timesteps is not None:
            t = self.timesteps.within(t)
        if self.num_classes is not None and condition is None:
            raise ConfigError("a U-Net with num_classes needs the class of each image as its condition (..., 1)")
        classes = None if self.num_classes is None or condition is None else condition.squeeze(-1)
        noise = PREDICTIONS[self.prediction](self.schedule, partial(self._output, classes=classes))
        return noise(x, t.unsqueeze(-1))  # (...) -> (..., 1)

    def _output(self, x: Tensor, t: Tensor, classes: Tensor | None) -> Tensor:
        """The U-Net's own prediction (..., A) at `x` (..., A) and `t` (..., 1), of `classes` (...)."""
        images, times, leading = as_images(x, t.squeeze(-1), self.channels)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        timesteps = scaled_times(times) if self.timesteps is None else self.timesteps(times)
        more = {} if classes is None else {"class_labels": classes.long().expand(leading).reshape(-1)}
        output: Tensor = self.unet(images, timesteps, return_dict=False, **more)[0]
        return output.reshape(*leading, x.shape[-1])  # (N, C, H, W) -> (..., A)
