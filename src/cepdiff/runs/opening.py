"""The first lines of a command: what it will do, on what data and machine, and how long that took elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from cepdiff.data.blocks import StageDataModule
from cepdiff.runs.folder import RunFolder
from cepdiff.runs.longer import steps_of
from cepdiff.runs.processes import Processes
from cepdiff.runs.run import Run
from cepdiff.runs.stage import Stage
from cepdiff.runs.threads import are_measured


def opening(run: Run, data: StageDataModule, stages: Sequence[Stage], only: str | None = None) -> str:
    """Run folder, data, machine and stages, a line each; `only` is the one stage to run."""
    finished = [stage.name for stage in stages if stage.folder.done]
    begun = f", finished so far: {', '.join(finished)}" if finished else ""
    chosen = [stage for stage in stages if only in (None, stage.name)]
    steps = (f"{stage.name} ({stage.steps:,} steps)" if stage.steps else stage.name for stage in chosen)
    lines = {
        "run": f"{run.folder.path if run.kept else 'in memory'}, {'goes on' if begun else 'new'}{begun}",
        "data": ", ".join(filter(None, [data.dataset_name, data.summary()])),
        "machine": machine(run.processes),
        "stages": ", ".join(steps),
    }
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def machine(processes: Processes) -> str:
    """Device, processes, threads and precision."""
    device = str(processes.device.type)
    if processes.device.type == "cuda":
        device = torch.cuda.get_device_name(processes.device)
    count = torch.get_num_threads()
    threads = "threads by measurement" if are_measured(processes) else f"{count} thread{'s' if count > 1 else ''}"
    shared = f"{processes.world} processes of {threads} each" if processes.world > 1 else threads
    return f"{device}, {shared}, precision {processes.settings.precision}"


def estimate(stages: Iterable[Stage], known: RunFolder | None) -> str:
    """How long these stages will take, by recorded times; "" if one of them was never finished.

    Times are those of a shorter training in the stage's own folder, which goes on, else of the run `known`, scaled by
    the number of steps. The evaluation, whose time is not recorded, is left out.
    """
    seconds, places = 0.0, dict[Path, None]()
    for stage in stages:
        folder, done = stage.folder, stage.folder.done
        if not done:
            if known is None or not known.stage(stage.name).done:
                return ""
            folder = known.stage(stage.name)
        trained = steps_of(folder)
        ahead = stage.steps - trained if done else stage.steps
        seconds += folder.seconds * (ahead / trained if trained else float(not done))
        places[folder.run_dir] = None
    return (
        f"about {duration(seconds)} without the evaluation, by the times in {', '.join(map(str, places))}"
        if seconds
        else ""
    )


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as "45 s"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
