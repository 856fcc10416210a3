"""`cepdiff fit` and `evaluate` as a user types them, also when they are interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cepdiff.cli import main
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.problems.guided import GuidedProblem
from cepdiff.problems.offline.problem import OfflineRL
from cepdiff.rollout.envs import EnvSpec
from cepdiff.rollout.vector import LocalEnvs, WorkerEnvs, make_vector

STAGES = ("behavior", "critic", "guidance")
LONG = ["--stages.behavior.max_steps", "3000", "--stages.behavior.checkpoint_every", "50"]


def fit(config: Path, run_dir: Path, *arguments: str) -> int:
    """The command in this process."""
    return main(["fit", "--config", str(config), "--run_dir", str(run_dir), *arguments])


def weights(run_dir: Path, stage: str) -> Mapping[str, torch.Tensor]:
    """Weights of a finished stage, read with plain torch."""
    content = torch.load(run_dir / stage / "final.ckpt", weights_only=True)
    state: Mapping[str, torch.Tensor] = content["state_dict"]
    return state


def assert_equal_runs(first: Path, second: Path, stages: tuple[str, ...] = STAGES, tolerance: float = 0.0) -> None:
    """All weights of the stages are equal."""
    for stage in stages:
        a, b = weights(first, stage), weights(second, stage)
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=f"{stage}: {name}")


def results(run_dir: Path, name: str = "results.json") -> dict[str, Any]:
    """The results of a run, read with plain JSON."""
    content: dict[str, Any] = json.loads((run_dir / name).read_text())
    return content


def values(found: Mapping[str, Any], metric: str) -> dict[float, float]:
    """Guidance scale -> value of a metric."""
    return {row["scale"]: row["value"] for row in found["rows"] if row["metric"] == metric}


def start(config: Path, run_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command in its own process."""
    command = [sys.executable, "-m", "cepdiff", "fit", "--config", str(config), "--run_dir", str(run_dir), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the file exists, at most two minutes."""
    for _ in range(2400):
        if path.exists():
            return
        if process.poll() is not None:
            pytest.fail(f"the command ended early:\n{process.communicate()[0]}")
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"{path} did not appear")


def test_a_run_leaves_stages_scores_logs_and_a_policy(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert fit(config, run) == 0
    shown = capsys.readouterr().out
    assert "behavior policy" in shown
    assert "no scale is the best by more than the noise" in shown  # two episodes
    found = results(run)
    assert (found["problem"], found["dataset"], found["seed"]) == (
        "cepdiff.problems.offline.problem.OfflineRL", "buffer", 0
    )  # fmt: skip
    assert (found["title"], found["method"], found["inverse_temperature"]) == ("buffer, seed 0", "CEP", 3.0)
    assert values(found, "episodes") == {0.0: 2, 1.0: 2}
    assert {row["metric"] for row in found["rows"]} == {"episodes", "mean_return", "offline_value", "inside_support"}
    for metric in ("mean_return", "offline_value", "inside_support"):
        assert list(values(found, metric)) == [0.0, 1.0]
    errors = {row["metric"]: row["error"] for row in found["rows"]}
    assert [metric for metric, error in errors.items() if error is not None] == ["mean_return"]
    assert list(found["seconds"]) == ["behavior", "support", "critic", "guidance"]
    assert not {path.name for path in run.iterdir()} & {"scores.json", "distances.json", "images.json", "sampler.pt"}
    for figure in ("scores.png", "diagnostics.png"):
        assert (run / figure).stat().st_size > 1000
    choice = found["about"]["offline_choice"]
    assert choice in (0.0, 1.0)
    assert "offline choice" in found["marks"][str(choice)]
    diagnostics = json.loads((run / "diagnostics.json").read_text())
    assert (diagnostics["offline_choice"], diagnostics["choice_reason"]) == (choice, found["notes"][1])
    figures = found["about"]["ranking"]["figures"]
    assert figures == {name: diagnostics["ranking"][name] for name in ("return_agreement", "critic_agreement")}
    assert "the critic's ranking of actions, by chance 0: return agreement" in found["notes"][0]
    assert "\n".join(found["notes"]) in shown
    for stage in STAGES:
        assert json.loads((run / stage / "stage.json").read_text())["done"]
        assert torch.load(run / stage / "last.ckpt", weights_only=True)["global_step"] == 20
        events = EventAccumulator(str(run / "logs" / stage)).Reload()
        assert max(event.step for event in events.Scalars(f"{stage}/loss")) == 20
    scalars = EventAccumulator(str(run / "logs" / "evaluation")).Reload().Tags()["scalars"]
    assert sorted(scalars) == ["eval/mean_return/s=0.0", "eval/mean_return/s=1.0"]
    policy = GuidedPolicy.from_run(run)
    action = policy.act(torch.zeros(4), guidance_scale=1.0, noise=torch.zeros(1, 1))
    assert action.shape == (1,)


def test_finished_stages_are_skipped(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert fit(config, run) == 0
    first = capsys.readouterr().out
    files = [*run.glob("*/final.ckpt"), run / "support" / "actions.npy", run / "results.json"]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert fit(config, run) == 0
    again = capsys.readouterr()
    assert again.err.count("finished earlier, skipped") == 5
    assert first.splitlines()[:5] == again.out.splitlines()[:5]
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert fit(config, run, "--evaluation.episodes", "3") == 0
    assert values(results(run), "episodes") == {0.0: 3, 1.0: 3}


def test_stages_one_by_one_equal_the_whole(config: Path, tmp_path: Path) -> None:
    whole, single = tmp_path / "whole", tmp_path / "single"
    assert fit(config, whole) == 0
    for stage in ("behavior", "support", "critic", "guidance", "evaluation"):
        assert fit(config, single, "--stage", stage) == 0
    assert_equal_runs(whole, single)
    a, b = (results(run) for run in (whole, single))
    assert a["rows"] == b["rows"]
    assert a["about"] == b["about"]


def test_the_seed_changes_everything_and_repeats_itself(config: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert fit(config, tmp_path / name, "--seed", seed) == 0
    assert_equal_runs(tmp_path / "a", tmp_path / "b")
    for stage in STAGES:
        different = weights(tmp_path / "a", stage), weights(tmp_path / "c", stage)
        assert any(not torch.equal(different[0][name], different[1][name]) for name in different[0])


def test_max_rows_draws_for_whole_episodes(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert fit(config, run, "--stages.support.max_rows", "30") == 0
    import numpy as np

    ids = np.load(run / "support" / "state_ids.npy")
    assert len(ids) == 30  # three episodes of ten rows
    assert set(ids % 10) == set(range(10))
    assert len({int(i) // 10 for i in ids}) == 3


@contextmanager
def watched_workers() -> Iterator[list[int]]:
    """The numbers of workers that rollouts ask for."""
    found: list[int] = []

    def make(spec: EnvSpec, num_envs: int, num_workers: int) -> LocalEnvs | WorkerEnvs:
        found.append(num_workers)
        return make_vector(spec, num_envs, num_workers)

    with patch("cepdiff.rollout.rollout.make_vector", make):
        yield found


def test_evaluate_with_other_settings(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert fit(config, run) == 0
    capsys.readouterr()
    arguments = ["--scales", "0", "0.5", "--episodes", "3", "--seeds", "1", "2", "--num_solver_steps", "4"]
    assert main(["evaluate", str(run), *arguments]) == 0
    assert "guidance scale" in capsys.readouterr().out
    again = results(run, "evaluation.json")
    assert again["about"] == {"seeds": [1, 2], "num_solver_steps": 4}
    assert values(again, "episodes") == {0.0: 6, 0.5: 6}
    fitted = results(run)
    assert (again.keys(), again["problem"], again["dataset"]) == (fitted.keys(), fitted["problem"], fitted["dataset"])
    offline = {"offline_value", "inside_support"}  # metrics that need the critic but no episodes
    assert offline < {row["metric"] for row in fitted["rows"]}
    kept = (run / "evaluation.json").read_bytes()
    assert main(["evaluate", str(run)]) == 0
    assert f"results {run / 'evaluation_defaults.json'}" in capsys.readouterr().out
    rollouts = [row for row in fitted["rows"] if row["metric"] not in offline]
    assert results(run, "evaluation_defaults.json")["rows"] == rollouts
    assert results(run) == fitted  # unchanged
    with watched_workers() as workers:
        assert main(["evaluate", str(run), *arguments, "--num_workers", "2"]) == 0
    assert workers == [2, 2]  # for each seed
    assert f"{run / 'evaluation.json'}: replacing results of the same settings" in capsys.readouterr().err
    assert (run / "evaluation.json").read_bytes() == kept
    assert main(["evaluate", str(run), "--episodes", "1", "--scales", "1"]) == 0
    shown = capsys.readouterr().out
    assert "± –" in shown  # one episode has no standard error
    assert f"results {run / 'evaluation_scales-1_episodes-1.json'}" in shown
    assert main(["evaluate", str(run), "--episodes", "1", "--output", str(run / "evaluation.json")]) == 2
    assert "evaluation.json exists, and is not of these settings: choose another --output" in capsys.readouterr().err
    assert (run / "evaluation.json").read_bytes() == kept


def test_another_engine_gives_the_same_scores(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    run = tmp_path / "run"
    assert fit(config, run, "--evaluation.engine", "onnx") == 0
    assert main(["evaluate", str(run), "--engine", "torch"]) == 0
    fitted, again = (values(results(run, name), "mean_return") for name in ("results.json", "evaluation.json"))
    assert fitted == pytest.approx(again, rel=1e-3, abs=1e-3)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--engine", "onx"]) == 2
    assert "no engine 'onx'" in capsys.readouterr().err
    assert fit(config, tmp_path / "other", "--evaluation.engine", "cuda_graph", "--trainer.accelerator", "cpu") == 2
    assert "the engine cuda_graph needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "other" / "behavior" / "final.ckpt").exists()  # refused before any training


def test_another_logger_or_other_scales_keep_the_stages(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logging is no part of what weights are made from; results of earlier scales leave the logs."""
    run = tmp_path / "run"
    assert fit(config, run) == 0
    capsys.readouterr()
    assert fit(config, run, "--trainer.logger", "CSVLogger") == 0
    assert capsys.readouterr().err.count("finished earlier, skipped") == 5
    assert fit(config, run, "--evaluation.scales", "[0, 2]") == 0
    said = capsys.readouterr().err
    assert (said.count("finished earlier, skipped"), said.count("evaluation: running")) == (4, 1)
    for folder, tags in (
        ("evaluation", ["eval/mean_return/s=0.0", "eval/mean_return/s=2.0"]),
        ("diagnostics", ["diagnostics/guidance_norm", "diagnostics/score_norm"]),
    ):
        events = EventAccumulator(str(run / "logs" / folder)).Reload()
        assert sorted(events.Tags()["scalars"]) == tags
        assert len(list((run / "logs" / folder).glob("events.*"))) == 1
    new = tmp_path / "new"
    assert fit(config, new, "--trainer.logger", "CSVLogger", "--trainer.logger.flush_logs_every_n_steps", "1") == 0
    for name in (*STAGES, "diagnostics", "evaluation"):
        assert (new / "logs" / name / "version_0" / "metrics.csv").is_file()
    assert yaml.safe_load((new / "logs/critic/version_0/hparams.yaml").read_text())["critic.batch_size"] == 16
    assert_equal_runs(run, new)


def test_evaluation_during_training_is_logged(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with watched_workers() as workers:
        assert fit(config, run, "--evaluation.every_n_steps", "10", "--evaluation.num_workers", "1") == 0
    assert workers == [1] * 5  # twice in two stages, and at the end
    for stage, scales in (("behavior", ("0.0",)), ("guidance", ("0.0", "1.0"))):
        events = EventAccumulator(str(run / "logs" / stage)).Reload()
        for scale in scales:
            assert [event.step for event in events.Scalars(f"eval/mean_return/s={scale}")] == [10, 20]


def test_print_config_is_a_configuration(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", "--config", str(config), "--critic.discount", "0.97", "--print_config"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["critic"]["init_args"]["discount"] == 0.97
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert main(["fit", "--config", str(again), "--print_config"]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_stage_goes_on_to_the_same_weights(
    config: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert fit(config, whole, *LONG, "--stage", "behavior") == 0
    process = start(config, broken, *LONG, "--stage", "behavior")
    wait_for(broken / "behavior" / "last.ckpt", process)
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    if code > 0:
        assert "run the same command to go on" in output
    assert not (broken / "behavior" / "final.ckpt").exists()
    step = torch.load(broken / "behavior" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < step < 3000
    assert fit(config, broken, *LONG, "--stage", "behavior") == 0
    assert_equal_runs(whole, broken, ("behavior",))


def test_the_sampler_is_tried_and_networks_stay_in_training_mode(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[bool] = []

    def noted(problem: OfflineRL) -> None:
        GuidedProblem.verify(problem)
        modes.extend(module.training for module in problem.behavior.net.modules())

    monkeypatch.setattr(OfflineRL, "verify", noted)
    assert fit(config, tmp_path / "run", "--stage", "behavior") == 0
    assert len(modes) > 1
    assert all(modes)


def test_two_commands_do_not_share_a_folder(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    process = start(config, run, *LONG)
    wait_for(run / "behavior" / "stage.json", process)
    assert fit(config, run, *LONG) == 2
    assert "another command is working in" in capsys.readouterr().err
    process.kill()
    process.communicate()
