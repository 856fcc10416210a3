"""The cost benchmark for the image networks: its rows, and that it runs."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def script() -> Any:
    """The script as a module."""
    return importlib.import_module("image_cost")


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    """Restore the settings that the script changes for its own process."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize(("side", "millions"), [(8, 0.6), (32, 35.7), (64, 294.5), (128, 417.1), (256, 542.6)])
def test_rows_are_of_the_recipes_networks(script: Any, side: int, millions: float) -> None:
    """The one for 32 pixels has as many weights as the one the recipe downloads (143 MB in float32)."""
    data = script.RandomImages(side, *script.RECIPES[side][1:], block_size=1)
    data.setup()
    config = script.recipe(side, "all", 4, data)
    with torch.device("meta") if side > 32 else nullcontext():  # a discrete process reads the values of its timesteps
        nets = [config.components[stage].arguments["net"](*data.sizes) for stage in script.NETWORKS.values()]
    assert script.weights(nets[0]) / 1e6 == pytest.approx(millions, abs=0.06)
    assert all(net.channels_last and checkpointed(net) for net in nets)
    assert nets[1].output.out_features == len(data.class_names) == script.RECIPES[side][2]
    for stage in script.NETWORKS.values():
        assert config.components[stage].arguments["batch_size"] == 4
    assert config.components["behavior"].arguments["micro_batch_size"] is None


def checkpointed(net: torch.nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in net.modules())


def test_a_plain_row_has_nothing_switched_on(script: Any) -> None:
    data = script.RandomImages(64, 3, 4, block_size=1)
    data.setup()
    config = script.recipe(64, "plain", 2, data)
    with torch.device("meta"):
        nets = [config.components[stage].arguments["net"](*data.sizes) for stage in script.NETWORKS.values()]
    assert not any(net.channels_last or checkpointed(net) for net in nets)
    assert script.settings_of(script.parse([]), "plain").precision == "32-true"
    assert script.settings_of(script.parse([]), "bf16").precision == "bf16-mixed"


@pytest.mark.parametrize("network", ["prior", "energy", "sampling"])
def test_a_row(script: Any, network: str) -> None:
    found = script.measure(script.parse(["--quick"]), 8, network, "plain")
    assert found["memory"] >= 0
    if network == "sampling":
        assert found["num_steps"] == 2
        assert min(found["prior_images_per_second"], found["images_per_second"]) > 0.0
        assert found["parameters"] == sum(
            script.measure(script.parse(["--quick"]), 8, part, "plain")["parameters"] for part in script.NETWORKS
        )
    else:
        assert 0.0 < found["best"] <= found["seconds"]


def test_lines_of_the_table(script: Any) -> None:
    known = {"side": 256, "network": "prior", "variant": "plain"}
    assert script.line(known | {"failed": "out of memory"}) == " 256  prior     plain          out of memory"
    record = known | {"parameters": 5.426e8, "memory": 3 * 2**30, "seconds": 0.25}
    assert script.line(record).split()[3:] == ["542.6", "M", "3,072", "MiB", "0.25", "s", "per", "step"]


def test_energies_need_two_images(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.parse(["--batch_size", "1"])
    assert "contrasted over the batch" in capsys.readouterr().err


@pytest.mark.slow
def test_table_of_costs(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--sizes", "8", "--variants", "plain", "all", "--networks", "energy", "sampling"]
    script.main(["--quick", *few, "--output", str(tmp_path)])
    found = json.loads((tmp_path / "image_cost.json").read_text())
    rows = [(record["network"], record["variant"]) for record in found["records"]]
    assert rows == [("energy", "plain"), ("energy", "all"), ("sampling", "plain")]
    assert all(record["recipe"] == "digits_class" and record["memory"] > 0 for record in found["records"])
    assert capsys.readouterr().out.splitlines()[-1] == f"written {tmp_path / 'image_cost.json'}"
