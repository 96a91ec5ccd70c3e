"""Images on disk, each with the settings that repeat it in its PNG text."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin
from torch import Tensor

from lib_hires.files import whole_file
from lib_hires.settings import SettingsError

KEY = "hires-guidance"


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] to an 8-bit RGB image."""
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()))


def save(image: Image.Image, path: Path, about: dict[str, Any]) -> None:
    """Write a PNG with `about` as JSON in its text, replacing an older file only when complete."""
    text = PngImagePlugin.PngInfo()
    text.add_text(KEY, json.dumps(about))
    with whole_file(path) as partial:
        image.save(partial, format="PNG", pnginfo=text)


def read_about(path: Path) -> dict[str, Any]:
    """What `save` wrote. Raises SettingsError where there is no such file or nothing in it.

    The text may lie anywhere that PNG allows, as other programs move it. Pixels are decoded only
    to find it behind them, and without Pillow's limit for those.
    """
    try:
        with PngImagePlugin.PngImageFile(path) as image:
            if KEY not in image.info:
                image.load()
            about = json.loads(image.info[KEY])
            if isinstance(about, dict):
                return about
    except FileNotFoundError:
        raise SettingsError(f"--from: there is no file {path}") from None
    except SyntaxError:  # as Pillow says that it is none
        raise SettingsError(f"--from: {path} is not a PNG image") from None
    except (KeyError, OSError, TypeError, ValueError, RecursionError, MemoryError, EOFError):
        pass
    raise SettingsError(f"--from: {path} holds no settings of ours")


def read_run(path: Path) -> dict[str, Any]:
    """What `save` wrote of a `Run`. Raises SettingsError also where it does not say all of that.

    The request's and the settings' values are left to those who build them.
    """
    about = read_about(path)
    whole = (
        isinstance(about.get("model"), str)
        and isinstance(about.get("request"), dict)
        and isinstance(about.get("settings"), dict)
    )
    if not whole:
        raise SettingsError(f"--from: {path} does not say how it was made")
    return about


def writable_folder(path: Path) -> Path:
    """Make the folder, or raise SettingsError where nothing can be written into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # one of this process alone
            pass
    except OSError as error:
        raise SettingsError(f"--out: cannot write into {path}: {error.strerror}") from None
    return path


def next_number(folder: Path) -> int:
    """One more than the largest number with which a name like 00007-1.png in the folder starts."""
    starts = (re.match(r"([0-9]{5,12})-", file.name) for file in folder.glob("*.png"))
    return max((int(start[1]) for start in starts if start), default=0) + 1
