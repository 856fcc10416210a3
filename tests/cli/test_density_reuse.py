"""Runs on densities that begin with another run's prior, and runs whose files were damaged."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from density_runs import (
    BETA,
    KIND,
    OBJECTIVE,
    RUNNING,
    SKIPPED,
    complaint,
    contents,
    fit,
    results,
    said,
    same_weights,
    samples,
    touched,
    write_density,
)

from cepdiff.seals import write_sealed


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield write_density(tmp_path_factory.mktemp("density"))
    sys.modules.pop("density_energies", None)


@pytest.fixture(scope="module")
def finished(config: Path) -> Path:
    """A finished run, read-only; tests that change it take `run`."""
    run_dir = config.parent / "finished"
    assert fit(config, run_dir) == 0
    return run_dir


class TestReuse:
    @pytest.mark.parametrize(
        ("arguments", "title"),
        [
            ([BETA, 10], "rings, CEP, beta 10"),
            ([OBJECTIVE, "MSE"], "rings, MSE, beta 3"),
            ([KIND, "ExponentialMSE", BETA, 2], "rings, ExponentialMSE, beta 2"),
            ([OBJECTIVE, "DPS"], "rings, DPS, beta 3"),
            (["--data.energy", "density_energies.square"], "rings, CEP, beta 3"),
            (["--guidance.net.class_path", "cepdiff.networks.energy.EnergyMLP"], "rings, CEP, beta 3"),
        ],
    )
    def test_the_prior_of_another_run(
        self,
        config: Path,
        finished: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        arguments: list[object],
        title: str,
    ) -> None:
        before, new = contents(finished), tmp_path / "new"
        capsys.readouterr()
        assert fit(config, new, "--reuse", finished, *arguments) == 0
        shown = capsys.readouterr()
        assert f"behavior: {SKIPPED}" in shown.err
        assert f"guidance: {RUNNING}" in shown.err
        assert title in shown.out
        assert (new / "behavior" / "final.ckpt").read_bytes() == before["behavior/final.ckpt"]
        assert not (new / "logs" / "behavior").exists()
        ours, theirs = samples(finished), samples(new)
        np.testing.assert_array_equal(ours["guided, scale 0"], theirs["guided, scale 0"])
        assert not np.array_equal(ours["guided, scale 1"], theirs["guided, scale 1"])
        assert contents(finished) == before
        assert fit(config, new, *arguments) == 0  # the folder is self-contained
        assert said(capsys) == {"behavior": SKIPPED, "guidance": SKIPPED, "evaluation": SKIPPED}

    def test_all_that_fits(self, config: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        new = tmp_path / "new"
        capsys.readouterr()
        assert fit(config, new, "--reuse", run, "--evaluation.num_samples", 48) == 0
        assert said(capsys) == {"behavior": SKIPPED, "guidance": SKIPPED, "evaluation": RUNNING}
        shutil.rmtree(run)
        assert fit(config, new, "--evaluation.num_samples", 48) == 0

    @pytest.mark.parametrize(
        "arguments",
        [["--behavior.learning_rate", 0.5], ["--seed", 1], ["--data.num_points", 999], ["--data.dataset", "moons"],
         ["--schedule.beta_max", 10], ["--stages.behavior.max_steps", 15]],
    )  # fmt: skip
    def test_nothing_that_was_made_from_something_else(
        self,
        config: Path,
        finished: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        arguments: list[object],
    ) -> None:
        new = tmp_path / "new"
        capsys.readouterr()
        assert fit(config, new, "--reuse", finished, *arguments) == 0
        assert said(capsys)["behavior"] == RUNNING
        assert not same_weights(finished, new, "behavior")

    def test_nothing_that_is_unfinished(
        self, config: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record = json.loads((run / "behavior" / "stage.json").read_text())
        del record["hash"]
        write_sealed(run / "behavior" / "stage.json", record | {"done": False})
        capsys.readouterr()
        assert fit(config, tmp_path / "new", "--reuse", run) == 0
        assert said(capsys)["behavior"] == RUNNING

    def test_what_lies_there_already_stays(self, config: Path, run: Path, finished: Path) -> None:
        before = touched(run)
        assert fit(config, run, "--reuse", finished) == 0
        assert fit(config, run, "--reuse", run) == 0
        assert touched(run) == before

    @pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
    def test_a_folder_that_is_no_run(
        self, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
    ) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").write_text("precious")
        new = tmp_path / "new"
        line = complaint(capsys, "fit", "--config", config, "--run_dir", new, "--reuse", tmp_path / name)
        assert line == f"cepdiff: --reuse {tmp_path / name} is no run folder"
        assert not new.exists()

    @pytest.mark.parametrize("content", ["{", "[]", "3"])
    def test_a_damaged_record(
        self, config: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
    ) -> None:
        (run / "behavior" / "stage.json").write_text(content)
        line = complaint(capsys, "fit", "--config", config, "--run_dir", tmp_path / "new", "--reuse", run)
        assert f"{run / 'behavior' / 'stage.json'} is damaged" in line

    def test_torn_weights(self, config: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        final = run / "behavior" / "final.ckpt"
        final.write_bytes(final.read_bytes()[:100])
        line = complaint(capsys, "fit", "--config", config, "--run_dir", tmp_path / "new", "--reuse", run)
        assert f"{final} was changed, swapped or lost after it was made; leave out --reuse" in line


class TestDamagedResults:
    @pytest.mark.parametrize("content", ["", '{"rows": [', "[]", "3", "{}"])
    def test_results(self, config: Path, run: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
        before, table = touched(run), results(run)["rows"]
        (run / "results.json").write_text(content)
        line = complaint(capsys, "fit", "--config", config, "--run_dir", run)
        assert f"{run / 'results.json'} is damaged" in line
        assert "delete it and run the same `cepdiff fit` again" in line
        (run / "results.json").unlink()
        assert fit(config, run) == 0
        assert said(capsys) == {"behavior": SKIPPED, "guidance": SKIPPED, "evaluation": RUNNING}
        assert results(run)["rows"] == table
        assert {name: when for name, when in touched(run).items() if "/" in name} == {
            name: when for name, when in before.items() if "/" in name
        }

    def test_rows_of_the_results(self, config: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (run / "results.json").write_text(json.dumps({**results(run), "rows": [{"value": 1}]}))
        line = complaint(capsys, "fit", "--config", config, "--run_dir", run)
        assert "results.json is damaged" in line

    @pytest.mark.parametrize(("name", "kept"), [("samples.npz", None), ("samples.npz", 100), ("samples.png", None)])
    def test_samples(
        self, config: Path, run: Path, capsys: pytest.CaptureFixture[str], name: str, kept: int | None
    ) -> None:
        """The same command makes them again, as the message promises."""
        old, whole = samples(run), (run / name).read_bytes()
        (run / name).unlink()
        if kept is not None:
            (run / name).write_bytes(whole[:kept])
        capsys.readouterr()
        assert fit(config, run) == 0
        assert said(capsys) == {"behavior": SKIPPED, "guidance": SKIPPED, "evaluation": RUNNING}
        new = samples(run)
        assert all(np.array_equal(old[key], new[key]) for key in old)
        assert (run / "samples.png").exists()
