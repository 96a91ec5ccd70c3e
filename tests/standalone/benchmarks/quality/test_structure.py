"""`moved` tells an image that keeps the native one's structure from one that does not."""

import numpy as np
import pytest
import torch
from PIL import Image

from lib_hires.standalone.benchmarks.quality.calibration import as_tensor, enlarged
from lib_hires.standalone.benchmarks.quality.generation import scene_of
from lib_hires.standalone.benchmarks.quality.structure import GRID, coarse, moved
from lib_hires.standalone.world.scenes import draw


def test_cells_are_means_of_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    means = pixels.reshape(GRID, 4, GRID, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    found = coarse(as_tensor(Image.fromarray(pixels)))
    assert found.numpy() == pytest.approx(means, abs=1e-3)


def test_the_mean_over_images_and_its_error() -> None:
    natives = [torch.zeros(3, GRID, GRID)] * 3
    images = [torch.full((3, GRID, GRID), value) for value in (1.0, -2.0, 6.0)]
    error = np.std([1, 2, 6], ddof=1) / np.sqrt(3)
    assert moved(images, natives) == {"moved": 3.0, "moved_error": round(error, 2)}
    assert moved(images[:1], natives[:1]) == {"moved": 1.0, "moved_error": 0.0}


def test_truth_and_a_blurred_truth_have_not_moved_another_scene_has() -> None:
    def seen(images):
        return [coarse(as_tensor(image)) for image in images]

    scenes = [scene_of(number) for number in range(4)]
    small, large = ([draw(scene, side, side) for scene in scenes] for side in (256, 512))
    natives = seen(small)
    kept = [moved(seen(images), natives) for images in (large, enlarged(small, 512, 512))]
    assert all(each["moved"] < 1.5 for each in kept)
    assert moved(seen(large[1:] + large[:1]), natives)["moved"] > 20

    stripe = large[0].copy()
    stripe.paste((90, 140, 60), (0, 64, 512, 80))  # land in the sky
    land = moved(seen([stripe]), natives[:1])["moved"]
    assert land > 3 * moved(seen(large[:1]), natives[:1])["moved"]
