"""Sizes for a model: rounding, the native size at any aspect ratio, and how they are shown."""

from __future__ import annotations

import math

Size = tuple[int, int]  # (height, width)

SMALLEST_SCALE = 1.15  # of the sides, above native, at which Upsample Guidance begins


def snap(length: float, multiple: int) -> int:
    """The nearest positive whole multiple of `multiple`."""
    return max(1, math.floor(length / multiple + 0.5)) * multiple


def size_of_area(area: float, aspect: float, multiple: int = 1) -> Size:
    """Height and width of about `area` at `aspect` = height / width (AP-LDM, algorithm 1).

    The paper rounds up to a whole number; a `multiple` above 1 rounds that to the nearest multiple.
    """
    height = math.ceil(round(math.sqrt(area * aspect), 6))
    width = math.ceil(round(math.sqrt(area / aspect), 6))
    return snap(height, multiple), snap(width, multiple)


def native_size(target: Size, native: Size, multiple: int = 1) -> Size:
    """The size of the native area at the target's aspect (AP-LDM, algorithm 1, lines 5 to 7)."""
    return size_of_area(native[0] * native[1], target[0] / target[1], multiple)


def not_above(size: Size, native: Size) -> str:
    """The message of every host where there is nothing to guide."""
    return (
        f"{size[1]}x{size[0]} is not clearly above the model's native {native[1]}x{native[0]} "
        f"(sides {SMALLEST_SCALE:g} times as long)"
    )


def why_unguided(size: Size, native: Size, scale: float = 0) -> str:
    """Why Upsample Guidance has nothing to do at `size`, where `small_size` gives none.

    scale: as `small_size` takes it.
    """
    if scale and small_size(size, native) is not None:
        return (
            f"at a scale of {scale:g} the native evaluation is about as large as the image; give "
            "more, or 0 to find it from the native size"
        )
    return not_above(size, native)


def small_size(large: Size, native: Size, scale: float = 0, multiple: int = 1) -> Size | None:
    """The size of the native evaluation of an image of size `large`.

    scale: how many times smaller; 0 finds the native size of the same aspect. Returns None where
    the image is not clearly above the native size (SMALLEST_SCALE), so that there is nothing to
    guide; at scales that close to 1, U would amplify what it upsamples.
    """
    if math.sqrt(math.prod(large) / math.prod(native)) < SMALLEST_SCALE:
        return None
    if scale:
        small = snap(large[0] / scale, multiple), snap(large[1] / scale, multiple)
    else:
        small = native_size(large, native, multiple)
    small = min(small[0], large[0]), min(small[1], large[1])
    return None if small == large else small


def small_frames(frames: int, native: int, scale: int = 0) -> int:
    """The number of frames of the native evaluation of a clip.

    scale: how many frames share one; 0 finds the motion module's native number, where the clip is
    clearly above it (SMALLEST_SCALE), as `small_size` does for sides.
    """
    if scale:
        return snap(frames / scale, 1)
    return native if frames >= SMALLEST_SCALE * native else frames


def shown(size: Size) -> str:
    """(height, width) as users write it."""
    return f"{size[1]}x{size[0]}"


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
