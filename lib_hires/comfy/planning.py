"""What a run would do, before it starts, in words and drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lib_hires.comfy.attentive import STEP_EVALUATIONS
from lib_hires.comfy.drawing import plan_image
from lib_hires.comfy.guidance import GuidedSampling, guiding
from lib_hires.comfy.model import MULTIPLE, native_latent, pixels_per_position
from lib_hires.run.drawing import drawing
from lib_hires.run.plan import RunPlan, run_plan
from lib_hires.run.schedules import Model, Sampler, Sampling
from lib_hires.settings import Settings, UpsampleGuidance
from lib_hires.sizes import Size

SCHEDULES = {
    "normal": "Normal",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "ddim_uniform": "DDIM",
    "kl_optimal": "KL Optimal",
}
"""The host's schedules by the engine's names; any other counts as uniform."""


def guidance_of(model: Any) -> GuidedSampling:
    """The Upsample Guidance that a host's MODEL has; switched off where it has none."""
    return guiding(model) or GuidedSampling(UpsampleGuidance(), 0)


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan, and what its drawing needs besides."""

    plan: RunPlan
    settings: Settings
    model: Model

    def image(self) -> Tensor:
        """The drawing and the line, (1, height, width, 3) in [0, 1]."""
        return plan_image(drawing(self.plan, self.settings, self.model), self.plan.summary())


def planned(
    model: Any, settings: Settings, first: Size, steps: int, sampler: str, schedule: str
) -> Planned:
    """The plan of a first image of (height, width) pixels and its refinement.

    settings: the refinement's; Upsample Guidance is the model's own. Raises SettingsError.
    """
    guidance, inner = guidance_of(model), model.model
    settings = Settings(guidance.settings, settings.pfsa, settings.refine)
    factor = pixels_per_position(inner)
    side = native_latent(inner, guidance.native)[0] * factor
    sigmas = tuple(model.get_model_object("model_sampling").sigmas.tolist())
    known = Model(sigmas, (side, side), factor, min(MULTIPLE, max(factor, side // 4)))
    sampling = Sampling(
        first,
        steps,
        Sampler(STEP_EVALUATIONS.get(f"sample_{sampler}", 1)),
        SCHEDULES.get(schedule, "Uniform"),
    )
    return Planned(run_plan(settings, sampling, known), settings, known)
