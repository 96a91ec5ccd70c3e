"""A pipeline of the bundled model makes what the standalone side makes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_pipelines as tiny
import torch
from diffusers import StableDiffusionPipeline

from lib_hires import Settings
from lib_hires.diffusers import apply_hires_guidance, refine
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.request import Request

PROMPT, STEPS, CFG, SEED = "a red house", 3, 3.0, 5


@pytest.fixture
def model() -> LatentModel:
    """The bundled one, called native at half its size: both sides compute the same there too."""
    return replace(load_model(), native=(128, 128))


def pipeline(model: LatentModel) -> StableDiffusionPipeline:
    encoder = model.encoders[0]
    side = model.native[0] // model.factor
    model.unet.register_to_config(sample_size=side)  # img2img's constructor compares it
    pipe = StableDiffusionPipeline(
        vae=model.vae,
        unet=model.unet,
        text_encoder=encoder.model,
        tokenizer=encoder.tokenizer,
        scheduler=tiny.euler(model.prediction, use_karras_sigmas=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return tiny.quiet(pipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"ug": True},
        {"ug": True, "ug_shifted_start": False, "ug_eta": 0.6},
        {"ug": True, "ug_windows": "Hann"},
        {"ug": True, "ug_windows": "attention"},
        {"ug": True, "pfsa": True, "pfsa_gamma": 0.1},
        {"ug": True, "refine": True, "refine_eta2": "0.5"},
    ],
    ids=lambda values: ", ".join(f"{key}={value}" for key, value in values.items()),
)
def test_within_one_step_of_255(values, model: LatentModel) -> None:
    side = model.native[0] * (1 if "refine" in values else 2)
    request = Request(PROMPT, "", side, side, STEPS, "Euler", "Karras", CFG, SEED)
    (*_, made) = Run(model, request, Settings.from_values(values)).generate()
    conditioning = model.encode_prompts([PROMPT], [""])
    call = {
        "prompt_embeds": conditioning.cond,
        "negative_prompt_embeds": conditioning.uncond,
        "num_inference_steps": STEPS,
        "guidance_scale": CFG,
        "generator": torch.Generator().manual_seed(SEED),
    }
    pipe = pipeline(model)
    hires = apply_hires_guidance(pipe, native=model.native, **values)
    callback = {"callback_on_step_end": hires.on_step_end} if "pfsa" in values else {}
    out = pipe(**call, **callback, height=side, width=side, output_type="latent").images
    if "refine" in values:
        (*_, last) = refine(pipe, out, **call)
        out = last.latent
    images = model.decode(out).clamp(-1, 1)
    assert images.shape == made.images.shape
    assert (images - made.images).abs().max() * 127.5 <= 1
