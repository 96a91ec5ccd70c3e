"""The command line: messages for bad input, images that are never lost, exact repeats."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib_hires.presets import PURPOSES, preset_for
from lib_hires.standalone.cli import main
from lib_hires.standalone.pipeline.generate import Generation
from lib_hires.standalone.pipeline.outputs import read_about
from lib_hires.standalone.pipeline.request import Request, fitted


@pytest.fixture
def hires(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run `hires generate` on the tiny model; returns (exit code, stdout, the last message)."""

    def run(*options: str) -> tuple[int, str, str]:
        common = ["--model", str(tiny_folder), "--out", str(tmp_path / "out"), "--steps", "4"]
        code = main(["generate", *common, *options])
        captured = capsys.readouterr()
        messages = [line for line in captured.err.splitlines() if "hires: " in line]
        return code, captured.out, messages[-1].split("hires: ")[1] if messages else ""

    return run


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_help_is_there_at_once() -> None:
    code = "import lib_hires.standalone.cli, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampler", "Eular"], "sampler: expected one of Euler, Euler a"),
        (["--refine", "--refine-eta2", "0.1, x"], "refine_eta2: expected numbers in (0, 1]"),
        (["--ug", "--ug-theta", "3"], "ug_theta: expected a number from 0 to 2, got '3'"),
        (["--ug"], "ug: 16x16 is not clearly above the model's native 16x16"),
        (["--refine", "--refine-width", "32"], "refine_width: expected a whole number from 64"),
        (
            ["--width", "4"],
            "width: expected a whole number from 8 to 16384 (0: automatic), got '4'",
        ),
        (["--model", "/nowhere.safetensors"], "/nowhere.safetensors: no such model"),
        (["--from", "/nowhere.png"], "--from: there is no file /nowhere.png"),
        (["--from", __file__], f"--from: {__file__} is not a PNG image"),
        (["--refine-upsampler", "ug"], "refine_upsampler: expected the name of a feature upsam"),
        (["--device", "no-such-device"], "device 'no-such-device': cannot be used here"),
    ],
)
def test_bad_input_is_refused_with_a_message(hires, tmp_path, options, message) -> None:
    code, out, shown = hires("x", *options)
    assert code == 2
    assert out == ""
    assert shown.startswith(message)
    assert list(tmp_path.glob("out/*.png")) == []


def test_a_prompt_in_the_place_of_a_file_is_refused_with_a_message(hires) -> None:
    """argparse takes --prompt for --prompts, and no file has so long a name."""
    code, _, shown = hires("--prompt", "a red house " * 40)
    assert code == 2 and shown.startswith("a red house")
    assert "File name too long" in shown


def test_a_prompt_or_an_image_is_needed(hires) -> None:
    assert hires()[::2] == (2, "prompt: expected one, or an image to repeat with --from")


def test_an_image_of_another_model_is_not_repeated_with_the_bundled_one(hires, tiny_folder):
    _, out, _ = hires("a red house")
    from lib_hires.standalone import cli

    if not cli.main(["generate", "--from", out.strip(), "--out", str(Path(out.strip()).parent)]):
        pytest.fail("repeated with another model")


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_preset_reaches_its_size(hires, purpose: str) -> None:
    code, out, message = hires("x", "--preset", purpose.upper(), "--pfsa-gamma", "0.1")
    assert (code, message) == (0, "")
    side = 16 * (4 if purpose.startswith("4x") else 2)
    assert pixels(out.strip()).shape == (side, side, 3)
    settings = read_about(Path(out.strip()))["settings"]
    expected = preset_for(purpose).settings().updated({"pfsa_gamma": 0.1}).changed()
    assert settings == expected


def test_what_is_given_goes_before_the_preset(hires) -> None:
    _, out, _ = hires("x", "--preset", "2x, UG alone", "--width", "48", "--height", "16")
    assert pixels(out.strip()).shape == (16, 48, 3)
    wide = ("--refine-width", "128", "--refine-height", "64")
    _, out, message = hires("x", "--preset", "2x, refinement with UG", *wide)
    assert message == ""
    assert pixels(out.strip()).shape == (64, 128, 3)
    _, out, _ = hires("x", "--preset", "2x, refinement with UG", "--refine-eta2", "1", "--no-ug")
    assert read_about(Path(out.strip()))["settings"] == {
        "refine": True,
        "refine_eta2": "1.0",
        "refine_steps": 6,
    }


def test_presets_that_do_not_fit_are_refused(hires) -> None:
    for unknown in ("3x", ""):
        code, out, message = hires("x", "--preset", unknown)
        assert (code, out) == (2, "")
        assert message.startswith('--preset: expected one of "2x, refinement with UG", ')
    _, out, _ = hires("x")
    code, _, message = hires("--preset", PURPOSES[0], "--from", out.strip())
    assert (code, message) == (2, "--preset: expected no --from beside it")


def test_large_images_of_a_preset_are_decoded_in_tiles() -> None:
    settings = preset_for("4x, refinement with UG").settings()
    for native, tile in ((512, 0), (1024, 2048)):
        purpose, sizes = "4x, refinement with UG", ((native, native), 64)
        _, made = fitted(purpose, *sizes, Request(), settings, given=())
        assert made.refine.tile == tile
        for own in (0, 256):
            wanted = settings.updated({"refine_tile": own})
            _, made = fitted(purpose, *sizes, Request(), wanted, given={"refine_tile"})
            assert made.refine.tile == own


def test_an_image_that_another_process_writes_meanwhile_is_kept(hires, monkeypatch) -> None:
    """Both have seen the same empty folder."""
    monkeypatch.setattr("lib_hires.standalone.pipeline.outputs.next_number", lambda _: 1)
    _, first, _ = hires("x", "--batch", "2")
    before = [Path(path).read_bytes() for path in first.split()]
    _, second, _ = hires("y", "--batch", "2", "--refine")
    assert [Path(path).name for path in second.split()] == ["00002-0.png", "00003-1.png"]
    assert [Path(path).read_bytes() for path in first.split()] == before


def test_no_empty_file_stays_where_nothing_can_be_written(hires, tmp_path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    code, _, message = hires("x")
    assert (code, message.endswith("No space left on device")) == (2, True)
    assert not list((tmp_path / "out").iterdir())


def test_the_plan_is_shown_before_the_run(hires, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", "--steps", "0"]) == 2
    assert "First pass" not in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        message: list[str] = []
        patch.setattr(sys.stderr, "write", message.append)
        hires("x", "--refine")
    assert message[0].startswith(
        "First pass 16x16 in 4 steps, then stage 1 32x32 in 1 step: 5 model"
    )


def test_what_ran_is_reported_after_the_run(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    options = ["generate", "x", "--model", str(tiny_folder), "--out", str(tmp_path), "--steps", "4"]
    options += ["--refine", "--refine-eta2", "0.5", "--ug"]
    assert main(options) == 0
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Ran: ")]
    seconds = r"first pass in \d+\.\d s, stage 1 in \d+\.\d s"
    assert re.fullmatch(rf"Ran: 2 of 6 steps guided; {seconds}\.", message)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Generation, "denoise_stage", interrupt)
    assert main(options) == 130
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Ran: ")]
    assert re.fullmatch(rf"Ran: 4 steps; {seconds}; stopped in stage 1\.", message)


def test_a_full_disk_is_a_message(hires, monkeypatch) -> None:
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib_hires.standalone.pipeline.outputs.save", fail)
    assert hires("x")[::2] == (
        2,
        "could not write the image of stage 0 (16x16): No space left on device",
    )


def test_an_unwritable_folder_is_refused_before_loading(hires, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    code, _, message = hires("x", "--out", str(tmp_path / "file"))
    assert (code, message.startswith("--out: cannot write into")) == (2, True)


def test_an_image_repeats_exactly_from_its_png(hires) -> None:
    guided = ["--ug", "--refine", "--refine-eta2", "0.5", "--sampler", "DPM++ SDE"]
    guided += ["--dtype", "bfloat16"]
    code, out, _ = hires("a red house", "--batch", "2", "--seed", "3", *guided)
    first, second = out.split()
    assert code == 0
    about = read_about(Path(second))
    assert about["request"]["prompt"] == "a red house"
    assert about["settings"] == {
        "ug": True,
        "ug_eta": 0,
        "ug_cadence": 0,
        "refine": True,
        "refine_eta2": "0.5",
    }
    assert about["dtype"] == "bfloat16"
    code, out, _ = hires("--from", second)
    assert code == 0
    (repeat,) = out.split()
    assert repeat not in (first, second)
    assert np.array_equal(pixels(repeat), pixels(second))
    code, out, _ = hires("--from", second, "--seed", "9", "--batch", "1")
    assert not np.array_equal(pixels(out.strip()), pixels(second))


def test_every_stage_is_kept_where_asked_for(hires) -> None:
    options = ["x", "--refine", "--refine-eta2", "0.5, 0.5"]
    _, plain, _ = hires(*options)
    code, out, _ = hires(*options, "--refine-keep-stages")
    final = Path(out.strip())
    assert code == 0
    kept = sorted(path.name for path in final.parent.glob("00002*"))
    assert kept == ["00002-0-stage-0.png", "00002-0-stage-1.png", "00002-0.png"]
    assert np.array_equal(pixels(final), pixels(plain.strip()))
    assert read_about(final.with_name(kept[0]))["stage"] == 0
    sizes = [pixels(final.with_name(name)).shape for name in kept]
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted in stage 1 (32x32); stage 0 is kept:"),
        (RuntimeError("CUDA out of memory. Tried"), 2, "out of memory in stage 1 (32x32): lower"),
        (RuntimeError("not enough GPU video memory"), 2, "out of memory in stage 1 (32x32): lower"),
        (FloatingPointError("stage 1: not numbers"), 2, "stage 1: not numbers: lower --cfg"),
    ],
)
def test_the_last_finished_stage_survives(hires, monkeypatch, error, code, message) -> None:
    _, plain, _ = hires("a red house")

    def fail(*_):
        raise error

    monkeypatch.setattr(Generation, "denoise_stage", fail)
    got, out, shown = hires("a red house", "--refine")
    assert (got, out) == (code, "")
    assert shown.startswith(message)
    kept = Path(plain.strip()).with_name("00002-0.png")
    assert np.array_equal(pixels(kept), pixels(plain.strip()))
    assert read_about(kept)["stage"] == 0


def test_out_of_memory_in_the_first_image_names_what_to_lower(hires, monkeypatch) -> None:
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(Generation, "first_image", fail)
    code, _, message = hires("x")
    assert (code, "lower --width, --height" in message, "is kept" in message) == (2, True, False)


def test_other_errors_are_not_hidden(hires, monkeypatch) -> None:
    def fail(*_):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(Generation, "first_image", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        hires("x")
