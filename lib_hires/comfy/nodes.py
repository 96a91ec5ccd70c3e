"""The nodes: what each takes, gives and does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.samplers
from torch import Tensor

from lib_hires.comfy.attentive import mixing_sampler
from lib_hires.comfy.description import Input, Node, Output, control_widgets, meant_values, widget
from lib_hires.comfy.features import files, upsampled_model
from lib_hires.comfy.guidance import guided_model
from lib_hires.comfy.model import multiple_of, native_latent
from lib_hires.comfy.planning import guidance_of, planned
from lib_hires.comfy.refining import Refinement
from lib_hires.resample import Reduction
from lib_hires.settings import Settings
from lib_hires.sizes import small_size
from lib_hires.upsample_guidance import shifted_schedule

NOT_HERE = ("windows", "overlap")
"""Controls of Upsample Guidance that ComfyUI's side does not have, or of fewer values."""

SIDES = "width", "height"

NATIVE = widget(
    "native",
    "INT",
    "The side in pixels of the square images that the model was trained on. 0: from the model.",
    "Native size",
    default=0,
    min=0,
    max=4096,
    step=8,
)


WINDOWS = replace(
    widget(
        "windows",
        "COMBO",
        "attention: in large images self-attention sees windows of native size and all else the "
        "whole image once, so that time grows with the area. off: it sees all.",
        "Windows",
        default="off",
        options=["off", "attention"],
    ),
    optional=True,  # it came after the others
)


def upsample_guidance(model: Any, native: int, **values: Any) -> tuple[Any]:
    """MODEL to MODEL."""
    settings = Settings.from_values(meant_values("ug", values)).ug
    return (guided_model(model, settings, native),)


def shifted_sigmas(model: Any, sigmas: Tensor, latent: Any, native: int) -> tuple[Tensor]:
    """SIGMAS to SIGMAS: the schedule that the model's Upsample Guidance starts from."""
    inner = model.model
    samples = latent["samples"]
    large = samples.shape[-2], samples.shape[-1]
    native_size = native_latent(inner, native)
    scale = guidance_of(model).settings.scale
    small = small_size(large, native_size, scale, multiple_of(inner, native_size))
    if small is None or len(sigmas) < 2:
        return (sigmas,)
    return (shifted_schedule(sigmas, Reduction.between(large, small).noise_gain),)


def attentive_guidance(sampler: Any, **values: Any) -> tuple[Any]:
    """SAMPLER to SAMPLER."""
    return (mixing_sampler(sampler, Settings.from_values(meant_values("pfsa", values)).pfsa),)


def feature_upsampler(model: Any, upsampler: str, small: Any = None) -> tuple[Any]:
    """MODEL to MODEL."""
    return (upsampled_model(model, upsampler, small and small["samples"]),)


RUN = "seed", "steps", "cfg", "sampler_name", "scheduler"
"""Inputs of the refinement that are not controls of it, beside the objects."""


def progressive_refinement(
    model: Any, positive: Any, negative: Any, vae: Any, latent: Any, workflow: Any, **values: Any
) -> tuple[Any, list[Tensor]]:
    """LATENT to LATENT and the IMAGE of each stage."""
    seed, steps, cfg, sampler, schedule = (values.pop(name) for name in RUN)
    settings = Settings.from_values(meant_values("refine", values)).refine
    return Refinement(
        model=model,
        vae=vae,
        positive=positive,
        negative=negative,
        latent=latent,
        settings=settings,
        seed=seed,
        steps=steps,
        cfg=cfg,
        sampler=sampler,
        schedule=schedule,
        workflow=workflow,
    ).run()


def plan(
    model: Any,
    width: int,
    height: int,
    steps: int,
    sampler_name: str,
    scheduler: str,
    refine: bool,
    **values: Any,
) -> tuple[str, Tensor]:
    """MODEL to the plan's line and drawing."""
    values["steps"] = values.pop("stage_steps", 0)
    values = {name.removeprefix("final_"): value for name, value in values.items()}
    settings = Settings.from_values({**meant_values("refine", values), "refine": refine})
    made = planned(model, settings, (height, width), steps, sampler_name, scheduler)
    return made.plan.summary(), made.image()


UPSAMPLE_GUIDANCE = Node(
    "HiResUpsampleGuidance",
    "Upsample Guidance",
    "Evaluates the model at its native size too, and guides the coarse structure of the image by "
    "it. Put it between the model and any sampler.",
    (
        Input("model", "MODEL", "The model to guide."),
        *control_widgets("ug", NOT_HERE),
        NATIVE,
        WINDOWS,
    ),
    (Output("MODEL", "model", "The guided model."),),
    upsample_guidance,
)

SHIFTED_SIGMAS = Node(
    "HiResShiftedSigmas",
    "Higher Starting Noise",
    "Stretches a schedule upward, so that the coarse structure starts from pure noise too. "
    "Upsample Guidance does it by itself in a schedule that begins at the model's largest sigma.",
    (
        Input("model", "MODEL", "The model whose native size counts."),
        Input("sigmas", "SIGMAS", "The schedule, from the model's largest sigma to 0."),
        Input("latent", "LATENT", "A latent of the size that is to be sampled."),
        NATIVE,
    ),
    (Output("SIGMAS", "sigmas", "The stretched schedule, of as many steps."),),
    shifted_sigmas,
)

ATTENTIVE_GUIDANCE = Node(
    "HiResAttentiveGuidance",
    "Attentive Guidance",
    "Mixes a little self-attention of the latent into the latent after each step of a sampler.",
    (Input("sampler", "SAMPLER", "The sampler to change."), *control_widgets("pfsa")),
    (Output("SAMPLER", "sampler", "The sampler with mixing."),),
    attentive_guidance,
)

SCHEDULE = (
    widget(
        "steps",
        "INT",
        "The steps of the whole schedule; a stage denoises the end of it.",
        default=30,
        min=1,
        max=10000,
    ),
    widget("sampler_name", "COMBO", "The sampler.", options=list(comfy.samplers.KSampler.SAMPLERS)),
    widget("scheduler", "COMBO", "The schedule.", options=list(comfy.samplers.KSampler.SCHEDULERS)),
)

SAMPLING = (
    widget(
        "seed",
        "INT",
        "The seed of the stages' noise, which is their own.",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
    ),
    widget(
        "cfg",
        "FLOAT",
        "The scale of classifier-free guidance.",
        default=7.0,
        min=0.0,
        max=100.0,
        step=0.1,
    ),
    *SCHEDULE,
)

REFINEMENT = control_widgets("refine", ("guided", "keep_stages", "steps"))

STAGE_STEPS = replace(
    widget(
        "stage_steps",
        "INT",
        "The steps of Progressive Refinement, where they are not the first image's. 0: the same.",
        "Steps of the stages",
        default=0,
        min=0,
        max=10000,
    ),
    optional=True,  # it came after the others
)

PROGRESSIVE_REFINEMENT = Node(
    "HiResProgressiveRefinement",
    "Progressive Refinement",
    "Upscales a finished latent and denoises it again, in stages. Give it a model from Upsample "
    "Guidance, so that the stages are guided too.",
    (
        Input("model", "MODEL", "The model, guided or not."),
        Input("positive", "CONDITIONING", "The prompt."),
        Input("negative", "CONDITIONING", "The negative prompt."),
        Input("vae", "VAE", "Decodes and encodes between the stages."),
        Input("latent", "LATENT", "The finished first image."),
        *SAMPLING,
        *REFINEMENT,
    ),
    (
        Output("LATENT", "latent", "The last stage's latent."),
        Output("IMAGE", "images", "The image of each stage, the last one the result.", many=True),
    ),
    progressive_refinement,
    with_workflow=True,
)

FEATURE_UPSAMPLER = Node(
    "HiResFeatureUpsampler",
    "Feature Upsampler",
    "Carries the smaller image's features into the larger one (Self-Cascade, tuned), by a file "
    "trained for the model. Put it before Progressive Refinement, or before a sampler that starts "
    "from the upscaled latent.",
    (
        Input("model", "MODEL", "The model, guided or not."),
        Input(
            "upsampler",
            "COMBO",
            "A file of hires train-upsampler in models/hires-guidance.",
            listed=lambda: list(files()),
        ),
        Input(
            "small",
            "LATENT",
            "The finished smaller latent. Progressive Refinement needs none: its stages have it.",
            optional=True,
        ),
    ),
    (Output("MODEL", "model", "The model with the smaller image's features."),),
    feature_upsampler,
)

PLAN = Node(
    "HiResPlan",
    "HiRes Plan",
    "Shows what a run will do before it starts: its steps, stages and evaluations of the model.",
    (
        Input("model", "MODEL", "The model, guided or not."),
        widget("width", "INT", "Of the first image.", default=1024, min=64, max=16384, step=8),
        widget("height", "INT", "Of the first image.", default=1024, min=64, max=16384, step=8),
        *SCHEDULE,
        widget("refine", "BOOLEAN", "With Progressive Refinement after it.", default=False),
        *(
            replace(part, name=f"final_{part.name}") if part.name in SIDES else part
            for part in REFINEMENT
        ),
        STAGE_STEPS,
    ),
    (
        Output("STRING", "plan", "The plan in one line."),
        Output("IMAGE", "drawing", "The plan drawn."),
    ),
    plan,
    shown="drawing",
)

NODES = (
    UPSAMPLE_GUIDANCE,
    SHIFTED_SIGMAS,
    ATTENTIVE_GUIDANCE,
    PROGRESSIVE_REFINEMENT,
    FEATURE_UPSAMPLER,
    PLAN,
)
