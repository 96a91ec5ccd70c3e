"""Sample one refinement stage with the host's own sampler."""

from __future__ import annotations

import copy
import inspect
from contextlib import nullcontext
from typing import Any

from modules import devices, prompt_parser, rng, sd_samplers, shared
from torch import Tensor

from lib_hires.noise import stage_seed
from lib_hires.refinement import ONE_STEP_SAMPLER, Stage
from lib_hires.sizes import Size
from lib_hires.webui.hosts import host_of
from lib_hires.webui.patching import replaced
from lib_hires.webui.refining.features import SmallImage, upsampled_stage
from lib_hires.webui.sampling.guidance import Guidance, guided
from lib_hires.webui.sampling.schedules import host_schedule, stage_times


class Stopped(Exception):
    """The user has interrupted or skipped the image."""


def sample_stage(
    latent: Tensor, stage: Stage, guidance: Guidance, small: SmallImage | None = None
) -> Tensor:
    """Renoise a clean latent (b, c, h, w) as the stage says and denoise it; raises Stopped.

    small: the image before it, where a feature upsampler serves the stage.
    """
    if shared.state.interrupted or shared.state.skipped:
        raise Stopped
    p, record = guidance.run.p, guidance.run.record.current
    staged = stage_processing(p, latent, stage, guidance.settings.refine.steps_of_stages(p.steps))
    sampler = sd_samplers.create_sampler(p.sampler_name, p.sd_model)
    whole, times = stage_times(sampler, staged, stage)
    if hasattr(sampler, "get_sigmas") and len(times) == 2:
        sampler = sd_samplers.create_sampler(ONE_STEP_SAMPLER, p.sd_model)
    staged.sampler = sampler
    name, schedule, steps = host_schedule(sampler, times)
    noise = staged.rng.next()
    with devices.autocast():
        cond, uncond = stage_conditioning(p, stage.size)
    precision = devices.without_autocast if devices.unet_needs_upcast else devices.autocast
    with precision():
        if guidance.controlnet is not None:
            guidance.controlnet.marked(cond, uncond)
        image_cond = staged.txt2img_image_conditioning(latent, stage.size[1], stage.size[0])
        unet = host_of(p.sd_model).unet(p.sd_model)
        record.evaluations += small is not None  # the features' own
        with (
            replaced(sampler, name, lambda *_: schedule),
            upsampled_stage(sampler, unet, small, latent, guidance.run.warn)
            if small
            else nullcontext(),
            guided(sampler, latent, guidance, whole),
        ):
            sampled = sampler.sample_img2img(
                staged, latent, noise, cond, uncond, steps=steps, image_conditioning=image_cond
            )
    if shared.state.interrupted or shared.state.skipped:
        raise Stopped
    return sampled


def stage_processing(p: Any, latent: Tensor, stage: Stage, steps: int) -> Any:
    """A copy of the host's run for one stage: its size, steps of the whole schedule, seeds and
    noise, and no mask. It takes no refiner: the model that made the image finishes it."""
    staged = copy.copy(p)
    staged.height, staged.width = stage.size
    staged.steps = steps
    # The schedule that the sampler gets is the stage's part already.
    staged.denoising_strength = 1.0
    staged.is_hr_pass = False
    staged.mask = staged.nmask = None
    staged.refiner_checkpoint_info = None
    staged.all_seeds = [stage_seed(seed, stage.number) for seed in p.all_seeds]
    staged.rng = rng.ImageRNG(
        latent.shape[1:],
        [stage_seed(seed, stage.number) for seed in p.seeds],
        subseeds=[stage_seed(seed, stage.number) for seed in p.subseeds],
        subseed_strength=p.subseed_strength,
    )
    return staged


def stage_conditioning(p: Any, size: Size) -> tuple[Any, Any]:
    """Conds of the stage's size, which SDXL receives; edited prompts stand as they end."""
    hires = getattr(p, "enable_hr", False) and p.hr_prompts
    prompts = p.hr_prompts if hires else p.prompts
    negative = p.hr_negative_prompts if hires else p.negative_prompts
    model, steps, timeline = p.sd_model, p.firstpass_steps, _prompt_timeline(p, bool(hires))
    given = {"width": size[1], "height": size[0], **_distilled_scale(p, bool(hires))}
    uncond = prompt_parser.get_learned_conditioning(
        model,
        prompt_parser.SdConditioning(negative, is_negative_prompt=True, **given),
        steps,
        **timeline,
    )
    cond = prompt_parser.get_multicond_learned_conditioning(
        model,
        prompt_parser.SdConditioning(prompts, **given),
        steps,
        **timeline,
    )
    ends = [
        [
            prompt_parser.ComposableScheduledPromptConditioning(part.schedules[-1:], part.weight)
            for part in parts
        ]
        for parts in cond.batch
    ]
    ended = prompt_parser.MulticondLearnedConditioning(shape=cond.shape, batch=ends)
    return ended, [schedule[-1:] for schedule in uncond]


def _prompt_timeline(p: Any, hires: bool) -> dict[str, Any]:
    """What edited prompts are timed by: after Hires. fix its own steps, and the user's option,
    which Forge Neo has had no more since 2026."""
    taken = inspect.signature(prompt_parser.get_learned_conditioning).parameters
    name = "use_old_scheduling"
    timeline = {name: getattr(shared.opts, name)} if name in taken else {}
    if not hires:
        return timeline
    steps = p.hr_second_pass_steps or p.steps
    config = sd_samplers.find_sampler_config(p.hr_sampler_name or p.sampler_name)
    return {**timeline, "hires_steps": config.total_steps(steps) if config else steps}


def _distilled_scale(p: Any, hires: bool) -> dict[str, float]:
    """The guidance scale that Flux receives in Forge; other hosts and models know none."""
    name = "hr_distilled_cfg" if hires else "distilled_cfg_scale"
    return {"distilled_cfg_scale": getattr(p, name)} if hasattr(p, name) else {}
