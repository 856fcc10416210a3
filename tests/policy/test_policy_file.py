"""The policy file: its contents, its refusals, and that it is never unpickled."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_policy import BEHAVIOR, RECIPE, SPEC, A, S, make, normal, parts, save

from cepdiff.diffusion.schedule import CosineVP
from cepdiff.errors import CepdiffError, ConfigError, RunError
from cepdiff.files import file_hash
from cepdiff.networks.energy import ResidualEnergy
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.recipe import POLICY_FILE
from cepdiff.policy.sampler import GuidedSampler
from cepdiff.seals import save_sealed, unsealed


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save(make(), tmp_path)
    return tmp_path


def test_a_loaded_policy_acts_as_the_saved_one(run: Path) -> None:
    observations, noise = normal(20, S), normal(20, A, seed=1)
    scales = torch.arange(20) % 3 * 1.0
    expected = make().act(observations, guidance_scale=scales, noise=noise)
    for place in (run, str(run), run / POLICY_FILE):
        policy = GuidedPolicy.from_run(place)
        assert torch.equal(policy.act(observations, guidance_scale=scales, noise=noise), expected)
    assert policy.recipe == RECIPE
    assert policy.spec == SPEC
    assert [path.name for path in run.iterdir()] == [POLICY_FILE]


@pytest.mark.parametrize("on_clean", [False, True])
def test_a_loaded_policy_knows_whether_its_energy_is_of_clean_samples(tmp_path: Path, on_clean: bool) -> None:
    objective = "DPS" if on_clean else "CEP"
    spec = {"class_path": f"cepdiff.energy.objectives.{objective}", "init_args": {}}
    save(make(on_clean=on_clean), tmp_path, replace(RECIPE, objective=spec))
    observations, noise = normal(8, S), normal(8, A, seed=1)
    found = GuidedPolicy.from_run(tmp_path).act(observations, noise=noise)
    assert torch.equal(found, make(on_clean=on_clean).act(observations, noise=noise))
    assert not torch.equal(found, make(on_clean=not on_clean).act(observations, noise=noise))


def test_a_network_with_a_schedule_of_its_own_loads(tmp_path: Path) -> None:
    """A schedule is the one part of a network that is not itself a network."""
    schedule = {"class_path": "cepdiff.diffusion.schedule.CosineVP", "init_args": {"t_max": 0.9}}
    spec = {"class_path": "cepdiff.networks.energy.ResidualEnergy", "init_args": {"width": 8, "schedule": schedule}}
    networks = {**parts().networks, "energy": ResidualEnergy(S, A, width=8, schedule=CosineVP(t_max=0.9))}
    saved = GuidedPolicy(SPEC, GuidedSampler(replace(parts(), networks=networks)))
    save(saved, tmp_path, replace(RECIPE, networks={"behavior": BEHAVIOR, "energy": spec}))
    loaded = GuidedPolicy.from_run(tmp_path)
    assert isinstance(loaded.sampler.networks["energy"].schedule, CosineVP)
    observations, noise = normal(8, S), normal(8, A, seed=1)
    assert torch.equal(loaded.act(observations, noise=noise), saved.act(observations, noise=noise))


def test_the_policy_before_guidance(tmp_path: Path) -> None:
    save(make(energy=False), tmp_path, replace(RECIPE, networks={"behavior": BEHAVIOR}))
    policy = GuidedPolicy.from_run(tmp_path)
    assert not policy.sampler.has_energy
    noise = normal(A)
    expected = make().act(normal(S), guidance_scale=0.0, noise=noise)
    assert torch.equal(policy.act(normal(S), guidance_scale=0.0, noise=noise), expected)


def test_another_number_of_solver_steps(run: Path) -> None:
    policy = GuidedPolicy.from_run(run, num_solver_steps=9)
    assert policy.sampler.solver.num_steps == 9
    assert policy.sampler.solver.order == 1  # everything else stays
    assert GuidedPolicy.from_run(run).sampler.solver.num_steps == 5
    with pytest.raises(ConfigError, match="num_steps is 0"):
        GuidedPolicy.from_run(run, num_solver_steps=0)


OWN = """
from pathlib import Path
from cepdiff.networks.score import MLPScore

Path(__file__).with_name("executed").touch()


class Own(MLPScore):
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a class of the user's own, which the policy file in `tmp_path` names."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    source = tmp_path / "source"
    source.mkdir()
    (source / "policy_test_parts.py").write_text(OWN)
    networks = {**RECIPE.networks, "behavior": {**BEHAVIOR, "class_path": "policy_test_parts.Own"}}
    save(make(), tmp_path, replace(RECIPE, networks=networks, sources=[str(source)]))
    yield source
    sys.modules.pop("policy_test_parts", None)


def test_own_classes_come_from_folders_that_the_command_names(own: Path) -> None:
    policy = GuidedPolicy.from_run(own.parent, trust_sources=[own])
    assert type(policy.sampler.networks["behavior"]).__name__ == "Own"


@pytest.mark.parametrize("on_path", [False, True], ids=["elsewhere", "working folder"])
def test_own_classes_are_not_imported_for_the_file(own: Path, on_path: bool) -> None:
    if on_path:  # as with `python -m cepdiff` in that folder
        sys.path.insert(0, str(own))
    with pytest.raises(ConfigError, match=f"names the class policy_test_parts.Own.* add --trust_sources {own}"):
        GuidedPolicy.from_run(own.parent)
    assert not (own / "executed").exists()
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        GuidedPolicy.from_run(own.parent, trust_sources=[own / "nowhere"])


@pytest.mark.parametrize("path", ["antigravity.Net", "this.Net", "nowhere.Net", "a..b.Net", "Net"])
def test_no_module_is_imported_for_a_file_unless_its_package_was_installed(run: Path, path: str) -> None:
    save(make(), run, replace(RECIPE, networks={"behavior": {"class_path": path, "init_args": {}}}))
    with pytest.raises(ConfigError, match="is in no installed package"):
        GuidedPolicy.from_run(run)
    assert path.partition(".")[0] not in sys.modules


def test_classes_of_installed_packages_are_imported(run: Path) -> None:
    networks = {**RECIPE.networks, "behavior": {"class_path": "torch.nn.Identity", "init_args": {}}}
    save(make(), run, replace(RECIPE, networks=networks))
    with pytest.raises(RunError, match="weights do not fit"):
        GuidedPolicy.from_run(run)


def test_a_policy_of_other_checkpoints_than_those_beside_it_is_refused(run: Path) -> None:
    checkpoint = run / "behavior" / "final.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    made = {"behavior/final.ckpt": file_hash(checkpoint), "guidance/final.ckpt": "of a file that is not there"}
    save(make(), run, replace(RECIPE, made_from=made))
    GuidedPolicy.from_run(run)
    checkpoint.write_bytes(b"those of another seed")
    with pytest.raises(RunError, match=r"was not made from .*final.ckpt; run the same `cepdiff fit` again"):
        GuidedPolicy.from_run(run)


def test_changed_weights_and_recipes_are_refused(run: Path) -> None:
    content = torch.load(run / POLICY_FILE, weights_only=True)
    next(iter(content["weights"]["behavior"].values())).view(-1)[0] += 1
    torch.save(content, run / POLICY_FILE)
    with pytest.raises(RunError, match="or was damaged or changed"):
        GuidedPolicy.from_run(run)
    save(make(), run)
    content = torch.load(run / POLICY_FILE, weights_only=True)
    content["recipe"]["solver"]["init_args"]["num_steps"] = 4
    torch.save(content, run / POLICY_FILE)
    with pytest.raises(RunError, match="or was damaged or changed"):
        GuidedPolicy.from_run(run)


ODD_FIELDS: list[dict[str, Any]] = [
    {"scales": ["1"]},
    {"scales": [math.nan]},
    {"dataset": 3},
    {"spec": {**SPEC.to_dict(), "action_size": "2"}},
    {"spec": {**SPEC.to_dict(), "action_size": True}},
    {"spec": {**SPEC.to_dict(), "action_low": [0.0]}},
    {"spec": {**SPEC.to_dict(), "observation_mean": [math.inf] * S}},
    {"environment": {"env_id": "Some-v0"}},
    {"environment": {**RECIPE.environment, "reference": [1.0]}},
    {"networks": [BEHAVIOR]},
    {"image_shape": 8},
    {"unknown": 1},
]


@pytest.mark.parametrize("fields", ODD_FIELDS, ids=str)
def test_fields_of_wrong_types_are_refused(run: Path, fields: dict[str, Any]) -> None:
    rewrite(run, recipe=fields)
    with pytest.raises(RunError, match="not a policy file"):
        GuidedPolicy.from_run(run)


ODD_CLASSES: list[dict[str, Any]] = [
    {"solver": {"class_path": RECIPE.solver["class_path"], "init_args": {"num_stps": 5}}},
    {"solver": {"init_args": {}}},
    {"solver": {"class_path": 3}},
    {"schedule": {"class_path": RECIPE.schedule["class_path"], "init_args": {"t_max": "late"}}},
    {"networks": {**RECIPE.networks, "behavior": {**BEHAVIOR, "init_args": {"hidden": [10**15]}}}},
    {"networks": {**RECIPE.networks, "behavior": "MLPScore"}},
]


@pytest.mark.parametrize("fields", ODD_CLASSES, ids=str)
def test_arguments_that_do_not_fit_their_classes_are_refused(run: Path, fields: dict[str, Any]) -> None:
    rewrite(run, recipe=fields)
    with pytest.raises(CepdiffError):
        GuidedPolicy.from_run(run)


def test_there_is_no_policy(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match=r"does not exist: run `cepdiff fit`"):
            GuidedPolicy.from_run(place)


def test_torn_and_foreign_files_are_refused(run: Path) -> None:
    path = run / POLICY_FILE
    whole = path.read_bytes()
    contents: list[bytes] = [b"", b"hello", whole[: len(whole) // 2], whole[:-10]]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(RunError, match="not a policy file"):
            GuidedPolicy.from_run(run)
    for value in ({"a": 1}, torch.zeros(3), [], {"format": 3}, {"format": 3, "recipe": {"x": 1}, "weights": {}}):
        torch.save(value, path)
        with pytest.raises(RunError, match="not a policy file"):
            GuidedPolicy.from_run(run)


def rewrite(run: Path, **changes: Any) -> None:
    content = unsealed(torch.load(run / POLICY_FILE, weights_only=True))
    content["recipe"].update(changes.pop("recipe", {}))
    save_sealed(run / POLICY_FILE, {**content, **changes})


@pytest.mark.parametrize("version", [1, 99])
def test_another_format_says_so(run: Path, version: int) -> None:
    rewrite(run, format=version)
    with pytest.raises(ConfigError, match=f"format {version}; this version of cepdiff reads 3"):
        GuidedPolicy.from_run(run)


def test_weights_of_other_networks_are_refused(run: Path) -> None:
    rewrite(run, recipe={"networks": {**RECIPE.networks, "behavior": {**BEHAVIOR, "init_args": {"hidden": [32]}}}})
    with pytest.raises(RunError, match="weights do not fit"):
        GuidedPolicy.from_run(run)


def test_classes_that_are_gone_are_named(run: Path) -> None:
    rewrite(run, recipe={"networks": {"behavior": {"class_path": "gone_module.Net", "init_args": {}}}})
    with pytest.raises(CepdiffError, match="gone_module"):
        GuidedPolicy.from_run(run)


class Malicious:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["pickle", "torch", "inside", "legacy"])
def test_nothing_is_unpickled(run: Path, form: str) -> None:
    trap, path = run / "trapped", run / POLICY_FILE
    whole = torch.load(path, weights_only=True)
    if form == "pickle":
        path.write_bytes(pickle.dumps(Malicious(trap)))
    elif form == "torch":
        torch.save(Malicious(trap), path)
    elif form == "inside":
        torch.save({**whole, "extra": Malicious(trap)}, path)
    else:
        torch.save({**whole, "extra": Malicious(trap)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(RunError, match="not a policy file"):
        GuidedPolicy.from_run(run)
    assert not trap.exists()


@pytest.mark.parametrize("where", ["behavior", "energy", "schedule", "solver", "objective", "sampler"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_file_can_call_no_class_but_those_of_a_policy(run: Path, where: str, nested: bool) -> None:
    """A recipe names classes with arguments; `subprocess.Popen` among them would run any command."""
    trap = run / "trapped"
    call = {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", str(trap)]}}
    networks = where in RECIPE.networks
    spec = RECIPE.networks[where] if networks else getattr(RECIPE, where)
    changed = {where: {**spec, "init_args": {"hidden": call}} if nested else call}
    rewrite(run, recipe={"networks": {**RECIPE.networks, **changed}} if networks else changed)
    with pytest.raises(CepdiffError):
        GuidedPolicy.from_run(run)
    deadline = subprocess.run(["sleep", "0.3"], check=True)  # give a child process time to run
    assert deadline.returncode == 0
    assert not trap.exists()


def test_loading_needs_neither_lightning_nor_an_environment(run: Path) -> None:
    code = (
        "import json, sys, numpy\n"
        "from cepdiff.policy.guided import GuidedPolicy\n"
        f"action = GuidedPolicy.from_run({str(run)!r}).act(numpy.zeros({S}))\n"
        f"assert action.shape == ({A},)\n"
        "heavy = ('lightning', 'gymnasium', 'h5py', 'jsonargparse', 'omegaconf', 'tensorboard')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
