"""Images from Hugging Face's hub, or from what its library writes: columns, labels, splits, broken rows."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pictures import BLUE, GREEN, RED, RGB, WHITE, colours
from PIL import Image

from cepdiff.data.images.files import ImageFormat, read_hub
from cepdiff.errors import ConfigError, DataError, MissingExtraError


class TestHub:
    @pytest.fixture
    def make(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
        """`make(column=(values, feature))`: writes a folder with a Parquet file of four images and returns its path."""
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        datasets.disable_progress_bars()
        images = [Image.new("RGB", (2, 2), colour) for colour in (RED, GREEN, BLUE, WHITE)]

        def build(saved: bool = False, **columns: tuple[list[object], object]) -> str:
            columns = {"picture": (images, datasets.Image()), **columns}  # type: ignore[dict-item]
            features = datasets.Features({name: feature for name, (_, feature) in columns.items()})
            rows = {name: values for name, (values, _) in columns.items()}
            table = datasets.Dataset.from_dict(rows, features=features)
            folder = tmp_path / "set"
            if saved:
                datasets.DatasetDict({"train": table, "test": table.select([3, 0])}).save_to_disk(folder)
            else:
                folder.mkdir()
                table.to_parquet(folder / "train.parquet")
            return str(folder)

        return build

    @pytest.mark.parametrize("saved", [False, True])
    def test_images_and_class_labels(self, make: Callable[..., str], saved: bool) -> None:
        import datasets

        name = make(saved, kind=([1, 0, 1, 2], datasets.ClassLabel(names=["cat", "dog", "owl"])))
        data = read_hub(name, "train", None, None, RGB)
        assert colours(data) == [list(RED), list(GREEN), list(BLUE), list(WHITE)]
        assert data.class_names == ("cat", "dog", "owl")
        assert data.labels is not None
        assert data.labels.tolist() == [1, 0, 1, 2]
        some = read_hub(name, "train", "picture", "kind", ImageFormat(1, 4, num_images=2))
        assert some.images.shape == (2, 1, 4, 4)
        assert some.labels is not None
        assert some.labels.tolist() == [1, 1]
        if saved:
            assert colours(read_hub(name, "test", None, None, RGB)) == [list(WHITE), list(RED)]

    def test_without_labels(self, make: Callable[..., str]) -> None:
        import datasets

        data = read_hub(make(size=([1, 2, 3, 4], datasets.Value("int64"))), "train", None, None, RGB)
        assert data.labels is None

    @pytest.mark.parametrize(
        ("values", "kind", "names", "labels"),
        [
            (["owl", "cat", "owl", "dog"], "string", ("cat", "dog", "owl"), [2, 0, 2, 1]),
            ([7, 3, 7, 10], "int64", ("3", "7", "10"), [1, 0, 1, 2]),
        ],
    )
    def test_named_columns_of_words_and_numbers(
        self, make: Callable[..., str], values: list[object], kind: str, names: tuple[str, ...], labels: list[int]
    ) -> None:
        import datasets

        data = read_hub(make(word=(values, datasets.Value(kind))), "train", None, "word", RGB)
        assert data.class_names == names
        assert data.labels is not None
        assert data.labels.tolist() == labels

    def test_a_folder_of_image_files(self, classes: Path, make: Callable[..., str]) -> None:
        (classes / "b/10/deep.PNG").rename(classes / "b/deep.png")  # the library requires classes at the same depth
        data = read_hub(str(classes), "train", None, None, RGB)
        assert data.class_names == ("a", "b")
        assert colours(data) == [list(colour) for colour in (GREEN, WHITE, BLUE, RED)]
        assert data.labels is not None
        assert data.labels.tolist() == [0, 0, 1, 1]

    def test_broken_rows(self, make: Callable[..., str]) -> None:
        import datasets

        good = io.BytesIO()
        Image.new("RGB", (2, 2), BLUE).save(good, "png")
        rows = [{"bytes": data, "path": None} for data in (good.getvalue(), b"torn", good.getvalue(), b"")]
        name = make(picture=(rows, datasets.Image(decode=False)))
        with pytest.raises(DataError, match=r"set, row 1 \(cannot identify image file"):
            read_hub(name, "train", None, None, RGB)
        with pytest.warns(UserWarning, match="2 of 4 images"):
            data = read_hub(name, "train", None, None, ImageFormat(3, skip_broken=True))
        assert colours(data) == [list(BLUE)] * 2

    def test_columns_that_do_not_fit(self, make: Callable[..., str]) -> None:
        import datasets

        name = make(
            kind=([0, 1, -1, 0], datasets.ClassLabel(names=["cat", "dog"])),
            coarse=([0, 1, 0, 0], datasets.ClassLabel(names=["fur", "none"])),
            weight=([0.5, 1.0, 2.0, 3.0], datasets.Value("float32")),
        )
        for columns, error, expected in (
            ((None, None), ConfigError, "data.label_column is not set; choose one of the columns kind, coarse"),
            (("pictures", "kind"), ConfigError, "no column 'pictures'; expected one of .* Did you mean picture?"),
            (("weight", "kind"), ConfigError, r"the column 'weight' of .* is Value\(.*\); expected images"),
            ((None, "kinds"), ConfigError, r"data.label_column: .* no column 'kinds'.*Did you mean kind\?"),
            ((None, "weight"), ConfigError, "'weight' of .*; expected class labels"),
            ((None, "kind"), DataError, "the label column 'kind' has unlabelled rows"),
        ):
            with pytest.raises(error, match=expected) as raised:
                read_hub(name, "train", *columns, RGB)
            assert "\n" not in str(raised.value)

    def test_no_column_of_images(self, make: Callable[..., str]) -> None:
        import datasets

        with pytest.raises(ConfigError, match="has no image column; found picture"):
            read_hub(make(picture=([1, 2, 3, 4], datasets.Value("int64"))), "train", None, None, RGB)

    @pytest.mark.parametrize("saved", [False, True])
    def test_an_unknown_split(self, make: Callable[..., str], saved: bool) -> None:
        with pytest.raises(DataError, match=r"tran.*train") as raised:
            read_hub(make(saved), "tran", None, None, RGB)
        assert "\n" not in str(raised.value)

    def test_a_dataset_out_of_reach(self, make: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(DataError, match="hub:somebody/something, split 'train' cannot be loaded: ") as raised:
            read_hub("somebody/something", "train", None, None, RGB)
        assert "\n" not in str(raised.value)

    def test_the_package_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(MissingExtraError, match=r"'hub:mnist' needs the extra 'images': pip install .*\[images\]"):
            read_hub("mnist", "train", None, None, RGB)
