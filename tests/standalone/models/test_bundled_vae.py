"""What the bundled VAE keeps of true images, which is the most that any technique can show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from lib_hires.standalone.benchmarks.quality.calibration import as_tensor, through_vae
from lib_hires.standalone.benchmarks.quality.generation import scene_of
from lib_hires.standalone.bundled import MODEL
from lib_hires.standalone.models import load_model
from lib_hires.standalone.world.octaves import octave_energies
from lib_hires.standalone.world.scenes import draw

pytestmark = pytest.mark.skipif(not MODEL.is_file(), reason="the bundled model is not there")


@pytest.mark.slow
def test_detail_and_colour_are_kept() -> None:
    """At the native size; the quality reports show it above (docs/results)."""
    side = 256
    true = [draw(scene_of(seed), side, side) for seed in range(900_000, 900_016)]
    back = list(through_vae(true, load_model(None)))
    small = [image.resize((side // 2, side // 2), Image.Resampling.BOX) for image in true]
    blurred = [image.resize((side, side), Image.Resampling.BICUBIC) for image in small]
    assert finest(back) > 0.6 * finest(true)
    assert finest(blurred) < 0.2 * finest(true)
    assert np.abs(colours(back) - colours(true)).mean() < 2


def finest(images: Sequence[Image.Image]) -> float:
    """Mean energy of the finest octave."""
    return float(np.mean([octave_energies(as_tensor(image))[0] for image in images]))


def colours(images: Sequence[Image.Image]) -> np.ndarray:
    """Mean colours (n, 3), 0 to 255."""
    return np.array([np.asarray(image, float).mean((0, 1)) for image in images])
