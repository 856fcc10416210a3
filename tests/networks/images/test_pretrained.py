"""Pretrained models from diffusers: every layout on disk, the hub through a local server, and refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from cepdiff.diffusion.schedule import LinearVP
from cepdiff.errors import ConfigError
from cepdiff.networks.images.pretrained import find_pretrained, pretrained_hash
from cepdiff.networks.images.unet import UNetScore

C, SIDE, B = 1, 8, 4
A = C * SIDE * SIDE
WEIGHTS = "diffusion_pytorch_model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def small_unet(**options: Any) -> UNet2DModel:
    torch.manual_seed(0)
    sizes = {
        "sample_size": SIDE,
        "in_channels": C,
        "out_channels": C,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 2,
    }
    return UNet2DModel(**{**sizes, **options}).eval()


def pipeline_folder(folder: Path, **scheduler: Any) -> Path:
    DDPMPipeline(small_unet(), DDPMScheduler(**scheduler)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pipeline_folder(tmp_path / "pipeline")


def load(pretrained: Path | str, **options: Any) -> UNetScore:
    return UNetScore(0, A, channels=C, pretrained=str(pretrained), **options).eval()


def at_steps(scheduler: DDPMScheduler, steps: list[int]) -> tuple[Tensor, Tensor]:
    """Noised images (B, A), one per step, and their times."""
    x = torch.randn(len(steps), A, generator=torch.Generator().manual_seed(1))
    lambdas = 0.5 * torch.logit(scheduler.alphas_cumprod[steps].double())
    return x, LinearVP().inverse_lambda(lambdas).float()


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_pipeline_gives_the_noise_of_its_unet(tmp_path: Path, prediction: str, beta_schedule: str) -> None:
    """At the times of the scheduler's steps, with the scheduler's alpha and sigma."""
    scheduler = DDPMScheduler(beta_schedule=beta_schedule, prediction_type=prediction)
    net = load(pipeline_folder(tmp_path / "pipeline", beta_schedule=beta_schedule, prediction_type=prediction))
    x, t = at_steps(scheduler, steps := [20, 200, 500, 900])
    images = x.reshape(B, C, SIDE, SIDE)
    output = small_unet()(images, torch.tensor(steps)).sample.flatten(1)
    abar = scheduler.alphas_cumprod[steps].unsqueeze(-1)
    alpha, sigma = abar.sqrt(), (1.0 - abar).sqrt()
    noise = {"epsilon": output, "v_prediction": alpha * output + sigma * x, "sample": (x - alpha * output) / sigma}
    torch.testing.assert_close(net(x, t, None), noise[prediction], rtol=1e-3, atol=2e-3)


def test_layouts_of_a_folder(folder: Path, tmp_path: Path) -> None:
    """A pipeline, a pipeline in one flat folder, a bare U-Net with a separate scheduler, and shards."""
    flat, bare, shards = tmp_path / "flat", tmp_path / "bare", tmp_path / "shards"
    shutil.copytree(folder / "unet", flat)
    shutil.copy(folder / "scheduler" / "scheduler_config.json", flat)
    shutil.copytree(folder / "unet", bare)
    small_unet().save_pretrained(shards, max_shard_size="10KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    x, t = at_steps(DDPMScheduler(), [20, 200, 500, 900])
    expected = load(folder)(x, t, None)
    assert torch.equal(load(flat)(x, t, None), expected)
    for path in (bare, shards):
        assert torch.equal(load(path, scheduler={"beta_schedule": "linear"})(x, t, None), expected)


def test_a_run_is_rebuilt_without_the_folder(folder: Path) -> None:
    net = load(folder)
    arguments = json.loads(json.dumps(net.rebuild_args))
    shutil.rmtree(folder)
    again = UNetScore(0, A, **{"channels": C, "pretrained": str(folder), **arguments}).eval()
    again.load_state_dict(net.state_dict())
    x, t = at_steps(DDPMScheduler(), [20, 200, 500, 900])
    assert torch.equal(again(x, t, None), net(x, t, None))


def test_a_loaded_network_is_trained_in_single_precision(tmp_path: Path) -> None:
    small_unet().half().save_pretrained(tmp_path / "half")
    net = UNetScore(
        0, A, channels=C, pretrained=str(tmp_path / "half"), scheduler={"beta_schedule": "linear"}, channels_last=True
    )
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(module.training for module in net.modules())
    assert net.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_hash_is_of_configs_and_weights(folder: Path, tmp_path: Path) -> None:
    first = pretrained_hash(str(folder))
    assert len(first) == 16
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("no part of the model")
    assert pretrained_hash(str(copy)) == first
    for part in (copy / "unet" / "config.json", copy / "scheduler" / "scheduler_config.json", copy / "unet" / WEIGHTS):
        kept = part.read_bytes()
        part.write_bytes(kept + b" ")
        assert pretrained_hash(str(copy)) != first
        part.write_bytes(kept)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "is a UNet2DConditionModel; expected an unconditional UNet2DModel"),
        ({"num_class_embeds": 10}, "is conditioned on classes"),
        ({"in_channels": 3, "out_channels": 3}, "3 input and 3 output channels; expected channels = 1 of both"),
        ({"sample_size": 16}, "is made for images of 16 x 16 pixels; the data have 8 x 8"),
        ({"time_embedding_type": "fourier"}, "embeds timesteps as 'fourier'"),
        ({"layers_per_block": 2}, "its weights do not fit its config.json .missing keys"),
        ({"block_out_channels": [8, 16]}, "its weights"),
    ],
)
def test_another_architecture_is_refused(folder: Path, values: dict[str, Any], message: str) -> None:
    edit(folder / "unet" / "config.json", **values)
    with pytest.raises(ConfigError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_torn_and_missing_files(folder: Path, tmp_path: Path) -> None:
    weights, config = folder / "unet" / WEIGHTS, folder / "unet" / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="its weights cannot be read") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    weights.unlink()
    torch.save(small_unet().state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pickles \(.bin\) are not loaded: convert it"):
        load(folder)
    config.write_text(config.read_text()[:40])
    with pytest.raises(ConfigError, match=r"config.json is not valid JSON"):
        load(folder)
    config.write_text("[]")
    with pytest.raises(ConfigError, match=r"config.json holds a list"):
        load(folder)
    config.unlink()
    with pytest.raises(ConfigError, match=r"has neither config.json nor unet/config.json"):
        load(folder)
    with pytest.raises(ConfigError, match=r"nowhere' is no folder; expected a diffusers folder or a hub id"):
        load(tmp_path / "nowhere")


def test_without_a_scheduler_the_process_is_asked_for(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(ConfigError, match=r"has no scheduler_config.json, .* give scheduler, e.g. {beta_schedule"):
        load(folder)
    assert find_pretrained(str(folder)).scheduler is None


class Hub(BaseHTTPRequestHandler):
    """The few routes of a model hub that a download uses, for `root`/owner/name."""

    root: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            self._about("/".join(parts[2:4]), parts[4:])
        else:
            self._file(self.root / parts[0] / parts[1] / "/".join(parts[4:]))

    def _about(self, model: str, what: list[str]) -> None:
        if not (self.root / model).is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        listing = what[:1] == ["tree"]
        if not listing and what[1:] not in ([], ["main"], [COMMIT]):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = sorted(path for path in (self.root / model).rglob("*") if path.is_file())
        names = [str(path.relative_to(self.root / model)) for path in files]
        if not listing:
            siblings = [{"rfilename": name} for name in names]
            return self._send(200, json.dumps({"id": model, "sha": COMMIT, "siblings": siblings}).encode())
        tree = [
            {"type": "file", "path": name, "size": path.stat().st_size, "oid": f"{i:040x}"}
            for i, (name, path) in enumerate(zip(names, files, strict=True))
        ]
        return self._send(200, json.dumps(tree).encode())

    def _file(self, path: Path) -> None:
        if not path.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        etag = f'"{sum(path.read_bytes()):040x}"'
        return self._send(200, path.read_bytes(), {"ETag": etag, "X-Repo-Commit": COMMIT})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    Hub.root = tmp_path / "hub"
    pipeline_folder(Hub.root / "owner" / "digits")
    (Hub.root / "owner" / "digits" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import sys
from cepdiff.networks.images.pretrained import find_pretrained
from cepdiff.errors import ConfigError
for name, revision in (line.split("@") for line in sys.argv[1:]):
    try:
        found = find_pretrained(name, revision or None)
        found.load(1, 8)
        print(found.hash(), *sorted(path.name for path in found.folder.iterdir()))
    except ConfigError as error:
        print(error)
"""


def ask(home: Path, endpoint: str, *models: str) -> list[str]:
    """A fresh process's results for hub ids "name@revision": hash and files, or the message."""
    variables = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *models], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_hub_id_is_downloaded_once_and_then_found_offline(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    home, endpoint = tmp_path / "home", f"http://127.0.0.1:{hub.server_address[1]}"
    expected = f"{pretrained_hash(str(Hub.root / 'owner' / 'digits'))} config.json {WEIGHTS}"
    online = ask(home, endpoint, "owner/digits@", "owner/nothing@", "owner/digits@v7", f"owner/digits@{COMMIT}")
    assert online[0] == expected  # no pickle among the files
    assert "neither a folder nor a public model" in online[1]
    assert "has no revision 'v7'" in online[2]
    assert online[3] == expected
    hub.shutdown()
    hub.socket.close()
    offline = ask(home, endpoint, "owner/digits@", "owner/others@")
    assert offline[0] == expected
    assert "the hub cannot be reached" in offline[1]
    assert len(online) + len(offline) == 6  # one line each
