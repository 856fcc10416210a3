"""Decide which process prints to the user, and report errors that nobody foresaw."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import platform
import select
import sys
import tempfile
import time
import traceback
from importlib import metadata
from pathlib import Path

from cepdiff.errors import one_line

LIBRARIES = ("cepdiff", "torch", "lightning", "jsonargparse", "omegaconf", "numpy", "gymnasium", "mujoco", "h5py")
# Errors of a path that cannot be used, which any file operation may raise.
OF_A_PATH = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EROFS}


def is_first_process() -> bool:
    """True unless a launcher (Lightning, torchrun, SLURM) started this process with a rank above 0."""
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def complain(message: str, code: int, as_json: bool = False) -> int:
    """Print an error, a line on stderr or a JSON object on stdout, and return the exit code."""
    if is_first_process():
        if as_json:
            print(json.dumps({"error": message, "exit_code": code}, indent=2))
        else:
            print(f"cepdiff: {message}", file=sys.stderr)
    return code


def report_unforeseen(error: Exception, as_json: bool = False) -> int:
    """Print one line about an unforeseen error, write a report file where that helps, and return the exit code."""
    if isinstance(error, BrokenPipeError) and close_output():
        return 128 + 13  # SIGPIPE: the reader has seen enough, as in `cepdiff data list | head -1`
    text, code = one_line(error), 1
    if isinstance(error, OSError) and error.errno in OF_A_PATH and error.filename is not None:
        line, code = f"{str(error.filename)[:200]}: {error.strerror}; choose another path", 2
    elif is_memory(error):
        line = f"not enough memory ({text[:200]}); choose a smaller network, batch_size, num_samples or chunk_size"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        close_output()
        line = f"{error.strerror}: {error.filename or 'the output'}; make room and run the same command again"
    else:
        line = f"{type(error).__name__}: {text[:200]}; {where_reported(error)}"
    return complain(line, code, as_json)


def is_memory(error: Exception) -> bool:
    """True if memory ran out, on the CPU or on a GPU; torch says so in a RuntimeError's text."""
    signs = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def close_output() -> bool:
    """Send broken stdout and stderr to /dev/null, or Python complains at exit; True if any was broken."""
    lost = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):  # closed, or replaced by a test
            pipe = select.poll()
            pipe.register(stream.fileno(), 0)
            try:
                stream.flush()
                broken = any(event & select.POLLERR for _, event in pipe.poll(0))
            except OSError:
                broken = True
            if broken:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            lost = lost or broken
    return lost


def where_reported(error: Exception) -> str:
    """Write the traceback, versions and command to a file in the working folder; return a remark that names it."""
    versions = [f"{name} {metadata.version(name)}" for name in LIBRARIES if list(metadata.distributions(name=name))]
    report = [
        f"command: {' '.join(sys.argv)}",
        f"versions: Python {platform.python_version()}, {', '.join(versions)}; {platform.platform()}",
        "".join(traceback.format_exception(error)),
    ]
    name = f"cepdiff-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    home = os.environ.get("HOME")
    for folder in (".", tempfile.gettempdir()):
        with contextlib.suppress(OSError):  # no permission, or a working folder that was deleted
            path = (Path(folder) / name).resolve()
            if str(path.parent) == home:
                continue
            path.write_text("\n".join(report), encoding="utf-8")
            return f"details are in {path}"
    return "set CEPDIFF_TRACEBACK=1 for details"
