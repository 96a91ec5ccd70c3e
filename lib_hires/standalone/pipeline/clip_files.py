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
ENCODER = "libx264"
BT709, LIMITED = 1, 1  # H.264's numbers of the colour space of HD video, and of values 16 to 235


def check_format(name: str) -> None:
    """Raises SettingsError where files of this format cannot be written here."""
    if name != "mp4":
        return
    av = _av("clip_format: MP4 files need PyAV")
    try:
        av.codec.Codec(ENCODER, "w")
    except ValueError as error:
        raise SettingsError(f"clip_format: this PyAV cannot write MP4 files: {error}") from error


def save_clip(frames: Sequence[Image.Image], path: Path, text: str, fps: float) -> None:
    """Write frames, RGB and of one size, in the format of the path's suffix, with `text` in it.

    Raises OSError where they cannot be written.
    """
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
    """H.264 of even sides, in BT.709, which the file says, so that players of any size keep it."""
    av = _av("clip_format: MP4 files need PyAV")
    try:
        _encode(av, frames, path, text, fps)
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise OSError(error.errno, f"PyAV: {error.strerror}", str(path)) from error


def _encode(av: Any, frames: Sequence[Image.Image], path: Path, text: str, fps: float) -> None:
    # The index stands first, so that a player need not have the whole file.
    name = str(path.absolute())  # a relative one with a colon names a protocol
    with av.open(name, "w", format="mp4", options={"movflags": "+faststart"}) as file:
        file.metadata[COMMENT] = text
        stream = file.add_stream(ENCODER, Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.options = "yuv420p", MP4_OPTIONS
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        for frame in frames:
            pixels = av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")
            converted = pixels.reformat(format="yuv420p", dst_colorspace="ITU709")
            file.mux(stream.encode(converted))
        file.mux(stream.encode(None))


def _read_mp4(path: Path) -> str:
    av = _av(f"--from: reading the settings of {path} needs PyAV")
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with av.open(str(path.absolute()), format="mp4") as file:
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
