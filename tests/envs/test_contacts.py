"""Contacts as in older MuJoCo: whatever the margins of two geoms, the contact gets the larger one."""

from __future__ import annotations

from itertools import product

import mujoco
import pytest

from cepdiff.envs.contacts import restore_collider, restore_margins
from cepdiff.errors import SimulationError


def stack(*margins: float) -> mujoco.MjSpec:
    """Free spheres of radius 0.1 m stacked on a fixed one, touching."""
    first, *others = margins
    other = (
        '<body pos="0 0 {}"><freejoint/><geom size=".1" margin="{}" friction="0.7" condim="4" solref=".03 1"/></body>'
    )
    bodies = "".join(other.format(0.2 * (i + 1), margin) for i, margin in enumerate(others))
    return mujoco.MjSpec.from_string(
        f'<mujoco><worldbody><geom size=".1" margin="{first}"/>{bodies}</worldbody></mujoco>'
    )


def contacts(spec: mujoco.MjSpec) -> dict[tuple[int, int], mujoco.MjContact]:
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return {tuple(sorted(contact.geom.tolist())): contact for contact in data.contact}


@pytest.mark.parametrize("margins", list(product((0.0, 0.004), repeat=3)))
def test_contacts_get_the_larger_margin(margins: tuple[float, ...]) -> None:
    spec = stack(*margins)
    restore_margins(spec)
    found = contacts(spec)
    expected = {pair: max(margins[geom] for geom in pair) for pair in ((0, 1), (1, 2))}
    assert {pair: contact.includemargin for pair, contact in found.items()} == pytest.approx(expected)


def test_a_pair_without_margin_keeps_its_other_parameters() -> None:
    before, spec = contacts(stack(0.0, 0.0, 0.0, 0.004)), stack(0.0, 0.0, 0.0, 0.004)
    restore_margins(spec)
    after = contacts(spec)
    for pair in ((0, 1), (1, 2)):  # unlike geoms, then identical ones
        for field in ("friction", "solref", "solimp", "dim", "dist"):
            assert getattr(after[pair], field) == pytest.approx(getattr(before[pair], field)), field


def test_parent_and_child_still_do_not_touch() -> None:
    spec = mujoco.MjSpec.from_string(
        '<mujoco><worldbody><geom size=".1" margin=".01" pos="5 0 0"/><body><freejoint/><geom size=".1"/>'
        '<body><joint/><geom size=".1"/><body><joint/><geom size=".1"/></body></body></body></worldbody></mujoco>'
    )
    restore_margins(spec)
    assert set(contacts(spec)) == {(1, 3)}


def test_margins_of_two_sizes_are_refused() -> None:
    with pytest.raises(SimulationError, match=r"this model has \[0\.001, 0\.002\]"):
        restore_margins(stack(0.001, 0.002))


def test_two_cylinders_meet_at_one_point() -> None:
    """Today's collider finds several points where one cylinder stands on another; the older one found one."""
    pillar = '<geom type="cylinder" size=".1 .1"/>'
    spec = mujoco.MjSpec.from_string(
        f'<mujoco><worldbody>{pillar}<body pos="0 0 .199"><freejoint/>{pillar}</body></worldbody></mujoco>'
    )
    model = spec.compile()
    numbers = []
    for restored in (False, True):
        if restored:
            restore_collider(model)
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        numbers.append(data.ncon)
    assert numbers[1] == 1
    assert numbers[0] >= numbers[1]
