"""The pages: links resolve, named files exist, commands parse, keys are explained, and every page is in the site."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import cepdiff
from cepdiff.cli import build_parser
from cepdiff.cli.fit import parse_overrides
from cepdiff.runs.config import load_config
from cepdiff.sweeps.settings import (
    LocalSettings,
    RaySettings,
    Resources,
    SearchSettings,
    SlurmSettings,
    SweepSettings,
    products,
    read_sweep,
)
from docs_pages import PAGES, ROOT, blocks, prose, titled

# Folders of this repository whose files the pages mention.
OURS = ("src", "tests", "configs", "docs", "notebooks", "docker", "cepdiff")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the pages and the shipped configurations in the working folder."""
    for title, text in titled().items():
        (tmp_path / title).write_text(text)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def anchor(heading: str) -> str:
    """GitHub's anchor for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if heading:
            anchors = [anchor(text) for text in re.findall(r"^#+ (.*)$", prose(file), re.MULTILINE)]
            assert heading in anchors, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    named = re.findall(rf"\b((?:{'|'.join(OURS)})/[\w/.-]+\.(?:py|yaml|md|ipynb|png|json|hdf5))\b", page.read_text())
    for name in named:
        file = ROOT / "src" / name if name.startswith("cepdiff/") else ROOT / name
        assert file.exists(), f"{page.name} names {name}"


COMMANDS = "fit|sweep|evaluate|sample|export|report|push|pull|data|collect|config"


def commands() -> list[str]:
    """Every `cepdiff` command in a bash block, one line each."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.language == "bash":
                for line in block.text.replace("\\\n", " ").splitlines():
                    line = line.split(" #")[0]
                    found += re.findall(
                        rf"(?:\bcepdiff|-m cepdiff) ((?:{COMMANDS})\b[^&|;]*)",
                        line,
                    )
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command: str, here: None) -> None:
    parsed, rest = build_parser().parse_known_args(shlex.split(command))
    if parsed.command == "fit":
        load_config(parsed.config, parse_overrides(rest))
    elif parsed.command == "sweep":
        assert products(read_sweep(Path(parsed.file)).axes)
        parse_overrides(rest)
    else:
        assert not rest


SWEEPS = ROOT / "docs/sweeps.md"
CLUSTER = ROOT / "docs/howto/cluster.md"


@pytest.mark.parametrize(
    "text", [block.text for page in (SWEEPS, CLUSTER) for block in blocks(page) if block.language == "yaml"]
)
def test_the_files_of_sweeps_can_be_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    sweep = read_sweep(tmp_path / "sweep.yaml")
    assert sweep.search is not None or products(sweep.axes)


def test_every_key_of_a_sweep_is_explained() -> None:
    page = SWEEPS.read_text()
    names = list(SweepSettings.__dataclass_fields__)
    for group, kind in (
        ("resources", Resources), ("local", LocalSettings), ("ray", RaySettings), ("slurm", SlurmSettings),
        ("search", SearchSettings),
    ):  # fmt: skip
        names.remove(group)
        names += [f"{group}.{name}" for name in kind.__dataclass_fields__]
    assert [name for name in names if f"| `{name}` |" not in page] == []


def test_every_page_is_in_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"([\w/.]+\.md)$", site[site.index("\nnav:") :], re.MULTILINE)
    shown = [str(page.relative_to(ROOT)) for page in PAGES if page.parent.name != "images"]
    assert sorted(listed) == shown


def test_every_public_name_is_in_the_reference() -> None:
    shown = re.findall(r"^::: cepdiff\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(set(cepdiff.__all__) - set(shown)) == []


# --- configuration ----------------------------------------------------------------------------------------------------


def keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all leaves, as typed on the command line."""
    found = []
    for name, value in tree.items():
        below = value.get("init_args", value) if isinstance(value, dict) else value
        if isinstance(value, dict) and "class_path" in value and prefix:
            found.append(f"{prefix}{name}")  # the key that chooses a class, then the class's own
        if isinstance(below, dict) and below:
            found += keys(below, f"{prefix}{name}.")
        elif f"{prefix}{name}" not in found:
            found.append(f"{prefix}{name}")
    return found


@pytest.mark.parametrize("config", ["quickstart", "toy/moons", "images/digits_class", "images/digits_colour"])
def test_every_key_is_explained(config: str) -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    values = yaml.safe_load(load_config([ROOT / f"configs/{config}.yaml"]).to_yaml())
    missing = [key for key in keys(values) if f"`{key}`" not in page]
    assert missing == []


def test_defaults_and_types_are_those_of_the_signatures() -> None:
    spec = importlib.util.spec_from_file_location("configuration", ROOT / "docs/site/configuration.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    page = generator.PAGE.read_text()
    spoilt = page.replace("| `seed` | 0 |", "| `seed` | 1 |").replace("| number [0, 1) |", "| text |")
    assert spoilt != page
    written = generator.filled_in(spoilt)
    changed = [line for line in written.splitlines() if line not in page.splitlines()]
    assert changed == [], "run: python docs/site/configuration.py"
    assert written == page
