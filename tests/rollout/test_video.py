"""Videos, if this machine can render."""

import sys

import pytest

from cepdiff.errors import MissingExtraError, SimulationError
from cepdiff.rollout.envs import EnvSpec
from cepdiff.rollout.rollout import Episode, rollout
from cepdiff.rollout.video import record_video

SPEC = EnvSpec("InvertedPendulum-v5")


def test_one_frame_a_step(tmp_path, linear_policy):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    policy, path = linear_policy(4, 1), tmp_path / "new" / "video.mp4"
    results = rollout(policy, SPEC, [Episode(0, 2.0), Episode(1, 2.0)], seed=3)
    try:
        record_video(policy, SPEC, path, guidance_scale=2.0, episodes=2, seed=3)
    except SimulationError as error:
        pytest.skip(str(error))
    with imageio.get_reader(path) as reader:
        assert reader.count_frames() == sum(result.length for result in results)
    assert list(path.parent.iterdir()) == [path]


def test_no_graphics_is_one_clear_line(tmp_path, linear_policy, monkeypatch):
    def fail(self):
        raise RuntimeError("no\ncontext")

    monkeypatch.setattr("gymnasium.vector.SyncVectorEnv.render", fail)
    with pytest.raises(SimulationError, match=r"\(no context\).*MUJOCO_GL=egl.*osmesa"):
        record_video(linear_policy(4, 1), SPEC, tmp_path / "v.mp4", guidance_scale=0.0, episodes=1, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_without_ffmpeg_the_extra_is_named(tmp_path, linear_policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingExtraError, match=r"\[video\]"):
        record_video(linear_policy(4, 1), SPEC, tmp_path / "v.mp4", guidance_scale=0.0, episodes=1, seed=0)
