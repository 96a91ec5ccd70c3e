"""Techniques of detail in runs of a tiny model: off, acting, and gone after the run."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_hires.detail import NO_DETAIL, Detail
from lib_hires.detail.neighbourhood import Neighbourhood
from lib_hires.detail.processors import attention_in_windows
from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.request import Request
from lib_hires.standalone.pipeline.upscalers import Upscaler, load_upscaler

STAGES = {"ug": True, "refine": True, "refine_factor": 4, "refine_eta2": "0.6, 0.4"}


def run_of(model: LatentModel, detail: Detail = NO_DETAIL, **settings: Any) -> Run:
    request = Request(prompt="a red house", steps=5, sampler="Euler")
    return Run(model, request, Settings.from_values(STAGES | settings), detail=detail)


def result(model: LatentModel, **detail: Any) -> Tensor:
    *_, last = run_of(model, Detail(**detail)).generate()
    return last.images


def test_each_changes_the_image_and_none_changes_no_bit(tiny_model: LatentModel) -> None:
    *_, plain = Run(tiny_model, run_of(tiny_model).request, Settings.from_values(STAGES)).generate()
    assert torch.equal(result(tiny_model), plain.images)
    for detail in (
        {"attention": "windows"},
        {"cfg_low": 9},
        {"cfg_high": 9},
        {"mixing": True},
        {"sharper": 0.2},
        {"sharpen": 1},
        {"unfinished": "same"},
        {"unfinished": "matched"},
    ):
        made = result(tiny_model, **detail)
        assert torch.isfinite(made).all()
        assert not torch.allclose(made, plain.images, atol=1e-4), detail
    assert torch.equal(result(tiny_model, cfg_low=5, cfg_high=5), plain.images)  # the CFG scale
    assert "detail" not in run_of(tiny_model).about()
    assert run_of(tiny_model, Detail(sharpen=1)).about()["detail"] == {"sharpen": 1}


def test_the_native_evaluation_is_told_the_truth(tiny_model: LatentModel) -> None:
    def told(amount: float) -> dict[int, list[float]]:
        """The sigmas of all evaluations, by the latent's width."""
        request = Request(prompt="a red house", steps=6, sampler="Euler", width=32, height=32)
        settings = Settings.from_values({"ug": True})
        run = Run(tiny_model, request, settings, detail=Detail(sharper=amount))
        inner, seen = run.denoiser.forward, dict[int, list[float]]()

        def heard(x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
            seen.setdefault(x.shape[-1], []).append(float(sigma[0]))
            return inner(x, sigma, **cond)

        run.denoiser.forward = heard
        list(run.generate())
        return seen

    plain, sharp = told(0), told(0.2)
    native, large = sorted(plain)
    assert plain[native] == sharp[native]
    ratios = [b / a for a, b in zip(plain[large], sharp[large], strict=True)]
    assert max(ratios) <= 1 and min(ratios) < 0.95


@pytest.mark.parametrize(("unfinished", "steps"), [("same", [2, 2, 2]), ("no", [5, 3, 2])])
def test_unfinished_stages_take_fewer_steps(
    tiny_model: LatentModel, unfinished: str, steps: list[int]
) -> None:
    run = run_of(tiny_model, Detail(unfinished=unfinished))
    assert run.steps == steps if unfinished == "no" else sum(run.steps) < 10
    list(run.generate())
    assert [part.steps for part in run.record.passes] == run.steps


def test_attention_is_whole_again_after_a_run_and_after_an_error(tiny_model: LatentModel) -> None:
    before = [type(p) for p in tiny_model.unet.attn_processors.values()]
    list(run_of(tiny_model, Detail(attention="windows")).generate())
    assert [type(p) for p in tiny_model.unet.attn_processors.values()] == before
    with (
        pytest.raises(ZeroDivisionError),
        attention_in_windows(tiny_model.unet, Neighbourhood((8, 8), (4, 4))),
    ):
        assert [type(p) for p in tiny_model.unet.attn_processors.values()] != before
        raise ZeroDivisionError
    assert [type(p) for p in tiny_model.unet.attn_processors.values()] == before


def test_the_native_evaluation_is_whole(tiny_model: LatentModel) -> None:
    """Although at its own size it has the positions of the large image at half the sides."""
    unet = tiny_model.unet
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 3])
    context = torch.randn(2, 5, unet.config.cross_attention_dim)
    whole = unet(x, t, context).sample
    with attention_in_windows(unet, Neighbourhood((16, 16), (8, 8))):
        assert torch.equal(unet(x, t, context).sample, whole)


def test_the_processor_computes_what_diffusers_does(
    tiny_model: LatentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With windows as large as the image, so that both are whole attention."""
    unet = tiny_model.unet
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([3, 3])
    context = torch.randn(2, 5, unet.config.cross_attention_dim)
    expected = unet(x, t, context).sample
    windows = Neighbourhood((16, 16), (8, 8))
    with attention_in_windows(unet, windows):
        assert not torch.allclose(unet(x, t, context).sample, expected, atol=1e-3)
        monkeypatch.setattr(Neighbourhood, "attention", lambda self, attend, *parts: attend(*parts))
        torch.testing.assert_close(unet(x, t, context).sample, expected)


class Twice(torch.nn.Module):
    """Enlarges by repetition, and looks at neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.min() >= 0 and x.max() <= 1
        return F.interpolate(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), scale_factor=2)


def test_an_upscaler_s_tiles_give_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib_hires.standalone.pipeline.upscalers.SIDE", 8)
    monkeypatch.setattr("lib_hires.standalone.pipeline.upscalers.MARGIN", 2)
    image = torch.rand(2, 3, 20, 13) * 2 - 1
    got = Upscaler(Twice(), 2)(image, (40, 26))
    torch.testing.assert_close(got, Twice()((image + 1) / 2) * 2 - 1)
    assert Upscaler(Twice(), 2)(image, (60, 39)).shape == (2, 3, 60, 39)  # 4 times, then reduced


def test_what_an_upscaler_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(SettingsError, match="needs spandrel"):
        load_upscaler("x.pth", torch.device("cpu"))
