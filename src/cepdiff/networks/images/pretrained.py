"""Pretrained image diffusion models in diffusers' formats: found, checked and loaded, on disk or on the hub.

Known layouts: a folder of `UNet2DModel.save_pretrained`, or of a `DDPMPipeline` with `unet/` and `scheduler/` (its
oldest models have all files in one folder). Weights are only read from safetensors files: a pickle can run any code.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cepdiff.errors import ConfigError
from cepdiff.networks.images.architecture import check_unet
from cepdiff.networks.images.library import image_library

WEIGHTS = "diffusion_pytorch_model"
# Single or sharded, without the variants of lower precision.
WEIGHT_FILES = (f"{WEIGHTS}.safetensors", f"{WEIGHTS}-*-of-*.safetensors")
HUB_FILES = ("config.json", "scheduler_config.json", f"{WEIGHTS}.safetensors.index.json", *WEIGHT_FILES)
# "name" or "owner/name", not a file system path.
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class PretrainedUNet:
    """Files of a pretrained U-Net: its folder and both configs; `scheduler` is None if there is none."""

    name: str
    folder: Path
    config: dict[str, Any]
    scheduler: dict[str, Any] | None
    files: tuple[Path, ...]

    def load(self, channels: int, side: int, num_classes: int | None = None) -> Any:
        """Load the U-Net in float32; raises ConfigError for another architecture or a damaged file."""
        check_unet(self.config, channels, side, self.name, num_classes)
        if not any(path.suffix == ".safetensors" for path in self.files):
            raise ConfigError(
                f"{self.name} has no weights in {WEIGHTS}.safetensors, and pickles (.bin) are not loaded: convert it "
                f"with UNet2DModel.from_pretrained(...).save_pretrained(FOLDER)"
            )
        model = image_library().UNet2DModel
        options = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False}
        try:
            unet, report = model.from_pretrained(self.folder, output_loading_info=True, **options)
        except Exception as error:  # diffusers and safetensors raise many types on damaged or foreign files
            first_line = str(error).strip().split("\n")[0]
            raise ConfigError(f"{self.name}: its weights cannot be read ({first_line})") from error
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            if report[kind]:
                raise ConfigError(
                    f"{self.name}: its weights do not fit its config.json ({kind.replace('_', ' ')}: {report[kind][0]})"
                )
        return unet.float().train()  # from_pretrained returns it in evaluation mode

    def hash(self) -> str:
        """Hash of configs and weights: 16 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=8)
        for path in self.files:
            digest.update(f"{path.name}:{path.stat().st_size}:".encode())
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()


def find_pretrained(pretrained: str, revision: str | None = None, cache_dir: str | None = None) -> PretrainedUNet:
    """Find the model in the folder `pretrained`, or of that hub id (downloaded unless it is in the hub's cache).

    `revision` is a branch, tag or commit, `cache_dir` another folder for downloads; both apply only to hub ids.

    Raises:
        ConfigError: no such folder or model, no network, or a missing or invalid `config.json`.
        MissingExtraError: a hub id without the hub's client.
    """
    root = Path(pretrained).expanduser()
    if not root.is_dir():
        root = _from_hub(pretrained, revision, cache_dir)
    folder = root / "unet" if (root / "unet").is_dir() else root
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{pretrained} has neither config.json nor unet/config.json; expected a diffusers folder")
    candidates = (root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json")
    schedulers = [path for path in candidates if path.is_file()][:1]
    weights = sorted(path for pattern in WEIGHT_FILES for path in folder.glob(pattern))
    return PretrainedUNet(
        name=pretrained,
        folder=folder,
        config=_read_json(folder / "config.json"),
        scheduler=_read_json(schedulers[0]) if schedulers else None,
        files=(folder / "config.json", *schedulers, *weights),
    )


def pretrained_hash(pretrained: str, revision: str | None = None, cache_dir: str | None = None) -> str:
    """Hash of the model that `find_pretrained` finds, for a run's record of its prior's source."""
    return find_pretrained(pretrained, revision, cache_dir).hash()


def _from_hub(pretrained: str, revision: str | None, cache_dir: str | None) -> Path:
    """The local snapshot of a hub model: configs and safetensors weights, nothing else."""
    if not HUB_ID.fullmatch(pretrained) or Path(pretrained).exists():
        raise ConfigError(f"pretrained: '{pretrained}' is no folder; expected a diffusers folder or a hub id")
    hub = image_library("huggingface_hub")
    errors = image_library("huggingface_hub.errors")
    patterns = [f"{folder}{name}" for folder in ("", "unet/", "scheduler/") for name in HUB_FILES]
    try:
        return Path(hub.snapshot_download(pretrained, revision=revision, cache_dir=cache_dir, allow_patterns=patterns))
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"pretrained: the hub's '{pretrained}' has no revision '{revision}'") from error
    except errors.GatedRepoError as error:
        raise ConfigError(f"pretrained: the hub's '{pretrained}' requires a login: run `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(f"pretrained: '{pretrained}' is neither a folder nor a public model of the hub") from error
    except Exception as error:  # the network fails in many ways, each with its own type
        raise ConfigError(
            f"pretrained: '{pretrained}' is not a folder and not in the hub's cache, and the hub cannot be reached "
            f"({type(error).__name__}): download it on a machine with a network and pass the folder"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: download it again") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; expected a JSON object")
    return values
