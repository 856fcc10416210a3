"""Contacts of the MuJoCo that recorded D4RL's data, on current MuJoCo.

Four rules have changed since. (1) A contact's margin was the larger of its two geoms' margins; from MuJoCo 3.5 on it
is their sum. (2) Convex shapes collided through libccd, at one point; the default is now MuJoCo's own collider, with
several points. Both are restored here. (3) Up to 3.3, two boxes reported half their depth, and (4) a capsule whose axis
had entered a box reported its radius as depth: there is no switch for these two, so they are not restored.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import mujoco
import numpy as np

from cepdiff.errors import SimulationError

_PROBE = """<mujoco><worldbody><geom size=".1" margin=".01"/>
<body pos="0 0 .2"><freejoint/><geom size=".1" margin=".02"/></body></worldbody></mujoco>"""


@functools.cache
def margins_add() -> bool:
    """True if the installed MuJoCo adds the margins of two geoms; up to 3.4 it took the larger one."""
    model = mujoco.MjModel.from_xml_string(_PROBE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return bool(data.contact[0].includemargin > 0.025)


def restore_margins(spec: mujoco.MjSpec) -> None:
    """Change the geoms' margins so that every contact gets the larger of its two geoms' margins.

    All geoms get half the margin. Two geoms of margin 0 become an explicit pair without margin, and get names for it.
    Raises SimulationError for margins of more than one size, which halving cannot restore.
    """
    if not margins_add():
        return
    total_mass, spec.compiler.settotalmass = spec.compiler.settotalmass, -1  # compiling it warns
    model = spec.compile()
    spec.compiler.settotalmass = total_mass
    collides = (model.geom_contype | model.geom_conaffinity) > 0
    sizes = np.unique(model.geom_margin[collides & (model.geom_margin > 0)])
    if len(sizes) > 1:
        raise SimulationError(f"Contact margins can only be restored from one size; this model has {sizes.tolist()}")
    if not len(sizes):
        return
    for geom in spec.geoms:
        geom.name = geom.name or f"geom {geom.id}"
        geom.margin = sizes[0] / 2
    names = {geom.id: geom.name for geom in spec.geoms}
    without = np.flatnonzero(collides & (model.geom_margin == 0))
    for first, second in _may_touch(model, without.tolist()):
        spec.add_pair(geomname1=names[first], geomname2=names[second], margin=0.0, **_mixed(model, [first, second]))


def restore_collider(model: mujoco.MjModel) -> None:
    """Switch to libccd and one contact point for two convex shapes, if this MuJoCo has the switches."""
    for switch in ("mjDSBL_NATIVECCD", "mjDSBL_MULTICCD"):
        model.opt.disableflags |= int(getattr(mujoco.mjtDisableBit, switch, 0))


def _mixed(model: mujoco.MjModel, geoms: list[int]) -> dict[str, Any]:
    """Parameters that MuJoCo mixes for a contact of two geoms, to set on a pair, which would use the defaults."""
    geoms = [geom for geom in geoms if model.geom_priority[geom] == model.geom_priority[geoms].max()]
    weights = model.geom_solmix[geoms] / model.geom_solmix[geoms].sum()
    solref = model.geom_solref[geoms]
    slide, spin, roll = model.geom_friction[geoms].max(axis=0)
    return {
        "condim": int(model.geom_condim[geoms].max()),
        "friction": [slide, slide, spin, roll, roll],
        "solref": weights @ solref if (solref > 0).all() else solref.min(axis=0),
        "solimp": weights @ model.geom_solimp[geoms],
    }


def _may_touch(model: mujoco.MjModel, geoms: list[int]) -> Iterator[tuple[int, int]]:
    """Pairs that MuJoCo tests: matching bits, not welded together, not parent and child (except the world)."""
    types, affinities = model.geom_contype, model.geom_conaffinity
    for first, second in combinations(geoms, 2):
        one, two = (int(model.body_weldid[model.geom_bodyid[geom]]) for geom in (first, second))
        above_one, above_two = (int(model.body_weldid[model.body_parentid[body]]) for body in (one, two))
        related = one == two or (one and two and (one == above_two or two == above_one))
        bits = (types[first] & affinities[second]) | (types[second] & affinities[first])
        if bits and not related:
            yield first, second
