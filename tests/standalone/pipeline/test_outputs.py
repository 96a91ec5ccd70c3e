"""Images on disk: what they state of themselves, and messages for those of others."""

from __future__ import annotations

import json
import warnings
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin

from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.models import load_model
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.outputs import (
    KEY,
    next_number,
    read_about,
    read_run,
    save,
    what_happened,
)
from lib_hires.standalone.pipeline.request import Request

RUN: dict[str, Any] = {"model": "ours", "request": {}, "settings": {}}


def written(path: Path, text: str, size: tuple[int, int] = (8, 8)) -> Path:
    info = PngImagePlugin.PngInfo()
    info.add_text(KEY, text)
    Image.new("1", size).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None},
        {"request": []},
        {"settings": "ug"},
    ],
)
def test_an_image_of_something_else_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    save(Image.new("RGB", (8, 8)), tmp_path / "ours.png", RUN)
    assert read_run(tmp_path / "ours.png") == RUN
    path = written(tmp_path / "other.png", json.dumps(RUN | changes))
    with pytest.raises(
        SettingsError, match=r"^--from: .*other.png does not state how it was made$"
    ):
        read_run(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", "9" * 10_000])
def test_text_that_is_not_ours_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holds no settings of ours"):
        read_about(written(tmp_path / "image.png", text))


def test_an_image_above_pillow_s_limit_still_states_how_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "large.png", json.dumps(RUN), (64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_run(path) == RUN


def test_numbers_go_on_from_the_largest_whatever_else_is_there(tmp_path: Path) -> None:
    for name in ("00007-1.png", "\u00b2" * 5 + ".png", "\u0669" * 5 + ".png", "x.png"):
        (tmp_path / name).touch()
    assert next_number(tmp_path) == 8


def chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + kind + content + check


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iTXt compressed"])
def test_settings_are_found_wherever_png_allows(kind: str, after: bool, tmp_path: Path) -> None:
    text, key = json.dumps(RUN).encode(), KEY.encode() + b"\0"
    content = {
        "tEXt": key + text,
        "zTXt": key + b"\0" + zlib.compress(text),
        "iTXt": key + b"\0\0\0\0" + text,
        "iTXt compressed": key + b"\1\0\0\0" + zlib.compress(text),
    }[kind]
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(path)
    plain = path.read_bytes()
    place = plain.index(b"IEND" if after else b"IDAT") - 4
    path.write_bytes(plain[:place] + chunk(kind[:4].encode(), content) + plain[place:])
    assert read_run(path) == RUN


def test_numbers_go_on_beyond_five_digits(tmp_path: Path) -> None:
    for name in ("99999-1.png", "100000-2-stage-0.png", "0123456789abcdef-3.png"):
        (tmp_path / name).touch()
    assert next_number(tmp_path) == 100001


@pytest.mark.parametrize(
    ("part", "name", "stated"),
    [
        ("unet", "conv_in.weight", "U-Net, conv_in.weight"),
        ("vae", "decoder.conv_out.bias", "VAE, decoder.conv_out.bias"),
    ],
)
def test_damaged_weights_are_named(part: str, name: str, stated: str, tiny_folder: Path) -> None:
    """As in files whose merging went wrong: nothing but the image shows it."""
    model = load_model(tiny_folder)
    run = Run(model, Request(prompt="x", steps=1), Settings())
    weight = dict(getattr(model, part).named_parameters())[name]
    weight.data.flatten()[0] = float("nan")
    with pytest.raises(FloatingPointError) as caught:
        list(run.generate())
    message = what_happened(caught.value, run, 0)
    assert message.endswith(f": the model's weights are damaged ({stated}); download it again")


def test_what_a_dtype_cannot_hold_is_no_damage(tiny_folder: Path) -> None:
    model = load_model(tiny_folder, dtype=torch.float16)
    model.unet.conv_in.weight.data.flatten()[0] = float("inf")
    run = Run(model, Request(prompt="x", steps=1), Settings())
    assert what_happened(FloatingPointError("a"), run, 0) == "a: try --dtype float32"
    whole = Run(load_model(tiny_folder), Request(prompt="x", steps=1), Settings())
    assert what_happened(FloatingPointError("a"), whole, 0).startswith("a: lower --cfg")
