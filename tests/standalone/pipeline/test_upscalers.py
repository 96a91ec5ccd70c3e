"""Models that enlarge images, of ESRGAN's layout, beside the network computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_upscaler import State, tiny_weights
from torch import Tensor

from lib_hires.detail import Detail
from lib_hires.resample import bicubic
from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.benchmarks.techniques import make, with_upscaler
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.request import Request
from lib_hires.standalone.pipeline.upscalers import load_upscaler

pytest.importorskip("spandrel", reason="the extra upscaler is not installed")


@pytest.fixture(scope="module")
def weights() -> State:
    return tiny_weights()


@pytest.fixture(scope="module")
def file(weights: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("upscaler") / "tiny 4x.pth"
    torch.save({"params_ema": weights}, path)
    return path


def by_hand(state: State, image: Tensor) -> Tensor:
    """ESRGAN (Wang et al. 2018): dense blocks with residuals scaled by 0.2, then nearest 2x twice.

    image: (b, 3, h, w) in [0, 1].
    """

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def leaky(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    first = x = conv(image, "conv_first")
    for dense in (1, 2, 3):
        seen = [x]
        for layer in range(1, 5):
            seen.append(leaky(conv(torch.cat(seen, 1), f"body.0.rdb{dense}.conv{layer}")))
        x = x + 0.2 * conv(torch.cat(seen, 1), f"body.0.rdb{dense}.conv5")
    x = first + conv(first + 0.2 * x, "conv_body")
    for name in ("conv_up1", "conv_up2"):
        x = leaky(conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), name))
    return conv(leaky(conv(x, "conv_hr")), "conv_last").clamp(0, 1)


def test_an_esrgan_of_a_file_is_the_network(weights: State, file: Path) -> None:
    image = torch.rand(2, 3, 9, 13, generator=torch.Generator().manual_seed(1)) * 2 - 1
    upscale = load_upscaler(str(file), torch.device("cpu"))
    whole = by_hand(weights, (image + 1) / 2) * 2 - 1
    torch.testing.assert_close(upscale(image, (36, 52)), whole, atol=1e-4, rtol=1e-4)
    half = F.interpolate(whole, size=(18, 26), mode="bicubic", antialias=True)
    torch.testing.assert_close(upscale(image, (18, 26)), half, atol=1e-4, rtol=1e-4)


def test_a_stage_encodes_what_the_upscaler_gives(
    tiny_model: LatentModel, weights: State, file: Path
) -> None:
    request = Request(prompt="a red house", steps=4, sampler="Euler")
    wanted = Settings.from_values({"refine": True, "refine_eta2": "0.5"})
    encoded: list[Tensor] = []

    def heard(name: str, function):  # type: ignore[no-untyped-def]
        def encode(x: Tensor) -> Tensor:
            encoded.append(x)
            return function(x)

        return encode if name == "encode" else function

    detail = Detail(upscaler=str(file))
    first, last = Run(tiny_model, request, wanted, wrap=heard, detail=detail).generate()
    small = by_hand(weights, (first.images + 1) / 2) * 2 - 1
    size = last.images.shape[-2:]
    upscaled = F.interpolate(small, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
    torch.testing.assert_close(encoded[0], upscaled, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(encoded[0], bicubic(first.images, tuple(size)), atol=0.05)


def test_the_plain_upscaler_is_a_row(tiny_model: LatentModel, weights: State, file: Path) -> None:
    alone, refined = with_upscaler(str(file))
    assert (alone.name, refined.name) == ("upscaler_tiny-4x", "ug_refine_upscaler_tiny-4x")
    base = Request(prompt="a red house", steps=3, sampler="Euler")
    made = make(alone, tiny_model, base, 4)
    request = alone.request(base, 4, tiny_model)
    (native,) = Run(tiny_model, request, Settings()).generate()
    wanted = (by_hand(weights, (native.images[0][None] + 1) / 2)[0] * 255).clamp(0, 255)
    got = torch.from_numpy(np.asarray(made.images[0]).copy()).movedim(-1, 0)
    assert got.shape[-1] == 4 * tiny_model.native[1]
    assert (got - wanted).abs().max() < 0.6
    assert made.model_evaluations == 3


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(SettingsError, match="upscaler: .*none.pth cannot be loaded"):
        load_upscaler(str(path), torch.device("cpu"))
