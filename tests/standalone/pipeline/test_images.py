"""Images and captions of users: whole or refused by name, with all their tones."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib_hires.settings import SettingsError
from lib_hires.standalone.pipeline.images import (
    image_size,
    images_in,
    read_caption,
    read_image,
)


def noisy(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp"])
def test_half_a_file_is_found_before_it_is_needed(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"half.{ending}"
    noisy(64, 96).save(path)
    assert image_size(path, "--data") == (64, 96)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in (image_size, read_image):
        with pytest.raises(SettingsError, match=rf"^--data: .*half.{ending} is not an image that"):
            read(path, "--data")


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.png"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"^--data: .*other.png is not an image"):
        image_size(path, "--data")


def test_pillow_s_limit_is_a_message_and_half_of_it_is_silent(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "huge.png"
    Image.new("L", (64, 64)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(path, "--data") == (64, 64)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(SettingsError, match=r"huge.png has more than 0 million pixels"):
        read_image(path, "--data")


def test_grey_of_16_bits_keeps_its_tones(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256 * 16).reshape(16, 256).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    rgb = np.asarray(read_image(tmp_path / "grey.png", "--data"))
    assert rgb.shape == (16, 256, 3)
    assert np.array_equal(rgb[..., 0], np.round(ramp / 257).astype(np.uint8))
    assert rgb.min() == 0 and rgb.max() == 255


def test_ordinary_images_are_read_as_pillow_reads_them(tmp_path: Path) -> None:
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        noisy(8, 8).convert(mode).save(tmp_path / "x.png")
        with Image.open(tmp_path / "x.png") as opened:
            expected = np.asarray(opened.convert("RGB"))
        assert np.array_equal(np.asarray(read_image(tmp_path / "x.png", "")), expected)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    """Its colours, which no one has seen, are whatever a program left there."""
    colours = noisy(2, 4)
    alpha = Image.fromarray(np.array([[0, 255, 51, 255]] * 2, np.uint8))
    for mode in ("RGBA", "LA"):
        image = colours.convert(mode)
        image.putalpha(alpha)
        image.save(tmp_path / "x.png")
        found = np.asarray(read_image(tmp_path / "x.png", ""), np.float64)
        under = np.asarray(colours.convert(mode.removesuffix("A")).convert("RGB"), np.float64)
        assert (found[:, 0] == 255).all()
        assert np.array_equal(found[:, 1::2], under[:, 1::2])
        assert np.abs(found[:, 2] - (0.2 * under[:, 2] + 0.8 * 255)).max() <= 1
    palette = colours.quantize(8)
    palette.save(tmp_path / "x.png", transparency=palette.getpixel((0, 0)))
    assert read_image(tmp_path / "x.png", "").getpixel((0, 0)) == (255, 255, 255)


def test_a_turned_image_is_measured_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noisy(16, 48).save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg", "--data") == (48, 16)
    assert read_image(tmp_path / "turned.jpg", "--data").size == (16, 48)


def test_captions_are_utf_8_or_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffa red höuse\n".encode())
    assert read_caption(path, "--data") == "a red höuse"
    path.write_bytes("a red höuse\r\n".encode("utf-16"))  # with a mark, as editors write it
    assert read_caption(path, "--data") == "a red höuse"
    path.write_bytes("a red höuse".encode("cp1252"))
    with pytest.raises(SettingsError, match=r"^--data: .*a.txt is not UTF-8 text \(byte 8\)"):
        read_caption(path, "--data")
    path.write_bytes("a red house".encode("utf-16-le"))
    with pytest.raises(SettingsError, match=r"^--data: .*a.txt is not text"):
        read_caption(path, "--data")
    with pytest.raises(SettingsError, match=r"none.txt cannot be read \(No such file"):
        read_caption(tmp_path / "none.txt", "--data")


def test_images_are_found_by_their_endings(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.txt", "d.jfif", "._b.PNG", ".e.png"):
        (tmp_path / name).touch()
    assert [path.name for path in images_in(tmp_path, "--data")] == ["a.jpg", "b.PNG", "d.jfif"]
    with pytest.raises(SettingsError, match="--data: there is no folder"):
        images_in(tmp_path / "none", "--data")
