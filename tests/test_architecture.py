"""The package's house rules: which room may import which, read from the syntax trees, and what is loaded when."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cepdiff

PACKAGE = Path(cepdiff.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

GUARDS = ("schema", "seals", "trust")  # of files that are read
# Rooms from the ground up: a room may import itself and the rooms in the rows above its own.
FLOORS = (
    (
        "errors",
        "types",
        "randomness",
        "precision",
        "components",
        "files",
        "figures",
        "tables",
        "ranges",
        "bars",
        *GUARDS,
    ),
    ("diffusion",),
    ("networks", "data", "envs"),
    ("energy",),
    ("modules",),
    ("policy",),
    ("rollout",),
    ("callbacks", "collect"),
    ("runs",),
    ("problems",),
    ("sweeps",),
    ("api",),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
GROUND = set(FLOORS[0])
# `collect` is not part of `fit`: it may import these rooms, and only the commands and `api` may import it.
COLLECT_KNOWS = {*GROUND, "diffusion", "networks", "data", "energy", "modules", "policy", "rollout", "collect", "envs"}
# Library -> rooms (or files) that may import it.
RIM = {
    "lightning": ("data/blocks.py", "modules", "callbacks", "runs", "problems"),
    "gymnasium": ("envs", "rollout", "collect", "api.py"),
    "gymnasium_robotics": ("envs",),
    "ogbench": ("envs", "collect", "data/rl/ogbench.py"),
    "mujoco": ("envs", "rollout"),
    "h5py": ("data",),
    "datasets": ("data",),
    "diffusers": ("networks/images",),
    "ray": ("sweeps",),
    "submitit": ("sweeps",),
    "optuna": ("sweeps",),
    "PIL": ("data", "policy", "problems", "callbacks"),
}
ALIASES = {"pytorch_lightning": "lightning", "lightning_fabric": "lightning", "gym": "gymnasium"}


def imports_of(file: Path, root: Path = PACKAGE) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a file, also inside functions; relative imports are made absolute."""
    inside = [root.name, *file.relative_to(root).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of the imports from this package; names of the package itself (`__version__`) are not rooms."""
    for line, name in imports_of(file):
        parts = name.split(".")
        if parts[0] == "cepdiff" and len(parts) > 1 and parts[1] != "__version__":
            yield line, parts[1]


def test_every_file_belongs_to_a_known_room() -> None:
    assert {room_of(file) for file in FILES} == {*FLOOR_OF, "__init__"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_downward(file: Path) -> None:
    room = room_of(file)
    if room == "__init__":
        return  # re-exports names from all rooms, see test_names_of_the_package
    for line, other in own_imports(file):
        where = f"{file}:{line}: {room} imports {other}"
        assert other in FLOOR_OF, f"{where}, which is no room"
        downward = FLOOR_OF[other] < FLOOR_OF[room] or (other in GROUND and room in GROUND)
        assert other == room or downward, where
        assert other != "collect" or room in ("collect", "api", "cli"), where
        assert room != "collect" or other in COLLECT_KNOWS, where


def package_imports(*parts: str) -> dict[str, set[str]]:
    """File -> the modules of this package that it imports, for all files of a folder or for a single file."""
    place = PACKAGE.joinpath(*parts)
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    assert files
    return {str(file.relative_to(PACKAGE)): {name for _, name in imports_of(file)} for file in files}


def test_runs_know_no_problem() -> None:
    """Not even by a string: the configuration and the data decide which problem it is."""
    for file, names in package_imports("runs").items():
        assert not any(name.startswith("cepdiff.problems") for name in names), file
        assert "cepdiff.problems" not in (PACKAGE / file).read_text(encoding="utf-8"), file


@pytest.mark.parametrize(("kind", "other"), [("offline", "density"), ("density", "offline")])
def test_the_problems_do_not_know_each_other(kind: str, other: str) -> None:
    found = package_imports("problems", kind)
    for file, names in found.items():
        assert not any(name.startswith(f"cepdiff.problems.{other}") for name in names), file
        below = {name for name in names if name.startswith("cepdiff.problems.")}
        assert all(name.startswith((f"cepdiff.problems.{kind}.", "cepdiff.problems.guided.")) for name in below), file
    assert any("cepdiff.problems.guided.GuidedProblem" in names for names in found.values())  # their shared base


def test_the_shared_base_of_the_problems_knows_none_of_them() -> None:
    ((_, names),) = package_imports("problems", "guided.py").items()
    assert not any(name.startswith("cepdiff.problems") for name in names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_libraries_stay_at_the_rim(file: Path) -> None:
    place = file.relative_to(PACKAGE).as_posix()
    for line, name in imports_of(file):
        library = name.split(".")[0]
        library = ALIASES.get(library, library)
        allowed = RIM.get(library)
        inside = allowed is None or any(place == at or place.startswith(f"{at}/") for at in allowed)
        assert inside, f"{file}:{line} imports {name}"


@pytest.mark.parametrize("room", ["diffusion", "energy", "networks"])
def test_the_mathematics_knows_torch_alone(room: str) -> None:
    known = {"torch", "cepdiff", *sys.stdlib_module_names}
    for file in (PACKAGE / room).glob("*.py"):
        for line, name in imports_of(file):
            assert name.split(".")[0] in known, f"{file}:{line} imports {name}"


def test_files_are_small_and_have_a_subject() -> None:
    lengths = {str(file.relative_to(PACKAGE)): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
    assert [file for file in FILES if file.stem in ("utils", "util", "helpers", "misc", "common")] == []


def test_the_reader_of_imports_sees_every_form(tmp_path: Path) -> None:
    root = tmp_path / "package"
    file = root / "room" / "file.py"
    file.parent.mkdir(parents=True)
    file.write_text("import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\ndef h():\n    import i\n")
    names = [name for _, name in sorted(imports_of(file, root))]
    assert names == ["a.b", "c.d", "package.room.e", "package.f.g", "i"]


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = ("torch", "lightning", "numpy", "gymnasium", "h5py", "jsonargparse", "omegaconf", "yaml", "tqdm")
    code = f"import sys, cepdiff.cli; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_of_the_package_lead_to_their_classes() -> None:
    for name in set(cepdiff.__all__):
        found = getattr(cepdiff, name)
        assert found.__name__ == name
        assert found.__module__.startswith("cepdiff.")
    with pytest.raises(AttributeError, match="Nonsense"):
        getattr(cepdiff, "Nonsense")  # noqa: B009


def test_help_is_quick_and_names_every_command() -> None:
    code = "import sys; from cepdiff.cli import main; sys.exit(main(['--help']))"
    seconds = []
    for _ in range(3):  # best of three: the machine may be busy
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1.0
    assert all(
        f"\n    {command} " in done.stdout
        for command in ("fit", "sweep", "evaluate", "sample", "export", "report", "data", "collect")
    )
