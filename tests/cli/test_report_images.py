"""`cepdiff report` on image runs with a few numbers in them, next to densities and policies."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from report_runs import read, report

from cepdiff.problems.density.samples import GUIDED, write_samples
from cepdiff.runs.results import Results, Row
from cepdiff.seals import content_hash

# Metrics of a run: (scale, accuracy, Fréchet distance in floors of 4).
Rows = list[tuple[float, float, float]]


def write_run(
    folder: Path,
    method: str,
    rows: Rows,
    *,
    dataset: str = "digits",
    energy: str = "labels",
    beta: float = 1.0,
    seed: int = 0,
    num_samples: int = 20,
    shape: tuple[int, int, int] = (1, 8, 8),
    heads: int = 2,
    level: int = 128,
    prior: str | None = "prior",
    real: bool = True,
) -> Path:
    """A finished run with `heads` classes; all its images have the grey `level`."""
    names = [str(head) for head in range(heads)]
    found = []
    for head in ("", *names):
        for scale, accuracy, multiple in rows:
            floor = 4.0 if math.isfinite(multiple) else 0.0
            distance = 4.0 * multiple if floor else 4.0
            found += [
                Row(scale, "accuracy", accuracy, head),
                Row(scale, "frechet", distance, head, floor=floor, floor_error=0.4),
            ]
    checkpoints = {"guidance_checkpoint": str(folder)} | ({"behavior_checkpoint": prior} if prior else {})
    Results(
        problem="cepdiff.problems.density.images.ImageDensity",
        dataset=dataset,
        seed=seed,
        title=f"{dataset}, {method}, beta {beta:g}, seed {seed}, a remark",
        rows=found,
        columns={"accuracy": ("accuracy", ".3f"), "frechet": ("Fréchet", ".3f")},
        method=method,
        inverse_temperature=beta,
        real={"accuracy": 0.98, "frechet": 4.0} if real else {},
        about={
            "energy": energy, "distance": "frechet", "heads": names, "num_samples": num_samples,
            "image_shape": list(shape),
        },
        seconds={"behavior": 10.0, "guidance": 5.0},
        made_from=checkpoints,
    ).write(folder / "results.json")  # fmt: skip
    scales = [scale for scale, _, _ in rows]
    images = torch.full((min(heads, 20), 3, *shape), level, dtype=torch.uint8)
    write_samples(folder / "samples.npz", {GUIDED.format(scale): images for scale in scales})
    return folder


def markdown_rows(output: Path, title: str) -> list[list[str]]:
    """The cells of the table whose title starts with `title`, header included."""
    lines = (output / "report.md").read_text().split(f"**{title}")[1].split("\n\n")[1].splitlines()
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in (lines[0], *lines[2:])]


@pytest.fixture
def classes(tmp_path: Path) -> list[Path]:
    """CEP with two seeds, each with its own prior; two baselines on the prior of seed 0, one without scale 2."""
    return [
        write_run(tmp_path / "noisy", "NoisyClassifier", [(0.0, 0.5, 9.0), (1.0, 0.9, 3.0), (2.0, 0.95, 1.5)]),
        write_run(tmp_path / "cep", "CEP", [(0.0, 0.5, 9.0), (1.0, 0.875, 1.0), (2.0, 0.8, 2.0)]),
        write_run(
            tmp_path / "cep1", "CEP", [(0.0, 0.6, 7.0), (1.0, 1.0, 2.0), (2.0, 0.9, 2.0)], seed=1, prior="another"
        ),
        write_run(tmp_path / "dps", "DPSClassifier", [(0.0, 0.5, 9.0), (1.0, 0.9375, 4.0)]),
    ]


TITLE = "digits (8x8, grey), energy labels, beta 1: means over 2 heads of 20 images each"


def test_table_by_scale_and_method(classes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report"
    assert report(output, *classes) == 0
    title = f"{TITLE}, mean ± standard deviation over the seeds"
    assert markdown_rows(output, title) == [
        ["scale", "method", "accuracy", "Fréchet, x floor"],
        # Two priors: the one of seed 0 counts once, however many runs share it.
        ["0", "prior", "0.550 ± 0.071", "8.00 ± 1.41"],
        ["1", "CEP", "0.938 ± 0.088", "1.50 ± 0.71"],
        ["1", "noisy classifier", "0.900", "3.00"],
        ["1", "DPSClassifier", "0.938", "4.00"],
        ["2", "CEP", "0.850 ± 0.071", "2.00 ± 0.00"],
        ["2", "noisy classifier", "0.950", "1.50"],
        ["", "real data", "0.980 ± 0.000", "1.00 ± 0.00"],
    ]
    shown = capsys.readouterr()
    assert title in shown.out
    # Two priors, four guidance stages.
    assert "4 runs of images, 40 s of training" in shown.out
    assert shown.err == ""


def test_json_of_images(classes: list[Path], tmp_path: Path) -> None:
    assert report(tmp_path / "report", *classes) == 0
    found = read(tmp_path / "report")
    (table,) = found["sections"]
    assert table["title"] == "Images: digits (8x8, grey), energy labels, beta 1"
    rows = {(row["scale"], row["method"]): row["metrics"] for row in table["rows"]}
    assert rows[1.0, "CEP"]["frechet"] == {
        "mean": 1.5, "std": pytest.approx(math.sqrt(0.5)), "values": {"0": 1.0, "1": 2.0},
    }  # fmt: skip
    assert rows[0.0, "prior"]["frechet"]["values"] == {"0": 9.0, "1": 7.0}  # in units of the floor
    assert table["real"]["accuracy"] == {"mean": 0.98, "std": 0.0, "values": {"0": 0.98, "1": 0.98}}
    assert table["best"] == {scale: {"accuracy": None, "frechet": None} for scale in "12"}  # two seeds: t is 12.7
    assert found["training_seconds"] == 40.0
    run = next(run for run in found["runs"] if run["folder"] == str(classes[3]))
    assert (run["method"], run["seed"], len(run["rows"])) == ("DPSClassifier", 0, 4)  # only the means over the heads
    values = {(row["scale"], row["metric"]): (row["value"], row["floor"]) for row in run["rows"]}
    assert values[1.0, "accuracy"] == (0.9375, None)
    assert values[0.0, "frechet"] == (36.0, 4.0)  # the distance and its floor are shown too


def test_the_best_of_single_seeds_is_outside_the_noise_of_the_floor(classes: list[Path], tmp_path: Path) -> None:
    """A multiple has a noise of 0.4 / 4 = 0.1, and 3 leads 4 by more than 2 √2 0.1; an accuracy has no error."""
    assert report(tmp_path / "report", classes[0], classes[3]) == 0
    noisy, dps = markdown_rows(tmp_path / "report", TITLE)[2:4]
    assert noisy == ["1", "noisy classifier", "0.900", "3.00 *"]
    assert dps == ["1", "DPSClassifier", "0.938", "4.00"]


def test_runs_with_other_aims_do_not_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: Rows = [(0.0, 0.5, 9.0), (1.0, 0.9, 1.0)]
    runs = [
        write_run(tmp_path / "b", "CEP", rows, dataset="my birds", energy="own.red", shape=(3, 8, 8)),
        write_run(tmp_path / "c", "CEP", rows, energy="hues", shape=(3, 8, 8), beta=50.0),
        write_run(tmp_path / "d", "DPS", rows, energy="hues", shape=(3, 8, 8), beta=3.0),
        write_run(tmp_path / "e", "CEP", rows, heads=1),
    ]
    assert report(tmp_path / "report", *runs) == 0
    names = [
        "images-digits-8x8-grey-energy-labels-beta-1", "images-digits-8x8-RGB-energy-hues-beta-3",
        "images-digits-8x8-RGB-energy-hues-beta-50", "images-my-birds-8x8-RGB-energy-own.red-beta-1",
    ]  # fmt: skip
    files = {f"{name}{end}" for name in names for end in (".png", "-grids.png")}
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.md", "report.json", *files}
    page = (tmp_path / "report" / "report.md").read_text()
    assert all(f"]({file})" in page for file in files)
    assert "over 1 head of 20 images" in page
    assert " *" not in page  # with a single method nothing is marked as best
    assert page.count("runs of images") == 1
    assert [row[1] for row in markdown_rows(tmp_path / "report", "digits (8x8, RGB), energy hues, beta 3")] == [
        "method", "prior", "DPS", "real data",
    ]  # fmt: skip


def test_the_energy_itself_is_another_method(tmp_path: Path) -> None:
    rows: Rows = [(0.0, 0.5, 9.0), (1.0, 0.9, 2.0)]
    runs = [
        write_run(tmp_path / "itself", "DPS (analytic)", [(0.0, 0.5, 9.0), (1.0, 0.8, math.inf)], real=False),
        write_run(tmp_path / "net", "DPS", rows, real=False),
    ]
    assert report(tmp_path / "report", *runs) == 0
    table = markdown_rows(tmp_path / "report", TITLE)
    assert table[2:] == [["1", "DPS", "0.900", "2.00"], ["1", "DPS (analytic)", "0.800", "inf"]]
    (found,) = read(tmp_path / "report")["sections"]
    assert found["rows"][2]["metrics"]["frechet"]["mean"] is None


def share(image: Any, level: float) -> float:
    """The share of a figure's pixels with the grey `level` in [0, 1]."""
    return float((abs(image[..., :3] - level) < 0.004).all(-1).mean())


def test_figures(tmp_path: Path) -> None:
    """One curve per method, and each method's images at scale 1 next to the prior's."""
    rows: Rows = [(0.0, 0.5, 9.0), (1.0, 0.9, 1.0)]
    runs = [
        write_run(tmp_path / "a", "CEP", rows, level=60, heads=10),
        write_run(tmp_path / "b", "MSE", [(0.0, 0.5, 9.0), (1.0, 0.7, 3.0)], level=180, heads=10),
        write_run(tmp_path / "c", "DPS", [(2.0, 0.7, 3.0)], level=220, heads=10),
    ]
    assert report(tmp_path / "report", *runs) == 0
    name = tmp_path / "report" / "images-digits-8x8-grey-energy-labels-beta-1"
    grids = imread(f"{name}-grids.png")
    # The prior's grid comes from the first run.
    assert share(grids, 60 / 255) == pytest.approx(2 * share(grids, 180 / 255), rel=0.05)
    assert share(grids, 60 / 255) > 0.2
    assert share(grids, 220 / 255) < 0.01  # nothing at scale 1
    curves = imread(f"{name}.png")[..., :3]
    for colour in ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0x2C, 0xA0, 0x2C)):
        close = (abs(curves - torch.tensor(colour).numpy() / 255) < 0.02).all(-1)
        assert close.sum() > 50


def test_no_grid_without_the_exact_scale(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "CEP", [(2.0, 0.9, 1.0)])
    assert report(tmp_path / "report", run) == 0
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"report.md", "report.json", "images-digits-8x8-grey-energy-labels-beta-1.png"}


def test_more_heads_than_the_grids_show(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "CEP", [(0.0, 0.9, 1.0), (1.0, 0.9, 1.0)], heads=30)
    assert report(tmp_path / "report", run) == 0
    assert "over 30 heads of 20 images" in (tmp_path / "report" / "report.md").read_text()


def test_unequal_numbers_of_images_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: Rows = [(1.0, 0.9, 1.0)]
    a = write_run(tmp_path / "a", "CEP", rows)
    b = write_run(tmp_path / "b", "DPSClassifier", rows, num_samples=1000)
    other = write_run(tmp_path / "c", "CEP", rows, dataset="birds", num_samples=50)
    assert report(tmp_path / "report", a, b, other) == 0
    assert "runs with 20, 1000 samples side by side" in capsys.readouterr().err
    assert "over 2 heads of 20/1,000 images each" in (tmp_path / "report" / "report.md").read_text()


def test_an_unfinished_run_on_images_is_named(
    classes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (classes[0] / "results.json").unlink()
    (classes[0] / "config.yaml").touch()
    assert report(tmp_path / "report", *classes) == 0
    assert f"not finished, skipped (run the same `cepdiff fit` again): {classes[0]}" in capsys.readouterr().err
    assert len(read(tmp_path / "report")["runs"]) == 3


def refused(capsys: pytest.CaptureFixture[str], output: Path, *folders: Path) -> str:
    """The single line of a refusal with exit code 2; nothing is written."""
    assert report(output, *folders) == 2
    assert not output.exists()
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err.splitlines()[-1]


def test_twins_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (write_run(tmp_path / name, "CEP", [(1.0, 0.9, 1.0)]) for name in ("a", "b"))
    line = refused(capsys, tmp_path / "report", a, b)
    assert f"{a} and {b} are both digits (8x8, grey), energy labels, beta 1, CEP, seed 0" in line


def damaged(content: Mapping[str, Any], damage: str) -> str:
    """The text of `results.json`, damaged."""
    changed = json.loads(json.dumps(content))
    if damage == "torn":
        return json.dumps(content)[:200]
    if damage == "text":
        changed["rows"][0]["value"] = "high"
    elif damage in changed["about"]:
        del changed["about"][damage]
    elif damage in changed["rows"][0]:
        del changed["rows"][0][damage]
    else:
        del changed[damage]
    if damage in FACTS:  # by someone who knows of the hash
        del changed["hash"]
        changed["hash"] = content_hash(changed)
    return json.dumps(changed)


DAMAGES = ["torn", "text", "rows", "floor", "scale", "head", "seed", "columns", "real", "about", "method"]
FACTS = ["heads", "num_samples", "image_shape", "energy"]


@pytest.mark.parametrize("damage", DAMAGES + FACTS)
def test_damaged_results(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", "CEP", [(0.0, 0.5, 9.0), (1.0, 0.9, 1.0)])
    path = run / "results.json"
    path.write_text(damaged(json.loads(path.read_text()), damage))
    line = refused(capsys, tmp_path / "report", run)
    if damage in FACTS:
        assert f"{run} has damaged results; delete them" in line
    else:
        assert f"{path} is damaged" in line


def test_damaged_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", "CEP", [(0.0, 0.5, 9.0), (1.0, 0.9, 1.0)])
    images = torch.zeros(2, 3, 1, 8, 8, dtype=torch.uint8)
    one = {GUIDED.format(0.0): images}
    for kept in (one, {**one, GUIDED.format(1.0): images[:1]}, {**one, GUIDED.format(1.0): images.flatten(1)}):
        write_samples(run / "samples.npz", kept)
        assert "samples.npz lacks samples" in refused(capsys, tmp_path / "report", run)
    (run / "samples.npz").unlink()
    assert "samples.npz cannot be read" in refused(capsys, tmp_path / "report", run)
