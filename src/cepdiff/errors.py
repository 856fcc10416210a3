"""The exceptions of this package: errors that a user can cause, and mend."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path


class CepdiffError(Exception):
    """The base class; the command line prints its message as one line and exits with `exit_code`."""

    exit_code = 2


class ConfigError(CepdiffError):
    """A configuration key, value or class that cannot be used."""


class DataError(CepdiffError):
    """A dataset that is missing, torn, foreign or holds unusable rows."""


class OutputError(CepdiffError):
    """A file or folder that cannot be written."""


class SimulationError(CepdiffError):
    """A simulation environment that is missing or does not match the buffer."""


class RunError(CepdiffError):
    """A run folder that is incomplete, foreign or belongs to another configuration."""


class HubError(CepdiffError):
    """The Hugging Face hub cannot be reached, has no such repository, or refuses."""


class MissingExtraError(CepdiffError):
    """An optional package that is not installed."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs the extra '{extra}': {install_command(extra)}")


def install_command(extra: str) -> str:
    """The command that adds an extra: to the clone that is installed with `pip install -e`, or to the package."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    source = json.loads(distribution("cepdiff").read_text("direct_url.json") or "{}")
    if not source.get("dir_info", {}).get("editable"):
        return f'pip install "cepdiff[{extra}]"'
    clone = Path(url2pathname(urlsplit(source["url"]).path))
    return f'pip install -e "{"." if clone == Path.cwd() else clone}[{extra}]"'


class DivergenceError(CepdiffError):
    """Training produced a NaN, an infinity or values far beyond what the data allows."""

    exit_code = 1


class LostProcessError(CepdiffError):
    """Another process of a run on several devices ended, so this one cannot go on."""

    exit_code = 1

    def __init__(self, cause: str = "") -> None:
        seen = cause.split("\n")[0].split(". ")[0][:160]  # the start of a library's long message
        super().__init__(f"another process of this run ended{seen and f' ({seen})'}; run the same command to go on")


def one_line(error: BaseException) -> str:
    """An exception's text without line breaks; its type if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def shortened(text: str, most: int = 60) -> str:
    """Cut a text to at most `most` characters for a message."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean a, b?"` with the names closest to `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {', '.join(matches)}?" if matches else ""
