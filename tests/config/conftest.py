"""`load` reads a configuration from texts, `fault` returns the message for an invalid one."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cepdiff.errors import CepdiffError
from cepdiff.policy.sampler import SamplerParts
from cepdiff.runs.config import Config, load_config

BASE = "data: {dataset: some-buffer}\n"
SIZES = (3, 2)

Load = Callable[..., Config]
Fault = Callable[..., str]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """`load(text, ..., overrides=[...])`: each text is a file; the first gets a dataset unless it names one."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # load_config adds the files' folders

    def load(*texts: str, overrides: list[str] | None = None, bare: bool = False) -> Config:
        files = []
        for i, text in enumerate(texts or ("",)):
            path = tmp_path / f"config{i}.yaml"
            path.write_text(text if bare or i or re.search("^data:", text, re.MULTILINE) else BASE + text)
            files.append(path)
        return load_config(files, overrides or [])

    return load


@pytest.fixture
def fault(load: Load) -> Fault:
    """The user's error message: one short readable line without internals of the libraries underneath."""

    def fault(*texts: str, **options: Any) -> str:
        with pytest.raises(CepdiffError) as caught:
            construct(load(*texts, **options))
        message = str(caught.value)
        assert "\n" not in message
        assert len(re.sub(r"/\S*/", "", message)) < 250  # without folders
        leaks = ("Namespace", "<class", "typing", "Union", "Parser key", "collections.abc", "jsonargparse", "NoneType")
        assert [leak for leak in (*leaks, "init_args", "object_type", "subtypes") if leak in message] == []
        return message

    return fault


def construct(config: Config) -> None:
    """Build everything that a run would build."""
    components = config.components
    schedule, solver = components["schedule"](), components["solver"]()
    components["data"](seed=config.seed)
    sizes = SIZES if "critic" in components else (0, 2)
    for key in ("behavior", "critic", "guidance"):
        if key in components:
            components[key](*sizes)
    components["sampler"](SamplerParts(sizes[1], {}, schedule, solver))
