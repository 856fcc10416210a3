"""A stage of a run: trained by a Trainer, or anything else that is made once and knows what it was made from."""

from __future__ import annotations

import copy
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger

from cepdiff.callbacks.checkpoint import AtomicCheckpointIO, StageCheckpoint
from cepdiff.callbacks.progress import StageProgress
from cepdiff.data.blocks import check_shares
from cepdiff.errors import CepdiffError, ConfigError, DivergenceError, RunError, one_line
from cepdiff.modules.base import StageModule
from cepdiff.ranges import Count, NonNegative
from cepdiff.runs.folder import StageFolder, differences, read_checkpoint
from cepdiff.runs.longer import check_longer, go_on, hash_with, is_shorter, steps_of
from cepdiff.runs.results import Results, are_finished, hashes_of
from cepdiff.runs.run import Run
from cepdiff.runs.threads import ThreadChoice
from cepdiff.seals import save_sealed


@dataclass
class StageSettings:
    """Length of a trained stage.

    Args:
        max_steps: optimiser steps, at least 1.
        checkpoint_every: steps between writes of `last.ckpt`, at least 1.
        checkpoint_minutes: longest time between writes in minutes, however slow the steps are.
    """

    max_steps: Count
    checkpoint_every: Count = 5000
    checkpoint_minutes: NonNegative = 5.0


class StoppedError(CepdiffError):
    """A signal stopped the command; the work so far is kept."""

    def __init__(self, number: int, where: str = "") -> None:
        by = "Ctrl-C" if number == signal.SIGINT else f"signal {number}"
        super().__init__(f"stopped by {by}{where}; run the same command to go on")
        self.exit_code = 128 + number


class Stage(ABC):
    """One step of a run, in a folder of its own; skipped once it is finished.

    Args:
        run: the run.
        name: of the stage, its folder and `--stage`.
        made_from: gives the record: plain values that name the data, the settings and the stages it depends on. It is
            called when the stages before are finished.
    """

    def __init__(self, run: Run, name: str, made_from: Callable[[], Mapping[str, Any]]) -> None:
        self.context = run
        self.name = name
        self.made_from = made_from
        self.folder: StageFolder = run.folder.stage(name)

    @property
    def size(self) -> str:
        """A remark to print when it starts."""
        return ""

    @property
    def steps(self) -> int:
        """Optimiser steps, 0 if it is not trained."""
        return 0

    @property
    def done(self) -> bool:
        """True if the stage has finished."""
        return self.context.processes.on_main(lambda: self.folder.done)

    def claim(self, names: Sequence[str] = ()) -> bool:
        """Write or check the record; True if the stage is finished, here or in the run to reuse.

        `names` are those of all stages, in order.
        """
        record, reuse = self.made_from(), self.context.reuse

        def claim() -> bool:
            if reuse is not None and (why := self.folder.adopt(reuse.stage(self.name), record)):
                print(f"{self.name}: {why}", file=sys.stderr)
            self.folder.claim(record, following(self.name, names))
            return self.folder.done

        return self.context.processes.on_main(claim)

    def check(self) -> None:  # noqa: B027  (an optional hook)
        """Raise an error if the stage cannot run as it is configured; called for unfinished ones before any runs."""

    @abstractmethod
    def run(self) -> None:
        """Make the stage, from where an earlier command stopped, and mark it as done."""

    @abstractmethod
    def load(self) -> None:
        """Take up what the finished stage left, for the stages after it."""


class TrainedStage(Stage):
    """Trains a module with a Trainer of its own: resumed from `last.ckpt`, finished with `final.ckpt`.

    Args:
        run: the run.
        module: to train; `module.stage` names the stage.
        data: gives the data to train on; called only if the stage is not finished.
        settings: its length; 0 steps keep the weights as they are.
        made_from: as in `Stage`; the length is added.
        callbacks: besides those of the configuration.
        after: called when the trained weights are loaded.
    """

    def __init__(
        self,
        run: Run,
        module: StageModule,
        data: Callable[[], LightningDataModule],
        settings: StageSettings,
        made_from: Callable[[], Mapping[str, Any]],
        callbacks: Sequence[Callback] = (),
        after: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(run, module.stage, lambda: {**made_from(), "max_steps": settings.max_steps})
        self.module = module
        self.data = data
        self.settings = settings
        self.callbacks = [*run.callbacks, *callbacks]
        self.after = after

    @property
    def size(self) -> str:
        return f", {self.steps:,} steps, {sum(p.numel() for p in self.module.trained_parameters()):,} parameters"

    @property
    def steps(self) -> int:
        return self.settings.max_steps

    def claim(self, names: Sequence[str] = ()) -> bool:
        """As in `Stage`; a shorter training goes on if it can, whether it has finished or not.

        Raises RunError if it cannot.
        """
        record, reuse, folder, fixed = self.made_from(), self.context.reuse, self.folder, self.module.depends_on_length

        def goes_on() -> bool:
            other = None if reuse is None or folder.path.exists() else reuse.stage(self.name)
            if other is not None and not fixed and other.last.is_file() and is_shorter(other, record):
                folder.adopt(other, other.made_from or {})
            if not is_shorter(folder, record) or (fixed and not folder.done):
                return False
            if folder.done:
                check_longer(folder, record, following(self.name, names), fixed)
            return True

        return False if self.context.processes.on_main(goes_on) else super().claim(names)

    def check(self) -> None:
        if self.settings.max_steps:
            check_shares(self.name, self.module.batch_size, self.context.processes.world)

    def run(self) -> None:
        """Train to the last step.

        Raises:
            DivergenceError: with the last good checkpoint's name; the checkpoint stays.
            StoppedError: a signal asked to stop; the next run goes on from there.
            RunError: `last.ckpt` is from another run, or the training ended before its last step.
        """
        folder, processes, fixed = self.folder, self.context.processes, self.module.depends_on_length
        if not self.settings.max_steps:
            processes.on_main(self._keep_untrained)
            return
        record, checkpoint = self.made_from(), self._checkpoint()

        def begin() -> int:
            def others(step: int) -> Collection[str]:
                """Earlier checkpoints are marked with the length of their training."""
                return () if fixed else [hash_with(folder, steps) for steps in (step, steps_of(folder))]

            found = checkpoint.step_of(read_checkpoint(folder.last), others) if folder.last.exists() else 0
            go_on(folder, record)  # only now: a damaged checkpoint leaves the finished stage as it is
            return found

        step = processes.on_main(begin)
        if step and processes.is_main:
            print(f"{self.name}: going on from step {step:,} of {self.steps:,}", file=sys.stderr)
        started, data, trainer = time.monotonic(), self.data(), self._trainer(checkpoint, self._logger(step))
        checkpoint.elapsed += time.monotonic() - started  # preparing the data can take long
        stopping = f"{self.name}: stopping after this block of steps, which {folder.last} will keep"
        # The checkpoint callback responds to signals.
        with self.context.signals.handled(deferred=True, answer=stopping if processes.is_main else ""):
            try:
                trainer.fit(self.module, data, ckpt_path=folder.last if step else None)
            except DivergenceError as error:
                last = folder.last if folder.last.exists() else None
                kept = "no checkpoint was written yet" if last is None else f"the last good checkpoint is {last}"
                raise DivergenceError(f"{error}; {kept}") from error
            self._finish(trainer, checkpoint)

    def load(self) -> None:
        """Load the trained weights into the module, on this process's device, and freeze it."""
        try:
            self.module.load_state_dict(self.folder.load_weights())
        except RuntimeError as error:
            raise RunError(
                f"{self.folder.final} holds other networks than the configuration; "
                f"choose another --run_dir or delete {self.folder.path}"
            ) from error
        self.module.to(self.context.processes.device).eval().requires_grad_(False)
        self.after()

    def _finish(self, trainer: Trainer, checkpoint: StageCheckpoint) -> None:
        folder, step, steps = self.folder, trainer.global_step, self.settings.max_steps
        if checkpoint.stopped_by is not None:
            where = f" at step {step:,} of the {self.name} stage, which is kept with all before in {folder.run_dir}"
            raise StoppedError(checkpoint.stopped_by, where)
        if step < steps:
            raise RunError(
                f"a callback or the data ended the {self.name} stage at step {step} of {steps}; remove the cause and "
                f"run the same command to go on from {folder.last}"
            )
        trainer.save_checkpoint(folder.final, weights_only=True)
        self.context.processes.on_main(lambda: folder.finish(checkpoint.elapsed, [folder.final]))
        if not checkpoint.at_end:  # the last one is of an earlier step
            self.context.processes.on_main(partial(folder.last.unlink, missing_ok=True))

    def _checkpoint(self) -> StageCheckpoint:
        settings = self.settings
        at_end = not self.module.depends_on_length
        length = 0 if at_end else settings.max_steps
        made_from = self.context.processes.on_main(lambda: hash_with(self.folder, length))
        every = settings.checkpoint_every, settings.checkpoint_minutes
        return StageCheckpoint(self.folder.last, *every, made_from, self.context.signals, at_end)

    def _logger(self, step: int) -> Logger:
        """The logger, with nothing of an earlier attempt after `step`, and with the configuration."""
        logs, on_main = self.context.logs, self.context.processes.on_main
        if not step:
            on_main(lambda: logs.forget(self.name))
        logger = logs(self.name, step)
        on_main(lambda: logs.started(logger, step))
        return logger

    def _trainer(self, checkpoint: StageCheckpoint, logger: Logger) -> Trainer:
        run, shown = self.context, self.context.processes.settings.progress_bar
        arguments: dict[str, Any] = dict(
            **run.processes.trainer_arguments(),
            max_steps=self.settings.max_steps,
            max_epochs=-1,
            logger=logger,
            callbacks=[
                checkpoint,
                ThreadChoice(run.processes, self.folder),
                *([StageProgress(self.name)] if shown else []),
                *copy.deepcopy(self.callbacks),
            ],
            plugins=[AtomicCheckpointIO(self.folder.record_file)],
            enable_progress_bar=shown,
            enable_model_summary=False,
            use_distributed_sampler=False,  # the loader shares each batch among the ranks itself
            log_every_n_steps=1,  # counts blocks
        )
        try:
            trainer = Trainer(**arguments)
        except Exception as error:  # Lightning raises many types, all about these settings
            raise ConfigError(f"trainer and callbacks: {one_line(error)}") from error
        # Its handlers would broadcast inside a handler, and under SLURM requeue with a checkpoint for any stage.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        return trainer

    def _keep_untrained(self) -> None:
        weights = {name: value.cpu() for name, value in self.module.state_dict().items()}
        save_sealed(self.folder.final, {"state_dict": weights})
        self.folder.finish(0.0, [self.folder.final])


class Judgement(Stage):
    """The last stage: results, written and shown; made again if the record or a file changed.

    Args:
        run: the run.
        made_from: as in `Stage`.
        judge: makes the results on all processes, and all files; `made_from` and `seconds` are added.
        files: figures and samples that must be there besides the results.
    """

    def __init__(
        self,
        run: Run,
        made_from: Callable[[], Mapping[str, Any]],
        judge: Callable[[], Results],
        files: Sequence[Path] = (),
    ) -> None:
        super().__init__(run, "evaluation", made_from)
        self.judge = judge
        self.files = files
        self.names: Sequence[str] = ()

    def claim(self, names: Sequence[str] = ()) -> bool:
        self.names = [name for name in names if name != self.name]
        record, path = self.made_from(), self.context.folder.results
        return self.context.processes.on_main(lambda: are_finished(path, record, self.files))

    def run(self) -> None:
        found, path = self.judge(), self.context.folder.results
        sources, record = list(self.context.sources), self.made_from()

        def write() -> None:
            if path.is_file() and differences(Results.read(path).made_from, record):
                self.context.folder.keep_results()
            files, seconds = hashes_of(self.files), self.seconds()
            replace(found, made_from=record, seconds=seconds, sources=sources, files=files).write(path)

        self.context.processes.on_main(write)

    def load(self) -> None:
        """Print the table, the times and where the files are."""
        if not self.context.processes.is_main:
            return
        folder = self.context.folder
        times = ", ".join(f"{name} {value:.0f} s" for name, value in self.seconds().items())
        files = ", ".join(map(str, [folder.results, *(file for file in self.files if file.suffix == ".png")]))
        print(f"\n{Results.read(folder.results).table().text()}\n")
        print(f"wall clock: {times}")
        if self.context.kept:
            print(f"results {files}\ntensorboard --logdir {folder.logs}")

    def seconds(self) -> dict[str, float]:
        """Wall clock of the stages before."""
        return {name: self.context.folder.stage(name).seconds for name in self.names}


def following(name: str, names: Sequence[str]) -> list[str]:
    """The `names` after `name`."""
    return list(names)[list(names).index(name) + 1 :] if names else []
