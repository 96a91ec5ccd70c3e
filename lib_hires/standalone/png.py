"""Pictures on disk, each with the settings that repeat it in its PNG text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from lib_hires.settings import SettingsError

KEY = "hires-guidance"


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] to an 8-bit RGB picture."""
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()))


def save(picture: Image.Image, path: Path, about: dict[str, Any]) -> None:
    """Write a PNG with `about` as JSON in its text, replacing an older file only when complete."""
    text = PngImagePlugin.PngInfo()
    text.add_text(KEY, json.dumps(about))
    unfinished = path.with_name(f".{path.name}.part")
    picture.save(unfinished, format="PNG", pnginfo=text)
    unfinished.replace(path)


def read_about(path: Path) -> dict[str, Any]:
    """What `save` wrote. Raises SettingsError where there is no such file or nothing in it."""
    try:
        with Image.open(path) as picture:
            about = json.loads(picture.info[KEY])
            if isinstance(about, dict):
                return about
    except FileNotFoundError:
        raise SettingsError(f"--from: there is no file {path}") from None
    except UnidentifiedImageError:
        raise SettingsError(f"--from: {path} is not a picture") from None
    except (KeyError, OSError, ValueError):
        pass
    raise SettingsError(f"--from: {path} holds no settings of ours")


def writable_folder(path: Path) -> Path:
    """Make the folder, or raise SettingsError where nothing can be written into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".hires-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SettingsError(f"--out: cannot write into {path}: {error.strerror}") from None
    return path


def next_number(folder: Path) -> int:
    """One more than the largest number that a picture's name in the folder starts with."""
    numbers = [int(file.name[:5]) for file in folder.glob("*.png") if file.name[:5].isdigit()]
    return max(numbers, default=0) + 1
