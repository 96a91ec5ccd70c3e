"""Clips on disk, each with the settings that repeat it: animated WebP, or MP4.

WebP needs no further package, loops by itself, and browsers play it. MP4 is for players and editors
of videos; it is written by PyAV, because its wheel carries the encoder as a library that reads and
writes metadata too, where imageio-ffmpeg starts a program.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib_hires.files import whole_file
from lib_hires.settings import SettingsError

SUFFIXES = ".webp", ".mp4"
WEBP_QUALITY = 90  # at 100 files are three times as large
MP4_OPTIONS = {"crf": "16", "preset": "medium"}  # 0 is lossless, 23 the encoder's default
DESCRIPTION = 0x010E  # EXIF's tag for text about an image
COMMENT = "comment"  # MP4's


def check_format(name: str) -> None:
    """Raises SettingsError where files of this format cannot be written here."""
    if name == "mp4":
        _av("clip_format: MP4 files need PyAV")


def save_clip(frames: Sequence[Image.Image], path: Path, text: str, fps: float) -> None:
    """Write frames, RGB and of one size, in the format of the path's suffix, with `text` in it."""
    with whole_file(path) as partial:
        if path.suffix.lower() == ".mp4":
            _write_mp4(frames, partial, text, fps)
        else:
            _write_webp(frames, partial, text, fps)


def read_text(path: Path) -> str:
    """What `save_clip` wrote. Raises KeyError or ValueError where it is no such file, OSError, and
    SettingsError where MP4 cannot be read here."""
    if path.suffix.lower() == ".mp4":
        return _read_mp4(path)
    with Image.open(path, formats=["WEBP"]) as image:
        return str(image.getexif()[DESCRIPTION])


def _write_webp(frames: Sequence[Image.Image], path: Path, text: str, fps: float) -> None:
    """It loops for ever; a frame lasts whole milliseconds."""
    exif = Image.Exif()
    exif[DESCRIPTION] = text
    frames[0].save(
        path, format="WEBP", save_all=True, append_images=frames[1:], quality=WEBP_QUALITY,
        method=4, duration=round(1000 / fps), loop=0, exif=exif,
    )  # fmt: skip


def _write_mp4(frames: Sequence[Image.Image], path: Path, text: str, fps: float) -> None:
    """H.264; an odd side, which it does not take, loses a pixel."""
    av = _av("clip_format: MP4 files need PyAV")
    width, height = (side // 2 * 2 for side in frames[0].size)
    # The index stands first, so that a player need not have the whole file.
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as file:
        file.metadata[COMMENT] = text
        stream = file.add_stream("libx264", Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = MP4_OPTIONS
        for frame in frames:
            pixels = np.asarray(frame.crop((0, 0, width, height)))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))


def _read_mp4(path: Path) -> str:
    av = _av(f"--from: reading the settings of {path} needs PyAV")
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with av.open(str(path), format="mp4") as file:
            return str(file.metadata[COMMENT])
    except av.FFmpegError as error:
        raise ValueError(f"{path} is no MP4 file, or a damaged one") from error


def _av(what: str) -> Any:
    """PyAV. Raises SettingsError, which begins with `what` needs it."""
    try:
        import av
    except ModuleNotFoundError:
        raise SettingsError(f"{what}; install it with pip install -e '.[video]'") from None
    return av
