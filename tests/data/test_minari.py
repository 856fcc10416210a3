"""Minari datasets created by the tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cepdiff.data.minari.read import read_minari
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.source import load_dataset
from cepdiff.errors import DataError, MissingExtraError

minari = pytest.importorskip("minari")
from gymnasium import spaces  # noqa: E402
from minari.data_collector import EpisodeBuffer  # noqa: E402


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def episode(start: float, ends: tuple[bool, bool], steps: int = 3) -> Any:
    """Observations start, start + 1, ...; `ends` holds the last step's flags."""
    observations = np.arange(start, start + steps + 1)[:, None].repeat(3, axis=1)
    flags = np.zeros((2, steps), bool)
    flags[:, -1] = ends
    return EpisodeBuffer(
        observations=observations,  # type: ignore[arg-type]
        actions=np.full((steps, 1), 0.5, np.float32),  # type: ignore[arg-type]
        rewards=list(np.arange(steps, dtype=float)),
        terminations=list(flags[0]),
        truncations=list(flags[1]),
        infos={},
    )


def create(name: str, episodes: list[Any], **options: Any) -> None:
    box = {
        "observation_space": spaces.Box(-np.inf, np.inf, (3,), np.float64),
        "action_space": spaces.Box(-3, 3, (1,), np.float32),
    }
    minari.create_dataset_from_buffers(name, episodes, **{**box, **options})


@pytest.mark.filterwarnings("ignore")
def test_true_next_observations(root: Path) -> None:
    episodes = [episode(0, (True, False)), episode(10, (False, True)), episode(20, (False, False))]
    create("test/line-v0", episodes)
    raw = read_minari("test/line-v0")
    assert raw.observations[:, 0].tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert raw.next_observations is not None
    assert raw.next_observations[:, 0].tolist() == [1, 2, 3, 11, 12, 13, 21, 22, 23]
    assert np.flatnonzero(raw.terminals).tolist() == [2]
    assert np.flatnonzero(raw.timeouts).tolist() == [5, 8]
    assert raw.rewards.tolist() == [0, 1, 2] * 3
    assert raw.metadata == {"action_low": (-3.0,), "action_high": (3.0,)}
    buffer = TransitionBuffer.from_arrays(raw)
    assert buffer.next_index.tolist() == [1, 2, 9, 4, 5, 10, 7, 8, 11]
    np.testing.assert_allclose(buffer.actions.numpy(), 0.5 / 3)


@pytest.mark.filterwarnings("ignore")
def test_environment_and_references(root: Path) -> None:
    create(
        "test/pendulum-v0",
        [episode(0, (True, False))],
        env="Pendulum-v1",
        observation_space=None,
        action_space=None,
        ref_min_score=-1000.0,
        ref_max_score=-100.0,
    )
    metadata = load_dataset("minari:test/pendulum-v0").metadata
    assert (metadata["env_id"], metadata["horizon"]) == ("Pendulum-v1", 200)
    assert (metadata["reference_min"], metadata["reference_max"]) == (-1000.0, -100.0)
    assert (metadata["action_low"], metadata["action_high"]) == ((-2.0,), (2.0,))


@pytest.mark.filterwarnings("ignore")
def test_another_root(root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    create("test/line-v0", [episode(0, (True, False))])
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(elsewhere))
    assert len(read_minari("test/line-v0", root)) == 3
    with pytest.raises(DataError, match=r"not in .*elsewhere.*minari download test/line-v0"):
        read_minari("test/line-v0", allow_download=False)


@pytest.mark.filterwarnings("ignore")
def test_other_spaces_are_refused(root: Path) -> None:
    create("test/discrete-v0", [episode(0, (True, False))], action_space=spaces.Discrete(3))
    with pytest.raises(DataError, match=r"the action space is Discrete\(3\).*: discrete actions cannot be trained on"):
        read_minari("test/discrete-v0")
    nested = {"a": np.zeros((4, 3))}
    step = EpisodeBuffer(**{**vars(episode(0, (True, False))), "observations": nested})
    create("test/dict-v0", [step], observation_space=spaces.Dict({"a": spaces.Box(-1, 1, (3,), np.float64)}))
    with pytest.raises(DataError, match="the observation space is Dict"):
        read_minari("test/dict-v0")


def test_out_of_reach_and_unknown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dataset_id: str) -> None:
        raise ConnectionError("no route\nto the host")

    monkeypatch.setattr(minari, "download_dataset", refuse)
    with pytest.raises(DataError, match=r"cannot be downloaded \(ConnectionError: no route\); run minari") as caught:
        read_minari("mujoco/walker2d/medium-v0")
    assert "\n" not in str(caught.value)
    for bad in ("mujoco/walker2d/medium", "!!"):
        with pytest.raises(DataError, match="not a Minari id"):
            read_minari(bad)


@pytest.mark.filterwarnings("ignore")
def test_a_torn_dataset(root: Path) -> None:
    create("test/line-v0", [episode(0, (True, False))])
    (root / "test" / "line-v0" / "data" / "main_data.hdf5").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"minari:test/line-v0: cannot be read \(OSError"):
        read_minari("test/line-v0")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[minari\]"):
        read_minari("a/b-v0")


@pytest.mark.filterwarnings("ignore")
def test_integer_boxes_are_refused(root: Path) -> None:
    step = EpisodeBuffer(**{**vars(episode(0, (True, False))), "actions": np.ones((3, 1), np.int64)})
    create("test/whole-v0", [step], action_space=spaces.Box(0, 4, (1,), np.int64))
    with pytest.raises(DataError, match="'actions' has type int64: discrete actions cannot be trained on"):
        read_minari("test/whole-v0")
