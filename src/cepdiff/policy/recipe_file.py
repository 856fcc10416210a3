"""One file with a sampler's recipe and weights, which is read without unpickling anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from cepdiff.errors import ConfigError, RunError
from cepdiff.files import written_aside

R = TypeVar("R")
FORMAT = 1


def write_recipe(path: Path, recipe: object, networks: Mapping[str, nn.Module | None]) -> None:
    """Writes the fields of the dataclass `recipe`, plain values, and the weights of the networks that are there."""
    weights = {
        name: {key: value.detach().cpu() for key, value in network.state_dict().items()}
        for name, network in networks.items()
        if network is not None
    }
    with written_aside(path) as file:
        torch.save({"format": FORMAT, "recipe": dict(vars(recipe)), "weights": weights}, file)


def read_recipe(path: Path, recipe_class: type[R], kind: str) -> tuple[R, Mapping[str, Any]]:
    """Recipe and weights that `write_recipe` wrote; `kind` names such files in messages.

    Raises:
        RunError: a file that is missing, torn or foreign.
        ConfigError: a file of another version.
    """
    if not path.is_file():
        raise RunError(f"{path} does not exist: run `cepdiff fit` until the behavior stage has finished")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"holds a {type(content).__name__}")
        if content["format"] != FORMAT:
            raise ConfigError(f"{path} has format {content['format']}; this version of cepdiff reads {FORMAT}")
        return recipe_class(**content["recipe"]), content["weights"]
    except ConfigError:
        raise
    except Exception as error:  # torch.load raises many kinds on a torn or foreign file
        raise RunError(f"{path} is no {kind} file of cepdiff, or is damaged; run `cepdiff fit` again") from error
