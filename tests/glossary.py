"""The metrics of docs/glossary.md, whose descriptions the package shows in TensorBoard.

python tests/glossary.py      # after a change of the page: write src/cepdiff/runs/metrics.json
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "glossary.md"
FILE = ROOT / "src" / "cepdiff" / "runs" / "metrics.json"


def described(page: str) -> dict[str, str]:
    """Metric, without its scale -> meaning, and unit and range, from the tables of the page."""
    found: dict[str, list[str]] = {}
    for line in page.splitlines():
        if line.startswith("| `"):
            names, meaning, unit, *_ = (cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:])
            for name in re.findall("`([^`]+)`", names):
                text = f"{meaning[:1].upper()}{meaning[1:]}." + (f"\n\nUnit, range: {unit}." if unit else "")
                found.setdefault(name.partition("/s=")[0], []).append(text)
    return {name: "\n\n".join(texts) for name, texts in found.items()}


if __name__ == "__main__":
    FILE.write_text(json.dumps(described(PAGE.read_text()), indent=1, ensure_ascii=False) + "\n")
