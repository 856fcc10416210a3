"""Share a finished run's policy on the Hugging Face hub: what is pushed, its model card, and what is pulled."""

from __future__ import annotations

import math
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from cepdiff.components import class_paths
from cepdiff.errors import ConfigError, RunError
from cepdiff.files import check_output, write_text
from cepdiff.policy.hub import check_name, download, hub_library, upload
from cepdiff.policy.recipe import Recipe, share
from cepdiff.policy.shared import SHARED_FILE, WEIGHTS_FILE
from cepdiff.runs.folder import RunFolder
from cepdiff.runs.results import Results
from cepdiff.runs.templates import rendered
from cepdiff.trust import is_installed

CARD, VIDEO = "README.md", "replay.mp4"  # the names by which the hub shows them
BEST = "best.mp4"  # what `cepdiff evaluate --video` writes
PUSHED = {
    CARD: "model card",
    SHARED_FILE: "sampler: its classes, their options, sizes and bounds",
    WEIGHTS_FILE: "weights",
    "config.yaml": "configuration, without run_dir",
    "results.json": "scores",
    VIDEO: f"video, {BEST}",
}
LIBRARIES = ("cepdiff", "torch", "lightning", "gymnasium", "mujoco", "numpy")
# Columns of a table of results that are no metrics.
COUNTS = ("episodes", "inverse_temperature")
REWARD = {"mean_return": "mean_reward"}  # our name -> the name by which the hub ranks policies


def push(
    run_dir: Path,
    repo: str,
    *,
    private: bool = False,
    licence: str | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> str | None:
    """Push a finished run's policy to `repo` ("user/name") in one commit, and return the commit's address.

    `say` gets the list of files first. With `dry_run` nothing else happens, and None is returned.

    Raises:
        RunError: the run is not finished, or its files do not belong together.
        ConfigError, HubError, MissingExtraError: as `policy.hub.upload`.
    """
    check_name(repo)
    hub = hub_library()
    with tempfile.TemporaryDirectory(prefix="cepdiff-") as place:
        files = prepare(run_dir, Path(place), repo, licence)
        to = f"{hub.constants.ENDPOINT}/{repo}"
        seen = "private" if private else "public, if it is new"
        lines = [f"{'would push' if dry_run else 'pushing'} {run_dir} to {to} ({seen}; licence: {licence or 'none'})"]
        lines += [f"  {name:<18} {file.stat().st_size / 1e3:>9,.1f} kB  {PUSHED[name]}" for name, file in files.items()]
        say("\n".join([*lines, "not pushed: data, support actions, checkpoints, logs"]))
        if dry_run:
            return None
        return upload(repo, files, list(PUSHED), private=private, message=f"cepdiff {metadata.version('cepdiff')}")


def pull(repo: str, output: Path, revision: str | None = None) -> Path:
    """Download a shared policy with its results and configuration to the new folder `output`, and return it.

    Raises ConfigError if `output` exists, and as `policy.hub.download`.
    """
    if output.exists():
        raise ConfigError(f"{output} exists: choose another place with --output")
    check_output(output)
    folder = download(repo, revision, list(PUSHED))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as place:
        whole = Path(place) / output.name
        whole.mkdir()
        for name in PUSHED:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, whole / name)
        whole.rename(output)
    return output


def prepare(run_dir: Path, folder: Path, repo: str, licence: str | None) -> dict[str, Path]:
    """Write what is pushed to `folder`; returns name -> file, in the order of `PUSHED`."""
    run = RunFolder(run_dir)
    if not run_dir.is_dir():
        raise RunError(f"there is no run folder {run_dir}")
    for needed in (run.config, run.results):
        if not needed.is_file():
            raise RunError(
                f"{run_dir} has no {needed.name}: only a finished run can be pushed; run `cepdiff fit` again"
            )
    results = Results.read(run.results)
    results.check_folder()
    recipe = share(run_dir, folder)
    replace(results, sources=()).write(folder / run.results.name)
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    config.pop("run_dir", None)  # a place on this machine
    write_text(folder / run.config.name, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    if (video := run_dir / BEST).is_file():
        shutil.copyfile(video, folder / VIDEO)
    write_text(folder / CARD, card(repo, results, recipe, licence, video.is_file()))
    return {name: folder / name for name in PUSHED if (folder / name).is_file()}


def card(repo: str, results: Results, recipe: Recipe, licence: str | None, has_video: bool) -> str:
    """The model card: metadata that the hub reads, and a page."""
    name, scale = repo.partition("/")[2], stated_scale(results)
    own = sorted({path for path in class_paths(vars(recipe)) if not is_installed(path.rpartition(".")[0])})
    about, use = "An energy-guided sampler of a density.", ""
    if recipe.image_shape is not None:
        head = f" --head {recipe.head_names[0]}" if recipe.head_names else ""
        about, use = "An energy-guided sampler of images.", f"cepdiff sample {name}{head} --output images.png"
    elif recipe.spec["observation_size"]:
        about, use = "A policy of offline reinforcement learning.", f"cepdiff evaluate {name}"
    stages = ", ".join(f"{stage} {seconds:,.0f} s" for stage, seconds in results.seconds.items())
    versions = {package: metadata.version(package) for package in LIBRARIES}
    return rendered(
        "card.md",
        metadata=card_metadata(name, results, recipe, licence, scale),
        title=name,
        repo=repo,
        about=about,
        use=use,
        facts=list(card_facts(results, recipe, licence).items()),
        table=results.table().markdown(),
        video=VIDEO if has_video else None,
        is_policy=recipe.image_shape is None,
        scale=f"{scale:g}",
        observation_size=recipe.spec["observation_size"],
        action_size=recipe.spec["action_size"],
        own=", ".join(f"`{path}`" for path in own),
        seconds=f"Wall clock: {stages}." if stages else "",
        versions=", ".join(f"{package} {found}" for package, found in versions.items())
        + f", Python {platform.python_version()}",
        licence=licence,
    )


def card_facts(results: Results, recipe: Recipe, licence: str | None) -> dict[str, str]:
    """The rows of the card's first table."""
    known = {
        "task": recipe.dataset,
        "environment": recipe.environment.get("env_id"),
        "objective": results.method or None,
        "inverse temperature": None if results.inverse_temperature is None else f"{results.inverse_temperature:g}",
        "sampler": recipe.sampler["class_path"].rpartition(".")[2],
        "seed of training": str(results.seed),
        "seed of the episodes": str(recipe.environment["seed"]) if "seed" in recipe.environment else None,
        "licence": licence,
    }
    return {key: value for key, value in known.items() if value is not None}


def stated_scale(results: Results) -> float:
    """The guidance scale of the card's metadata: the offline choice if it was judged, else 1, else the largest."""
    wanted = (results.about.get("offline_choice"), 1.0)
    return next((scale for scale in wanted if scale in results.scales), max(results.scales, default=1.0))


def card_metadata(name: str, results: Results, recipe: Recipe, licence: str | None, scale: float) -> str:
    """The card's metadata as YAML: library, licence, tags, and the results at one guidance scale."""
    hub = hub_library()
    is_images, task = recipe.image_shape is not None, None
    if is_images:
        task = "unconditional-image-generation"
    elif recipe.spec["observation_size"]:
        task = "reinforcement-learning"
    tags = ["offline-rl", "diffusion-policy"] if task == "reinforcement-learning" else ["diffusion"]
    about: Mapping[str, Any] = {
        "task_type": task or "other", "dataset_type": recipe.dataset, "dataset_name": recipe.dataset
    }  # fmt: skip
    found = []
    for metric, (title, _) in results.columns.items():
        row = results.row(scale, metric)
        if row is not None and math.isfinite(row.value) and metric not in COUNTS:
            value = row.value if row.error is None else f"{row.value:.2f} +/- {row.error:.2f}"
            at = f"{title.strip()} at guidance scale {scale:g}"
            found.append(
                hub.EvalResult(metric_type=REWARD.get(metric, metric), metric_value=value, metric_name=at, **about)
            )
    card_data = hub.ModelCardData(
        library_name="cepdiff",
        license=licence,
        pipeline_tag=task,
        tags=[*([task] if task else []), *tags, "energy-guidance", recipe.dataset],
        model_name=name,
        eval_results=found or None,
    )
    return str(card_data.to_yaml())
