"""The package as a user gets it: built, installed, its recipes by name, its hints, shells and other systems."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
import yaml

import cepdiff
from cepdiff import errors
from cepdiff.cli import main
from cepdiff.errors import ConfigError, MissingExtraError
from cepdiff.runs.recipes import find, recipes, summary

ROOT = Path(__file__).parent.parent
PACKAGE = Path(cepdiff.__file__).parent
NAMES = {file.relative_to(ROOT / "configs").with_suffix("").as_posix() for file in ROOT.glob("configs/**/*.yaml")}
BUILD = """
import tarfile
from setuptools import build_meta
source = build_meta.build_sdist("dist")
tarfile.open(f"dist/{source}").extractall("unpacked", filter="data")
"""
WHEEL = "from setuptools import build_meta; build_meta.build_wheel('.')"


def python(code: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked, made from the source distribution, made from a copy of the clone."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("src", "configs"):
        left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    python(BUILD, folder)
    (unpacked,) = (folder / "unpacked").iterdir()
    python(WHEEL, unpacked)
    with zipfile.ZipFile(next(unpacked.glob("*.whl"))) as file:
        file.extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_has_all_recipes_and_nothing_of_the_tests(wheel: Path) -> None:
    place = wheel / "cepdiff" / "configs"
    assert {file.relative_to(place).with_suffix("").as_posix() for file in place.glob("**/*.yaml")} == NAMES
    assert (place / "toy/rings.yaml").read_bytes() == (ROOT / "configs/toy/rings.yaml").read_bytes()
    ours = {file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py")}
    assert {file.relative_to(wheel / "cepdiff").as_posix() for file in wheel.rglob("*.py")} == ours
    assert (wheel / "cepdiff/data/embedded/reacher-replay.hdf5").is_file()


def test_the_wheel_works_away_from_the_clone(wheel: Path, tmp_path: Path) -> None:
    code = "import sys; from cepdiff.cli import main; sys.exit(main(sys.argv[1:]))"
    shown = python(code, tmp_path, "config", "show", "cpu_hour", PYTHONPATH=str(wheel)).stdout
    assert shown == (ROOT / "configs/cpu_hour.yaml").read_text()
    named = python("import cepdiff; print(cepdiff.__file__, cepdiff.__version__)", tmp_path, PYTHONPATH=str(wheel))
    place, version = named.stdout.split()
    assert Path(place).is_relative_to(wheel)
    assert re.search(rf'^version = "{re.escape(version)}"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_recipes_are_those_of_the_folder() -> None:
    assert set(recipes()) == NAMES
    assert all(summary(file) for file in recipes().values())
    assert summary(find("antmaze")) == "The recipe of Lu et al. (2023) for AntMaze"
    assert summary(find("cpu_quarter")).startswith("Laid over a locomotion recipe")


def test_a_file_comes_before_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("hopper").samefile(ROOT / "configs/hopper.yaml")
    assert find("toy/rings.yaml").samefile(ROOT / "configs/toy/rings.yaml")
    Path("hopper").write_text("seed: 1")
    assert find("hopper") == Path("hopper")
    (tmp_path / "below").mkdir()
    assert find("hopper", tmp_path / "below").samefile(ROOT / "configs/hopper.yaml")


@pytest.mark.parametrize(
    ("name", "near"), [("qickstart", "quickstart"), ("configs/hoper.yaml", "hopper"), ("rings", "toy/rings")]
)
def test_a_wrong_name_gets_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"^there is no configuration file {name}.* Did you mean .*{near}"):
        find(name)


def test_config_copies_and_never_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["config", "copy", "toy/rings"]) == 0
    assert Path("rings.yaml").read_text() == (ROOT / "configs/toy/rings.yaml").read_text()
    Path("rings.yaml").write_text("mine")
    assert main(["config", "copy", "toy/rings"]) == 2
    assert "rings.yaml exists" in capsys.readouterr().err
    assert Path("rings.yaml").read_text() == "mine"
    assert main(["config", "copy", "hopper", "--output", "a/b.yaml"]) == 0
    assert Path("a/b.yaml").is_file()
    assert main(["config", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[2:]} == NAMES


def test_the_sweeps_of_the_package_name_recipes() -> None:
    """So that a copy works anywhere."""
    for name in (name for name in NAMES if name.startswith("sweeps/")):
        line = next(line for line in find(name).read_text().splitlines() if line.startswith("configs:"))
        assert set(re.findall(r"[\w./]+", line.removeprefix("configs:"))) <= NAMES


@pytest.mark.parametrize(
    ("record", "command"),
    [
        ({"url": "file:///tmp/cepdiff-0.2.0-py3-none-any.whl", "archive_info": {}}, 'pip install "cepdiff[video]"'),
        (None, 'pip install "cepdiff[video]"'),
        ({"url": "file:///a%20b", "dir_info": {"editable": True}}, 'pip install -e "/a b[video]"'),
        ({"url": Path.cwd().as_uri(), "dir_info": {"editable": True}}, 'pip install -e ".[video]"'),
    ],
)
def test_hints_match_the_installation(
    record: object, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if record is not None:
        (tmp_path / "direct_url.json").write_text(json.dumps(record))
    monkeypatch.setattr(errors, "distribution", lambda name: PathDistribution(tmp_path))
    assert str(MissingExtraError("A film", "video")) == f"A film needs the extra 'video': {command}"


def test_the_versions_of_python_are_the_same_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    assert f'requires-python = ">={named[0]}"' in project
    assert f"set -- {' '.join(named)}\n" in (ROOT / ".ci/matrix").read_text()
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert jobs["matrix"]["strategy"]["matrix"]["python"] == named
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    scripts = {word for command in commands for word in command.split() if word.startswith(".ci/")}
    assert scripts == {".ci/run", ".ci/matrix"}
    assert all((ROOT / script).is_file() for script in scripts)


COMPLETE = "import sys; from cepdiff.cli import main; sys.exit(main())"


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("cepdiff fit --config toy/r", "toy/rings"),
        ("cepdiff data check reach", "reacher-replay"),
        ("cepdiff swe", "sweep"),
    ],
)
def test_tab_completes(typed: str, found: str, tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": " "}
    python(COMPLETE, tmp_path, **asked, COMP_LINE=typed, COMP_POINT=str(len(typed)), COMP_TYPE="9")
    assert answer.read_text().split() == [found]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("argcomplete")
    assert main(["completion", shell]) == 0
    assert "cepdiff" in capsys.readouterr().out


UNIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def test_no_module_of_unix_is_imported() -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not UNIX & {name.partition(".")[0] for name in names}, file


ELSEWHERE = """
import os, select, signal, sys
import gymnasium, lightning.pytorch, torch, mujoco, tensorboard, matplotlib.pyplot  # they know other systems
for name in "fork getuid sched_getaffinity sched_setaffinity killpg getpgid setsid uname statvfs sysconf".split():
    delattr(os, name)
for name in "SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGPIPE SIGQUIT alarm setitimer".split():
    delattr(signal, name)
del select.poll
import importlib, pkgutil, cepdiff
for module in pkgutil.walk_packages(cepdiff.__path__, "cepdiff."):
    if not module.name.startswith(("cepdiff.__main__", "cepdiff.envs.ogbench", "cepdiff.rollout.classic")):
        importlib.import_module(module.name)
from cepdiff.cli import main
steps = [word for stage in ("behavior", "critic", "guidance") for word in (f"--stages.{stage}.max_steps", "2")]
few = ["--stages.support.max_rows", "20", "--stages.support.num_actions", "2", "--evaluation.episodes", "1"]
sys.exit(main(["fit", "--config", "quickstart", "--run_dir", "run", "--trainer.accelerator", "cpu", *steps, *few,
               "--evaluation.scales", "[0, 1]", "--trainer.progress_bar", "false"]))
"""


def test_a_run_without_what_windows_lacks(tmp_path: Path) -> None:
    assert "return agreement" in python(ELSEWHERE, tmp_path).stdout
    assert (tmp_path / "run" / "policy.pt").is_file()
