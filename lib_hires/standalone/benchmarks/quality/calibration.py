"""What a quality report can see: three rows of true images, before any technique's.

`true_again` are other true images, as near as one can come; `true_enlarged` true native images
upsampled; `true_through_vae` true images encoded and decoded, as near as a latent model can come.
Image k of all three is the same scene, so that rows differ by what was done to it alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib_hires.standalone.benchmarks.quality.real_features import (
    Beside,
    Estimate,
    Reference,
    gap_closed,
)

AGAIN, ENLARGED, THROUGH_VAE = ROWS = ("true_again", "true_enlarged", "true_through_vae")
FRECHET_DRAWS = 20  # each takes about a second
SOUND = 10  # times farther than true_again must true_enlarged be


def as_tensor(image: Image.Image) -> Tensor:
    """(1, 3, h, w) in [-1, 1]."""
    values = torch.from_numpy(np.array(image.convert("RGB")))
    return values.permute(2, 0, 1)[None].float() / 127.5 - 1


def as_image(values: Tensor) -> Image.Image:
    """The image of a tensor (1, 3, h, w) in [-1, 1], clamped."""
    pixels = ((values[0].float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def enlarged(images: Iterable[Image.Image], width: int, height: int) -> Iterator[Image.Image]:
    """Native images upsampled by Lanczos' filter, as `lanczos` does with the model's."""
    for image in images:
        yield image.resize((width, height), Image.Resampling.LANCZOS)


def through_vae(images: Iterable[Image.Image], model: Any) -> Iterator[Image.Image]:
    """Images encoded and decoded. model: what has `encode` and `decode`, as a LatentModel has."""
    for image in images:
        yield as_image(model.decode(model.encode(as_tensor(image))))


def crop_distances(beside: Beside) -> dict[str, float]:
    """A row's `kd_crop` and `fd_crop`, with their errors."""
    kernel, frechet = beside.kernel_distance(), beside.frechet_distance(FRECHET_DRAWS)
    return {
        "kd_crop": round(kernel.value, 5),
        "kd_crop_error": round(kernel.error, 5),
        "fd_crop": round(frechet.value, 2),
        "fd_crop_error": round(frechet.error, 2),
    }


def closed_share(closed: Estimate | None) -> dict[str, Any]:
    """A row's `gap_closed` with its interval, from `real_features.gap_closed`."""
    return {
        "gap_closed": None if closed is None else round(closed.value, 3),
        "gap_closed_95": None if closed is None else f"{closed.low:.2f} to {closed.high:.2f}",
    }


def calibrated(rows: Mapping[str, Tensor], true: Tensor) -> dict[str, dict[str, Any]]:
    """The distances of the three calibration rows from other true images.

    rows, true: features (n, crops, d). `gap_closed` is that of true_again, where true_enlarged
    takes the place of the model's upsampled native images.
    """
    reference = Reference(true)
    beside = {name: reference.beside(rows[name]) for name in ROWS}
    report = {name: crop_distances(beside[name]) for name in ROWS}
    report[AGAIN] |= closed_share(gap_closed(*(beside[name] for name in ROWS)))
    return report


def findings(report: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the calibration says about the measure itself, one sentence each."""
    again, far, limit = (report[name]["kd_crop"] for name in ROWS)
    floor = max(again, report[AGAIN]["kd_crop_error"], 1e-9)  # a distance may be 0 or below
    sentences = [
        f"kd_crop: {ENLARGED} ({far:.4f}) is {far / floor:.0f} times as far as {AGAIN}, or its "
        f"error ({floor:.4f}); " + ("sound" if far >= SOUND * floor else f"below {SOUND}: blind")
    ]
    if limit >= far:
        sentences.append(
            f"kd_crop: {THROUGH_VAE} ({limit:.4f}) is no nearer than {ENLARGED}: no technique of "
            "this model can be told from enlarging"
        )
    return sentences
