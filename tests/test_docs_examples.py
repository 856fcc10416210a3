"""The examples of the pages run, and every metric that they log is explained."""

from __future__ import annotations

import functools
import importlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from cepdiff.cli import main
from cepdiff.energy.objectives import CEP, DPS, MSE, ExponentialMSE
from cepdiff.modules.base import StageModule
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.distillation import Distillation
from cepdiff.modules.guidance import EnergyGuidance
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.critic import QEnsemble
from cepdiff.networks.energy import EnergyMLP
from cepdiff.networks.score import MLPScore
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.problems.density.samples import DISTANCES
from cepdiff.runs.config import load_config
from docs_pages import EXTENDING, OWN_CRITIC, ROOT, blocks, titled

TINY = """
behavior: {batch_size: 8}
critic: {batch_size: 8, net: {hidden: [8]}}
guidance: {batch_size: 8, net: {hidden: [8]}}
stages:
  behavior: {max_steps: 4}
  support: {max_rows: 100, num_actions: 2}
  critic: {max_steps: 4}
  guidance: {max_steps: 4}
evaluation: {episodes: 1, scales: [0, 1]}
trainer: {accelerator: cpu, progress_bar: false}
"""


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every titled block of the pages as a file, and the shipped configurations."""
    folder = tmp_path_factory.mktemp("examples")
    for title, text in titled().items():
        (folder / title).write_text(text)
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@pytest.fixture
def here(examples: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The examples' folder as the working directory and on Python's path."""
    monkeypatch.chdir(examples)
    monkeypatch.syspath_prepend(str(examples))
    return examples


# --- examples ---------------------------------------------------------------------------------------------------------

# file of the example -> class and a method that a run must call
USED = {
    "my_critic": ("MyCritic", "target"),
    "my_network": ("MyScore", "forward"),
    "my_data": ("MyData", "rewards"),
    "my_schedule": ("ConstantVP", "log_alpha"),
    "my_solver": ("DDIM", "sample"),
    "my_objective": ("CenteredCEP", "loss"),
    "my_callback": ("WeightNorm", "on_train_batch_end"),
}


def counting(method: Callable[..., Any], calls: Counter[str], name: str) -> Callable[..., Any]:
    """`method`, with its calls counted under `name`."""

    @functools.wraps(method)
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return method(*args, **kwargs)

    return counted


@pytest.fixture(scope="module")
def shared_run(examples: Path) -> tuple[Path, Counter[str]]:
    """One run with all the examples' own classes and a sampler at once; returns how often each class was called."""
    calls: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(examples)
        patch.syspath_prepend(str(examples))
        for file, (name, method) in USED.items():
            cls = getattr(importlib.import_module(file), name)

            patch.setattr(cls, method, counting(getattr(cls, method), calls, file))
        files = ["my_recipe.yaml", *(f"{file}.yaml" for file in USED), "resampled.yaml", "tiny.yaml"]
        arguments = [word for file in files for word in ("--config", file)]
        assert main(["fit", *arguments, "--data.block_size", "2", "--run_dir", "run"]) == 0
    return examples / "run", calls


@pytest.mark.parametrize("file", USED)
def test_own_class_is_used(shared_run: tuple[Path, Counter[str]], file: str) -> None:
    assert shared_run[1][file] > 0


def test_every_extension_example_is_in_the_shared_run() -> None:
    titles = {title.removesuffix(".yaml") for title in titled(EXTENDING, OWN_CRITIC) if title.endswith(".yaml")}
    own = {"my_recipe", "my_arrays", "my_iql", "my_sampler", "my_distil", "my_regression"}  # see test_extensions.py
    assert titles - own == set(USED)


def test_init_args_of_the_examples_arrive(shared_run: tuple[Path, Counter[str]]) -> None:
    values = yaml.safe_load((shared_run[0] / "config.yaml").read_text())
    assert values["critic"]["init_args"]["pessimism"] == 0.2
    assert values["behavior"]["init_args"]["net"]["init_args"] == {"width": 32}
    assert values["solver"]["init_args"] == {"num_steps": 10}
    assert values["guidance"]["init_args"]["objective"]["init_args"]["weight"] == 0.01


def test_policy_of_own_classes_loads(shared_run: tuple[Path, Counter[str]], here: Path) -> None:
    policy = GuidedPolicy.from_run(shared_run[0])
    assert type(policy.sampler.networks["behavior"]).__name__ == "MyScore"
    assert type(policy.sampler.solver).__name__ == "DDIM"
    assert policy.act(np.zeros((3, 10), np.float32)).shape == (3, 2)


def test_the_shipped_sampler_of_the_page_acts_and_reports(shared_run: tuple[Path, Counter[str]], here: Path) -> None:
    sampler = GuidedPolicy.from_run(shared_run[0]).sampler
    assert (type(sampler).__name__, sampler.noise_size) == ("Resampled", 8 * 2 + 1)
    rows = json.loads((shared_run[0] / "results.json").read_text())["rows"]
    sizes = {row["scale"]: row["value"] for row in rows if row["metric"] == "effective_sample_size"}
    assert sizes[0.0] == pytest.approx(8.0)
    assert 1.0 <= sizes[1.0] < 8.0
    evidence = json.loads((shared_run[0] / "diagnostics.json").read_text())["scales"]
    assert {e["guidance_scale"]: e["effective_sample_size"] for e in evidence} == sizes


def test_the_critic_of_the_page_gives_energies_in_units_of_its_spread(here: Path) -> None:
    files = ["my_recipe.yaml", "my_network.yaml", "short_critic.yaml", "resampled.yaml", "tiny.yaml"]
    arguments = [word for file in files for word in ("--config", file)]
    assert main(["fit", *arguments, "--run_dir", "short"]) == 0
    unit = GuidedPolicy.from_run("short").sampler.energy_unit
    critic = torch.load("short/critic/final.ckpt", weights_only=True)["state_dict"]
    assert len([name for name in critic if name.startswith("net.critics") and name.endswith("joint.weight")]) == 4
    energies = np.load("short/guidance/energies.npy")  # (M, 2), -Q of both support actions
    assert unit == pytest.approx(energies.std(1, ddof=1).mean(), rel=0.3)  # the unit is from a sample of the states
    assert unit != 1.0
    kept = json.loads(Path("short/critic/unit.json").read_text())
    assert kept["unit"] == unit


def test_own_arrays(here: Path) -> None:
    numbers = np.random.default_rng(0)
    flags = np.zeros(20, bool)
    ends = np.arange(20) % 10 == 9
    np.savez(
        here / "mine.npz",
        observations=numbers.normal(size=(20, 10)),
        actions=numbers.uniform(-1, 1, (20, 2)),
        rewards=numbers.normal(size=20),
        terminals=flags,
        timeouts=ends,
    )
    config = load_config(["my_arrays.yaml"])
    data = config.components["data"](seed=0)
    data.prepare_data()
    data.setup()
    assert type(data).__name__ == "MyArrays"
    assert data.sizes == (10, 2)
    assert len(data.buffer) == 20


def test_modules_alone(shared_run: tuple[Path, Counter[str]], here: Path) -> None:
    policy = importlib.import_module("behavior_alone").train_behavior(max_steps=2, block_size=1, batch_size=4)
    assert policy.act(np.zeros((3, 10), np.float32), guidance_scale=0.0).shape == (3, 2)
    train = importlib.import_module("critic_and_guidance_alone").train_critic_and_guidance
    critic, guidance = train(str(shared_run[0]), max_steps=2, block_size=1, batch_size=4)
    assert critic.trainer.global_step == guidance.trainer.global_step == 2
    samples = importlib.import_module("density_alone").sample_tilted_ring(max_steps=2, num_samples=3)
    assert samples.shape == (3, 2)
    assert samples.isfinite().all()


README_PYTHON = [block.text for block in blocks(ROOT / "README.md") if block.language == "python"]
SMALL = """{
    "behavior": {"batch_size": 8}, "critic": {"batch_size": 8}, "guidance": {"batch_size": 8},
    "stages": {name: {"max_steps": 2} for name in ("behavior", "critic", "guidance")} | {"support": {"num_actions": 2}},
    "evaluation": {"episodes": 1, "scales": [0, 1]}, "trainer": {"accelerator": "cpu", "progress_bar": False},
}"""


def test_the_readme_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three examples in order, with few steps; the second loads the first one's run."""
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    text = "\n".join(README_PYTHON)
    for whole, few in (
        ("20_000", "200"), ("max_steps=8000", "max_steps=2"),
        ('run_dir="runs/mine"', f'run_dir="runs/mine", **{SMALL}'),
        ("runs/reacher-replay/0", "runs/mine"), ("max_epochs=-1", 'max_epochs=-1, accelerator="cpu"'),
    ):  # fmt: skip
        assert whole in text
        text = text.replace(whole, few)
    exec(text, found)
    assert found["actions"].shape == (4, 2)
    assert (tmp_path / "runs" / "mine" / "results.json").is_file()
    assert found["policy"].act(np.zeros((3, 10), np.float32), guidance_scale=0.0).shape == (3, 2)


# --- metrics ----------------------------------------------------------------------------------------------------------


class Fixed(RandomStream):
    """Noise for a loss outside a Trainer."""

    def __init__(self) -> None:
        super().__init__(0, torch.device("cpu"))


def shipped_metrics() -> set[str]:
    """Names of all metrics that the shipped modules and objectives return."""
    small: dict[str, Any] = {"hidden": [8]}
    batch: dict[str, Tensor] = {
        "observations": torch.zeros(4, 3),
        "actions": torch.zeros(4, 2),
        "rewards": torch.zeros(4),
        "terminals": torch.zeros(4),
        "next_observations": torch.zeros(4, 3),
        "next_support_actions": torch.zeros(4, 5, 2),
        "support_actions": torch.zeros(4, 5, 2),
        "energies": torch.zeros(4, 5),
        "noise": torch.zeros(4, 2),
        "guidance_scales": torch.zeros(4),
    }

    def make(cls: type[nn.Module]) -> Any:
        return lambda s, a: cls(s, a, **small)

    modules: list[StageModule] = [
        BehaviorDiffusion(3, 2, make(MLPScore)),
        SoftmaxQCritic(3, 2, make(QEnsemble)),
        Distillation(3, 2, 2),
        *(
            EnergyGuidance(3, 2, make(EnergyMLP), objective=objective())
            for objective in (CEP, MSE, ExponentialMSE, DPS)
        ),
    ]
    return {f"{module.stage}/{name}" for module in modules for name in module.loss(batch, Fixed())[1]}


def test_every_metric_is_explained(shared_run: tuple[Path, Counter[str]]) -> None:
    page = (ROOT / "docs/glossary.md").read_text()
    logged = shipped_metrics()
    for folder in sorted((shared_run[0] / "logs").iterdir()):
        events = EventAccumulator(str(folder))
        events.Reload()
        logged |= {re.sub(r"/s=[\d.]+$", "/s=", tag) for tag in events.Tags()["scalars"]}
    own = {
        "guidance/logit_size",
        "critic/spread",
        *(f"{stage}/weights" for stage in ("behavior", "critic", "guidance")),
    }
    assert {"behavior/learning_rate", "eval/normalized_score/s="} | own <= logged
    logged |= {f"eval/{distance}{kind}/s=" for distance in DISTANCES for kind in ("", "_floor", "_multiple")}
    missing = [name for name in sorted(logged - own) if f"`{name}" not in page]
    assert missing == []
