"""The pages of the documentation, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docker/*.md")])
EXTENDING = ROOT / "docs/extending.md"
OWN_CRITIC = ROOT / "docs/tutorials/own_critic.md"


class Block(NamedTuple):
    """A fenced block: its language, the title (file name) in its info string, its text."""

    language: str
    title: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(language, title or None, text) for language, title, text in found]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def titled(*pages: Path) -> dict[str, str]:
    """File name -> text of the blocks with a title, of all pages by default."""
    found = [(block.title, block.text) for page in pages or PAGES for block in blocks(page) if block.title]
    files = dict(found)
    assert len(files) == len(found), "two blocks have the same title"
    return files
