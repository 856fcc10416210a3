"""The ant as a walker sees it: without its place, its heading, or which of its four equal legs is in front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources

import numpy as np
from numpy.typing import NDArray

# Legs in the order of qpos run counter-clockwise from 45 degrees; these signs make "bent" positive in each ankle.
_ANKLE_SIGNS = np.array([1.0, -1.0, -1.0, 1.0])
# Place in qpos's order of the legs, for each leg in the order of the actions (back right, front left, ...).
_ACTION_LEGS = np.array([3, 0, 1, 2])
FEATURES = 28


class Walker:
    """Walks the ant in a given direction: 31 inputs (29 observations, a direction) to 8 torques in [-1, 1].

    Only the direction counts, not its length. The network is `tanh` of an MLP with ReLU, on `walking_features`.

    Args:
        layers: weights (out, in) and biases (out,) of each layer.
    """

    def __init__(self, layers: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]]) -> None:
        self._layers = [(np.float32(weight), np.float32(bias)) for weight, bias in layers]

    @classmethod
    def shipped(cls) -> Walker:
        """The walker in this package, see `data/embedded/README.md`."""
        with np.load(str(resources.files("cepdiff.data") / "embedded" / "ant-walk.npz"), allow_pickle=False) as file:
            return cls([(file[f"weight{i}"], file[f"bias{i}"]) for i in range(len(file.files) // 2)])

    def __call__(self, inputs: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the action (8,) for an observation and a direction (31,)."""
        features, turns = walking_features(inputs)
        hidden = features.astype(np.float32)
        for weight, bias in self._layers[:-1]:
            hidden = np.maximum(weight @ hidden + bias, 0)
        weight, bias = self._layers[-1]
        return body_action(np.tanh(weight @ hidden + bias), turns)


def walking_features(inputs: NDArray[np.floating]) -> tuple[NDArray[np.float64], int]:
    """Return (features (28,), the number of quarter turns) for an observation and a direction, 31 numbers.

    The ant is the same after a quarter turn. Its legs are renumbered so that the direction is within 45 degrees of the
    body's x-axis; turning the whole world changes nothing. Features: height, up (3,), velocity (3,) and angular
    velocity (3,) in the frame of the body, the unit direction (2,), 8 joint angles and 8 joint velocities.
    """
    x = np.asarray(inputs, np.float64)
    w, i, j, k = x[3:7] / np.linalg.norm(x[3:7])
    rotation = np.array(
        [
            [1 - 2 * (j * j + k * k), 2 * (i * j - k * w), 2 * (i * k + j * w)],
            [2 * (i * j + k * w), 1 - 2 * (i * i + k * k), 2 * (j * k - i * w)],
            [2 * (i * k - j * w), 2 * (j * k + i * w), 1 - 2 * (i * i + j * j)],
        ]
    )
    # Angle of the direction from the heading: the heading is the twist of the rotation about the vertical.
    angle = math.atan2(x[30], x[29]) - 2 * math.atan2(k, w)
    turns = round(angle / (math.pi / 2))
    angle -= turns * math.pi / 2
    turns %= 4
    up, velocity = rotation[2], x[15:18] @ rotation
    bodies = (_turned(vector, turns) for vector in (up, velocity, x[18:21]))
    joints = (_numbered(values, turns) for values in (x[7:15], x[21:29]))
    features = np.concatenate([x[2:3], *bodies, [math.cos(angle), math.sin(angle)], *joints])
    return features, turns


def body_action(action: NDArray[np.floating], turns: int) -> NDArray[np.floating]:
    """Torques (8,) in the environment's order, from hip and ankle of each leg as numbered by the features."""
    legs = np.roll(action.reshape(4, 2), turns, axis=0) * np.stack([np.ones(4), _ANKLE_SIGNS], axis=1)
    torques: NDArray[np.floating] = legs[_ACTION_LEGS].reshape(8)
    return torques


def _turned(vector: NDArray[np.float64], turns: int) -> NDArray[np.float64]:
    x, y, z = vector
    return np.array([(x, y, z), (y, -x, z), (-x, -y, z), (-y, x, z)][turns])


def _numbered(values: NDArray[np.float64], turns: int) -> NDArray[np.float64]:
    legs = values.reshape(4, 2) * np.stack([np.ones(4), _ANKLE_SIGNS], axis=1)
    numbered: NDArray[np.float64] = np.roll(legs, -turns, axis=0).reshape(8)
    return numbered
