"""Distances between sets of images as a real network sees their crops, at 1:1 pixels.

A crop is never resized, so fine detail reaches the network. `kd_crop` is the kernel distance of
KID (Binkowski et al. 2018), unbiased over all pairs of crops of different images. The share of the
gap between upsampled native images and the VAE's limit that a technique closes is `gap_closed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lib_hires.standalone.benchmarks.quality.distances import bootstrap_error, frechet_distance
from lib_hires.standalone.models.efficientnet import CROP, EfficientNetLite0

DRAWS = 1000  # of a bootstrap of kernel distances


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error and its interval of 95 %, by bootstrap over images."""

    value: float
    error: float
    low: float
    high: float


# --- features -------------------------------------------------------------------------------------


def crops_at(scale: float) -> int:
    """How many crops of an image at `scale` times the native size are looked at."""
    return 1 if scale <= 1 else 4 if scale <= 2 else 8


def spread_crops(images: Tensor, count: int, rng: np.random.Generator, side: int = CROP) -> Tensor:
    """`count` crops of each image (b, c, h, w), one at a random place in each cell of a grid.

    Returns (b, count, c, side, side). A grid, so that crops of one image overlap little and
    together see most of it. Raises ValueError for images smaller than `side`.
    """
    height, width = images.shape[-2:]
    if min(height, width) < side:
        raise ValueError(f"crops: expected images of {side} or more, got {width}x{height}")
    rows = max(k for k in range(1, count + 1) if count % k == 0 and k * k <= count)
    columns = count // rows
    if height > width:
        rows, columns = columns, rows
    pieces = []
    for image in images:
        for cell in range(count):
            row, column = divmod(cell, columns)
            top = int((row + rng.random()) / rows * (height - side + 1))
            left = int((column + rng.random()) / columns * (width - side + 1))
            pieces.append(image[:, top : top + side, left : left + side])
    return torch.stack(pieces).unflatten(0, (len(images), count))


class CropFeatures:
    """The features of an image's crops. Raises NetworkMissing."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._network = EfficientNetLite0().to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, image: Tensor, number: int, count: int) -> Tensor:  # (1, count, 1280)
        """Of an image (1, 3, h, w) in [-1, 1]; `number` fixes the places of its `count` crops."""
        pieces = spread_crops(image.float(), count, np.random.default_rng(number))
        return self._network(pieces[0].to(self._device)).cpu()[None]


# --- kernel distance ------------------------------------------------------------------------------


class Reference:
    """The true images' features, against which sets of images are held."""

    def __init__(self, features: Tensor | np.ndarray) -> None:
        """features: (k, crops, d), of at least 2 images."""
        self.features = _as_crops(features)

    @cached_property
    def own(self) -> np.ndarray:  # (k, k)
        return _pair_kernels(self.features, self.features)

    def beside(self, features: Tensor | np.ndarray) -> Beside:
        """Another set (n, crops, d) beside this one."""
        values = _as_crops(features)
        own, cross = _pair_kernels(values, values), _pair_kernels(values, self.features)
        return Beside(self, values, own, cross)


@dataclass(frozen=True, eq=False)
class Beside:
    """A set of n images beside the reference's k: mean kernels of each two images' crops."""

    reference: Reference
    features: np.ndarray  # (n, crops, d)
    own: np.ndarray  # (n, n)
    cross: np.ndarray  # (n, k)

    def distance(
        self, counts: np.ndarray | None = None, true_counts: np.ndarray | None = None
    ) -> float:
        """Squared maximum mean discrepancy; 0 on average for two sets of one kind.

        counts (n,), true_counts (k,): how often a bootstrap drew each image. Pairs of an image
        with itself never count, however often it was drawn, so redrawing adds no bias.
        """
        a = np.ones(len(self.own)) if counts is None else counts
        b = np.ones(self.cross.shape[1]) if true_counts is None else true_counts
        between = a @ self.cross @ b / (a.sum() * b.sum())
        within = _between_images(self.own, a) + _between_images(self.reference.own, b)
        return float(within - 2 * between)

    def kernel_distance(self, draws: int = DRAWS, seed: int = 0) -> Estimate:
        """The distance. Its error is too large rather than too small where there is none."""
        drawn = [self.distance(a, b) for a, b in _redrawn(*self.cross.shape, draws, seed)]
        return _estimate(self.distance(), drawn)

    def frechet_distance(self, draws: int = 20, seed: int = 0) -> Estimate:
        """Of all crops as samples. Biased upward for few: compare sets of equal numbers only."""

        def distance(a: np.ndarray, b: np.ndarray) -> float:
            return frechet_distance(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))

        both = self.features, self.reference.features
        value, error = distance(*both), bootstrap_error(distance, *both, draws=draws, seed=seed)
        return Estimate(value, error, value - 1.96 * error, value + 1.96 * error)


def gap_closed(
    technique: Beside, enlarged: Beside, ceiling: Beside, draws: int = DRAWS, seed: int = 0
) -> Estimate | None:
    """(d(enlarged) - d(technique)) / (d(enlarged) - d(ceiling)), d the kernel distance.

    0: no better than `enlarged`, the model's native images upsampled; 1: as near to truth as
    `ceiling`, true images through the VAE; negative: worse than enlarging. Image k of the first
    two has one seed, and a bootstrap draws them together; the ceiling's with them where it has
    as many, else apart. None where the two ends themselves cannot be told apart (the interval of
    their difference holds 0). Raises ValueError for unequal numbers of the first two.
    """
    sets = (technique, enlarged, ceiling)
    if technique.cross.shape != enlarged.cross.shape:
        raise ValueError(f"gap_closed: sets of {', '.join(str(len(s.own)) for s in sets)} images")
    paired = ceiling.cross.shape == technique.cross.shape

    def parts(counts: Sequence[np.ndarray], ends: Sequence[np.ndarray]) -> tuple[float, float]:
        start, end = enlarged.distance(*counts), ceiling.distance(*(counts if paired else ends))
        return start - technique.distance(*counts), start - end

    redrawn = zip(
        _redrawn(*technique.cross.shape, draws, seed),
        _redrawn(*ceiling.cross.shape, draws, seed + 1),
        strict=True,
    )
    drawn = np.array([parts(*both) for both in redrawn])
    if np.quantile(drawn[:, 1], 0.025) <= 0:
        return None
    closed, gap = parts((), ())
    return _estimate(closed / gap, drawn[:, 0] / drawn[:, 1])


def within_noise(rows: Mapping[str, Beside], draws: int = DRAWS, seed: int = 0) -> list[str]:
    """One sentence for each row whose kernel distance cannot be told from those of others.

    Rows of equal numbers share their seeds and are redrawn together.
    """
    names, drawn = list(rows), {}
    for name, row in rows.items():
        pairs = _redrawn(*row.cross.shape, draws, seed)
        drawn[name] = np.array([row.distance(*counts) for counts in pairs])
    sentences = []
    for k, name in enumerate(names):
        close = [other for other in names[k + 1 :] if _holds_zero(drawn[name] - drawn[other])]
        if close:
            sentences.append(f"kd_crop: {name} lies within the noise of {', '.join(close)}")
    return sentences


def _holds_zero(differences: np.ndarray) -> bool:
    low, high = np.quantile(differences, (0.025, 0.975))
    return bool(low <= 0 <= high)


def _pair_kernels(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, k) means of (x·y / d + 1)^3 over the crops of two images; a (n, crops, d), b alike."""
    flat = a.reshape(-1, a.shape[-1]) @ b.reshape(-1, b.shape[-1]).T
    values: np.ndarray = (flat / a.shape[-1] + 1) ** 3
    return values.reshape(len(a), a.shape[1], len(b), b.shape[1]).mean((1, 3))


def _between_images(kernels: np.ndarray, counts: np.ndarray) -> float:
    """Mean of kernels (n, n) over pairs of different images, each as often as it was drawn."""
    own = counts**2
    total = counts @ kernels @ counts - own @ kernels.diagonal()
    return float(total / (counts.sum() ** 2 - own.sum()))


def _redrawn(n: int, k: int, draws: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """How often each of n and of k images is drawn, `draws` times, with replacement.

    A draw of one image alone is drawn again, for it has no pairs.
    """
    first, second = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])

    def counts(rng: np.random.Generator, size: int) -> np.ndarray:
        while True:
            drawn = rng.multinomial(size, np.full(size, 1 / size)).astype(float)
            if np.count_nonzero(drawn) > 1:
                return drawn

    return [(counts(first, n), counts(second, k)) for _ in range(draws)]


def _estimate(value: float, drawn: Sequence[float] | np.ndarray) -> Estimate:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(value, float(np.std(drawn, ddof=1)), float(low), float(high))


def _as_crops(features: Tensor | np.ndarray) -> np.ndarray:
    values = np.asarray(features, np.float64)
    if values.ndim != 3 or len(values) < 2:
        raise ValueError(f"features: expected (2 or more, crops, d), got {values.shape}")
    return values
