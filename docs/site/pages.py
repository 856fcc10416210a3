"""MkDocs hook: the site shows the repository's own files at their own paths, so links work on both."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Pages, and the files that pages link to. README.md is the home page.
SHOWN = (
    "*.md", "docs/**/*.md", "docker/*", "LICENSE", "docs/images/*", "docs/site/*.css", "notebooks/*.ipynb",
    "configs/**/*.yaml", "src/cepdiff/data/embedded/README.md",
)  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files, and those of the repository instead of those of `docs_dir`."""
    root = Path(config.config_file_path).parent
    names = sorted({path.relative_to(root).as_posix() for pattern in SHOWN for path in root.glob(pattern)})
    shown = [File(name, str(root), config.site_dir, config.use_directory_urls) for name in names]
    return Files([*(file for file in files if file.src_dir != config.docs_dir), *shown])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to the folder of recipes lead to the page about them: a site has no folders to look into."""
    del page, config, files
    return re.sub(r"\]\((\.\./)*configs\)", r"](\1docs/recipes.md)", markdown)
