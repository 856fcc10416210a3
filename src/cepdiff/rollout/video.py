"""Video of episodes as an MP4 file."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv

from cepdiff.errors import ConfigError, MissingExtraError, SimulationError
from cepdiff.files import check_output, path_aside
from cepdiff.rollout.envs import EnvSpec
from cepdiff.rollout.rollout import Episode, rollout
from cepdiff.types import Policy

SUFFIXES = (".mp4", ".mkv", ".avi", ".mov")  # containers that can hold H.264; no suffix means .mp4


def check_video(path: Path) -> None:
    """Raise what `record_video` would for its file, before any episode."""
    if path.suffix and path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--video {path} ends with '{path.suffix}'; expected {', '.join(SUFFIXES)}")
    _imageio()
    check_output(path)


def record_video(
    policy: Policy,
    env_spec: EnvSpec,
    path: Path,
    *,
    guidance_scale: float,
    episodes: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> None:
    """Record episodes 0, 1, ... of `rollout` at one scale; `path` only exists once complete.

    Raises:
        MissingExtraError: imageio or its ffmpeg is not installed.
        SimulationError: the environment cannot be rendered, e.g. without a display.
        DivergenceError: as `rollout`.
        OutputError: the file cannot be written.
    """
    imageio = _imageio()
    if sys.platform == "linux" and not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's default crashes without a display

    writer: Any = None
    options = {} if path.suffix else {"format": ".mp4", "output_params": ["-f", "mp4"]}

    def add_frame(envs: SyncVectorEnv) -> None:
        nonlocal writer
        try:
            frame = np.asarray(envs.render()[0])
            if frame.ndim != 3:
                raise ValueError("its render() does not return an image")
        except Exception as error:  # the type depends on the graphics library
            raise SimulationError(
                f"'{env_spec.env_id}' cannot be rendered ({' '.join(str(error).split())}). On a machine without a "
                "display set MUJOCO_GL=egl (Debian: libegl1) or MUJOCO_GL=osmesa (libosmesa6)."
            ) from error
        if writer is None:
            # H.264's usual colour format needs even sizes; imageio would resize to multiples of 16.
            fps = envs.metadata.get("render_fps", 30)
            writer = closing.enter_context(imageio.get_writer(aside, fps=fps, macro_block_size=2, **options))
        writer.append_data(frame)

    rendered = replace(env_spec, kwargs={**env_spec.kwargs, "render_mode": "rgb_array"})
    plan = [Episode(index, guidance_scale) for index in range(episodes)]
    with path_aside(path) as aside, ExitStack() as closing:
        rollout(policy, rendered, plan, seed=seed, max_envs=1, device=device, on_step=add_frame)


def _imageio() -> Any:
    try:
        importlib.import_module("imageio_ffmpeg")
        return importlib.import_module("imageio.v2")
    except ImportError:
        raise MissingExtraError("Writing a video", "video") from None
