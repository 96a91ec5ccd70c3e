"""What a command line asks for, decided once, without a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_hires.detail import Detail
from lib_hires.settings import SettingsError
from lib_hires.standalone import bundled
from lib_hires.standalone.cli import _parser
from lib_hires.standalone.cli.generate import Job, resolve
from lib_hires.standalone.pipeline.outputs import save


def job(*words: str) -> Job:
    return resolve(_parser().parse_args(["generate", *words]))


def made(path: Path, **values: Any) -> str:
    about: dict[str, Any] = {"model": "tiny", "request": {"prompt": "x", "seed": 7, "batch": 3}}
    about |= {"settings": {"ug": True, "ug_theta": 0.5}, "dtype": "bfloat16", "image": 2}
    save(Image.new("RGB", (8, 8)), path, about | values)
    return str(path)


def test_defaults() -> None:
    plain = job("a house")
    assert (plain.request.prompt, plain.dtype, plain.device) == ("a house", "float32", "cpu")
    assert (plain.model, plain.purpose, plain.prompts, plain.source) == (None, None, None, None)
    assert plain.overrides == {} and plain.named == frozenset() and plain.out == Path("pictures")


def test_options_go_before_the_preset() -> None:
    chosen = job("x", "--preset", "2x, UG alone", "--ug-theta", "0.5", "--refine-tile", "256")
    assert chosen.settings.ug.enabled and chosen.settings.ug.theta == 0.5
    assert chosen.named == {"ug_theta", "refine_tile"} and chosen.purpose == "2x, UG alone"


def test_options_go_before_an_image(tmp_path: Path) -> None:
    image = made(tmp_path / "a.png", prediction="v", zero_snr=True)
    again = job("--from", image)
    assert (again.request.seed, again.request.batch, again.settings.ug.theta) == (7, 3, 0.5)
    assert again.dtype == "bfloat16" and again.overrides == {"prediction": "v", "zero_snr": True}
    assert again.source is not None and (again.source.model, again.source.only) == ("tiny", 2)
    other = job("--from", image, "--seed", "9", "--dtype", "float32", "--no-zero-snr")
    assert (other.request.seed, other.dtype) == (9, "float32")
    assert other.overrides == {"prediction": "v", "zero_snr": False}
    assert other.source is not None and other.source.only is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dtype": "int8"}, "--from: expected a dtype of float32"),
        ({"image": 5}, "states that it is image 5 of its batch"),
        ({"prediction": "x0"}, "--from: prediction: expected one of"),
        ({"settings": {"ug_theta": "much"}}, "ug_theta: expected"),
    ],
)
def test_an_image_with_other_values_is_refused(values, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        job("--from", made(tmp_path / "a.png", **values))


@pytest.mark.parametrize(
    "option",
    [
        ["--fps", "12"],
        ["--context", "8"],
        ["--keep-frames"],
        ["--clip-format", "mp4"],
        ["--clip-noise", "own"],
    ],
)
def test_what_is_for_clips_is_refused_of_an_image(option: list[str]) -> None:
    with pytest.raises(SettingsError, match=f"{option[0]}: is for clips; give --frames or"):
        job("x", *option)
    assert job("x", "--frames", "8", *option).motion == bundled.MOTION


def test_what_cannot_stand_together_is_refused(tmp_path: Path) -> None:
    image = made(tmp_path / "a.png")
    for words, message in (
        ((), "prompt: expected one"),
        (("--from", image, "--preset", "2x, UG alone"), "--preset: expected no --from"),
        (("--from", image, "--prompts", "p.txt"), "neither a prompt nor --from"),
        (("x", "--prompts", "p.txt"), "neither a prompt nor --from"),
    ):
        with pytest.raises(SettingsError, match=message):
            job(*words)


def test_techniques_of_detail_are_named_and_repeated(tmp_path: Path) -> None:
    assert job("x").detail == Detail()
    assert job("x", "--detail", "sharper=0.1", "--detail", "mixing=on").detail == Detail(
        sharper=0.1, mixing=True
    )
    image = made(tmp_path / "a.png", detail={"sharper": 0.1})
    assert job("--from", image, "--detail", "sharpen=1").detail == Detail(sharper=0.1, sharpen=1)
    for words, message in (
        (["--detail", "sharpr=1"], "sharpr: .* did you mean sharpe"),
        (["--detail", "mixing"], "--detail: expected NAME=VALUE, got 'mixing'"),
        (["--detail", "sharper=2"], "sharper: expected a number from -0.5 to 0.5, got '2'"),
    ):
        with pytest.raises(SettingsError, match=message):
            job("x", *words)
    with pytest.raises(SettingsError, match="--detail: expected no --prompts beside it"):
        job("--prompts", "a.txt", "--detail", "mixing=on")


def test_nothing_heavy_is_imported_to_resolve() -> None:
    code = (
        "import sys; from lib_hires.standalone.cli import _parser;"
        "from lib_hires.standalone.cli.generate import resolve;"
        "resolve(_parser().parse_args(['generate', 'x', '--zero-snr', '--prediction', 'v']));"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
