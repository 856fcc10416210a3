"""Restrict the classes that a file names to installed packages and to folders that the user names.

Importing a module runs it. A configuration is the user's own; a policy file or a run folder may come from anybody.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import distributions, packages_distributions
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cepdiff.errors import ConfigError

OPTION = "--trust_sources"


def admit(class_paths: Iterable[str], file: Path, trusted: Iterable[str | Path] = (), hint: Sequence[str] = ()) -> None:
    """Make the `trusted` folders importable, and check each of `class_paths` ("package.module.Name") in `file`.

    `hint` lists the folders that the file itself names; they are only shown in the message.

    Raises:
        ConfigError: a trusted folder is missing, or a class is not in one, not in an installed package and not
            imported already.
    """
    folders = [Path(folder).resolve() for folder in trusted]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{OPTION} {folder} is not a folder")
        make_importable(folder)
    named = " ".join(dict.fromkeys(hint)) or "FOLDER"
    for path in class_paths:
        module = path.rpartition(".")[0]
        if not is_trusted(module, folders):
            raise ConfigError(
                f"{file} names the class {path}, which is in no installed package: if you trust the code of that "
                f"class, add {OPTION} {named}"
            )


def make_importable(folder: Path) -> None:
    """Find modules in `folder` from now on, before those of other folders."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def is_trusted(module: str, folders: Sequence[Path] = ()) -> bool:
    """True if a module that a file names may be imported: it is imported already, installed, or in one of `folders`."""
    return module in sys.modules or is_installed(module) or _lies_in(module, folders)


def is_installed(module: str) -> bool:
    """True if a module belongs to a package that the user installed; the standard library does not count."""
    package = module.partition(".")[0]
    if package == "cepdiff":
        return True
    places = [Path(place).resolve() for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    return _lies_in(module, places) or (bool(_places(package)) and _is_editable(package))


def _is_editable(package: str) -> bool:
    """True for a package that is installed from a folder, as `pip install -e` does."""
    if package in packages_distributions():
        return True
    sources = [json.loads(text) for found in distributions() if (text := found.read_text("direct_url.json"))]
    editable = [source["url"] for source in sources if source.get("dir_info", {}).get("editable")]
    folders = [url2pathname(urlsplit(url).path) for url in editable]
    return _lies_in(package, [Path(folder).resolve() for folder in folders])


def _lies_in(module: str, folders: Sequence[Path]) -> bool:
    found = _places(module.partition(".")[0])
    return bool(found) and all(any(place.is_relative_to(folder) for folder in folders) for place in found)


def _places(package: str) -> list[Path]:
    """The file of a package or module, or the folders of a namespace package; empty if there is none."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return []
    if spec is None or (not spec.has_location and spec.submodule_search_locations is None):
        return []
    found = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    return [Path(place).resolve() for place in found]
