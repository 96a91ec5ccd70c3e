"""Octaves on images of known content."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib_hires.standalone.world.octaves import beside_truth, octave_energies


def wave(period, size=128):
    line = torch.sin(2 * torch.pi * torch.arange(size) / period)
    return line.expand(1, 3, size, size).clone()


@pytest.mark.parametrize(("period", "octave"), [(2.7, 0), (5.4, 1), (11, 2), (22, 3)])
def test_a_wave_lies_in_the_octave_of_its_period(period, octave):
    energies = octave_energies(wave(period))
    assert np.argmax(energies) == octave
    assert energies[octave] > 0.6 * sum(energies)


def test_the_first_octave_is_what_halving_loses():
    fine = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(16, 16)[None, None]
    assert octave_energies(torch.ones_like(fine))[0] == pytest.approx(0, abs=1e-6)
    assert octave_energies(fine + 5) == pytest.approx([1, 0, 0, 0], abs=1e-5)


def test_an_upsampled_image_lacks_its_finest_octave_alone():
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    small = F.interpolate(image, scale_factor=0.5, mode="area")
    large = F.interpolate(small, size=128, mode="bicubic")
    (first, *others), true = octave_energies(large), octave_energies(image)
    assert first < 0.15 * true[0]
    assert others[1:] == pytest.approx(true[2:], rel=0.3)


def test_ratios_are_of_the_means():
    energies, true = np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([[4.0, 1.0], [0.0, 1.0]])
    assert beside_truth(energies, true) == [1.0, 2.0]


def test_too_small_an_image_is_refused():
    with pytest.raises(ValueError, match="octaves: 4 of"):
        octave_energies(torch.zeros(1, 3, 8, 64))
