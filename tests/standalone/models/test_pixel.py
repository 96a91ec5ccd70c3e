"""Diffusion models of pixels: diffusers' folders, denoised as diffusers does, guided exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from diffusers import DDPMPipeline
from model_checks import copy, edit_json, noise, refusal
from PIL import Image

from lib_hires.noise import draw, generators
from lib_hires.resample import Reduction, bicubic
from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.cli import main
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Convert, FinishedStage, Run
from lib_hires.standalone.pipeline.outputs import read_about
from lib_hires.standalone.pipeline.request import SAMPLERS, Request
from lib_hires.standalone.pipeline.sampling import sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_pixels(tmp_path_factory.mktemp("pixels") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> LatentModel:
    return load_model(folder)


@pytest.fixture(scope="module")
def classes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pixels") / "classes"
    tiny_models.write_pixels(folder, num_class_embeds=3)
    edit_json(folder / "model_index.json", id2label={"0": "cat, tabby", "1": "dog", "2": "nothing"})
    return folder


def run(model: LatentModel, request: dict[str, Any], **settings: Any) -> Run:
    wanted = {"steps": 4, "sampler": "Euler"} | request
    return Run(model, Request(**wanted), Settings.from_values(settings))


def last(model: LatentModel, request: dict[str, Any], **settings: Any) -> FinishedStage:
    return list(run(model, request, **settings).generate())[-1]


LARGE = {"width": 32, "height": 32}
EXACT = {"ug": True, "ug_eta": 1, "ug_cadence": 1, "ug_shifted_start": False}


@pytest.mark.parametrize("clips", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_it_predicts_what_diffusers_predicts(tmp_path: Path, clips: bool, prediction: str) -> None:
    folder = tiny_models.write_pixels(tmp_path / "tiny")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    edit_json(scheduler, clip_sample=clips, prediction_type=prediction)
    model, pipe = load_model(folder), DDPMPipeline.from_pretrained(folder)
    x, t = noise(1, 3, 16, 16), 600
    abar = pipe.scheduler.alphas_cumprod[t]
    with torch.no_grad():
        out = pipe.unet(x, t).sample
        expected = pipe.scheduler.step(out, t, x).pred_original_sample
        sigma = ((1 - abar) / abar).sqrt()
        context = model.encode_prompts([""], [""]).cond
        got = model.denoiser()(x / abar.sqrt(), sigma.expand(1), context=context)
    assert bool((expected.abs() == 1).any()) == clips
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_the_coarse_image_is_the_native_one(model: LatentModel) -> None:
    guided = run(model, LARGE | {"seed": 3}, **EXACT)
    (made,) = guided.generate()
    reduction = Reduction.between((32, 32), (16, 16))
    start = reduction.reduce(draw(generators([3]), (3, 32, 32)) * guided.sigmas[0])
    context = model.encode_prompts([""], [""]).cond
    denoiser = model.denoiser()

    def evaluate(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return denoiser(x, sigma.clamp(denoiser.sigma_min, denoiser.sigma_max), context=context)

    with torch.no_grad():
        native = sample(
            evaluate,
            start,
            guided.sigmas / 2,
            SAMPLERS["Euler"],
            sources=(),
        )
    torch.testing.assert_close(reduction.reduce(made.latent), native, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(made.images, last(model, LARGE | {"seed": 3}).images, atol=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {"ug": True, "ug_windows": "Hann"},
        {"refine": True, "refine_eta2": "0.4", "refine_tile": 256},
        {"ug": True, "refine": True, "refine_factor": 4, "refine_eta2": "0.2, 0.4"},
    ],
    ids=str,
)
def test_windows_and_stages_run_as_planned(model: LatentModel, settings: dict[str, Any]) -> None:
    request = {} if "refine" in settings else LARGE
    begun = run(model, request, **settings)
    plan, made = begun.planned(), list(begun.generate())
    assert plan.evaluations == made[-1].model_evaluations
    side = 16 * int(settings.get("refine_factor", 2))
    assert made[-1].images.shape == (1, 3, side, side)
    assert made[-1].images.isfinite().all()


def test_a_stage_begins_with_the_upsampled_image(model: LatentModel) -> None:
    received: dict[str, torch.Tensor] = {}

    def watched(name: str, function: Convert) -> Convert:
        return lambda x: function(received.setdefault(name, x))

    settings = Settings.from_values({"refine": True})
    first, _ = Run(model, Request(steps=4), settings, wrap=watched).generate()
    assert torch.equal(received["decode"], first.latent)
    assert torch.equal(received["encode"], bicubic(first.latent, (32, 32)).clamp(-1, 1))


def test_a_prompt_is_a_class(classes_folder: Path) -> None:
    model = load_model(classes_folder)
    by_number = last(model, {"prompt": "1"}).images
    assert torch.equal(by_number, last(model, {"prompt": " Dog"}).images)
    assert torch.equal(by_number, last(model, {"prompt": "1", "cfg": 1}).images)
    assert not torch.equal(by_number, last(model, {"prompt": "tabby"}).images)
    assert not torch.equal(by_number, last(model, {"prompt": "1", "negative": "nothing"}).images)
    for wrong in ("3", "", "a red house"):
        with pytest.raises(SettingsError, match=r"prompt: expected a class of classes, 0 to 2 or"):
            run(model, {"prompt": wrong})


def test_an_unconditional_model_takes_no_prompt(model: LatentModel) -> None:
    with pytest.raises(SettingsError, match='prompt: tiny has no classes; give ""'):
        run(model, {"prompt": "a red house"})


def test_grey_images_and_a_predicted_variance(tmp_path: Path) -> None:
    model = load_model(tiny_models.write_pixels(tmp_path / "grey", channels=1, out_channels=2))
    images = last(model, {}, refine=True).images
    assert images.shape == (1, 3, 32, 32)
    assert torch.equal(images[:, 0], images[:, 2])


def test_the_command_line_repeats_its_image(folder: Path, tmp_path: Path) -> None:
    common = ["generate", "--model", str(folder), "--out", str(tmp_path)]
    assert main([*common, "", "--width", "32", "--ug", "--steps", "3", "--seed", "4"]) == 0
    (made,) = tmp_path.glob("*.png")
    assert read_about(made)["model"] == "tiny"
    assert main([*common, "--from", str(made)]) == 0
    first, second = (Image.open(path).tobytes() for path in tmp_path.glob("*.png"))
    assert first == second and len(first) == 32 * 32 * 3


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("unet", {"in_channels": 4}, "in_channels: expected 1 or 3, got '4'"),
        ("unet", {"out_channels": 4}, "out_channels: expected 3 or 6, got '4'"),
        ("unet", {"time_embedding_type": "fourier"}, "time_embedding_type: expected positional"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type: expected None"),
        ("unet", {"sample_size": None}, "sample_size: expected whole numbers"),
        ("scheduler", {"prediction_type": "sample"}, "give a model that predicts epsilon or v"),
        ("scheduler", {"_class_name": "CMStochasticIterativeScheduler"}, "is not supported"),
    ],
    ids=str,
)
def test_refuses_others(folder: Path, tmp_path: Path, part: str, values: Any, message: str) -> None:
    changed = copy(folder, tmp_path / "tiny")
    edit_json(next((changed / part).glob("*config.json")), **values)
    assert message in refusal(changed)


def test_refuses_latents_without_text(folder: Path, tmp_path: Path) -> None:
    changed = copy(folder, tmp_path / "tiny")
    edit_json(changed / "model_index.json", vqvae=["diffusers", "VQModel"])
    assert "a UNet2DModel with a VQModel is not supported" in refusal(changed)
