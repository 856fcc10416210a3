"""The Fréchet inception distance, if its weights are available."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cepdiff.errors import ConfigError

SIZE = 64  # images at a time


def check_inception(weights: str) -> None:
    """Raise ConfigError unless `weights` is a file, and the packages that read it are installed."""
    if not Path(weights).expanduser().is_file():
        raise ConfigError(f"evaluation.fid_weights: there is no file {weights}; leave it out for no FID")
    try:
        import torch_fidelity  # type: ignore[import-not-found]  # noqa: F401
        import torchmetrics.image.fid  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "evaluation.fid_weights needs torchmetrics and torch-fidelity: pip install 'torchmetrics[image]'"
        ) from error


def inception_distance(real: Iterable[Tensor], fake: Tensor, weights: str, device: torch.device | str) -> float:
    """FID (Heusel et al. 2017) of images uint8, by torchmetrics; grey ones as RGB.

    `real` are some (N, C, H, W) at a time, `fake` (M, C, H, W).
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    path = str(Path(weights).expanduser())
    metric: Any = FrechetInceptionDistance(feature_extractor_weights_path=path).to(device)
    for parts, is_real in ((real, True), ([fake], False)):
        for some in (few for part in parts for few in torch.split(part, SIZE)):
            metric.update(some.expand(-1, 3, -1, -1).to(device), real=is_real)
    return float(metric.compute())
