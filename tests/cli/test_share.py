"""`cepdiff push` and `cepdiff pull`, against a local server that speaks the hub's protocol."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hub_server import READER, WRITER, Hub, Repo, running
from report_runs import write_policy

from cepdiff.cli import main
from cepdiff.errors import MissingExtraError, RunError
from cepdiff.networks.energy import EnergyMLP
from cepdiff.networks.score import MLPScore
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.recipe import POLICY_FILE, Recipe, share, write_recipe
from cepdiff.policy.shared import SHARED_FILE, WEIGHTS_FILE
from cepdiff.types import DataSpec

pytest.importorskip("huggingface_hub")

S, A = 3, 1  # Pendulum's sizes
NAME = "me/pendulum"
SPEC = DataSpec(S, A, (-2.0,), (2.0,), observation_mean=(0.1, 0.2, 0.3), observation_std=(1.0, 2.0, 3.0))
PENDULUM = {"env_id": "Pendulum-v1", "kwargs": {}, "module": None, "reference": [-1600.0, -150.0], "episodes": 1}


def part(name: str, **options: Any) -> dict[str, Any]:
    return {"class_path": f"cepdiff.{name}", "init_args": options}


RECIPE = Recipe(
    dataset="pendulum",
    spec=json.loads(json.dumps(SPEC.to_dict())),
    sampler=part("policy.sampler.GuidedSampler"),
    networks={
        "behavior": part("networks.score.MLPScore", hidden=[16]),
        "energy": part("networks.energy.EnergyMLP", hidden=[8]),
    },
    schedule=part("diffusion.schedule.CosineVP", t_max=0.9),
    solver=part("diffusion.solver.DPMSolver", num_steps=4),
    objective=part("energy.objectives.CEP", inverse_temperature=3.0),
    scales=[0.0, 1.0],
    sources=["/home/somebody/classes"],
    environment=PENDULUM,
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The local server as the hub of this process, with an empty cache and a token that may write."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    with running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        monkeypatch.chdir(tmp_path)
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of Pendulum with small networks."""
    folder = tmp_path / "run"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = {"behavior": MLPScore(S, A, hidden=[16]), "energy": EnergyMLP(S, A, hidden=[8])}
    write_recipe(folder / POLICY_FILE, RECIPE, networks)
    config = {"data": {"dataset": "pendulum"}}
    return write_policy(folder, "pendulum", {0.0: 10.0, 1.0: 55.25}, 1.0, config=config)


def acts(policy: GuidedPolicy) -> np.ndarray:
    numbers = torch.Generator().manual_seed(3)
    observations, noise = (torch.randn(8, size, generator=numbers) for size in (S, policy.noise_size))
    return policy.act(observations.numpy(), guidance_scale=1.5, noise=noise)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(*command)`: exit code 2, and the one line that the command says."""

    def line(*command: str) -> str:
        capsys.readouterr()
        assert main(list(command)) == 2
        said = capsys.readouterr().err
        found = [text.partition("cepdiff: ")[1:] for text in said.splitlines() if "cepdiff: " in text]
        assert len(found) == 1, said
        return "".join(found[0])

    return line


def test_a_pulled_policy_acts_as_the_run_to_the_bit(hub: Hub, run: Path) -> None:
    assert main(["push", str(run), NAME]) == 0
    assert main(["pull", NAME]) == 0
    pulled = Path("pendulum")
    assert {path.name for path in pulled.iterdir()} == {
        "README.md", "config.yaml", "model.safetensors", "policy.json", "results.json"
    }  # fmt: skip
    expected = acts(GuidedPolicy.from_run(run))
    for policy in (
        GuidedPolicy.from_run(pulled),
        GuidedPolicy.from_hub(NAME),
        GuidedPolicy.from_run(pulled / SHARED_FILE),
    ):
        assert np.array_equal(acts(policy), expected)
        assert policy.recipe == replace(RECIPE, sources=[])


def test_a_pulled_folder_evaluates_and_reports_like_a_run(hub: Hub, run: Path) -> None:
    assert main(["push", str(run), NAME]) == 0
    assert main(["pull", NAME, "--output", "got/it"]) == 0
    for place in (str(run), "got/it"):
        options = ["--scales", "0", "1", "--max_episode_steps", "5", "--accelerator", "cpu"]
        assert main(["evaluate", place, *options, "--output", f"{Path(place).name}.json"]) == 0
    assert json.loads(Path("run.json").read_text())["rows"] == json.loads(Path("it.json").read_text())["rows"]
    assert main(["report", "got/it"]) == 0
    assert "| pendulum | 0 | 10.0 | 55.2 |" in Path("report/report.md").read_text()


def test_what_is_pushed_is_said_before_and_has_no_paths_of_this_machine(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "best.mp4").write_bytes(b"a video")
    (run / "behavior").mkdir()
    (run / "behavior" / "final.ckpt").write_bytes(b"weights")
    assert main(["push", str(run), NAME, "--private", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"would push {run} to {hub.url}/{NAME} (private; licence: none)\n")
    assert "not pushed: data, support actions, checkpoints, logs" in said
    assert hub.requests == []
    assert main(["push", str(run), NAME, "--private"]) == 0
    repo = hub.repos[NAME]
    assert capsys.readouterr().out == said.replace("would push", "pushing") + f"{hub.url}/{NAME}/commit/{repo.sha(1)}\n"
    files = repo.commits[-1]
    assert repo.private
    assert set(files) - {".gitattributes"} == {line.split()[0] for line in said.splitlines()[1:-1]}
    assert files["replay.mp4"] == b"a video"
    assert "run_dir" not in yaml.safe_load(files["config.yaml"])
    for name, content in files.items():
        assert b"somebody" not in content, name
        assert str(run).encode() not in content, name
    assert sum(request.startswith("PUT /storage/") for request in hub.requests) == 2  # weights and video
    assert sum("/commit/" in request for request in hub.requests) == 1


def test_the_card_has_what_the_hub_and_a_reader_look_for(hub: Hub, run: Path) -> None:
    (run / "best.mp4").write_bytes(b"a video")
    assert main(["push", str(run), NAME, "--license", "cc-by-4.0"]) == 0
    card = importlib.import_module("huggingface_hub").ModelCard(hub.repos[NAME].commits[-1]["README.md"].decode())
    assert (card.data.library_name, card.data.license) == ("cepdiff", "cc-by-4.0")
    assert card.data.pipeline_tag == "reinforcement-learning"
    assert {"reinforcement-learning", "offline-rl", "pendulum"} <= set(card.data.tags)
    assert card.data.model_name == "pendulum"
    found = {result.metric_type: result for result in card.data.eval_results}
    assert found["normalized_score"].metric_value == "55.25 +/- 0.10"
    assert found["mean_reward"].metric_name == "mean return at guidance scale 1"
    assert (found["mean_reward"].task_type, found["mean_reward"].dataset_name) == ("reinforcement-learning", "pendulum")
    assert "episodes" not in found
    for text in (
        "| environment | Pendulum-v1 |", "| objective | CEP |", "| inverse temperature | 3 |",
        "| seed of training | 0 |",
        "| licence | cc-by-4.0 |", "| 1 | 10 | 552.50 ± 1.00 | 55.2 ± 0.1 |", f'GuidedPolicy.from_hub("{NAME}")',
        f"cepdiff pull {NAME}\ncepdiff evaluate pendulum\n", "cepdiff fit --config config.yaml --run_dir",
        "[replay.mp4](replay.mp4)",
        "Wall clock: behavior 10 s, support 1 s", f"torch {version('torch')}",
    ):  # fmt: skip
        assert text in card.text, text
    assert "neither part of an" not in card.text  # all classes are the package's


def test_a_second_push_replaces_what_the_first_one_left(hub: Hub, run: Path) -> None:
    (run / "best.mp4").write_bytes(b"a video")
    assert main(["push", str(run), NAME]) == 0
    before = acts(GuidedPolicy.from_hub(NAME))
    (run / "best.mp4").unlink()
    write_recipe(
        run / POLICY_FILE, RECIPE, {"behavior": MLPScore(S, A, hidden=[16]), "energy": EnergyMLP(S, A, hidden=[8])}
    )
    assert main(["push", str(run), NAME]) == 0
    assert "replay.mp4" not in hub.repos[NAME].commits[-1]
    assert np.array_equal(acts(GuidedPolicy.from_hub(NAME)), acts(GuidedPolicy.from_run(run)))
    first = hub.repos[NAME].sha(1)
    assert np.array_equal(acts(GuidedPolicy.from_hub(NAME, revision=first)), before)
    assert main(["pull", NAME, "--revision", first]) == 0
    assert Path("pendulum/replay.mp4").read_bytes() == b"a video"


def test_names_and_folders_that_cannot_be_used(
    hub: Hub, run: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    for name in ("pendulum", "me/a/b", "me/a b", "../x"):
        assert f"'{name}' is no repository of the hub; expected user/name" in refused("pull", name)
        assert f"'{name}' is no repository of the hub" in refused("push", str(run), name)
    assert "there is no run folder" in refused("push", "nowhere", NAME)
    assert "run exists: choose another place with --output" in refused("pull", NAME, "--output", str(run))
    (run / "results.json").unlink()
    assert "has no results.json: only a finished run can be pushed" in refused("push", str(run), NAME)
    assert hub.requests == []


def test_pushing_without_a_token_or_permission(
    hub: Hub, run: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "refuses access to you/pendulum" in refused("push", str(run), "you/pendulum")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "refuses access to me/pendulum with this token: use one that has it" in refused("push", str(run), NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not accept the token: log in with `hf auth login`" in refused("push", str(run), NAME)
    monkeypatch.delenv("HF_TOKEN")
    asked = len(hub.requests)
    assert "needs a token that may write there: log in with `hf auth login`" in refused("push", str(run), NAME)
    assert len(hub.requests) == asked
    assert hub.repos == {}


def test_pushing_to_repositories_with_other_things(hub: Hub, run: Path, refused: Callable[..., str]) -> None:
    hub.repos[NAME] = Repo(commits=[{"README.md": b"", "model.safetensors": b"of another", "pytorch_model.bin": b""}])
    assert "holds no policy of cepdiff (it has model.safetensors)" in refused("push", str(run), NAME)
    hub.repos[NAME] = Repo()
    assert "exists and is public: make it private on the hub" in refused("push", str(run), NAME, "--private")
    assert len(hub.repos[NAME].commits) == 1


def test_pulling_what_is_not_there(hub: Hub, run: Path, refused: Callable[..., str]) -> None:
    assert f"there is no repository {NAME} on {hub.url}, or it is private" in refused("pull", NAME)
    hub.repos[NAME] = Repo()
    assert f"{NAME} holds no policy of cepdiff: it has no policy.json" in refused("pull", NAME)
    assert f"{NAME} has no revision 'v2'" in refused("pull", NAME, "--revision", "v2")
    hub.gated.add(NAME)
    assert f"{NAME} is gated: ask for access on {hub.url}/{NAME}" in refused("pull", NAME)
    assert not Path("pendulum").exists()


def test_private_repositories_need_the_token(
    hub: Hub, run: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["push", str(run), NAME, "--private"]) == 0
    monkeypatch.delenv("HF_TOKEN")
    assert "or it is private: log in with `hf auth login`, or set HF_TOKEN" in refused("pull", NAME)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert main(["pull", NAME]) == 0


def test_without_a_network(hub: Hub, run: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["push", str(run), NAME]) == 0
    constants: Any = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    assert f"http://127.0.0.1:9 cannot be reached for {NAME} (ConnectError" in refused("pull", NAME)
    assert "cannot be reached" in refused("push", str(run), NAME)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    expected = acts(GuidedPolicy.from_hub(NAME))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert np.array_equal(acts(GuidedPolicy.from_hub(NAME)), expected)  # from the cache


def test_errors_of_the_server(hub: Hub, run: Path, refused: Callable[..., str]) -> None:
    hub.statuses = {"PUT /storage/": 403}
    assert "refuses access to" in refused("push", str(run), NAME)
    hub.statuses = {"/commit/": 500}
    assert f"{hub.url} answered with error 500 for {NAME}" in refused("push", str(run), NAME)
    hub.statuses = {}
    assert main(["push", str(run), NAME]) == 0
    assert [set(commit) > {SHARED_FILE} for commit in hub.repos[NAME].commits] == [False, True]
    hub.statuses = {"GET /storage/": 404}
    assert "answered with error 404" in refused("pull", NAME)


def test_a_server_without_the_newer_storage_is_named(
    hub: Hub, run: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_HUB_DISABLE_XET", False)
    assert f"has no Xet storage for {NAME}: set HF_HUB_DISABLE_XET=1" in refused("push", str(run), NAME)


def test_an_interrupted_download_goes_on_where_it_stopped(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads: Any = importlib.import_module("huggingface_hub.file_download")
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(downloads.constants, "DOWNLOAD_CHUNK_SIZE", 50)
    assert main(["push", str(run), NAME]) == 0
    hub.drops = [100, 50]
    assert main(["pull", NAME]) == 0
    assert hub.ranges == [None, "bytes=100-", "bytes=150-"]
    assert np.array_equal(acts(GuidedPolicy.from_run("pendulum")), acts(GuidedPolicy.from_run(run)))


def test_damage_in_the_cache_is_mended(hub: Hub, run: Path) -> None:
    assert main(["push", str(run), NAME]) == 0
    expected = acts(GuidedPolicy.from_hub(NAME))
    (weights,) = Path("cache").rglob(WEIGHTS_FILE)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.resolve().write_bytes(content)
    assert np.array_equal(acts(GuidedPolicy.from_hub(NAME)), expected)


@pytest.mark.parametrize("damage", ["weights", "recipe", "cut"])
def test_files_that_do_not_belong_together_are_refused(
    hub: Hub, run: Path, refused: Callable[..., str], damage: str
) -> None:
    assert main(["push", str(run), NAME]) == 0
    files = hub.repos[NAME].commits[-1]
    if damage == "recipe":
        files[SHARED_FILE] = files[SHARED_FILE].replace(b'"num_steps": 4', b'"num_steps": 5')
    elif damage == "weights":
        files[WEIGHTS_FILE] = files[WEIGHTS_FILE][:-1] + bytes([files[WEIGHTS_FILE][-1] ^ 1])
    else:
        files[WEIGHTS_FILE] = files[WEIGHTS_FILE][:-1]
    assert f"{NAME} is damaged, or was changed by hand" in refused("pull", NAME)
    assert not Path("pendulum").exists()


@pytest.fixture
def own(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sampler of one's own, which the run's policy uses; importing it leaves a file."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "classes"
    folder.mkdir()
    (folder / "my_shared_sampler.py").write_text(
        "from pathlib import Path\nfrom cepdiff import GuidedSampler\nPath('ran').touch()\n"
        "class Mine(GuidedSampler):\n    pass\n"
    )
    recipe = replace(RECIPE, sampler={"class_path": "my_shared_sampler.Mine", "init_args": {}})
    networks = GuidedPolicy.from_run(run).sampler.networks
    write_recipe(run / POLICY_FILE, recipe, networks)
    return folder


def test_a_pulled_policy_runs_no_foreign_code(hub: Hub, run: Path, own: Path, refused: Callable[..., str]) -> None:
    assert main(["push", str(run), NAME]) == 0
    card = hub.repos[NAME].commits[-1]["README.md"].decode()
    assert "nor in this repository: `my_shared_sampler.Mine`" in card
    # what a stranger might add is not even downloaded
    hub.repos[NAME].commits[-1]["my_shared_sampler.py"] = b"raise SystemExit('hacked')"
    assert main(["pull", NAME]) == 0
    assert not Path("pendulum/my_shared_sampler.py").exists()
    command = ["evaluate", "pendulum", "--max_episode_steps", "2", "--accelerator", "cpu"]
    assert "names the class my_shared_sampler.Mine, which is in no installed package" in refused(*command)
    assert "add --trust_sources FOLDER" in refused(*command)  # no folder that the file itself proposes
    assert not Path("ran").exists()
    assert main([*command, "--trust_sources", str(own)]) == 0
    assert Path("ran").exists()


def test_a_pulled_policy_builds_only_parts_of_policies(hub: Hub, run: Path, refused: Callable[..., str]) -> None:
    """A class that could be imported is taken only where it belongs: none is called for its effects."""
    networks = GuidedPolicy.from_run(run).sampler.networks
    sampler = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "ran"]}}
    write_recipe(run / POLICY_FILE, replace(RECIPE, sampler=sampler), networks)
    assert main(["push", str(run), NAME]) == 0
    assert main(["pull", NAME]) == 0
    assert "subprocess.Popen is not a subclass of GuidedSampler" in refused("evaluate", "pendulum")
    assert not Path("ran").exists()


def test_options_that_json_cannot_hold_are_not_shared(run: Path, tmp_path: Path) -> None:
    networks = GuidedPolicy.from_run(run).sampler.networks
    solver = part("diffusion.solver.DPMSolver", num_steps={1: 4})
    write_recipe(run / POLICY_FILE, replace(RECIPE, solver=solver), networks)
    with pytest.raises(RunError, match="an option of its classes has keys that are not text"):
        share(run, tmp_path)


def test_the_extra_is_named_where_it_is_missing(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[hub\]"):
        GuidedPolicy.from_hub(NAME)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MissingExtraError, match=r"A shared policy needs the extra 'hub'"):
        share(run, tmp_path)


def test_a_run_of_its_own_goes_before_a_pulled_policy(hub: Hub, run: Path) -> None:
    """A folder with both is a run."""
    share(run, run)
    assert (run / SHARED_FILE).is_file()
    assert GuidedPolicy.from_run(run).recipe == RECIPE
