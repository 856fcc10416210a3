"""`cepdiff.fit` on arrays in memory: with and without a run folder, and one clear line for arrays that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cepdiff
from cepdiff.errors import CepdiffError, ConfigError, DataError

NET = {"class_path": "cepdiff.networks.score.MLPScore", "init_args": {"hidden": [8]}}
SMALL: dict[str, Any] = {
    "behavior": {"batch_size": 8, "net": NET},
    "critic": {"batch_size": 8, "net": {"hidden": [8]}},
    "guidance": {"batch_size": 8, "net": {"hidden": [8]}},
    "solver": {"num_steps": 2},
    "stages": {
        "behavior": {"max_steps": 4},
        "support": {"num_actions": 2},
        "critic": {"max_steps": 4},
        "guidance": {"max_steps": 4},
    },
    "trainer": {"accelerator": "cpu", "progress_bar": False},
}


def arrays(rows: int = 60, **replaced: Any) -> dict[str, Any]:
    draws = np.random.default_rng(0)
    timeouts = np.zeros(rows, bool)
    timeouts[19::20] = True
    known = {
        "observations": draws.normal(size=(rows, 3)),
        "actions": draws.uniform(-1, 1, size=(rows, 2)),
        "rewards": draws.normal(size=rows),
        "terminals": np.zeros(rows, bool),
        "timeouts": timeouts,
    }
    return {name: values for name, values in {**known, **replaced}.items() if values is not None}


def fit(found: Any, **options: Any) -> cepdiff.Fitted:
    return cepdiff.fit(found, **{**SMALL, **options})


def test_a_policy_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = fit(arrays())
    actions = run.policy.act(arrays()["observations"][:5], guidance_scale=1.0)
    assert actions.shape == (5, 2)
    assert np.abs(np.asarray(actions)).max() <= 1.0
    assert run.folder is None
    assert run.results is not None  # offline evidence of each scale
    assert run.results.values("offline_value")
    assert list(tmp_path.iterdir()) == []


def test_results_are_those_of_this_command(tmp_path: Path) -> None:
    run = fit(arrays(), run_dir=tmp_path / "run")
    assert run.folder == tmp_path / "run"
    assert fit(arrays(), run_dir=tmp_path / "run").results == run.results
    assert fit(arrays(), run_dir=tmp_path / "run", stage="behavior").results is None


def test_other_spellings_give_the_same_policy() -> None:
    known = arrays()
    other = {**known, "terminations": known["terminals"].astype(np.int64), "truncations": known["timeouts"].tolist()}
    del other["terminals"], other["timeouts"]
    first, second = fit(known), fit({name: np.asarray(values).tolist() for name, values in other.items()})
    observations, noise = torch.from_numpy(known["observations"][:5]).float(), torch.ones(5, 2)
    assert torch.equal(first.policy.act(observations, noise=noise), second.policy.act(observations, noise=noise))


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"rewards": None}, "the array 'rewards' is missing"),
        ({"timeouts": None}, r"the array 'timeouts' is missing \(all False if no episode was cut\)"),
        ({"reward": np.zeros(60)}, r"unknown array 'reward'; expected .* Did you mean rewards"),
        ({"terminations": np.zeros(60)}, "'terminations' is another name of 'terminals', which is there too"),
        ({"terminals": np.full(60, 2)}, "'terminals' contains 2; expected only 0 and 1"),
        ({"terminals": np.full(60, np.nan)}, "'terminals' contains nan; expected only 0 and 1"),
        ({"rewards": np.full(60, np.nan)}, "'rewards' is NaN or infinite in 60 rows"),
        ({"rewards": np.zeros(60, complex)}, "'rewards' has type complex128; expected numbers"),
        ({"observations": [["a", "b", "c"]] * 60}, "'observations' has type <U1; expected numbers"),
        ({"observations": [[1.0, 2.0], [3.0]]}, "'observations' is no array"),
        ({"rewards": np.zeros(59)}, "'rewards' has 59 rows, but 'observations' has 60"),
        ({"actions": np.zeros(60)}, r"'actions' has shape \(60,\); expected \(rows, size\)"),
    ],
)
def test_arrays_that_do_not_fit(replaced: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(arrays(**replaced))


def test_several_devices_need_a_folder() -> None:
    with pytest.raises(ConfigError, match="run_dir is missing: the processes of a run on several devices"):
        fit(arrays(), trainer={"accelerator": "cpu", "devices": 2, "strategy": "ddp"})


def test_a_mistyped_section_is_named() -> None:
    with pytest.raises(CepdiffError, match=r"unknown key 'critc'\. Did you mean critic"):
        fit(arrays(), critc={"discount": 0.9})
