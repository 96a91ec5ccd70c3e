"""The nodes: what each takes, gives and does."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lib_hires.comfy.description import Input, Node, Output, control_widgets, meant_values, widget
from lib_hires.comfy.guidance import guided_model
from lib_hires.comfy.model import multiple_of, native_latent
from lib_hires.resample import Reduction
from lib_hires.settings import Settings
from lib_hires.sizes import small_size
from lib_hires.upsample_guidance import shifted_schedule

NOT_HERE = ("windows", "overlap")
"""Controls of Upsample Guidance that ComfyUI's side does not have."""

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


def upsample_guidance(model: Any, native: int, **values: Any) -> tuple[Any]:
    """MODEL to MODEL."""
    settings = Settings.from_values(meant_values("ug", values)).ug
    return (guided_model(model, settings, native),)


def shifted_sigmas(model: Any, sigmas: Tensor, latent: Any, native: int) -> tuple[Tensor]:
    """SIGMAS to SIGMAS: the schedule that Upsample Guidance starts from."""
    inner = model.model
    samples = latent["samples"]
    large = samples.shape[-2], samples.shape[-1]
    native_size = native_latent(inner, native)
    small = small_size(large, native_size, multiple=multiple_of(inner, native_size))
    if small is None or len(sigmas) < 2:
        return (sigmas,)
    return (shifted_schedule(sigmas, Reduction.between(large, small).noise_gain),)


UPSAMPLE_GUIDANCE = Node(
    "HiResUpsampleGuidance",
    "Upsample Guidance",
    "Evaluates the model at its native size too, and guides the coarse structure of the image by "
    "it. Put it between the model and any sampler.",
    (Input("model", "MODEL", "The model to guide."), *control_widgets("ug", NOT_HERE), NATIVE),
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

NODES = (UPSAMPLE_GUIDANCE, SHIFTED_SIGMAS)
