"""Images in a memory-mapped file: the same batches as in memory, decoded once, verified."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cepdiff.data.images import files
from cepdiff.data.images.datamodule import ImageDataModule
from cepdiff.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four noisy images of each class, and a broken one."""
    draws = np.random.default_rng(0)
    for name in ("dog", "cat"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(4):
            pixels = draws.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    (tmp_path / "pets" / "cat" / "broken.png").write_bytes(b"no image")
    return tmp_path / "pets"


def ready(folder: Path, cache: Path | None) -> ImageDataModule:
    data = ImageDataModule(
        str(folder), energy="labels", on_broken="skip", horizontal_flip=True, holdout=0.3,
        cache_dir=None if cache is None else str(cache),
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.filterwarnings("ignore:skipped 1 of 9 images")
def test_mapped_images_are_served_like_those_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, fields = tmp_path / "cache", ("samples", "labels", "energies")
    in_memory, mapped = ready(folder, None), ready(folder, cache)
    assert torch.equal(in_memory.rows(fields), mapped.rows(fields))
    rows = in_memory.rows(fields).reshape(2, -1)
    expected, found = in_memory.gatherer(fields)(rows), mapped.gatherer(fields)(rows)
    assert all(torch.equal(expected[name], found[name]) for name in fields)
    assert torch.equal(in_memory.images[in_memory.holdout_rows], mapped.images[mapped.holdout_rows])

    decode = files.decode
    monkeypatch.setattr(files, "decode", lambda *_: pytest.fail("decoded again"))
    assert ready(folder, cache).content_hash == mapped.content_hash
    monkeypatch.setattr(files, "decode", decode)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "dog" / "0.png")
    changed = ready(folder, cache)
    assert changed.content_hash != mapped.content_hash
    assert changed.points_hash != mapped.points_hash
    assert changed.images.sum() < in_memory.images.sum()


@pytest.mark.filterwarnings("ignore:skipped 1 of 9 images")
@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "about.json"])
def test_changed_files_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    ready(folder, tmp_path / "cache")
    (made,) = (tmp_path / "cache").iterdir()
    content = bytearray((made / name).read_bytes())
    (made / name).write_bytes(content)  # a copy is as good
    ready(folder, tmp_path / "cache")
    content[-20] ^= 1
    (made / name).write_bytes(content)
    with pytest.raises(DataError, match=f"delete {made} to decode the images again"):
        ready(folder, tmp_path / "cache")


@pytest.mark.parametrize("options", [{"dataset": "digits"}, {"dataset": "pets", "tint": True, "channels": 3}])
def test_sets_that_are_not_mapped(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"data\.cache_dir is for folders of images"):
        ImageDataModule(cache_dir="cache", **options)  # type: ignore[arg-type]
