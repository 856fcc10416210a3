"""A small classifier of clean images, whose features compare samples with real images."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

FEATURES = 32
CHUNK = 1 << 22  # values of images at a time


class ImageClassifier(nn.Module):
    """A small convolutional network: images (N, C, H, W) in [-1, 1] -> logits (N, classes).

    Each level halves the side, down to 4 pixels; the logits are a linear layer of features (N, 32).
    """

    def __init__(self, channels: int, side: int, num_classes: int) -> None:
        super().__init__()
        levels = max(1, math.ceil(math.log2(max(side, 8) / 4)))
        widths = [32 * 2 ** min(level, 2) for level in range(levels + 1)]
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for width, wider in pairwise(widths):
            layers += [nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, wider, 3, stride=2, padding=1)]
        layers += [nn.GroupNorm(8, widths[-1]), nn.SiLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
        self.body = nn.Sequential(*layers, nn.Linear(16 * widths[-1], FEATURES), nn.SiLU())
        self.output = nn.Linear(FEATURES, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.output(self.body(images))
        return logits

    @torch.no_grad()
    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(features (N, 32), the most likely class (N,)) of images (N, C, H, W) uint8, on the CPU."""
        device = self.output.weight.device
        size = max(1, CHUNK // images[0].numel())
        features = torch.cat([self.body(some.to(device).float() / 127.5 - 1.0) for some in torch.split(images, size)])
        return features.cpu(), self.output(features).argmax(-1).cpu()
