"""The run that the page's values stand for, in the engine's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modules import sd_samplers, shared
from modules.processing import StableDiffusionProcessingTxt2Img
from modules.sd_samplers_common import setup_img2img_steps

from lib_hires.run.drawing import drawing
from lib_hires.run.plan import RunPlan, TailPass, run_plan
from lib_hires.run.schedules import SCHEDULES, Model, Sampler, Sampling, sigmas_of
from lib_hires.settings import Settings
from lib_hires.sizes import Size
from lib_hires.webui.hosts import host_of
from lib_hires.webui.hosts.model import ModelSizes, loaded_model
from lib_hires.webui.hosts.protocol import FACTOR
from lib_hires.webui.sampling.attentive import WITHOUT_STEPS
from lib_hires.webui.surfaces.host_options import NATIVE

SAME_SAMPLER, SAME_SCHEDULE = "Use same sampler", "Use same scheduler"
ALONG_TIMESTEPS = ("DDIM", "DDIM CFG++", "PLMS", "UniPC")
FORGE_PRESETS = {"sd": 512, "xl": 1024}  # native sides of what Forge's list "UI" is set to


def page_plan(settings: Settings, host: Mapping[str, Any], sd_model: Any) -> RunPlan:
    """The plan of a run with the values of tab.HOST_CONTROLS. Raises SettingsError."""
    sampling = Sampling(
        first=_size(host["width"], host["height"]),
        steps=int(host["steps"]),
        sampler=sampler_of(host["sampling"]),
        schedule=host["scheduler"],
        strength=None if "hr-checkbox" in host else float(host["denoising_strength"]),
        fixed_steps=bool(getattr(shared.opts, "img2img_fix_steps", False)),
    )
    second = _second_pass(host) if host.get("hr-checkbox") else None
    return run_plan(settings, sampling, model_of(sd_model), second)


def page_drawing(
    plan: RunPlan, settings: Settings, host: Mapping[str, Any], sd_model: Any
) -> dict[str, Any]:
    """The drawing's numbers of that plan."""
    return drawing(
        plan,
        settings,
        model_of(sd_model),
        batch=max(1, int(host.get("batch_size") or 1)),
        batches=max(1, int(host.get("batch_count") or 1)),
        notes=_notes(host),
    )


def _notes(host: Mapping[str, Any]) -> list[str]:
    """What the plan leaves out."""
    pairs = [(host["sampling"], host["scheduler"])]
    if host.get("hr-checkbox"):
        pairs.append((host["hr_sampler"], host["hr_scheduler"]))
    notes = []
    for name, schedule in pairs:
        sampler = sampler_of(name)
        if sampler.own_steps:
            notes.append(f"{name} takes steps of its own; drawn are the schedule's")
        if schedule not in (*SCHEDULES, "Automatic", SAME_SCHEDULE) and not sampler.timesteps:
            notes.append(f"the schedule {schedule} is drawn as Uniform")
    return list(dict.fromkeys(notes))


def native_side() -> int:
    """The native side in pixels of the loaded model, 0 if it is not known.

    Forge loads a model with the first image; until then its list "UI" stands for the kind.
    """
    model = loaded_model()
    if model is not None:
        return ModelSizes.of(model).native
    return NATIVE.chosen() or FORGE_PRESETS.get(getattr(shared.opts, "forge_preset", ""), 0)


def model_of(sd_model: Any) -> Model:
    """What a plan must know of the loaded model."""
    sizes = ModelSizes.of(sd_model)
    sigmas = sigmas_of(host_of(sd_model).alphas_cumprod(sd_model).detach().cpu())
    return Model(sigmas, (sizes.native, sizes.native), FACTOR, sizes.multiple)


def sampler_of(name: str) -> Sampler:
    """What a plan must know of one of the host's samplers."""
    config = sd_samplers.all_samplers_map.get(name)
    options = config.options if config else {}
    drops = options.get("discard_next_to_last_sigma") or getattr(
        shared.opts, "always_discard_next_to_last_sigma", False
    )
    return Sampler(
        evaluations=2 if options.get("second_order") else 1,
        opening=int(name == "PLMS"),
        schedule=options.get("scheduler", "uniform").title(),
        drops_penultimate=bool(drops),
        timesteps=name in ALONG_TIMESTEPS,
        ends_at_zero=name == "UniPC",
        own_steps=name in WITHOUT_STEPS,
    )


def _second_pass(host: Mapping[str, Any]) -> TailPass:
    """That of Hires. fix, its size and steps as the host computes them."""
    run = StableDiffusionProcessingTxt2Img(
        width=int(host["width"]),
        height=int(host["height"]),
        enable_hr=True,
        denoising_strength=float(host["denoising_strength"]),
        hr_scale=float(host["hr_scale"]),
        hr_resize_x=int(host["hr_resize_x"]),
        hr_resize_y=int(host["hr_resize_y"]),
    )
    run.calculate_target_resolution()
    width = run.hr_upscale_to_x - run.truncate_x * FACTOR
    height = run.hr_upscale_to_y - run.truncate_y * FACTOR
    of, last = setup_img2img_steps(run, int(host["hires_steps"] or host["steps"]))
    sampler, schedule = host["hr_sampler"], host["hr_scheduler"]
    return TailPass(
        _size(width, height),
        last + 1,
        max(of, last + 1),
        None if sampler == SAME_SAMPLER else sampler_of(sampler),
        None if schedule == SAME_SCHEDULE else schedule,
    )


def _size(width: float, height: float) -> Size:
    """(height, width) as the host rounds it."""
    return int(height) // FACTOR * FACTOR, int(width) // FACTOR * FACTOR
