"""Clips as MP4: what players and editors of videos read, and the settings in it."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
from PIL import Image
from tiny_models import write_folder
from tiny_motion import write_adapter

from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.cli import main
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.motion import with_motion
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


def test_an_odd_side_loses_a_pixel(av, tmp_path):
    save_clip(ramps(size=(49, 33)), tmp_path / "a.mp4", "", 8)
    assert read_back(av, tmp_path / "a.mp4")[0].shape[1:3] == (32, 48)


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
