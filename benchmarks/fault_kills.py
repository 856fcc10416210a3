"""Kills at any time, and the loss of one of two processes: no hang, and the resumed run is equal to the bit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from fault_cases import Called, Case, Part, Verdict, call, random_of
from fault_runs import fingerprint, made, write_config

KILL_STEPS, PROCESS_STEPS = 60, 200
OTHER_FILE_SYSTEM = Path("/dev/shm")
FEW_LINES = 6  # on stderr after a loss, besides those of an undisturbed run
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]


def prepare_kills(folder: Path) -> None:
    """Make an undisturbed run, and time it."""
    since = time.monotonic()
    made("fit", "--config", write_config(folder, KILL_STEPS), "--run_dir", folder / "run")
    facts = {"fit": fingerprint(folder / "run"), "seconds": time.monotonic() - since, "files": files_of(folder / "run")}
    (folder / "facts.json").write_text(json.dumps(facts))


def files_of(run: Path) -> list[str]:
    """Names of a run's files, except the logs."""
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if "logs" not in path.relative_to(run).parts)


def kills(folder: Path, seed: int, count: int) -> list[Case]:
    """Kills spread over the whole run."""

    def case(index: int) -> Case:
        share = float(random_of("kills", seed, index).uniform(0, 1))
        when = (index + share) / count  # one in each part of the run
        return Case(f"SIGKILL after {when:.0%} of the run", partial(killed, folder, when, seed, index))

    return [case(index) for index in range(count)]


def killed(shared: Path, when: float, seed: int, index: int, place: Path) -> Verdict:
    """Kill once or twice, resume, and compare."""
    facts = json.loads((shared / "facts.json").read_text())
    if OTHER_FILE_SYSTEM.is_dir():
        os.environ["TMPDIR"] = str(OTHER_FILE_SYSTEM)
    command = ["fit", "--config", str(shared / f"steps-{KILL_STEPS}-actions-3.yaml"), "--run_dir", str(place / "run")]
    for _ in range(1 + index % 2):
        pid = os.fork()
        if not pid:
            call(*command)
            os._exit(0)
        time.sleep(when * facts["seconds"])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return compared(call(*command), facts, place / "run")


def compared(called: Called, facts: dict[str, Any], run: Path) -> Verdict:
    """The verdict on a resumed run: exit code, numbers, files."""
    if called.kind != "valid":
        return Verdict("traceback", f"not resumed: {called.detail}")
    found = fingerprint(run)
    left = sorted(set(files_of(run)) - set(facts["files"]))
    wrong = [key for key in found if found[key] != facts["fit"][key]]
    if wrong:
        return Verdict("silent", f"other {', '.join(wrong)} than the undisturbed run", 0, len(left))
    return Verdict("valid", f"left over: {', '.join(left)}" if left else "", 0, len(left))


OWN = """
import os
import re
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic

class Broken:
    def loss(self, batch, noise):
        file = os.environ.get("FAULT_ONCE")
        if file and self.global_rank == 1 and self.global_step >= 50 and os.path.exists(file):
            os.unlink(file)
            raise MemoryError("a fault of one rank")
        return super().loss(batch, noise)

class Behavior(Broken, BehaviorDiffusion):
    pass

class Critic(Broken, SoftmaxQCritic):
    pass
"""
FAULTS = ("kill rank 1", "kill rank 0", "SIGTERM to all", "SIGTERM to rank 0", "SIGTERM to rank 1", "kill all")
MARKS = ("behavior/stage.json", "behavior/last.ckpt", "support/chunk_size", "critic/last.ckpt", "guidance/last.ckpt")


def command_of(shared: Path, run: Path) -> list[str]:
    config = shared / f"steps-{PROCESS_STEPS}-actions-3.yaml"
    return [sys.executable, "-m", "cepdiff", "fit", "--config", str(config), "--run_dir", str(run), *TWO]


def prepare_processes(folder: Path) -> None:
    """Make an undisturbed run on two processes."""
    config = write_config(folder, PROCESS_STEPS)
    (folder / "own.py").write_text(OWN)
    text = config.read_text().replace("behavior: {net", "behavior: {class_path: own.Behavior, net")
    config.write_text(text.replace("critic: {net", "critic: {class_path: own.Critic, net"))
    done = subprocess.run(command_of(folder, folder / "run"), env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-300:])
    usual = [line.strip() for line in done.stderr.splitlines()]  # Lightning names its processes
    facts = {"fit": fingerprint(folder / "run"), "files": files_of(folder / "run"), "usual": usual}
    (folder / "facts.json").write_text(json.dumps(facts))


def environment(**more: str) -> dict[str, str]:
    """This process's environment variables, without a launcher's."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return {**kept, **more, "OMP_NUM_THREADS": "1"}


def process_cases(folder: Path, seed: int, count: int) -> list[Case]:
    """Every fault at a marker file of every stage, and exceptions on one rank."""
    pool = [(fault, mark) for mark in MARKS for fault in FAULTS]
    order = random_of("processes", seed, 0).permutation(len(pool))
    chosen = [("exception on rank 1", "behavior/stage.json"), *(pool[index] for index in order)][:count]
    return [
        Case(f"{fault} after {mark}", partial(disturbed, folder, fault, mark, seed, index))
        for index, (fault, mark) in enumerate(chosen)
    ]


def disturbed(shared: Path, fault: str, mark: str, seed: int, index: int, place: Path) -> Verdict:
    """Disturb a run on two processes, wait for its end, resume it, and compare."""
    facts = json.loads((shared / "facts.json").read_text())
    run, once = place / "run", place / "once"
    once.touch()
    more = {"FAULT_ONCE": str(once)} if fault.startswith("exception") else {}
    with (place / "stderr.txt").open("w+") as errors:
        process = subprocess.Popen(
            command_of(shared, run), env=environment(**more), stdout=subprocess.DEVNULL, stderr=errors
        )
        if not more:
            wait_for(run / mark, process)
            time.sleep(float(random_of("processes", seed, index).uniform(0, 0.3)))
            if not strike(fault, process.pid):
                process.wait()
        since = time.monotonic()
        while (others := ranks(process.pid, run)) or process.poll() is None:
            if time.monotonic() - since > 90:
                for pid in [*others, process.pid]:
                    os.kill(pid, signal.SIGKILL)
                process.wait()
                return Verdict("hang", "processes still run 90 s after the fault")
            time.sleep(0.1)
        errors.seek(0)
        text = errors.read()
    known = {"", *facts["usual"]}  # a resumed command also prints its stages
    own = re.compile(r".*: running|run  ")  # lines with the name of the folder, or the number of parameters
    lines = [line for line in text.splitlines() if line.strip() not in known and not own.match(line)]
    again = subprocess.run(command_of(shared, run), env=environment(), capture_output=True, text=True)
    if again.returncode:
        return Verdict("traceback", f"not resumed: {again.stderr[-300:]}")
    verdict = compared(Called(0, "", ""), facts, run)
    if verdict.bad:
        return verdict
    if process.returncode == 0:
        return Verdict("silent", "exit code 0 after a fault") if more else Verdict("valid", "it had finished before")
    if "Traceback (most recent call last)" in text or len(lines) > FEW_LINES:
        return Verdict("traceback", f"{len(lines)} lines on stderr, the last: {lines[-1] if lines else ''}")
    return Verdict("line", lines[-1] if lines else "")


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file exists, or the process has ended."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)


def ranks(leader: int, run: Path) -> list[int]:
    """The processes with this run on their command line, by rank."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in (leader, os.getpid()):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(run).encode() in words:
                found.append(int(entry.name))
    return sorted(found)


def strike(fault: str, leader: int) -> bool:
    """Send the fault's signal; False if a process is already gone."""
    words = Path(f"/proc/{leader}/cmdline").read_bytes().split(b"\0") if Path(f"/proc/{leader}").exists() else []
    run = Path(os.fsdecode(words[words.index(b"--run_dir") + 1])) if b"--run_dir" in words else None
    others = ranks(leader, run) if run else []
    targets = {"0": [leader], "1": others, "all": [leader, *others]}[fault.split()[-1]]
    number = signal.SIGKILL if fault.startswith("kill") else signal.SIGTERM
    try:
        for pid in targets:
            os.kill(pid, number)
    except ProcessLookupError:
        return False
    return bool(targets)


KILLS = Part("kills", 50, 2, 60, prepare_kills, kills)
PROCESSES = Part("processes", 20, 1, 90, prepare_processes, process_cases)
