"""`benchmarks/gpu.sh` is valid, and its commands parse."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

import speed
from cepdiff.cli import build_parser
from cepdiff.cli.fit import parse_overrides
from cepdiff.runs.config import load_config

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
VARIABLES = {'"$OUT': '"report', "$DATASET": "hopper-medium-replay-v2", "$stage": "behavior"}


def commands() -> list[str]:
    """What the script passes to `step`, after the name."""
    text = SCRIPT.read_text()
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    return re.findall(r"^ +step \S+ (.+)$", text, re.MULTILINE)


def test_the_script_is_valid() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    wrong = subprocess.run(["bash", str(SCRIPT), "4"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "usage" in wrong.stderr


@pytest.mark.parametrize("command", commands())
def test_its_commands_parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(command)
    if program == "cepdiff":
        parsed, rest = build_parser().parse_known_args(arguments)
        load_config(parsed.config, parse_overrides(rest))
    elif program == "pytest":
        assert all(Path(argument).is_file() for argument in arguments if argument.startswith("tests"))
    else:
        assert arguments[0] == "benchmarks/speed.py"

        def parsed_well(*_: object) -> None:
            raise StopIteration

        monkeypatch.setattr(speed, "Bench", parsed_well)
        with pytest.raises(StopIteration):
            speed.main(arguments[1:])
