"""Argument types and the progress bar shared by several commands."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cepdiff.errors import ConfigError, RunError


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text}")
    return value


def require_run(place: str) -> None:
    """Raise RunError if there is nothing at `place`, before the libraries that read a run are loaded."""
    if not Path(place).exists():
        raise RunError(f"there is no run folder {place}")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option that names folders with the user's own classes."""
    parser.add_argument(
        "--trust_sources", action="append", default=[], metavar="DIR",
        help="a folder whose classes may be imported (this runs their code); can be repeated",
    )  # fmt: skip


def add_one_step(parser: argparse.ArgumentParser) -> None:
    """Add the option that uses the distilled network."""
    parser.add_argument("--one_step", action="store_true", help="use the distilled network, not the run's sampler")


def json_object(text: str) -> dict[str, Any]:
    """Parse the environment's arguments. Raises `ConfigError` unless they are a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--env_kwargs is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f'--env_kwargs: expected a JSON object such as {{"use_contact_forces": true}}, found {text}')
    return value


class RowBar:
    """A progress bar of rows on stderr that appears at the first update; closing removes it unless it is to stay."""

    def __init__(self, what: str, *, stays: bool = False) -> None:
        self._what, self._stays = what, stays
        self._bar: Any = None

    def show(self, done: int, total: int, remark: str = "") -> None:
        """Move to `done` of `total` rows."""
        from cepdiff.bars import progress

        if self._bar is None:
            self._bar = progress(total, self._what, "row", leave=self._stays)
        self._bar.set_postfix_str(remark, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the bar; it can be closed before it appears."""
        if self._bar is not None:
            self._bar.close()
