"""The pages are correct: examples run, links resolve, commands parse, keys and metrics are explained."""

from __future__ import annotations

import functools
import importlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from cepdiff.cli import build_parser, main
from cepdiff.cli.fit import parse_overrides
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
from cepdiff.sweeps.settings import (
    LocalSettings,
    RaySettings,
    Resources,
    SearchSettings,
    SlurmSettings,
    SweepSettings,
    products,
    read_sweep,
)

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docker/*.md")])
EXTENDING = ROOT / "docs/extending.md"
SAMPLERS = ROOT / "docs/samplers.md"
CRITICS = ROOT / "docs/critics.md"
# Folders of this repository whose files the pages mention.
OURS = ("src", "tests", "configs", "docs", "notebooks", "docker", "cepdiff")

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


class Block(NamedTuple):
    """A fenced block: its language, the title (file name) in its info string, its text."""

    language: str
    title: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(language, title or None, text) for language, title, text in found]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every titled block of the three pages as a file, and the shipped configurations."""
    folder = tmp_path_factory.mktemp("examples")
    for block in (*blocks(EXTENDING), *blocks(SAMPLERS), *blocks(CRITICS)):
        if block.title is not None:
            (folder / block.title).write_text(block.text)
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
    titles = {
        block.title.removesuffix(".yaml") for block in blocks(EXTENDING) if block.title and block.language == "yaml"
    }
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


# --- links, files, commands -------------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    """GitHub's anchor for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if heading:
            anchors = [anchor(text) for text in re.findall(r"^#+ (.*)$", prose(file), re.MULTILINE)]
            assert heading in anchors, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    named = re.findall(rf"\b((?:{'|'.join(OURS)})/[\w/.-]+\.(?:py|yaml|md|ipynb|png|json|hdf5))\b", page.read_text())
    for name in named:
        file = ROOT / "src" / name if name.startswith("cepdiff/") else ROOT / name
        assert file.exists(), f"{page.name} names {name}"


def commands() -> list[str]:
    """Every `cepdiff` command in a bash block, one line each."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.language == "bash":
                for line in block.text.replace("\\\n", " ").splitlines():
                    line = line.split(" #")[0]
                    found += re.findall(
                        r"(?:\bcepdiff|-m cepdiff) ((?:fit|sweep|evaluate|sample|export|report|data|collect)\b[^&|;]*)",
                        line,
                    )
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command: str, here: Path) -> None:
    parsed, rest = build_parser().parse_known_args(shlex.split(command))
    if parsed.command == "fit":
        load_config(parsed.config, parse_overrides(rest))
    elif parsed.command == "sweep":
        assert products(read_sweep(Path(parsed.file)).axes)
        parse_overrides(rest)
    else:
        assert not rest


SWEEPS = ROOT / "docs/sweeps.md"


@pytest.mark.parametrize("text", [block.text for block in blocks(SWEEPS) if block.language == "yaml"])
def test_the_files_of_sweeps_can_be_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    sweep = read_sweep(tmp_path / "sweep.yaml")
    assert sweep.search is not None or products(sweep.axes)


def test_every_key_of_a_sweep_is_explained() -> None:
    page = SWEEPS.read_text()
    names = list(SweepSettings.__dataclass_fields__)
    for group, kind in (
        ("resources", Resources), ("local", LocalSettings), ("ray", RaySettings), ("slurm", SlurmSettings),
        ("search", SearchSettings),
    ):  # fmt: skip
        names.remove(group)
        names += [f"{group}.{name}" for name in kind.__dataclass_fields__]
    assert [name for name in names if f"| `{name}` |" not in page] == []


# --- configuration and glossary ---------------------------------------------------------------------------------------


def keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all leaves, as typed on the command line."""
    found = []
    for name, value in tree.items():
        below = value.get("init_args", value) if isinstance(value, dict) else value
        if isinstance(value, dict) and "class_path" in value and prefix:
            found.append(f"{prefix}{name}")  # the key that chooses a class, then the class's own
        if isinstance(below, dict) and below:
            found += keys(below, f"{prefix}{name}.")
        elif f"{prefix}{name}" not in found:
            found.append(f"{prefix}{name}")
    return found


@pytest.mark.parametrize("config", ["quickstart", "toy/moons", "images/digits_class", "images/digits_colour"])
def test_every_key_is_explained(config: str) -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    values = yaml.safe_load(load_config([ROOT / f"configs/{config}.yaml"]).to_yaml())
    missing = [key for key in keys(values) if f"`{key}`" not in page]
    assert missing == []


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


def test_documented_defaults_of_a_density_are_those_of_the_code() -> None:
    """For keys in the section on data with energies: the values of a configuration without them."""
    page = (ROOT / "docs/configuration.md").read_text()
    section = page[page.index("## Data with energies") :]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:3]] for line in section.splitlines() if line[:3] == "| `"]
    written = {key: value for key, value in rows if value not in ("", "(required)")}
    overrides = ["data.class_path=cepdiff.data.densities.datamodule.EnergyDataModule", "data.dataset=moons"]
    values = load_config([], overrides).values
    assert len(written) > 15
    for key, value in written.items():
        found: Any = values
        for name in key.split("."):
            found = found[name] if name == "class_path" else found.get("init_args", found)[name]
        found = found["class_path"] if isinstance(found, dict) else found
        assert found == yaml.safe_load(value), key
