"""Refinement with a pipeline: what its stages receive, and what is refused."""

from __future__ import annotations

import logging
from typing import Any

import diffusers
import pytest
import tiny_pipelines as tiny
import torch

from lib_hires import SettingsError
from lib_hires.diffusers import apply_hires_guidance, refine

STAGE = {"refine": True, "refine_eta2": "0.5"}
FIRST = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def refined(pipe: Any, **call: Any) -> torch.Tensor:
    """The last stage's latent."""
    given = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(3)}
    (*_, last) = refine(pipe, FIRST, **{**tiny.prompt(pipe), **given, **call})
    return last.latent


def controlnet_pipeline() -> Any:
    pipe = tiny.unet_pipeline()
    control = diffusers.ControlNetModel.from_unet(
        pipe.unet, conditioning_embedding_out_channels=(16, 32)
    )
    parts = {**pipe.components, "controlnet": control, "safety_checker": None}
    return diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)


def test_arguments_of_the_first_image_are_left_out() -> None:
    pipe = tiny.unet_pipeline()
    apply_hires_guidance(pipe, **STAGE)
    first = {"height": 16, "width": 16, "latents": FIRST, "image": FIRST, "strength": 0.1}
    forms = {"output_type": "pil", "return_dict": True}
    schedule = {"timesteps": [900, 500], "sigmas": [3.0, 1.0]}
    ends = {"denoising_start": 0.5, "denoising_end": 0.8}
    found = refined(pipe, **first, **forms, **schedule, **ends)
    assert found.shape[-1] > FIRST.shape[-1]
    assert torch.equal(found, refined(pipe))


def test_stages_take_their_share_of_their_own_steps() -> None:
    pipe = tiny.unet_pipeline()
    apply_hires_guidance(pipe, **STAGE)
    of_ten = refined(pipe, num_inference_steps=10)
    assert not torch.equal(refined(pipe), of_ten)
    apply_hires_guidance(pipe, refine_steps=10, **STAGE)
    assert torch.equal(refined(pipe), of_ten)


def test_attentive_guidance_mixes_in_no_stage() -> None:
    pipe = tiny.unet_pipeline()
    stage = {"refine": True, "refine_eta2": "0.9"}
    apply_hires_guidance(pipe, **stage)
    call: dict[str, Any] = {"num_inference_steps": 10}
    plain, plain_first = refined(pipe, **call), tiny.latents(pipe)
    hires = apply_hires_guidance(pipe, pfsa=True, pfsa_gamma=0.5, **stage)
    callback = {"callback_on_step_end": hires.on_step_end}
    assert torch.equal(refined(pipe, **call, **callback), plain)
    assert not torch.equal(tiny.latents(pipe, **callback), plain_first)


def test_without_a_generator_torchs_own_keeps_its_seed() -> None:
    pipe = tiny.unet_pipeline()
    apply_hires_guidance(pipe, **STAGE)
    torch.manual_seed(3)
    one, two = refined(pipe, generator=None), refined(pipe, generator=None)
    assert torch.initial_seed() == 3
    assert not torch.equal(one, two)
    torch.manual_seed(3)
    assert torch.equal(refined(pipe, generator=None), one)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (controlnet_pipeline, "StableDiffusionControlNetPipeline has a ControlNet, which"),
        (lambda: tiny.unet_pipeline(channels=9), "StableDiffusionInpaintPipeline is for inpaint"),
    ],
    ids=["ControlNet", "inpainting"],
)
def test_pipelines_with_further_images_are_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=f"refine: {message}"):
        refined(make())


def test_sizes_are_logged_in_pixels(caplog: pytest.LogCaptureFixture) -> None:
    pipe = tiny.unet_pipeline()
    apply_hires_guidance(pipe, ug=True)
    with caplog.at_level(logging.INFO, "hires_guidance"):
        tiny.latents(pipe, side=16)
    assert "16x16 is not clearly above the model's native 16x16" in caplog.text


def test_a_scale_that_leaves_nothing_to_guide_is_named(caplog: pytest.LogCaptureFixture) -> None:
    pipe = tiny.unet_pipeline()
    apply_hires_guidance(pipe, ug=True, ug_scale=1)
    with caplog.at_level(logging.INFO, "hires_guidance"):
        tiny.latents(pipe, side=32)
    assert "nothing to do: at a scale of 1 the native evaluation is about as" in caplog.text


def test_windows_that_do_not_fit_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    pipe = controlnet_pipeline()
    apply_hires_guidance(pipe, ug=True, ug_windows="Hann")
    hint = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.INFO, "hires_guidance"):
        tiny.latents(tiny.quiet(pipe), image=hint)
    assert caplog.text.count("windows do not fit this pipeline") == 1
