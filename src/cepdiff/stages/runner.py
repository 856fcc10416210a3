"""From one configuration to trained stages and what they are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cepdiff.data.blocks import StageDataModule
from cepdiff.data.densities.datamodule import EnergyDataModule
from cepdiff.data.images.datamodule import ImageDataModule
from cepdiff.errors import RunError
from cepdiff.stages.artifacts import RunFolder
from cepdiff.stages.config import Config
from cepdiff.stages.density import DensityFit
from cepdiff.stages.fit import Fit
from cepdiff.stages.images import ImageFit
from cepdiff.stages.offline import OfflineFit
from cepdiff.stages.processes import Processes


def fit(config: Config, stage: str | None = None, sources: Sequence[str] = (), reuse: str | None = None) -> Any:
    """Runs all stages in order (or one), skipping what is finished; returns the last stage's table, if it was made.

    `sources` are folders with the user's own classes, kept with the policy; `reuse` is another run, whose finished
    stages are taken over where they were made from the same.

    Raises:
        CepdiffError: anything a user can mend.
    """
    data: Any = config.build("data", seed=config.seed)
    run = RunFolder(Path(config.run_dir or Path("runs") / data.dataset_name / str(config.seed)))
    other = None if reuse is None else RunFolder(Path(reuse))
    if other is not None and not other.config.is_file():
        raise RunError(f"--reuse {reuse} is no run folder")
    processes = Processes(config.trainer)
    processes.on_main(data.prepare_data)
    data.setup()
    flavour = flavour_of(data)
    fitting = flavour(flavour.complete(config, data), run, data, processes, sources, other)
    with ExitStack() as held:
        processes.on_main(lambda: held.enter_context(run.locked()))
        result = fitting.run_stages(stage)
    processes.close()
    return result


def flavour_of(data: StageDataModule) -> type[Fit]:
    """The stages that a run on these data has."""
    if isinstance(data, ImageDataModule):
        return ImageFit
    return DensityFit if isinstance(data, EnergyDataModule) else OfflineFit
