"""Images and captions that users bring: read in one place, and refused by name.

Whoever reads many asks for `image_size` and `read_caption` of each at the start, so that nothing
fails hours later. `option` is the one that named the files; messages begin with it.
"""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lib_hires.settings import SettingsError
from lib_hires.sizes import Size

IMAGES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff")
ORIENTATION = 0x0112  # in EXIF; from 5 on width and height are exchanged


def images_in(folder: Path, option: str) -> list[Path]:
    """The images of a folder by their names' endings. Raises SettingsError for no folder.

    Hidden files are left out: macOS writes a `._NAME` beside each file on other systems' disks.
    """
    if not folder.is_dir():
        raise SettingsError(f"{option}: there is no folder {folder}")
    files = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in files if path.suffix.lower() in IMAGES)


def image_size(path: Path, option: str) -> Size:
    """(height, width) of an upright image, after all of it was decoded once.

    Raises SettingsError for what `read_image` could not read.
    """
    with _opened(path, option) as image:
        width, height = image.size
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        image.draft(None, (1, 1))  # a JPEG is decoded whole all the same, and faster
        image.load()
    return (width, height) if turned else (height, width)


def read_image(path: Path, option: str) -> Image.Image:
    """An upright RGB image. Raises SettingsError where it is damaged or too large for Pillow."""
    with _opened(path, option) as image:
        return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of 8 bits, on white where it is transparent: what lies beneath was never seen.

    Grey of 16 bits keeps its tones, which Pillow itself would clip at 255.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", None)):
        values = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_caption(path: Path, option: str) -> str:
    """An image's caption. Raises SettingsError as `read_text` does."""
    return read_text(path, option).strip()


def read_text(path: Path, option: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its mark, lines ending in `\\n`.

    Raises SettingsError for another encoding, and for what is no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{option}: {path} cannot be read ({error.strerror})") from None
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{option}: {path} is not UTF-8 text (byte {error.start + 1}); save it as UTF-8"
        ) from None
    if "\0" in text:
        raise SettingsError(f"{option}: {path} is not text (it has zeros); save it as UTF-8 text")
    return text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def _opened(path: Path, option: str) -> Iterator[Image.Image]:
    """An image that is open; errors of Pillow inside the block become SettingsError."""
    try:
        with warnings.catch_warnings():
            # Between its limit and twice that, Pillow reads and warns.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise SettingsError(
            f"{option}: {path} has more than {most} million pixels; make it smaller"
        ) from None
    except Exception as error:  # Pillow's plugins raise whatever they meet
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SettingsError(
            f"{option}: {path} is not an image that can be read ({text.splitlines()[0]})"
        ) from None
