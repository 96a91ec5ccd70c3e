"""The calibration on drawn scenes, with models whose loss is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lib_hires.standalone.benchmarks.quality import calibration
from lib_hires.standalone.benchmarks.quality.calibration import (
    as_image,
    as_tensor,
    calibrated,
    enlarged,
    findings,
    through_vae,
)
from lib_hires.standalone.benchmarks.quality.real_features import CropFeatures
from lib_hires.standalone.world.scenes import draw, random_scene

SIZE, COUNT, CROPS = 448, 10, 2


class Model:
    """Encodes to a share of the size and back, which blurs by that much."""

    def __init__(self, by):
        self._by = by

    def encode(self, image):
        return F.interpolate(image, scale_factor=1 / self._by, mode="area")

    def decode(self, latent):
        return F.interpolate(latent, scale_factor=self._by, mode="bicubic")


def scenes(first, size):
    for seed in range(first, first + COUNT):
        yield draw(random_scene(np.random.default_rng(seed)), size, size)


def see(images, look):
    return torch.cat([look(as_tensor(image), k, CROPS) for k, image in enumerate(images)])


@pytest.fixture(scope="module")
def look():
    return CropFeatures()


@pytest.fixture(scope="module")
def true(look):
    return see(scenes(0, SIZE), look)


@pytest.fixture(scope="module")
def again(look):
    return see(scenes(100, SIZE), look)


def report_of(by, look, true, again):
    small = enlarged(scenes(100, SIZE // 4), SIZE, SIZE)
    back = through_vae(scenes(100, SIZE), Model(by))
    rows = zip(calibration.ROWS, (again, see(small, look), see(back, look)))  # noqa: B905
    return calibrated(dict(rows), true)


@pytest.mark.slow
def test_the_rows_stand_in_their_order(look, true, again, monkeypatch):
    monkeypatch.setattr(calibration, "FRECHET_DRAWS", 3)
    report = report_of(2, look, true, again)
    near, far, limit = (report[name] for name in calibration.ROWS)
    assert near["kd_crop"] < limit["kd_crop"] < far["kd_crop"]
    assert near["fd_crop"] < limit["fd_crop"] < far["fd_crop"]
    assert near["gap_closed"] > 1


@pytest.mark.slow
def test_a_vae_no_better_than_enlarging_is_named(look, true, again, monkeypatch):
    monkeypatch.setattr(calibration, "FRECHET_DRAWS", 3)
    report = report_of(8, look, true, again)
    assert report["true_again"]["gap_closed"] is None
    assert "true_through_vae" in findings(report)[-1] and "no technique" in findings(report)[-1]


def row(kd, error=0.001):
    return {"kd_crop": kd, "kd_crop_error": error}


@pytest.mark.parametrize(
    ("again", "far", "word"), [(0.002, 0.03, "sound"), (0.002, 0.01, "blind"), (-1, 0.011, "sound")]
)
def test_soundness_is_ten_times(again, far, word):
    report = dict(zip(calibration.ROWS, (row(again), row(far), row(0.001)), strict=True))
    (sentence,) = findings(report)
    assert word in sentence


def test_images_and_tensors_are_each_others():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    back = as_image(as_tensor(Image.fromarray(pixels)))
    np.testing.assert_array_equal(np.array(back), pixels)
    assert np.array(as_image(torch.full((1, 3, 2, 2), 9.0))).max() == 255
