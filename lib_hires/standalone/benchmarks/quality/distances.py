"""How far apart two sets of images are, how sharp they are, and how sure such numbers are."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def frechet_distance(features_a: Tensor | np.ndarray, features_b: Tensor | np.ndarray) -> float:
    """Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017).

        |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

    With S_a = A^T A and S_b = B^T B (A, B: the centred features over sqrt(n - 1)) the last trace is
    the nuclear norm of A B^T. So no root of a covariance is taken, and sets with fewer samples than
    features, whose covariances are singular, do no harm. It is biased upward for small sets:
    compare only sets of equal numbers.

    Args:
        features_a, features_b: (n, d) and (k, d), at least two samples each.

    Raises:
        ValueError: shapes that do not fit, or too few samples.
    """
    a, b = _as_samples(features_a), _as_samples(features_b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features: expected equal widths, got {a.shape[1]} and {b.shape[1]}")
    shift = a.mean(0) - b.mean(0)
    A, B = _covariance_root(a), _covariance_root(b)
    cross = np.linalg.svd(A @ B.T, compute_uv=False).sum()
    distance = shift @ shift + np.square(A).sum() + np.square(B).sum() - 2 * cross
    return max(float(distance), 0.0)


def kernel_distance(features_a: Tensor | np.ndarray, features_b: Tensor | np.ndarray) -> float:
    """Squared maximum mean discrepancy with the kernel (x·y / d + 1)^3 (Binkowski et al. 2018).

    The estimate is unbiased: 0 on average for two sets of one kind, whatever their numbers, so it
    can be negative. Takes and raises what frechet_distance does.
    """
    a, b = _as_samples(features_a), _as_samples(features_b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features: expected equal widths, got {a.shape[1]} and {b.shape[1]}")

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def mean_of_pairs(x: np.ndarray) -> float:
        values, n = kernel(x, x), len(x)
        return float((values.sum() - np.trace(values)) / (n * (n - 1)))

    return mean_of_pairs(a) + mean_of_pairs(b) - 2 * float(kernel(a, b).mean())


def native_crops(
    images: Tensor, size: int, per_image: int, rng: np.random.Generator
) -> Tensor:  # (b * per_image, c, size, size)
    """Crops of `size` pixels at random places, so that fine detail is seen at its own pixels.

    Args:
        images: (b, c, H, W) with H and W at least `size`.

    Raises:
        ValueError: images smaller than the crop.
    """
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise ValueError(f"crops: expected images of {size} or more, got {width}x{height}")
    tops = rng.integers(0, height - size + 1, (len(images), per_image))
    lefts = rng.integers(0, width - size + 1, (len(images), per_image))
    return torch.stack(
        [
            image[:, top : top + size, left : left + size]
            for image, row in zip(images, np.stack([tops, lefts], -1), strict=True)
            for top, left in row
        ]
    )


def share_interval(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share seen in n images; 95 % by default."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap_error(
    statistic: Callable[..., float],
    *samples: Tensor | np.ndarray,
    draws: int = 100,
    seed: int = 0,
) -> float:
    """Standard error of `statistic(*samples)`, each sample (n, ...) redrawn with replacement.

    An error rather than quantiles: redrawing repeats images, which moves a Frechet distance
    upward as a whole but leaves its spread.
    """
    rng = np.random.default_rng(seed)
    redrawn = [
        statistic(*(sample[rng.integers(0, len(sample), len(sample))] for sample in samples))
        for _ in range(draws)
    ]
    return float(np.std(redrawn, ddof=1))


def _as_samples(features: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(features, Tensor):
        features = features.detach().cpu().double().numpy()
    samples = np.asarray(features, np.float64)
    if samples.ndim != 2 or len(samples) < 2:
        raise ValueError(f"features: expected (2 or more, d), got {samples.shape}")
    return samples


def _covariance_root(samples: np.ndarray) -> np.ndarray:  # (min(n, d), d)
    """R with R^T R the covariance: the centred samples, their R factor where that is smaller."""
    centred = (samples - samples.mean(0)) / math.sqrt(len(samples) - 1)
    return centred if len(centred) <= centred.shape[1] else np.linalg.qr(centred, mode="r")
