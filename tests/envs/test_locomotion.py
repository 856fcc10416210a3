"""The locomotion environments as D4RL recorded them: masses printed by `mujoco_py`, and Gymnasium's interface."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

import cepdiff.envs  # noqa: F401  # registers
from cepdiff.envs import capsules
from cepdiff.envs.capsules import capsule, compile_with_cylindrical_capsules, cylinder

ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
FILES = ("half_cheetah.xml", "hopper.xml", "walker2d.xml", "ant.xml")
# `env.sim.model.body_mass` of gym's -v2 environments in mujoco_py with MuJoCo 2.0, without the world body.
MASSES = {
    "Hopper-v2": [3.53429174, 3.92699082, 2.71433605, 5.0893801],
    "HalfCheetah-v2": [6.36031332, 1.53524804, 1.58093995, 1.0691906, 1.42558747, 1.17885117, 0.84986945],
}
IDS = {"HalfCheetah-v2": (17, 6), "Hopper-v2": (11, 3), "Walker2d-v2": (17, 6), "Ant-v2": (111, 8)}


def tensors(model: mujoco.MjModel) -> NDArray[np.float64]:
    """Inertia (bodies, 3, 3) of every body in its own frame."""
    found = []
    for moments, quaternion in zip(model.body_inertia, model.body_iquat, strict=True):
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, quaternion)
        turned = rotation.reshape(3, 3)
        found.append(turned @ np.diag(moments) @ turned.T)
    return np.array(found)


@pytest.mark.parametrize("name", MASSES)
def test_bodies_weigh_what_they_weighed_under_mujoco_py(name: str) -> None:
    env = gymnasium.make(f"cepdiff/{name}").unwrapped
    np.testing.assert_allclose(env.model.body_mass[1:], MASSES[name], rtol=0, atol=5e-9)  # type: ignore[attr-defined]


@pytest.mark.parametrize("file", FILES)
def test_exact_capsules_in_place_of_exact_ones_change_nothing(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capsules, "cylinder", capsule)
    ours = compile_with_cylindrical_capsules(mujoco.MjSpec.from_file(str(ASSETS / file)))
    theirs = mujoco.MjModel.from_xml_path(str(ASSETS / file))
    for field in ("body_mass", "body_ipos", "body_subtreemass", "dof_invweight0", "body_invweight0"):
        np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(tensors(ours), tensors(theirs), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [capsule, cylinder])
def test_moments_of_shapes_by_counting_points(shape: object) -> None:
    """Volume and inertia against a fine grid of points."""
    radius, half = 0.3, 0.5
    reach = half + radius if shape is capsule else half + radius / 2
    axis = np.linspace(-reach, reach, 241)
    side = np.linspace(-radius, radius, 121)
    x, y, z = np.meshgrid(side, side, axis, indexing="ij")
    beyond = np.maximum(np.abs(z) - half, 0) if shape is capsule else np.zeros_like(z)
    inside = x**2 + y**2 + beyond**2 <= radius**2
    cell = (side[1] - side[0]) ** 2 * (axis[1] - axis[0])
    volume, moments = shape(radius, half)  # type: ignore[operator]
    assert inside.sum() * cell == pytest.approx(volume, rel=0.02)
    counted = [(y**2 + z**2)[inside].mean(), (x**2 + z**2)[inside].mean(), (x**2 + y**2)[inside].mean()]
    np.testing.assert_allclose(moments, counted, rtol=0.02)


def test_a_given_inertia_and_a_given_mass_are_kept() -> None:
    """Only values computed from capsules change; an explicit mass is kept."""
    body = '<body><freejoint/>{}<geom type="capsule" size=".1 .2" {}/><geom type="box" size=".1 .1 .1"/></body>'
    inertial = '<inertial pos="0 0 0" mass="2" diaginertia="1 1 1"/>'
    spec = mujoco.MjSpec.from_string(
        "<mujoco><compiler inertiafromgeom='auto'/><worldbody>"
        + body.format(inertial, "")
        + body.format("", 'mass="3"')
        + body.format("", "")
        + "</worldbody></mujoco>"
    )
    exact = spec.copy().compile()
    changed = compile_with_cylindrical_capsules(spec)
    assert tensors(changed)[1] == pytest.approx(tensors(exact)[1])
    assert changed.body_mass[2] == pytest.approx(exact.body_mass[2])
    assert not np.allclose(tensors(changed)[2], tensors(exact)[2], rtol=1e-3)
    lighter = 1000 * (capsule(0.1, 0.2)[0] - cylinder(0.1, 0.2)[0])
    assert exact.body_mass[3] - changed.body_mass[3] == pytest.approx(lighter)


@pytest.mark.parametrize("name", IDS)
def test_gymnasium_accepts_them(name: str) -> None:
    env = gymnasium.make(f"cepdiff/{name}")
    assert env.spec is not None
    assert env.spec.max_episode_steps == 1000
    assert (env.observation_space.shape, env.action_space.shape) == tuple((n,) for n in IDS[name])
    check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize(("name", "margin"), [("Hopper-v2", 0.001), ("Ant-v2", 0.01), ("Walker2d-v2", 0.0)])
def test_contacts_begin_where_they_began(name: str, margin: float) -> None:
    """At the larger margin of the two geoms, not at their sum."""
    env = gymnasium.make(f"cepdiff/{name}")
    env.reset(seed=0)
    data = env.unwrapped.data  # type: ignore[attr-defined]
    margins = []
    for _ in range(50):
        env.step(np.zeros(env.action_space.shape))  # type: ignore[arg-type]
        margins += [contact.includemargin for contact in data.contact]
    assert margins
    assert max(margins) == pytest.approx(margin)


def test_contact_forces_of_the_ant_are_zero_and_cost_nothing() -> None:
    env = gymnasium.make("cepdiff/Ant-v2")
    env.reset(seed=0)
    for _ in range(100):  # long enough to fall onto the floor
        observation, _, _, _, info = env.step(np.zeros(8))
    assert env.unwrapped.data.ncon > 0  # type: ignore[attr-defined]
    assert not observation[27:].any()
    assert info["reward_ctrl"] == 0
    assert info.get("reward_contact", 0) == 0
