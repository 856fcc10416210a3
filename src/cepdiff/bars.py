"""Progress bars on a terminal, and lines in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LINE = (
    "{desc} {percentage:.0f}%, {n_fmt} of {total_fmt} {unit}s, {elapsed} so far, {remaining} left, {rate_fmt}{postfix}"
)
LINE_EVERY = 30.0  # seconds


class Lines:
    """Stderr that is no terminal: what a bar would draw over itself becomes a line."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        """Print a new state of the bar; line breaks and blanks alone, by which it is erased, are left out."""
        if (text := text.strip()) and text != self._last:
            print(text, file=sys.stderr)
            self._last = text

    def flush(self) -> None:
        """Write what was printed so far."""
        sys.stderr.flush()


def progress(
    total: int, name: str, unit: str, *, initial: int = 0, enabled: bool = True, leave: bool = True
) -> tqdm[Any]:
    """A bar on stderr. If that is not a terminal, it is a line every half minute and at the end.

    Once closed, a bar stays if it is to `leave` its last state.
    """
    drawn: dict[str, Any] = {"mininterval": 0.5, "dynamic_ncols": True, "file": sys.stderr}
    if not sys.stderr.isatty():
        # By the tiny delay there is no line at the start.
        drawn = {"mininterval": LINE_EVERY, "miniters": 1, "bar_format": LINE, "delay": 1e-9, "file": Lines()}
    return tqdm(
        total=total,
        initial=initial,
        desc=f"{name:<10}",
        unit=unit,
        unit_scale=total >= 10_000,
        disable=not enabled,
        leave=leave,
        **drawn,
    )
