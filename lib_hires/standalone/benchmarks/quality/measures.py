"""What the quality benchmark measures on a set of images, whoever looks at them.

A `Measurer` is who looks: it knows the true images, and sees in each image a vector of features
and how well it fits its prompt. Everything else is computed here, alike for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib_hires.standalone.benchmarks.quality.distances import (
    bootstrap_error,
    frechet_distance,
    kernel_distance,
    native_crops,
    share_interval,
)
from lib_hires.standalone.benchmarks.quality.real_features import CropFeatures
from lib_hires.standalone.benchmarks.quality.structure import coarse, moved
from lib_hires.standalone.world.judge import to_tensor
from lib_hires.standalone.world.octaves import beside_truth, octave_energies

CROPS = 2  # native-size crops of each image

Mark = float | bool | None  # bool: one of a share; None: cannot be measured on this machine


@dataclass(frozen=True)
class Names:
    """What a measurer's distances are called."""

    frechet: str
    frechet_crops: str
    kernel: str
    kernel_crops: str


class Measurer(Protocol):
    """Who looks at the images."""

    names: Names
    notes: Sequence[str]  # messages on what cannot be measured, and why
    apart: slice  # of the true images: those that are not among the others

    def true_images(self, width: int, height: int) -> Iterator[Image.Image]:
        """Those that the generated ones are compared with, of that size in pixels."""

    def other_true_images(
        self, count: int, width: int, height: int
    ) -> Iterator[tuple[int | None, Image.Image]]:
        """Others for the calibration, at most `count`, with their seeds where they have prompts."""

    def features(self, images: Tensor, crops: bool) -> Tensor | None:
        """(b, d) of images (b, 3, H, W) in [-1, 1]; crops: pieces at full detail."""

    def marks(self, image: Tensor, seed: int) -> dict[str, Mark]:
        """How well an image (1, 3, H, W) fits the prompt of its seed."""


@dataclass(frozen=True)
class Look:
    """What the measures need of one image, which itself is dropped."""

    whole: Tensor | None  # (1, d) features
    crops: Tensor | None  # (CROPS, d) features at full detail
    energies: list[float]  # of the octaves, the finest first
    marks: dict[str, Mark]
    coarse: Tensor  # (3, GRID, GRID) means
    real: Tensor | None = None  # (1, crops, 1280) features of a real network


def looks(
    images: Iterable[tuple[int | None, Image.Image]],
    measurer: Measurer,
    crop: int,
    real: CropFeatures | None = None,
    real_crops: int = 1,
) -> list[Look]:
    """Look at images one after another, each with its seed where it has a prompt.

    crop: the side, in pixels, of the measurer's crops. real: a real network, which sees
    `real_crops` crops of each image.
    """
    seen = []
    for number, (seed, pil) in enumerate(images):
        image = to_tensor(pil)
        pieces = native_crops(image, crop, CROPS, np.random.default_rng(number))
        whole, crops = measurer.features(image, False), measurer.features(pieces, True)
        marks = {} if seed is None else measurer.marks(image, seed)
        features = real and real(image, number, real_crops)
        energies = octave_energies(image)
        seen.append(Look(whole, crops, energies, marks, coarse(image), features))
    return seen


def row(
    generated: Sequence[Look], true: Sequence[Look], names: Names, natives: Sequence[Look]
) -> dict[str, Any]:
    """A technique's measures; of each `x`, `x_error` is the standard error by bootstrap.

    natives: the native images of the same seeds. Shares have the interval of 95 % `x_95` instead:
    a share of 100 % redrawn has no spread.
    """
    measures: dict[str, Any] = {"n": len(generated)}
    for name in generated[0].marks:
        measures |= _mark(name, [look.marks[name] for look in generated])
    for look, frechet, kernel in (
        ("whole", names.frechet, names.kernel),
        ("crops", names.frechet_crops, names.kernel_crops),
    ):
        samples = _features(generated, look), _features(true, look)
        measures |= _measured(frechet, _frechet, *samples, digits=2)
        measures |= _measured(kernel, _kernel, *samples, digits=4)
    energies = [np.array([look.energies for look in seen]) for seen in (generated, true)]
    finest = [each[:, 0] for each in energies]
    measures |= _measured("detail", lambda a, b: float(a.mean() / b.mean()), *finest)
    measures |= moved(*([look.coarse for look in seen] for seen in (generated, natives)))
    return measures | {"octaves": [round(each, 2) for each in beside_truth(*energies)]}


def only_of_the_size(names: Names) -> list[str]:
    """The measures of `row` that mean nothing for images smaller than the true ones."""
    measures = (names.frechet_crops, names.kernel_crops, "detail")
    return ["octaves", *(key for name in measures for key in (name, f"{name}_error"))]


def _mark(name: str, marks: Sequence[Any]) -> dict[str, Any]:
    """The mean of a mark over all images."""
    if None in marks:
        return _measured(name, _mean, None)
    if not isinstance(marks[0], bool):
        return _measured(name, _mean, np.array(marks))
    share = float(np.mean(marks))
    low, high = share_interval(share, len(marks))
    return {name: round(share, 3), f"{name}_95": f"{low:.2f}-{high:.2f}"}


def _measured(name: str, statistic: Any, *samples: Any, digits: int = 2) -> dict[str, Any]:
    """A statistic of samples and its error; both None where a sample is."""
    if any(sample is None for sample in samples):
        return {name: None, f"{name}_error": None}
    error = bootstrap_error(statistic, *samples)
    return {
        name: round(statistic(*samples), digits),
        f"{name}_error": round(error, digits),
    }


def _features(seen: Sequence[Look], look: str) -> Tensor | None:  # (images, looks at each, d)
    features = [getattr(one, look) for one in seen]
    return None if features[0] is None else torch.stack(features)


def _mean(sample: np.ndarray) -> float:
    return float(sample.mean())


def _frechet(features: Tensor, true: Tensor) -> float:
    """Of (images, looks at each, d), so that images are redrawn with all their crops."""
    return frechet_distance(features.flatten(0, 1), true.flatten(0, 1))


def _kernel(features: Tensor, true: Tensor) -> float:
    """Of (images, looks at each, d), look by look: two looks at an image are no two images."""
    each = range(features.shape[1])
    return float(np.mean([kernel_distance(features[:, k], true[:, k]) for k in each]))
