"""Images as the hosts' API gives and takes them."""

from __future__ import annotations

import base64
import io

from PIL import ImageChops, ImageStat


def distance(one, other) -> int:
    """The largest difference of two images' values, of 255."""
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def mean_distance(one, other) -> float:
    return max(ImageStat.Stat(ImageChops.difference(one, other)).mean)


def encoded(image) -> str:
    """As the API takes it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
