"""Decide which process prints to the user."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """True unless a launcher (Lightning, torchrun, SLURM) started this process with a rank above 0."""
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
