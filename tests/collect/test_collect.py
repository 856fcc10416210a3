"""`cepdiff collect` as a user types it, on environments that train within seconds."""

import argparse
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from cepdiff.cli.collect import add_parser
from cepdiff.collect.recipes import Collector, Plan
from cepdiff.collect.sac import Snapshot
from cepdiff.data.rl.hdf5 import read_arrays
from cepdiff.errors import CepdiffError
from cepdiff.rollout.envs import EnvSpec

SHORT = ["--train_steps", "300", "--reference_episodes", "3"]
FIELDS = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")


def collect(*args):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["collect", *map(str, args)])
    return parsed.run(parsed)


@pytest.fixture(scope="module")
def buffers(tmp_path_factory):
    """Every kind from one short training on Reacher, where SAC is far above random after 300 steps."""
    folder = tmp_path_factory.mktemp("buffers")
    kinds = "medium,medium-replay,medium-expert,replay,random"
    more = ["--kind", kinds, "--kind", "expert", "--steps", 120, "--output", folder, "--seed", 1]
    assert collect("Reacher-v5", *SHORT, *more) == 0
    return {path.stem.removeprefix("Reacher-v5-"): read_arrays(path) for path in folder.iterdir()}


def test_every_kind_is_written_with_its_rows(buffers):
    rows = {kind: len(raw) for kind, raw in buffers.items()}
    medium_step = buffers["medium-replay"].metadata["medium_step"]
    assert rows == {
        "random": 120,
        "medium": 120,
        "expert": 120,
        "medium-expert": 240,
        "replay": 120,
        "medium-replay": medium_step,
    }
    assert 0 < medium_step <= 300


def test_medium_replay_and_replay_are_prefixes_of_one_training(buffers):
    rows = min(len(buffers["replay"]), len(buffers["medium-replay"]))
    assert rows > 50
    for field in FIELDS:
        replay, medium = getattr(buffers["replay"], field), getattr(buffers["medium-replay"], field)
        np.testing.assert_array_equal(replay[:rows], medium[:rows])


def test_medium_expert_is_medium_then_expert(buffers):
    both, medium, expert = buffers["medium-expert"], buffers["medium"], buffers["expert"]
    for field in ("observations", "actions", "rewards"):
        halves = np.concatenate([getattr(medium, field), getattr(expert, field)])
        np.testing.assert_array_equal(getattr(both, field), halves)
    assert not medium.timeouts[-1]  # 120 rows end in the middle of an episode of 50 steps ...
    assert np.flatnonzero(both.timeouts).tolist() == [49, 99, 119, 169, 219]  # ... so the seam is marked as a timeout
    assert not np.array_equal(medium.actions, expert.actions)


def test_transitions_follow_each_other(buffers):
    for raw in buffers.values():
        goes_on = ~(raw.terminals | raw.timeouts)[:-1]
        np.testing.assert_array_equal(raw.next_observations[:-1][goes_on], raw.observations[1:][goes_on])
        assert not np.array_equal(raw.next_observations[49], raw.observations[50])  # not the next start
        assert np.abs(raw.actions).max() <= 1


def test_metadata_tells_the_origin(buffers):
    metadata = buffers["medium"].metadata
    assert metadata["env_id"] == "Reacher-v5"
    assert metadata["kind"] == "medium"
    assert metadata["seed"] == 1
    assert metadata["train_steps"] == 300
    assert metadata["horizon"] == 50
    assert (metadata["action_low"], metadata["action_high"]) == ((-1.0, -1.0), (1.0, 1.0))
    assert metadata["reference_min"] < -25 < metadata["reference_max"] < 0
    assert "stable-baselines3" in metadata["algorithm"]
    assert "gymnasium" in metadata["versions"]
    assert metadata["medium_fraction"] == pytest.approx(1 / 3)
    random = buffers["random"].metadata
    assert random["reference_min"] == metadata["reference_min"]
    assert "reference_max" not in random  # a random buffer trains nothing
    assert np.abs(buffers["random"].actions).mean() == pytest.approx(0.5, abs=0.06)  # uniform


def test_same_seed_same_training_and_longer_trainings_begin_alike(buffers, tmp_path):
    out = tmp_path / "again.h5"
    collect(
        "Reacher-v5",
        "--kind",
        "replay",
        "--seed",
        1,
        "--output",
        out,
        "--train_steps",
        160,
        "--reference_episodes",
        1,
    )
    again = read_arrays(out)
    assert len(again) == 160
    np.testing.assert_array_equal(again.actions[:120], buffers["replay"].actions)


def test_given_function_is_recorded(tmp_path, monkeypatch):
    (tmp_path / "my_policies.py").write_text("def push(observation):\n    return observation[1:2] * 100")
    monkeypatch.chdir(tmp_path)
    args = [
        "--policy",
        "my_policies:push",
        "--steps",
        30,
        "--reference_episodes",
        1,
        "--env_kwargs",
        '{"g": 2.5}',
    ]
    assert collect("Pendulum-v1", *args) == 0
    raw = read_arrays(tmp_path / "Pendulum-v1-policy.hdf5")
    np.testing.assert_allclose(raw.actions, np.clip(raw.observations[:, 1:2] * 100, -2, 2), rtol=1e-5)
    assert raw.metadata["env_kwargs"] == {"g": 2.5}
    assert raw.metadata["recipe"] == "rollouts of my_policies:push"


@pytest.mark.parametrize("algorithm", ["SAC", "PPO", "TD3"])
def test_given_file_is_only_loaded_when_trusted(tmp_path, algorithm):
    sb3 = pytest.importorskip("stable_baselines3")
    model = getattr(sb3, algorithm)("MlpPolicy", "Pendulum-v1", seed=0, device="cpu")
    model.save(tmp_path / "model.zip")
    args = ["Pendulum-v1", "--policy", tmp_path / "model.zip", "--steps", 5, "--reference_episodes", 1]
    args += ["--output", tmp_path / "out.hdf5"]
    with pytest.raises(CepdiffError, match="--trust_policy"):
        collect(*args)
    assert collect(*args, "--trust_policy") == 0
    raw = read_arrays(tmp_path / "out.hdf5")
    expected = np.array([model.predict(row, deterministic=True)[0] for row in raw.observations])
    np.testing.assert_allclose(raw.actions, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["Pendulum-v1"], "either --kind or --policy"),
        (["Pendulum-v1", "--kind", "random", "--policy", "a:b"], "either --kind or --policy"),
        (["Pendulum-v1", "--kind", "medum"], "Did you mean medium"),
        (["Pendulum-v2", "--kind", "random"], "Did you mean"),
        (["CartPole-v1", "--kind", "random"], "expected a flat, bounded Box"),
        (["FrozenLake-v1", "--kind", "random"], "expected a flat Box"),
        (["Pendulum-v1", "--kind", "random", "--states"], "has no MuJoCo state to store: remove --states"),
        (["Reacher-v5", "--kind", "medium,navigate"], "no maze"),
        (["Pendulum-v1", "--kind", "random", "--env_kwargs", '{"max_episode_steps": -1}'], "no time limit"),
        (["Pendulum-v1", "--kind", "random", "--env_kwargs", "{g"], "not JSON"),
        (["Pendulum-v1", "--kind", "random", "--env_kwargs", "[1]"], "expected a JSON object"),
        (["Pendulum-v1", "--kind", "random,expert", "--output", "one.hdf5"], "one file for 2 kinds"),
        (["Pendulum-v1", "--kind", "medium,replay", "--steps", "9", "--train_steps", "5"], "raise --train_steps"),
        (["Pendulum-v1", "--policy", "no_such_module_at_all:f"], "no_such_module_at_all"),
        (["Pendulum-v1", "--policy", "json:no_such_function"], "no_such_function"),
        (["Pendulum-v1", "--policy", "json"], "module:function"),
        (["Pendulum-v1", "--policy", "missing.zip"], "no such file"),
        (["Pendulum-v1", "--policy", "numpy:zeros_like", "--steps", "5"], r"shape \(3,\); expected \(1,\)"),
    ],
)
def test_bad_input_is_one_clear_line(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CepdiffError, match=message) as caught:
        collect(*args)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_foreign_zip_is_refused(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"nothing")
    with pytest.raises(CepdiffError, match="not a stable-baselines3 file"):
        collect("Pendulum-v1", "--policy", tmp_path / "x.zip", "--trust_policy")


@pytest.mark.parametrize("flag", [["--medium_fraction", "1.5"], ["--medium_fraction", "0/1"], ["--steps", "0"]])
def test_numbers_out_of_range(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        collect("Pendulum-v1", "--kind", "random", *flag)
    assert caught.value.code == 2
    assert "expected a" in capsys.readouterr().err


def test_existing_output_is_kept_unless_told(tmp_path):
    args = ["Pendulum-v1", "--kind", "random", "--steps", 5, "--reference_episodes", 1, "--output", tmp_path]
    collect(*args)
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    with pytest.raises(CepdiffError, match="--overwrite"):
        collect(*args, "--seed", 1)
    assert file.read_bytes() == before
    collect(*args, "--seed", 1, "--overwrite")
    assert read_arrays(file).metadata["seed"] == 1


def test_an_interrupted_run_leaves_no_file(tmp_path, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        collect("Pendulum-v1", "--kind", "random", "--steps", 5, "--reference_episodes", 1, "--output", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_medium_policy_without_learning(tmp_path):
    args = ["--kind", "medium-replay", "--train_steps", 20, "--reference_episodes", 2, "--output", tmp_path]
    with pytest.raises(CepdiffError, match="train longer"):  # all 20 steps are random: no update yet
        collect("Reacher-v5", *args)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("fraction", "step"), [(0.2, 100), (1 / 3, 200), (0.5, 200), (0.7, 400), (1.0, 500)])
def test_medium_is_the_first_snapshot_beyond_the_fraction(fraction, step):
    collector = Collector(Plan(EnvSpec("Pendulum-v1"), medium_fraction=fraction))
    returns = {100: -82.0, 200: -55.0, 300: -70.0, 400: -21.0, 500: -20.0}
    snapshots = [Snapshot(at, value, {}) for at, value in returns.items()]
    # random -100, expert -10: 20% of the way is -82, a third -70, half -55, 70% -37; 100% is never reached
    known = {
        "reference_min": -100.0,
        "reference_max": -10.0,
        "training": SimpleNamespace(snapshots=snapshots),
    }
    vars(collector).update(known)
    assert collector.medium.step == step


@pytest.mark.parametrize(("env_id", "kind"), [("Reacher-v5", "random"), ("cepdiff/maze2d-umaze-v1", "navigation")])
def test_the_clock_of_the_progress_starts_before_the_work(env_id, kind):
    seen = []
    plan = Plan(EnvSpec(env_id), steps=60, reference_episodes=1)
    collector = Collector(plan, lambda what, done, total, remark: seen.append((done, total)))
    collector.make_navigation() if kind == "navigation" else collector.make(kind)
    assert seen[0] == (0, 60)
    assert seen[-1] == (60, 60)


def test_embedded_buffer_is_what_its_note_says():
    from cepdiff.data.rl.source import load_dataset

    raw = load_dataset("reacher-replay")
    assert len(raw) == 20_000
    assert raw.metadata["kind"] == "replay"
    assert raw.metadata["env_id"] == "Reacher-v5"
    assert np.flatnonzero(raw.timeouts).tolist() == list(range(49, 20_000, 50))
    returns = raw.rewards.reshape(400, 50).sum(1)  # 400 whole episodes
    assert returns[:10].mean() < -30 < -10 < returns[-100:].mean()
    assert raw.metadata["reference_min"] < returns.mean() < raw.metadata["reference_max"]
    assert json.dumps(raw.metadata)  # plain JSON values


def test_the_front_end_imports_nothing_heavy():
    heavy = "{'torch', 'numpy', 'gymnasium', 'h5py', 'stable_baselines3'}"
    code = f"import sys, cepdiff.cli.collect; sys.exit(sorted({heavy} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
