"""Configuration files: the recipes that come with the package by name, and any file by its path."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from cepdiff.errors import ConfigError, nearest, one_line
from cepdiff.trust import make_importable

FOLDER = Path(__file__).parents[1] / "configs"
SUFFIX = ".yaml"


def recipes() -> dict[str, Path]:
    """Name ("quickstart", "toy/rings") -> file of every recipe of the package."""
    found = {file.relative_to(FOLDER).with_suffix("").as_posix(): file for file in FOLDER.glob(f"**/*{SUFFIX}")}
    return dict(sorted(found.items(), key=lambda item: (item[0].count("/"), item[0])))


def find(name: str | Path, folder: Path = Path()) -> Path:
    """The file `name`, whose path starts from `folder`, else the recipe with this name.

    Raises ConfigError with the nearest names if there is neither.
    """
    if (path := folder / name).is_file():
        return path
    known = recipes()
    given = Path(name).as_posix()
    if (found := known.get(given.removesuffix(SUFFIX))) is not None:
        return found
    hint = nearest(given.removesuffix(SUFFIX).removeprefix("configs/"), known) or " `cepdiff config list` shows them"
    raise ConfigError(f"there is no configuration file {path}, nor a recipe of this name.{hint}")


def summary(file: Path) -> str:
    """The first clause of a recipe's leading comment."""
    lines = itertools.takewhile(lambda line: line.startswith("# "), file.read_text(encoding="utf-8").splitlines())
    text = " ".join(line.removeprefix("#").strip() for line in lines)
    return re.split(r"(?<!al)(?<!Sec)[.:](?:\s|$)", text, maxsplit=1)[0]


def read_layer(name: str | Path) -> Any:
    """The YAML file that `find` finds; classes in a file next to it can be imported from now on."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = find(name)
    make_importable(path.parent.resolve())
    try:
        layer = OmegaConf.load(path)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {unresolved(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply, or a part of it contains itself") from error
    except (yaml.YAMLError, OSError, ValueError) as error:  # an invalid date or number is a ValueError
        raise ConfigError(f"{path} is not valid YAML: {one_line(error)}") from error
    if not OmegaConf.is_dict(layer):
        raise ConfigError(f"{path} holds a list; expected a mapping of sections")
    return layer


def unresolved(error: BaseException) -> str:
    """OmegaConf's message as one line that begins with the key."""
    text = str(getattr(error, "msg", None) or error).splitlines()[0]
    key = getattr(error, "full_key", None)
    return f"{key}: {text}" if key else text
