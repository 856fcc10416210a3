"""Capsule masses as in MuJoCo up to 2.1.1, with which D4RL's data were recorded.

MuJoCo 2.1.2 made the mass and inertia of capsules exact (its changelog: "Computed capsule inertias are now exact").
Before, a capsule counted as a cylinder: its middle section, extended at both ends by half the radius. The same file now
compiles to other masses: the torso of Gymnasium's Hopper weighs 3.665 kg, and weighed 3.534 kg under `mujoco_py`.
"""

from __future__ import annotations

import math

import mujoco
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
_NEVER_FROM_GEOMS, _ALWAYS_FROM_GEOMS, _WHERE_NOT_GIVEN = range(3)  # of the compiler's `inertiafromgeom`


def compile_with_cylindrical_capsules(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """Compile `spec` with the mass and inertia of cylinders for its capsules; other shapes are unchanged.

    Bodies with an explicit inertia are unchanged, and a total mass set in the file is kept.
    """
    rule, total_mass = spec.compiler.inertiafromgeom, spec.compiler.settotalmass
    spec.compiler.settotalmass = -1
    exact = spec.compile()
    for body in spec.bodies:
        given = body.explicitinertial and rule != _ALWAYS_FROM_GEOMS
        computed = rule != _NEVER_FROM_GEOMS and not given
        body.explicitinertial = given or (computed and bool(_capsules(body)))
        if computed and _capsules(body):
            body.mass, body.ipos, body.iquat, body.inertia = _with_cylinders(exact, body)
    if rule == _ALWAYS_FROM_GEOMS:
        spec.compiler.inertiafromgeom = _WHERE_NOT_GIVEN
    model = spec.compile()
    if total_mass > 0:  # the compiler's own attribute is deprecated and warns
        mujoco.mj_setTotalmass(model, total_mass)
        mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def cylinder(radius: float, half_length: float) -> tuple[float, FloatArray]:
    """Volume and unit-mass inertia (3,) along the axes, z last, of a capsule in MuJoCo up to 2.1.1."""
    length = 2.0 * half_length + radius
    across = (3.0 * radius**2 + length**2) / 12.0
    return math.pi * radius**2 * length, np.array([across, across, radius**2 / 2.0])


def capsule(radius: float, half_length: float) -> tuple[float, FloatArray]:
    """Exact volume and unit-mass inertia (3,) of a capsule: a cylinder and two half spheres."""
    middle, ends = 2.0 * math.pi * radius**2 * half_length, 4.0 / 3.0 * math.pi * radius**3
    volume = middle + ends
    along = (middle / 2.0 + ends * 2.0 / 5.0) * radius**2
    across_middle = middle * (3.0 * radius**2 + 4.0 * half_length**2) / 12.0
    across_ends = ends * (2.0 / 5.0 * radius**2 + half_length**2 + 3.0 / 4.0 * half_length * radius)
    across = across_middle + across_ends
    return volume, np.array([across, across, along]) / volume


def _capsules(body: mujoco.MjsBody) -> list[mujoco.MjsGeom]:
    return [geom for geom in body.geoms if geom.type == mujoco.mjtGeom.mjGEOM_CAPSULE]


def _with_cylinders(model: mujoco.MjModel, body: mujoco.MjsBody) -> tuple[float, FloatArray, FloatArray, FloatArray]:
    """Mass, centre (3,), principal axes (quaternion, (4,)) and moments (3,) of a body with cylinders for capsules."""
    i = body.id
    # Each exact capsule out, its cylinder in: about the body's origin, masses, first and second moments simply add.
    mass = float(model.body_mass[i])
    first = mass * model.body_ipos[i]
    second = _about_origin(mass, model.body_inertia[i], model.body_ipos[i], model.body_iquat[i])
    for geom in _capsules(body):
        radius, half_length = (float(size) for size in model.geom_size[geom.id][:2])
        for shape, sign in ((capsule, -1.0), (cylinder, 1.0)):
            volume, unit = shape(radius, half_length)
            weight = sign * (geom.density * volume if math.isnan(geom.mass) else geom.mass)
            position = model.geom_pos[geom.id]
            mass += weight
            first = first + weight * position
            second = second + _about_origin(weight, weight * unit, position, model.geom_quat[geom.id])
    centre = first / mass
    moments, axes = np.linalg.eigh(second - mass * _shift(centre))
    axes[:, 2] *= np.sign(np.linalg.det(axes))
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, axes.flatten())
    return mass, centre, quaternion, moments


def _about_origin(mass: float, moments: FloatArray, position: FloatArray, quaternion: FloatArray) -> FloatArray:
    """Inertia (3, 3) about the origin from principal `moments` (3,) at `position`, rotated by `quaternion`."""
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, quaternion)
    turned = rotation.reshape(3, 3)
    inertia: FloatArray = turned @ np.diag(moments) @ turned.T + mass * _shift(position)
    return inertia


def _shift(position: FloatArray) -> FloatArray:
    """Parallel axis term for unit mass: |p|² 1 - p pᵀ."""
    shift: FloatArray = position @ position * np.eye(3) - np.outer(position, position)
    return shift
