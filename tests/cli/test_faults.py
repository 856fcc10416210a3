"""Mistakes on the command line: one clear line, exit code 2, nothing lost."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cepdiff.cli import main

RESAMPLED = "cepdiff.policy.resampling.Resampled"


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """Runs a command that must fail; returns its one line on stderr."""
    assert main([str(argument) for argument in arguments]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cepdiff:")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--critic.dicount", "0.9"], "Did you mean discount"),
        (["--critc.discount", "0.9"], "Did you mean critic"),
        (["--critic.discount", "much"], "critic.discount"),
        (["--critic.discount", "1.5"], "critic.discount is 1.5"),
        (["--critic.discount"], "--critic.discount needs a value"),
        (["critic.discount=0.9"], "is no option"),
        (["--data.dataset", "hoper-medium-v2"], "hopper-medium-v2"),
        (["--behavior.net.class_path", "nowhere.Net"], "there is no module 'nowhere'"),
        (["--behavior.class_path", "cepdiff.modules.critic.SoftmaxQCritic"], "is not a subclass of BehaviorDiffusion"),
        (["--guidance.objective.class_path", "cepdiff.energy.objectives.CPE"], "CEP"),
        (["--guidance.objective.inverse_temperature", "0"], "inverse_temperature is 0"),
        (["--stages.support.num_actions", "1"], "at least 2"),
        (["--stages.behavior.max_steps", "0"], "stages.behavior.max_steps is 0"),
        (["--trainer.max_steps", "10"], "unknown key 'trainer.max_steps'"),
        (["--trainer.accelerator", "abacus"], "trainer"),
        (["--stage", "gidance"], "there is no stage 'gidance'"),
        (["--data.env_id", "InvertedPendulm-v5"], "InvertedPendulum-v5"),
        (["--data.env_id", "Hopper-v4"], "11"),
        (["--data.reward_rule", "minus_two"], "minus_one"),
        (["--sampler", RESAMPLED, "--sampler.min_effective_samples", "17"], "expected at most num_candidates, 16"),
    ],
)
def test_a_wrong_option_gets_one_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    run_dir = tmp_path / "run"
    line = complaint(capsys, "fit", "--config", config, "--run_dir", run_dir, *arguments)
    assert expected in line
    assert not (run_dir / "behavior" / "final.ckpt").exists()


def test_missing_and_broken_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no configuration file" in complaint(capsys, "fit", "--config", tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("data: [unclosed")
    assert "not valid YAML" in complaint(capsys, "fit", "--config", broken)
    assert "data.dataset is missing" in complaint(capsys, "fit")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rewards": np.full(100, np.nan, np.float32)}, "rewards"),
        ({"actions": np.full((100, 1), 9.0, np.float32)}, "data.action_"),
        ({"terminals": np.zeros(99, dtype=bool)}, "99"),
    ],
)
def test_unusable_buffers(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make_buffer: Callable[..., Path],
    changes: dict[str, np.ndarray],
    expected: str,
) -> None:
    bad = make_buffer(tmp_path / "bad.hdf5", **changes)
    line = complaint(capsys, "fit", "--config", config, "--data.dataset", bad, "--run_dir", tmp_path / "run")
    assert expected in line
    assert not (tmp_path / "run" / "behavior").exists()


def test_foreign_folders_are_left_alone(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("precious")
    assert "no run folder" in complaint(capsys, "fit", "--config", config, "--run_dir", folder)
    assert [path.name for path in folder.iterdir()] == ["chapter1.tex"]
    assert "is a file" in complaint(capsys, "fit", "--config", config, "--run_dir", folder / "chapter1.tex")
    assert (folder / "chapter1.tex").read_text() == "precious"


def test_a_stage_alone_needs_those_before_it(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint(capsys, "fit", "--config", config, "--run_dir", tmp_path / "run", "--stage", "critic")
    assert "--stage critic needs the behavior stage" in line


def test_a_run_made_by_another_configuration_is_refused(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make_buffer: Callable[..., Path]
) -> None:
    run_dir = tmp_path / "run"
    command = ["fit", "--config", str(config), "--run_dir", str(run_dir)]
    assert main(command) == 0
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.ckpt")}
    kept_config = (run_dir / "config.yaml").read_text()
    capsys.readouterr()
    line = complaint(capsys, *command, "--critic.tau", "0.5")
    assert "critic.tau was 0.005, now 0.5" in line
    assert str(run_dir / "critic") in line
    assert "--run_dir" in line
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.ckpt")} == before
    assert (run_dir / "config.yaml").read_text() == kept_config
    other = make_buffer(tmp_path / "other.hdf5", rewards=np.arange(100, dtype=np.float32))
    assert "dataset was" in complaint(capsys, *command, "--data.dataset", other)


def test_evaluate_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no run folder" in complaint(capsys, "evaluate", tmp_path / "nothing")
    (tmp_path / "policy.pt").write_bytes(b"not a policy")
    assert "not a policy file" in complaint(capsys, "evaluate", tmp_path)


NOT_BELOW_A_FILE = "cannot be written (Not a directory)"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("evaluate run --output run", "run: is a folder"),
        ("evaluate run --output run/policy.pt/x", f"run/policy.pt/x: {NOT_BELOW_A_FILE}"),
        ("evaluate run --video run/policy.pt/x.mp4", f"run/policy.pt/x.mp4: {NOT_BELOW_A_FILE}"),
        ("evaluate run --video x.xyz", "--video x.xyz ends with '.xyz'; expected .mp4, .mkv, .avi, .mov"),
        ("export run --format torch --output run", "run: is a folder"),
        ("export run --format torch --output run/policy.pt/x", NOT_BELOW_A_FILE),
        ("sample run --output run/policy.pt/x.png", NOT_BELOW_A_FILE),
        ("data check run/policy.pt --plot x.xyz", "x.xyz ends with '.xyz'; expected .png, "),
        ("data check run/policy.pt --plot run/policy.pt/x.png", NOT_BELOW_A_FILE),
        ("data replay run/policy.pt --plot x.xyz", "x.xyz ends with '.xyz'"),
        ("data replay run/policy.pt --output run", "run: is a folder"),
        ("collect Pendulum-v1 --kind random --output run/policy.pt", NOT_BELOW_A_FILE),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, expected: str
) -> None:
    """The work would complain about its input, which is neither a policy nor a buffer."""
    monkeypatch.chdir(tmp_path)
    policy = tmp_path / "run" / "policy.pt"
    policy.parent.mkdir()
    policy.write_bytes(b"neither")
    assert expected in complaint(capsys, *command.split())
    assert list(policy.parent.iterdir()) == [policy]


def test_evaluate_without_ffmpeg_says_so_before_the_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policy.pt").write_bytes(b"not a policy")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert "needs the extra 'video'" in complaint(capsys, "evaluate", tmp_path, "--video")


def test_training_that_diverges_keeps_the_last_good_checkpoint(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    line = complaint(
        capsys, "fit", "--config", config, "--run_dir", run_dir, "--critic.learning_rate", "1e6",
        "--stages.critic.max_steps", "2000", "--stages.critic.checkpoint_every", "5", code=1,
    )  # fmt: skip
    assert "step" in line
    assert "checkpoint" in line
    assert (run_dir / "behavior" / "final.ckpt").exists()
