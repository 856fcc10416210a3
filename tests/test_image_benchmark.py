"""`benchmarks/images.py`, run as a user would but with few steps."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.image import imread

pytest.importorskip("diffusers")

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "images.py"
FEW = [
    "--data.num_images", "400", "--stages.behavior.max_steps", "2", "--stages.guidance.max_steps", "2",
    "--evaluation.num_samples", "8", "--evaluation.floor_repeats", "2", "--evaluation.scales", "[0, 1]",
    "--solver.num_steps", "2", "--behavior.batch_size", "8", "--guidance.batch_size", "8",
]  # fmt: skip


@pytest.fixture
def images() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("benchmark_images", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_methods_share_a_prior_and_come_into_one_report(
    images: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runs, output = tmp_path / "runs", tmp_path / "report"
    arguments = ["--energies", "colour", "--methods", "CEP", "NoisyClassifier", "DPS-analytic", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["images.py", *arguments, "--runs", str(runs), "--output", str(output), *FEW])
    with pytest.raises(SystemExit) as end:
        images.main()
    assert end.value.code == 0

    folders = [runs / f"colour-{method}-seed0" for method in ("CEP", "DPS-analytic")]  # no classifiers for colours
    assert sorted(runs.iterdir()) == folders
    assert len({(folder / "behavior" / "final.ckpt").read_bytes() for folder in folders}) == 1
    assert not (folders[1] / "logs" / "behavior").exists()
    assert not (folders[1] / "logs" / "guidance").exists()
    shown = capfd.readouterr().out
    for folder in folders:
        assert re.search(rf"^{folder.name}: \d+ s$", shown, re.MULTILINE)
    assert re.search(r"^wall clock \d+ s with 1 workers$", shown, re.MULTILINE)
    (section,) = json.loads((output / "report.json").read_text())["sections"]
    assert section["title"].startswith("Images: ")
    assert [(row["scale"], row["method"]) for row in section["rows"]] == [
        (0.0, "prior"),
        (1.0, "CEP"),
        (1.0, "DPS (analytic)"),
    ]
    for row in section["rows"]:
        line = rf"^{row['scale']:g} +{re.escape(row['method'])} +\d"
        assert re.search(line, shown, re.MULTILINE)
    assert imread(output / "images-digits-8x8-RGB-energy-hues-beta-50.png").ndim == 3


def test_methods_of_no_energy(
    images: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["images.py", "--energies", "class", "colour", "--methods", "NoisyClassifier"])
    with pytest.raises(SystemExit) as end:
        images.main()
    assert end.value.code == 2
    assert "none of the methods NoisyClassifier applies to the energy colour" in capsys.readouterr().err


def test_every_config_has_its_methods(images: ModuleType) -> None:
    assert {f"digits_{energy}" for energy in images.METHODS} == {path.stem for path in images.CONFIGS.glob("digits_*")}
    for energy, methods in images.DEFAULT.items():
        assert set(methods) <= set(images.METHODS[energy])
        assert methods[0] == "CEP"
