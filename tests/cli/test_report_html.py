"""`cepdiff report --html`: one page, looked at in Chromium where there is one."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imsave
from report_runs import write_density, write_policy

from cepdiff.cli import main
from cepdiff.runs import page as pages
from cepdiff.runs.page import value_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
FOREIGN = "<script>document.title='hacked'</script>"


class Page(HTMLParser):
    """What a page shows and loads: tags with attributes, and text by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three policies of two settings, a density and a run with a foreign name, not to be changed."""
    folder = tmp_path_factory.mktemp("report") / "runs"
    for seed, beta, score in ((0, 1.0, 9.0), (1, 1.0, 100.5), (0, 3.0, 20.0)):
        config = {"guidance": {"objective": {"inverse_temperature": beta}}, "critic": {"discount": 0.99}}
        place = folder / f"beta{beta:g}" / str(seed)
        write_policy(place, "task", {0.0: 1.0, 1.0: score}, 1.0, seed=seed, config=config)
        imsave(place / "scores.png", np.zeros((2, 2)))
    foreign = folder / FOREIGN.replace("/", "\N{FRACTION SLASH}")
    write_policy(foreign, "task", {0.0: 1.0, 1.0: 30.0}, None, seed=7, config={"note": FOREIGN})
    write_density(folder / "rings", "rings", "CEP", 1.5)
    return folder


@pytest.fixture(scope="module")
def report(runs: Path) -> Path:
    """The page about them, not to be changed."""
    assert main(["report", str(runs), "--html", "--output", str(runs.parent / "out")]) == 0
    return runs.parent / "out" / "report.html"


def chromium(page: Path, script: str = "", place: str = "") -> str:
    """The document at `place` of the page after its script, and then `script`, has run."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    text = page.read_text()
    if script:  # the page's own policy would not allow it
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    changed = page.with_name("changed.html")
    changed.write_text(text.replace("</body>", f"<script>{script}</script></body>") if script else text)
    profile = page.parent / "profile"
    options = [*FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [CHROMIUM, *options, f"{changed.as_uri()}{place}"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "HOME": str(page.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_is_whole_and_needs_no_network(report: Path, runs: Path) -> None:
    page = Page(report.read_text())
    assert {tag for tag, _ in page.tags}.isdisjoint({"iframe", "object", "embed", "base", "form"})
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    assert len(page.all("script")) == 1
    images = [image["src"] for image in page.all("img")]
    assert all(source.startswith("data:image/png;base64,") for source in images)
    figures = [path.read_bytes() for path in [*sorted(report.parent.glob("*.png")), *sorted(runs.rglob("*.png"))]]
    assert sorted(base64.b64decode(source.partition(",")[2]) for source in images) == sorted(figures)
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", report.read_text()).replace("http-equiv", "")
    shown = " ".join("".join(page.text).split())
    for text in (
        "interquartile mean", "probability that a run of X scores higher", "Densities, beta 3", "5 runs, 0.0 h",
        "inverse_temperature", "discount: 0.99",
    ):  # fmt: skip
        assert text in shown, text


def test_differences_of_configurations(report: Path) -> None:
    section = report.read_text().split('<section id="configurations">')[1].split("</section>")[0]
    page = Page(section)
    titles = [head["title"] for head in page.all("th")]
    assert titles == ["", "note", "seed", "critic.discount", "guidance.objective.inverse_temperature"]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", section)
    rows = [[re.sub(r"<.*?>", "", cell) for cell in cells[start : start + 5]] for start in range(0, len(cells), 5)]
    assert [row[1:] for row in rows[1:4]] == [
        ["-", "0", "0.99", "1"], ["-", "1", "0.99", "1"], ["-", "0", "0.99", "3"]
    ]  # fmt: skip


def test_foreign_names_and_configurations_are_text(report: Path) -> None:
    text = report.read_text()
    assert text.count("<script>") == 1
    assert "&lt;script&gt;document.title=" in text
    found = chromium(report)
    assert "<title>cepdiff report: 5 runs" in found
    assert '<details id="run-2">' in found


def test_the_page_runs_its_own_script_only(report: Path, tmp_path: Path) -> None:
    """Even one that got in through a hole would not run; the page's own opens the run that a link leads to."""
    evil = tmp_path / "evil.html"
    evil.write_text(report.read_text().replace("</main>", f"{FOREIGN}</main>"))
    found = chromium(evil, place="#run-2")
    assert "<title>cepdiff report: 5 runs" in found
    assert '<details id="run-2" open="">' in found


SORT = """
const table = document.querySelector("table[aria-label^='TITLE']");
const rows = () => [...table.tBodies[0].rows].map((row) => row.cells[COLUMN].textContent.trim());
const found = [rows()];
for (const _ of [0, 1]) {
  table.tHead.rows[0].cells[COLUMN].firstElementChild.click();
  found.push(rows(), table.tHead.rows[0].cells[COLUMN].getAttribute("aria-sort"));
}
document.body.innerHTML = "<pre id=found>" + JSON.stringify(found) + "</pre>";
"""


def test_a_click_sorts_the_table_by_numbers(report: Path) -> None:
    script = SORT.replace("TITLE", "normalised score by guidance scale").replace("COLUMN", "4")
    text = re.search(r"<pre id=\"found\">(.*?)</pre>", chromium(report, script))
    assert text is not None
    before, up, rising, down, falling = json.loads(text[1])
    assert sorted(before) == sorted(up) != up
    assert up == ["9.0", "20.0", "30.0", "100.5"]  # as text, 100.5 would be the first
    assert down == up[::-1]
    assert (rising, falling) == ("ascending", "descending")


def test_large_files_are_linked_and_said(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "a run"
    shutil.copytree(runs / "beta1" / "0", place)
    (place / "best.mp4").write_bytes(b"x" * 1000)
    (place / "long: 1.mp4").write_bytes(b"y" * 1001)
    monkeypatch.setattr(pages, "LARGEST", 1000)
    output = tmp_path / "deep" / "out"
    assert main(["report", str(place), "--output", str(output)]) == 0
    assert not (output / "report.html").exists()  # only where it is asked for
    assert main(["report", str(place), "--html", "--output", str(output)]) == 0
    text = (output / "report.html").read_text()
    sources = [video["src"] for video in Page(text).all("video")]
    assert sources == [
        f"data:video/mp4;base64,{base64.b64encode(b'x' * 1000).decode()}", "./../../a%20run/long%3A%201.mp4"
    ]  # fmt: skip
    assert "1 of the runs' figures and videos is linked" in text
    monkeypatch.setattr(pages, "MOST", 0)
    assert main(["report", str(place), "--html", "--output", str(output)]) == 0
    assert "3 of the runs' figures and videos are linked" in (output / "report.html").read_text()


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("9.0", "9.0"), ("-1.5e-05", "-1.5e-05"), (" 94.1 ± 2.1 *", "94.1"), ("49.1 [-, -]", "49.1"), ("95%", "95"),
        ("1,234", "1234"), ("inf", "Infinity"), ("-", None), ("", None), ("1_0", None), ("CEP", None), ("2 of 3", "2"),
    ],
)  # fmt: skip
def test_cells_sort_by_their_number(cell: str, value: str | None) -> None:
    assert value_of(cell) == value
