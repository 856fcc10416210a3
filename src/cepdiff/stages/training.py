"""One trained stage: a Trainer, its callbacks, resumption and the final checkpoint."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from cepdiff.callbacks.checkpoint import AtomicCheckpointIO, StageCheckpoint
from cepdiff.callbacks.progress import StageProgress
from cepdiff.errors import CepdiffError, DivergenceError, RunError
from cepdiff.modules.base import StageModule
from cepdiff.stages.artifacts import RunFolder, read_checkpoint
from cepdiff.stages.processes import Processes
from cepdiff.stages.settings import StageSettings


class StoppedError(CepdiffError):
    """A signal stopped the command after its state was saved."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by signal {number} {where}; run the same command to go on")
        self.exit_code = 128 + number


def train_stage(
    module: StageModule,
    data: LightningDataModule,
    run: RunFolder,
    settings: StageSettings,
    processes: Processes,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Trains the stage to its last step, from `last.ckpt` where there is one, and leaves `final.ckpt`.

    Raises:
        DivergenceError: with the last good checkpoint's name; the checkpoint stays.
        StoppedError: after SIGTERM or SIGINT; the stage goes on from there next time.
    """
    folder = run.stage(module.stage)
    resume = processes.on_main(folder.last.exists)
    if resume:
        processes.on_main(lambda: read_checkpoint(folder.last) and None)
    checkpoint = StageCheckpoint(folder.last, settings.checkpoint_every)
    quieten()
    trainer = Trainer(
        **processes.trainer_arguments(),
        max_steps=settings.max_steps,
        max_epochs=-1,
        logger=TensorBoardLogger(run.path, name=run.logs.name, version=module.stage),
        callbacks=[
            checkpoint,
            *([StageProgress(module.stage)] if processes.settings.progress_bar else []),
            *copy.deepcopy(list(callbacks)),
        ],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=processes.settings.progress_bar,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the loader shares each batch among the ranks itself
        log_every_n_steps=1,  # counts blocks
    )
    try:
        trainer.fit(module, data, ckpt_path=folder.last if resume else None)
    except DivergenceError as error:
        kept = f"the last good checkpoint is {folder.last}" if folder.last.exists() else "no checkpoint was written yet"
        raise DivergenceError(f"{error}; {kept}") from error
    if checkpoint.stopped_by is not None:
        raise StoppedError(checkpoint.stopped_by, f"at step {trainer.global_step} of the {module.stage} stage")
    if trainer.global_step < settings.max_steps:
        raise RunError(f"the {module.stage} stage ended at step {trainer.global_step} of {settings.max_steps}")
    trainer.save_checkpoint(folder.final, weights_only=True)
    processes.on_main(lambda: folder.finish(checkpoint.elapsed))


def quieten() -> None:
    """Hides advice of Lightning that does not apply here; everything else is shown."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*`IterableDataset` has `__len__` defined.*",
        ".*You defined a `validation_step` but have no.*",
        ".*pre-optimization state.*",  # manual optimisation steps before Lightning looks
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*resuming from a checkpoint that ended before the epoch ended.*",  # the loader starts at the right step
        ".*Starting from v.*tensorboardX.*",
        ".*module\\(s\\) in eval mode at the start of training.*",  # frozen targets and averages are meant to be
        ".*treespec, LeafSpec.*",  # torch's own deprecation, raised by Lightning
    ):
        warnings.filterwarnings("ignore", message=message)


def load_finished(module: StageModule, run: RunFolder, processes: Processes) -> None:
    """Puts the weights of the finished stage into `module`, on this process's device."""
    folder = run.stage(module.stage)
    try:
        weights: dict[str, Any] = folder.load_weights()
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(
            f"{folder.final} holds other networks than the configuration; "
            f"choose another --run_dir or delete {folder.path}"
        ) from error
    module.to(processes.device).eval().requires_grad_(False)
