"""Clips as MP4: what players and editors of videos read, and the settings in it."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import write_folder
from tiny_motion import write_adapter

from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.cli import main
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.motion import with_motion
from lib_hires.standalone.pipeline import clip_files
from lib_hires.standalone.pipeline.clip_files import read_text, save_clip
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.outputs import next_number, read_run
from lib_hires.standalone.pipeline.request import Request


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return write_folder(folder / "image", "sd1", "eps"), write_adapter(folder / "motion")


@pytest.fixture
def av():
    return pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[video]'")


@pytest.fixture
def without_av(monkeypatch):
    real = builtins.__import__

    def imported(name, *args, **kwargs):
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'", name="av")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", imported)


def ramps(count=6, size=(48, 32)):
    """Frames whose grey rises from left to right and from frame to frame."""
    row = np.linspace(0, 150, size[0])
    return [
        Image.fromarray(np.uint8(row + 15 * k).repeat(3).reshape(1, -1, 3).repeat(size[1], 0))
        for k in range(count)
    ]


def read_back(av, path):
    """(frames (f, h, w, 3), frames a second, the codec's name)"""
    with av.open(str(path)) as file:
        (stream,) = file.streams
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
        return np.stack(frames), float(stream.average_rate), stream.codec_context.name


@pytest.mark.parametrize("size", [(64, 48), (1024, 768)])
def test_an_mp4_keeps_colours_and_says_in_which_space(av, tmp_path, size):
    """Players take a large one without tags for BT.709, a small one for BT.601."""
    colours = (200, 30, 30), (20, 160, 60), (40, 60, 200)
    save_clip([Image.new("RGB", size, colour) for colour in colours], tmp_path / "a.mp4", "", 8)
    with av.open(str(tmp_path / "a.mp4")) as file:
        context = file.streams.video[0].codec_context
        tags = context.colorspace, context.color_primaries, context.color_trc, context.color_range
        frames = [
            frame.reformat(format="rgb24", src_colorspace="ITU709") for frame in file.decode()
        ]
    assert tags == (1, 1, 1, 1)
    means = [frame.to_ndarray().mean((0, 1)) for frame in frames]
    assert np.abs(np.stack(means) - colours).max() < 4


def test_what_cannot_be_written_is_an_error_of_the_disk_or_said_before(av, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_clip(ramps(), Path("run:1.mp4"), "text", 8)  # a colon names no protocol
    assert read_text(Path("run:1.mp4")) == "text"
    with pytest.raises(OSError, match="PyAV"):
        save_clip([Image.new("RGB", (47, 32))] * 2, tmp_path / "odd.mp4", "", 8)
    assert [file.name for file in tmp_path.iterdir()] == ["run:1.mp4"]
    monkeypatch.setattr(clip_files, "ENCODER", "no-such")
    with pytest.raises(SettingsError, match="this PyAV cannot write MP4 files"):
        clip_files.check_format("mp4")


@pytest.mark.parametrize("fps", [8, 12.5, 29.97])
def test_an_mp4_holds_the_frames_their_rate_and_the_text(av, tmp_path, fps):
    path, text = tmp_path / "a.mp4", '{"prompt": "a ré∂ house", "long": "' + "x" * 70000 + '"}'
    save_clip(ramps(), path, text, fps)
    frames, rate, codec = read_back(av, path)
    wanted = np.stack([np.asarray(frame) for frame in ramps()])
    assert frames.shape == wanted.shape
    assert np.abs(frames.astype(float) - wanted).mean() < 3
    assert rate == pytest.approx(fps, rel=1e-3) and codec == "h264"
    assert read_text(path) == text
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_the_command_makes_an_mp4_and_repeats_it(av, files, tmp_path, capsys):
    wanted = ["--model", str(files[0]), "--motion", str(files[1]), "--out", str(tmp_path)]
    options = ["--frames", "6", "--steps", "2", "--width", "32", "--clip-format", "mp4"]
    assert main(["generate", "red", *wanted, *options, "--keep-frames"]) == 0
    path = capsys.readouterr().out.strip()
    assert path.endswith("00001-0.mp4")
    frames, rate, _ = read_back(av, path)
    assert frames.shape == (6, 32, 32, 3) and rate == 8
    singles = sorted(tmp_path.glob("00001-0-frame-*.png"))
    exact = np.stack([np.asarray(Image.open(single)) for single in singles])
    grey = (frames.astype(float) - exact) @ np.array([0.299, 0.587, 0.114])  # colours are halved
    assert len(singles) == 6 and np.abs(grey).mean() < 8
    assert main(["generate", "--from", path, *wanted]) == 0
    again = capsys.readouterr().out.strip()
    assert again.endswith("00002-0.mp4")
    assert np.array_equal(read_back(av, again)[0], frames)


def test_without_pyav_nothing_begins(without_av, files, tmp_path):
    model = with_motion(load_model(files[0]), files[1])
    with pytest.raises(SettingsError, match=r"MP4 files need PyAV; install it with pip"):
        Run(model, Request(prompt="red", frames=4, clip_format="mp4"), Settings())
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(SettingsError, match=r"needs PyAV; install it with pip"):
        read_run(tmp_path / "a.mp4")


def test_an_mp4_that_is_none_of_ours(av, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    save_clip(ramps(), tmp_path / "b.mp4", "of others", 8)
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(SettingsError, match="holds no settings of ours"):
            read_run(tmp_path / name)
    with pytest.raises(SettingsError, match="no file"):
        read_run(tmp_path / "none.mp4")


def test_numbers_go_on_behind_clips(tmp_path):
    for name in ("00003-1.mp4", "00002-1.webp", "00001-1.png"):
        (tmp_path / name).touch()
    assert next_number(tmp_path) == 4
