"""Results in TensorBoard, besides the curves of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


def log_result(
    folder: Path,
    values: Mapping[str, float],
    figure: Path,
    step: int,
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
) -> None:
    """Write values and a figure (named by its file) at `step`, and `curves` with x values of their own, to `folder`."""
    from matplotlib.image import imread

    with SummaryWriter(str(folder)) as writer:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        for name, curve in (curves or {}).items():
            for place, value in curve:
                writer.add_scalar(name, value, place)
        writer.add_image(figure.stem, imread(figure)[..., :3], step, dataformats="HWC")
