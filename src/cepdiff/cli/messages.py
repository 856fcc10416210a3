"""Which process speaks to the user."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether no launcher (Lightning, torchrun, SLURM) made this process as another's helper."""
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
