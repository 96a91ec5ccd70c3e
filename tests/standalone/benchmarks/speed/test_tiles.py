"""The rows of the speed benchmark about tiles, of a tiny model."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from diffusers import AutoencoderKL

from lib_hires.standalone.benchmarks.speed.tiles import GOALS, difference_rows, memory_rows
from lib_hires.standalone.models.latent import LatentModel


def test_differences_stand_beside_their_goals(tiny_model: LatentModel) -> None:
    torch.manual_seed(0)
    model = dataclasses.replace(tiny_model, native=(32, 32))  # 16 latent positions
    rows = {row["name"]: row for row in difference_rows(model, torch.randn(1, 4, 32, 40))}
    for name in ("decode", "encode"):
        mean, largest = (rows[f"{name} in tiles, {kind} difference"] for kind in GOALS)
        assert 0 < mean["ratio"] < largest["ratio"]
        assert (mean["goal"], largest["goal"]) == (2, 8)
        assert largest["ratio"] < 8


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peak of memory")
def test_the_memory_of_tiles_stays_and_that_of_the_whole_grows(tiny_model: LatentModel) -> None:
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4,  # 8 pixels to a latent position, so that the middle is small
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    ).requires_grad_(False)
    model = dataclasses.replace(tiny_model, vae=vae, native=(192, 192))
    rows = {row["name"]: row for row in memory_rows(model, (3,))}
    tiles, whole = (rows[f"memory of decoding {how}, 3x"] for how in ("in tiles", "whole"))
    assert tiles["bound"] == 1
    assert whole["ratio"] > 3
    assert tiles["ratio"] < 0.67 * whole["ratio"]
