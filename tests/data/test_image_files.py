"""Images from files: digits, folders, Hugging Face datasets, every kind of pixel, broken files."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import BLUE, GREEN, GREY, RED, RGB, WHITE, colours, save
from PIL import Image

from cepdiff.data.images import files as image_files
from cepdiff.data.images.files import (
    ImageFormat,
    decode,
    read_digits,
    read_folder,
    to_pixels,
)
from cepdiff.errors import DataError


class TestDigits:
    def test_they_are_those_of_scikit_learn(self) -> None:
        load_digits = pytest.importorskip("sklearn.datasets").load_digits
        data, bunch = read_digits(GREY), load_digits()
        assert data.images.shape == (1797, 1, 8, 8)
        assert data.images.dtype == torch.uint8
        assert data.labels is not None
        assert np.array_equal(data.labels.numpy(), bunch.target)
        assert np.array_equal((data.images.squeeze(1).numpy() / 255 * 16).round(), bunch.images)
        assert data.class_names == tuple("0123456789")

    def test_levels_reach_both_ends(self) -> None:
        data = read_digits(GREY)
        assert data.images.unique().tolist() == [round(255 * level / 16 + 1e-9) for level in range(17)]
        assert data.labels is not None
        assert data.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]

    def test_size_and_channels(self) -> None:
        grey, colour = read_digits(ImageFormat(1, 16, num_images=5)), read_digits(ImageFormat(3, 16, num_images=5))
        assert grey.images.shape == (5, 1, 16, 16)
        assert torch.equal(colour.images, grey.images.expand(-1, 3, -1, -1))

    def test_so_many_come_evenly_spaced(self) -> None:
        whole, some = read_digits(GREY), read_digits(ImageFormat(1, num_images=3))
        assert torch.equal(some.images, whole.images[[0, 599, 1198]])
        assert some.labels is not None
        assert whole.labels is not None
        assert torch.equal(some.labels, whole.labels[[0, 599, 1198]])
        assert len(read_digits(ImageFormat(1, num_images=5000)).images) == 1797


class TestFolders:
    def test_subfolders_are_classes_in_sorted_order(self, classes: Path) -> None:
        data = read_folder(classes, RGB)
        assert data.class_names == ("a", "b")
        assert data.labels is not None
        assert data.labels.tolist() == [0, 0, 1, 1]
        assert data.labels.dtype == torch.int64
        assert colours(data) == [list(colour) for colour in (GREEN, WHITE, RED, BLUE)]

    def test_images_directly_have_no_labels(self, tmp_path: Path) -> None:
        save(tmp_path / "2.png", BLUE)
        save(tmp_path / "1.png", RED)
        (tmp_path / "notes").mkdir()
        data = read_folder(tmp_path, RGB)
        assert data.labels is None
        assert data.class_names == ()
        assert colours(data) == [list(RED), list(BLUE)]

    def test_what_is_no_image_is_passed_over(self, classes: Path) -> None:
        for name in ("a/.hidden.png", "a/notes.txt", ".cache/x.png", "a/.thumbs/x.png", "list.csv"):
            (classes / name).parent.mkdir(exist_ok=True)
            (classes / name).write_text("no image")
        (classes / "a/folder.png").mkdir()
        assert len(read_folder(classes, RGB).images) == 4

    def test_many_files_keep_their_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for i in range(30):
            save(tmp_path / f"{i:02}.png", (i, 2 * i, 255 - i))
        monkeypatch.setattr(image_files, "_CHUNK", 7)
        assert colours(read_folder(tmp_path, RGB)) == [[i, 2 * i, 255 - i] for i in range(30)]
        some = read_folder(tmp_path, ImageFormat(3, num_images=4))
        assert [colour[0] for colour in colours(some)] == [0, 7, 15, 22]

    def test_a_bar_shows_for_many_files(
        self, classes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        read_folder(classes, RGB)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(image_files, "_BAR_FROM", 3)
        read_folder(classes, RGB)
        assert "images" in capsys.readouterr().err

    def test_no_images(self, tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=r"has no images; expected files \(\.bmp, .*\.webp\) directly or in one sub"
        ):
            read_folder(tmp_path, RGB)
        (tmp_path / "a").mkdir()
        with pytest.raises(DataError, match="has no images; expected"):
            read_folder(tmp_path, RGB)

    def test_an_empty_class(self, classes: Path) -> None:
        (classes / "c").mkdir()
        with pytest.raises(DataError, match=r"c has no images; each subfolder is a class"):
            read_folder(classes, RGB)

    def test_both_layouts_at_once(self, classes: Path) -> None:
        save(classes / "direct.png")
        with pytest.raises(DataError, match="both directly and in subfolders"):
            read_folder(classes, RGB)


class TestSizes:
    def test_mixed_sizes(self, tmp_path: Path) -> None:
        first = save(tmp_path / "1.png")
        other = save(tmp_path / "2.png", size=(6, 4))
        with pytest.raises(DataError) as raised:
            read_folder(tmp_path, RGB)
        assert str(raised.value) == (
            f"the image {other} is 6x4 pixels, {first} is 4x4; set data.image_size to resize all images"
        )
        assert read_folder(tmp_path, ImageFormat(3, 4)).images.shape == (2, 3, 4, 4)

    def test_without_a_size_images_stay_as_they_are(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "x.png")
        assert np.array_equal(read_folder(tmp_path, RGB).images[0].numpy(), pixels.transpose(2, 0, 1))

    @pytest.mark.parametrize("turn", [False, True])
    @pytest.mark.parametrize("side", [2, 4, 8])  # smaller, same size, larger
    def test_the_central_square_of_the_resized_image(self, turn: bool, side: int) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (12, 4) if turn else (4, 12), dtype=np.uint8)
        image = Image.fromarray(pixels)
        size, corner = ((side, 3 * side), (0, side)) if turn else ((3 * side, side), (side, 0))
        whole = image.resize(size, Image.Resampling.BICUBIC)
        expected = whole.crop((*corner, corner[0] + side, corner[1] + side))
        found = to_pixels(image, ImageFormat(1, side))[0].astype(int)
        assert abs(found - np.asarray(expected)).max() <= 1  # rounding between PIL's two passes

    def test_a_square_of_the_size_is_not_touched(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
        assert np.array_equal(to_pixels(Image.fromarray(pixels), ImageFormat(1, 8))[0], pixels)

    def test_shrinking_averages(self) -> None:
        board = np.indices((64, 64)).sum(0) % 2 * 255
        found = to_pixels(Image.fromarray(board.astype(np.uint8)), ImageFormat(1, 8))
        assert abs(found.astype(int) - 127.5).max() <= 2  # without antialiasing: only black and white


class TestPixels:
    def test_grey_to_colour_and_back(self) -> None:
        grey = Image.new("L", (2, 2), 77)
        assert to_pixels(grey, RGB).tolist() == [[[77, 77], [77, 77]]] * 3
        assert to_pixels(Image.new("RGB", (1, 1), RED), GREY).tolist() == [[[76]]]  # 0.299 of 255

    @pytest.mark.parametrize(
        ("mode", "colour", "expected"),
        [
            ("RGBA", (255, 0, 0, 255), RED),
            ("RGBA", (255, 0, 0, 0), WHITE),
            ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
            ("LA", (0, 0), WHITE),
            ("LA", (9, 255), (9, 9, 9)),
        ],
    )
    def test_transparency_is_laid_on_white(
        self, tmp_path: Path, mode: str, colour: tuple[int, ...], expected: tuple[int, ...]
    ) -> None:
        path = save(tmp_path / "x.png", colour, mode=mode)
        assert decode(path, RGB)[:, 0, 0].tolist() == list(expected)

    def test_palettes_with_and_without_transparency(self, tmp_path: Path) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([*BLUE, *GREEN])
        image.putpixel((1, 0), 1)
        image.save(tmp_path / "opaque.png")
        image.save(tmp_path / "clear.png", transparency=0)
        image.save(tmp_path / "clear.gif", transparency=0)
        assert decode(tmp_path / "opaque.png", RGB)[:, 0].T.tolist() == [list(BLUE), list(GREEN)]
        for name in ("clear.png", "clear.gif"):
            assert decode(tmp_path / name, RGB)[:, 0].T.tolist() == [list(WHITE), list(GREEN)]

    def test_a_transparent_colour_of_an_rgb_file(self, tmp_path: Path) -> None:
        Image.new("RGB", (1, 1), RED).save(tmp_path / "x.png", transparency=RED)
        assert decode(tmp_path / "x.png", RGB).flatten().tolist() == list(WHITE)

    @pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
    def test_sixteen_bits(self, tmp_path: Path, suffix: str) -> None:
        levels = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
        Image.fromarray(levels).save(tmp_path / f"x.{suffix}")
        assert decode(tmp_path / f"x.{suffix}", GREY).tolist() == [[[0, 0, 1, 1, 128, 255]]]
        assert decode(tmp_path / f"x.{suffix}", RGB).shape == (3, 1, 6)

    @pytest.mark.parametrize(
        ("pixels", "expected"),
        [(np.full((2, 2), 1 << 20, np.int32), "32 bits"), (np.ones((2, 2), np.float32), "float")],
    )
    def test_pixels_of_an_unknown_range(self, tmp_path: Path, pixels: np.ndarray, expected: str) -> None:
        Image.fromarray(pixels).save(tmp_path / "x.tif")
        with pytest.raises(DataError, match=rf"cannot read image .*x\.tif \(its pixels .*{expected}.*\); remove it"):
            read_folder(tmp_path, GREY)

    def test_two_levels_and_four_inks(self, tmp_path: Path) -> None:
        assert decode(save(tmp_path / "x.pbm", (1,), mode="1"), GREY)[0, 0, 0] == 255
        path = tmp_path / "x.tif"
        Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(path)
        assert decode(path, RGB)[:, 0, 0].tolist() == list(RED)

    @pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
    def test_the_first_frame_of_an_animation(self, tmp_path: Path, suffix: str) -> None:
        frames = [Image.new("RGB", (4, 4), colour) for colour in (BLUE, RED, GREEN)]
        path = tmp_path / f"x.{suffix}"
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        assert decode(path, RGB)[:, 0, 0].tolist() == list(BLUE)

    def test_photographs_stand_upright(self, tmp_path: Path) -> None:
        image = Image.new("RGB", (2, 1), RED)
        image.putpixel((1, 0), BLUE)
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
        image.save(tmp_path / "x.png", exif=exif)
        found = decode(tmp_path / "x.png", RGB)
        assert found.shape == (3, 2, 1)
        assert found[:, :, 0].T.tolist() == [list(RED), list(BLUE)]


class TestBrokenFiles:
    @pytest.fixture
    def damaged(self, tmp_path: Path) -> Path:
        """Three good images of classes a and b, and four broken ones among them."""
        for name, colour in (("a/3.png", RED), ("b/2.png", GREEN), ("b/4.png", BLUE)):
            save(tmp_path / name, colour)
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
        for kind in ("png", "jpeg"):
            stream = io.BytesIO()
            noise.save(stream, kind)
            (tmp_path / f"a/2-torn.{kind}").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
        (tmp_path / "a/1-text.png").write_text("not an image")
        (tmp_path / "b/3-empty.png").touch()
        return tmp_path

    def test_they_are_refused(self, damaged: Path) -> None:
        with pytest.raises(
            DataError, match=r"cannot read image .*1-text\.png \(.*\); remove it, or set data\.on_broken"
        ) as r:
            read_folder(damaged, RGB)
        assert "\n" not in str(r.value)
        (damaged / "a/1-text.png").unlink()
        with pytest.raises(DataError, match=r"2-torn\.jpeg \(image file is truncated"):
            read_folder(damaged, RGB)

    def test_they_are_left_out_with_one_warning(self, damaged: Path) -> None:
        with pytest.warns(UserWarning, match=r"skipped 4 of 7 images that cannot be read; the first is .*1-text") as w:
            data = read_folder(damaged, ImageFormat(3, skip_broken=True))
        assert len(w) == 1
        assert colours(data) == [list(RED), list(GREEN), list(BLUE)]
        assert data.labels is not None
        assert data.labels.tolist() == [0, 1, 1]

    def test_nothing_but_broken_files(self, tmp_path: Path) -> None:
        for name in ("x.png", "y.png"):
            (tmp_path / name).write_text("not an image")
        with pytest.raises(DataError, match=r"cannot read any of the 2 images; the first is .*x\.png"):
            read_folder(tmp_path, ImageFormat(3, skip_broken=True))

    def test_good_files_give_no_warning(self, classes: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read_folder(classes, ImageFormat(3, skip_broken=True))

    def test_files_that_need_foreign_programs_are_not_opened(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\n%%EOF\n")
        with pytest.raises(DataError, match="cannot identify image file"):
            read_folder(tmp_path, RGB)


def test_reading_files_loads_no_heavy_library() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import cepdiff.data.images.files; "
        "print([name for name in ('PIL', 'datasets', 'tqdm') if name in sys.modules and name not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
