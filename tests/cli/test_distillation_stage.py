"""The distillation stage by its commands: off by default, resumed, judged, and one policy file for both samplers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cepdiff.cli import main
from cepdiff.data.rl.support_cache import SupportCache
from cepdiff.modules.distillation import Distillation
from cepdiff.policy.export.noise import noise_of_seed
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.recipe import read_recipe
from cepdiff.runs.results import Results

DISTILLED = (
    "--stages.distillation.max_steps", "20", "--stages.distillation.num_actions", "250",
    "--stages.distillation.checkpoint_every", "5", "--distillation.batch_size", "8",
    "--distillation.net.width", "8", "--distillation.net.depth", "1",
)  # fmt: skip
SKIPPED = "finished earlier, skipped"


def fit(config: Path, run: Path, *arguments: str) -> int:
    return main(["fit", "--config", str(config), "--run_dir", str(run), *arguments])


def student(run: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(run / "distillation" / "final.ckpt", weights_only=True)["state_dict"]
    return weights


@pytest.fixture(scope="module")
def distilled(finished_run: tuple[Path, Path]) -> tuple[Path, Path]:
    """A configuration, and a finished run with the stage that reuses the other stages of a run without it."""
    config, plain = finished_run
    run = plain.with_name("distilled")
    assert fit(config, run, *DISTILLED, "--reuse", str(plain)) == 0
    return config, run


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must end with code 2; return its last line on stderr."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_there_is_no_such_stage_by_default(finished_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    config, run = finished_run
    assert not (run / "distillation").exists()
    recipe = read_recipe(run)[0]
    assert recipe.one_step == {}
    assert recipe.networks.keys() == {"behavior", "energy"}
    assert not any("one_step" in row.metric for row in Results.read(run / "results.json").rows)
    assert "there is no stage 'distillation'" in complaint(
        capsys, "fit", "--config", config, "--run_dir", run, "--stage", "distillation"
    )


def test_a_command_that_fails_takes_nothing_from_the_policy(finished_run: tuple[Path, Path], tmp_path: Path) -> None:
    config, plain = finished_run
    run = tmp_path / "run"
    shutil.copytree(plain, run)
    assert fit(config, run, *DISTILLED, "--guidance.learning_rate", "0.5") == 2  # guidance was made from another
    assert read_recipe(run)[0].networks.keys() == {"behavior", "energy"}
    assert (run / "results.json").is_file()


def test_it_is_added_to_a_finished_run(distilled: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    config, run = distilled
    capsys.readouterr()
    assert fit(config, run, *DISTILLED) == 0
    shown = capsys.readouterr()
    assert shown.err.count(SKIPPED) == 6
    assert "one-step score" in shown.out or "one-step return" in shown.out
    assert "one-step error" in shown.out
    assert re.search(r"guidance \d+ s, distillation \d+ s\n", shown.out)
    cache = SupportCache(run / "distillation", 250)
    assert cache.actions.shape == (250, 1, 1)
    assert np.abs(cache.actions).max() <= 1.0


def test_both_samplers_are_judged_and_evaluated_again(distilled: tuple[Path, Path]) -> None:
    _, run = distilled
    results = Results.read(run / "results.json")
    scored = "normalized_score" if results.values("normalized_score") else "mean_return"
    one_step = "one_step_score" if scored == "normalized_score" else "one_step_return"
    assert list(results.values(one_step)) == list(results.values(scored)) == [0.0, 1.0]
    assert results.values(one_step) != results.values(scored)
    assert main(["evaluate", str(run), "--one_step"]) == 0
    again = Results.read(run / "evaluation_one_step.json")
    assert again.values(scored) == results.values(one_step)
    assert again.title.endswith(", one step")
    assert again.about["num_solver_steps"] == 1
    assert main(["evaluate", str(run)]) == 0
    assert Results.read(run / "evaluation.json").values(scored) == results.values(scored)


def test_its_error_is_the_difference_from_the_sampler(distilled: tuple[Path, Path]) -> None:
    """It is within the spread of the actions, and falls with further training."""
    config, run = distilled
    longer = run.with_name("longer")
    more = ("--stages.distillation.max_steps", "250", "--distillation.learning_rate", "0.01")
    options = (*DISTILLED, "--distillation.net.width", "32", *more, "--evaluation.episodes", "0")
    assert fit(config, longer, *options, "--reuse", str(run)) == 0
    first, second = (Results.read(each / "results.json").values("one_step_error") for each in (run, longer))
    assert all(second[scale] < 0.5 * first[scale] for scale in (0.0, 1.0))
    policies = [GuidedPolicy.from_run(longer, one_step=one_step) for one_step in (True, False)]
    states, noise = torch.randn(2000, 4), torch.randn(2000, 1)
    actions, expected = (policy.act(states, noise=noise) / 3.0 for policy in policies)
    assert float((actions - expected).square().mean().sqrt()) < 3 * second[1.0] + 0.05


def test_it_is_exported(distilled: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, run = distilled
    assert main(["export", str(run), "--format", "torch", "--one_step", "--no-check"]) == 0
    assert "guidance_scale (B) float32" in capsys.readouterr().out
    sampler = torch.export.load(run / "one_step.pt2").module()
    observations, scale = torch.randn(3, 4), torch.tensor([0.0, 0.5, 1.0])
    actions = sampler(observations=observations, guidance_scale=scale, seed=torch.tensor(1))
    policy = GuidedPolicy.from_run(run, one_step=True)
    expected = policy.act(observations, guidance_scale=scale, noise=noise_of_seed(torch.tensor(1), 3, 1))
    torch.testing.assert_close(actions, expected, rtol=0.0, atol=1e-5)


def test_a_stopped_stage_goes_on_to_the_same_weights(
    distilled: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage is stopped while actions are drawn, and again while the network trains."""
    config, whole = distilled
    run, reuse = tmp_path / "run", ("--reuse", str(whole.with_name("run")))
    for size in ("CACHED_ACTIONS", "GPU_CHUNK"):
        monkeypatch.setattr(f"cepdiff.problems.offline.distillation.{size}", 70)
    write, trained = SupportCache.write, Distillation.check_block

    def broken_write(cache: SupportCache, chunk: int, *arguments: Any) -> None:
        if chunk == 2 and cache.folder.name == "distillation":
            raise RuntimeError("power cut")
        write(cache, chunk, *arguments)

    def broken_block(module: Distillation, metrics: Any, first_step: int) -> None:
        if first_step == 10:
            raise RuntimeError("power cut")
        trained(module, metrics, first_step)

    with monkeypatch.context() as patch:
        patch.setattr(SupportCache, "write", broken_write)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(config, run, *DISTILLED, *reuse)
    assert SupportCache(run / "distillation", 250).pending() == [2, 3]
    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "check_block", broken_block)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(config, run, *DISTILLED)
    assert torch.load(run / "distillation" / "last.ckpt", weights_only=True)["global_step"] == 10
    assert fit(config, run, *DISTILLED) == 0
    expected, found = student(whole), student(run)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_bad_input_is_one_line(
    finished_run: tuple[Path, Path], distilled: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (config, plain), (_, run) = finished_run, distilled
    for command in (["evaluate", plain], ["export", plain, "--format", "torch"]):
        assert "has no one-step network" in complaint(capsys, *command, "--one_step")
    assert "one step has no solver" in complaint(capsys, "evaluate", run, "--one_step", "--num_solver_steps", 3)
    assert "guidance scale 9 is above 1" in complaint(capsys, "evaluate", run, "--one_step", "--scales", 9)
    for option in ("max_steps=-1", "num_actions=0"):
        name, value = option.split("=")
        where = f"stages.distillation.{name}"
        assert where in complaint(capsys, "fit", "--config", config, "--run_dir", run, f"--{where}", value)
    changed = complaint(
        capsys, "fit", "--config", config, "--run_dir", run, *DISTILLED, "--evaluation.scales", "[0, 2]"
    )
    assert "distillation was made from something else: max_scale was 1.0, now 2.0" in changed
