"""From a configuration to finished stages and results."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cepdiff.callbacks.stopping import Interrupted, StopSignals
from cepdiff.errors import ConfigError, OutputError, RunError
from cepdiff.runs.config import Config, named
from cepdiff.runs.folder import RunFolder
from cepdiff.runs.opening import estimate, opening
from cepdiff.runs.problem import Problem
from cepdiff.runs.processes import Processes
from cepdiff.runs.run import Run
from cepdiff.runs.stage import Stage, StoppedError


def fit(
    config: Config,
    stage: str | None = None,
    sources: Sequence[str] = (),
    reuse: str | None = None,
    data_arguments: Mapping[str, Any] | None = None,
    kept: bool = True,
) -> Problem:
    """Run all stages in order, or one whose predecessors are finished; skip what is finished.

    Args:
        config: what to do.
        stage: run this one only.
        sources: folders with the user's own classes, kept with the policy.
        reuse: another run, whose finished stages are taken over if they were made from the same.
        data_arguments: arguments of the data module that no file can hold (arrays in memory).
        kept: False if the folder is deleted after the run.

    Raises:
        CepdiffError: anything a user can mend.
    """
    data: Any = config.components["data"](seed=config.seed, **(data_arguments or {}))
    folder = RunFolder(Path(config.run_dir or Path("runs") / data.dataset_name / str(config.seed)))
    other = None if reuse is None else RunFolder(Path(reuse))
    if other is not None and not other.config.is_file():
        raise RunError(f"--reuse {reuse} is no run folder")
    if not kept and config.trainer.devices * config.trainer.num_nodes > 1:
        raise ConfigError("run_dir is missing: the processes of a run on several devices share a folder")
    with in_one_line(folder) as signals, ExitStack() as held:
        processes = Processes(config.trainer)
        held.enter_context(processes.together())
        processes.on_main(data.prepare_data)
        data.setup()
        config = config.supplied(config.problem.network_arguments(data, config.values))
        run = Run(
            folder, processes, config.seed, config.components, config.callbacks, list(sources), other, kept, signals,
            config.logger, named(config.values),
        )  # fmt: skip
        run.logs("")  # a logger that cannot be made is an error now
        problem = config.problem(run, data, **config.sections)
        problem.verify()
        stages = problem.stages()
        names = [each.name for each in stages]
        if stage is not None and stage not in names:
            raise ConfigError(f"there is no stage '{stage}'; stages are {', '.join(names)}")
        processes.on_main(lambda: held.enter_context(folder.locked()))
        for each in stages:
            if not each.done:
                each.check()
        needed = [] if stage is None else stages[: names.index(stage)]
        refuse_unfinished(folder, stage, [] if other else [each for each in needed if not each.done])
        processes.on_main(lambda: folder.keep(config.to_yaml(), replace=False))
        if processes.is_main:
            print(opening(run, data, stages, stage), file=sys.stderr)
        estimated = False
        for number, each in enumerate(stages, 1):
            signals.check()
            done = each.claim(names)
            refuse_unfinished(folder, stage, [each] if each in needed and not done else [])
            if processes.is_main:
                running = f"running, stage {number}/{len(stages)}{each.size}"
                print(f"{each.name}: {'finished earlier, skipped' if done else running}", file=sys.stderr)
                ahead = stages[number - 1 : -1] if stage is None else [each]
                if not done and not estimated and (about := estimate(ahead, other)):
                    print(f"time       {about}", file=sys.stderr)
            if not done:
                estimated = True
                if each is not stages[-1]:  # they are of the stage as it was before
                    processes.on_main(folder.keep_results)
                each.run()
                processes.on_main(folder.check_kept)
            each.load()
            if each.name == stage:
                break
        processes.on_main(lambda: folder.keep(config.to_yaml()))
    return problem


def refuse_unfinished(folder: RunFolder, stage: str | None, unfinished: Sequence[Stage]) -> None:
    """Raise RunError if a stage that `stage` needs has not finished."""
    for each in unfinished[:1]:
        raise RunError(f"--stage {stage} needs the {each.name} stage, which has not finished in {folder.path}")


@contextmanager
def in_one_line(folder: RunFolder) -> Iterator[StopSignals]:
    """Turn signals, a full disk and a deleted folder into one-line errors, raised in the main thread."""
    signals, excepthook = StopSignals(), threading.excepthook

    def shown(failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.exc_value, OSError):  # TensorBoard's writer: the main thread raises it again
            excepthook(failure)

    threading.excepthook = shown
    try:
        with signals.handled():
            yield signals
    except Interrupted as error:
        kept = f"; what has been finished is kept in {folder.path}" if folder.config.is_file() else ""
        raise StoppedError(error.number, kept) from None
    except OSError as error:
        if folder.path.resolve() in Path(os.fsdecode(error.filename or "")).resolve().parents:
            folder.check_kept()
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
            raise
        raise OutputError(
            f"{folder.path}: cannot be written ({error.strerror}); run the same command to go on"
        ) from error
    finally:
        threading.excepthook = excepthook
