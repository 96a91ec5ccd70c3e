"""Which rows a report has beside its techniques, and the measures of real features of all of them.

The calibration's rows come from true images alone (`calibration`); a technique's `gap_closed` lies
between its model's native images, upsampled, and true images through the VAE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lib_hires.sizes import Size
from lib_hires.standalone.benchmarks.quality.calibration import (
    AGAIN,
    ENLARGED,
    ROWS,
    THROUGH_VAE,
    calibrated,
    closed_share,
    crop_distances,
    enlarged,
    findings,
    through_vae,
)
from lib_hires.standalone.benchmarks.quality.generation import Subject
from lib_hires.standalone.benchmarks.quality.measures import Look, Measurer, looks
from lib_hires.standalone.benchmarks.quality.real_features import (
    Beside,
    CropFeatures,
    Reference,
    crops_at,
    gap_closed,
    within_noise,
)
from lib_hires.standalone.models.efficientnet import CROP, NetworkMissing

NOTHING = dict.fromkeys(
    ("kd_crop", "kd_crop_error", "fd_crop", "fd_crop_error", "gap_closed", "gap_closed_95")
)

Numbered = Iterable[tuple[int | None, Image.Image]]
"""Images with their seeds, where they have prompts."""


class Eye:
    """What looks at the images of a report: its measurer, and a real network where it can."""

    def __init__(self, measurer: Measurer, native: Size, size: Size, device: str = "cpu") -> None:
        """native, size: (height, width) of native images and of those that are measured."""
        self._measurer, self._crop = measurer, min(native)
        self._crops = crops_at(min(size) / min(native))
        self._network: CropFeatures | None = None
        self.notes: list[str] = []
        if min(size) < CROP:
            self.notes.append(
                f"Distances of real features are left out: images of {size[1]}x{size[0]} are "
                f"smaller than the network's crops of {CROP}"
            )
            return
        try:
            self._network = CropFeatures(device)
        except NetworkMissing as missing:
            self.notes.append(f"Distances of real features are left out: {missing}")

    def at(self, images: Numbered, *, native: bool = False) -> list[Look]:
        """Looks at images; the real network sees those alone that are not native."""
        network = None if native else self._network
        return looks(images, self._measurer, self._crop, network, self._crops)


def calibration_looks(
    eye: Eye, measurer: Measurer, subject: Subject, count: int, sizes: tuple[Size, Size]
) -> dict[str, list[Look]]:
    """Looks at the images of each row of the calibration; none where there are too few.

    sizes: (height, width) of native images and of those that are measured.
    """
    (low, narrow), (high, wide) = sizes
    again = eye.at(measurer.other_true_images(count, wide, high))
    if len(again) < 2:
        return {}
    small = measurer.other_true_images(count, narrow, low)
    upsampled = partial(enlarged, width=wide, height=high)
    back = partial(through_vae, model=subject.load())
    return {
        AGAIN: again,
        ENLARGED: eye.at(_changed(small, upsampled)),
        THROUGH_VAE: eye.at(_changed(measurer.other_true_images(count, wide, high), back)),
    }


def native_looks(eye: Eye, measurer: Measurer, count: int, native: Size) -> list[Look]:
    """Looks at the native images of the calibration's scenes."""
    return eye.at(measurer.other_true_images(count, native[1], native[0]), native=True)


def upsampled_natives(eye: Eye, paths: Sequence[Path], size: Size) -> list[Look]:
    """Looks at the model's native images, from their files, upsampled by Lanczos' filter."""

    def images() -> Iterator[tuple[None, Image.Image]]:
        for path in paths:
            with Image.open(path) as image:
                yield None, image.convert("RGB")

    return eye.at(_changed(images(), partial(enlarged, width=size[1], height=size[0])))


def _changed(
    images: Numbered, change: Callable[[list[Image.Image]], Iterator[Image.Image]]
) -> Iterator[tuple[int | None, Image.Image]]:
    for seed, image in images:
        yield seed, next(change([image]))


class Resolution:
    """Distances of real features of a report's rows. All are None where nothing saw the images."""

    def __init__(
        self,
        true: Sequence[Look],
        calibration: Mapping[str, Sequence[Look]],
        upsampled: Sequence[Look],
        apart: slice,
    ) -> None:
        """upsampled: native images of the techniques' seeds. apart: a measurer's."""
        self._rows: dict[str, Beside] = {}
        self._calibration: dict[str, dict[str, Any]] = {}
        self._ceiling: Beside | None = None
        self._reference: Reference | None = None
        if true[0].real is None:
            return
        self._reference = Reference(_features(true))
        self._upsampled = self._reference.beside(_features(upsampled))
        if calibration:
            rows = {name: _features(calibration[name]) for name in ROWS}
            others = _features(true[apart])
            self._calibration = calibrated(rows, others)
            self._ceiling = Reference(others).beside(rows[THROUGH_VAE])

    def calibration_row(self, name: str) -> dict[str, Any]:
        """The measures of a row of the calibration."""
        return NOTHING | self._calibration.get(name, {})

    def row(self, name: str, seen: Sequence[Look]) -> dict[str, Any]:
        """The measures of a technique, whose images have the seeds of the native ones."""
        if self._reference is None or seen[0].real is None:
            return dict(NOTHING)
        beside = self._rows[name] = self._reference.beside(_features(seen))
        closed = self._ceiling and gap_closed(beside, self._upsampled, self._ceiling)
        return crop_distances(beside) | closed_share(closed)

    def sentences(self) -> list[str]:
        """What the report says of itself: what it can see, and which rows it cannot tell apart."""
        found = findings(self._calibration) if self._calibration else []
        return [*found, *within_noise(self._rows)]


def _features(seen: Sequence[Look]) -> Tensor:  # (n, crops, d)
    return torch.cat([look.real for look in seen if look.real is not None])
