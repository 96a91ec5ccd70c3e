"""Attentive Guidance of a host's sampler: SAMPLER in, SAMPLER out.

PFSA is mixed into the sampler's own state, which is the tensor that the model gets in the
evaluation that begins a step.
"""

from __future__ import annotations

from typing import Any

import comfy.samplers
from torch import Tensor

from lib_hires.attentive_guidance import gamma_at, mix_scaled_, steps_behind
from lib_hires.comfy.model import family_of
from lib_hires.settings import AttentiveGuidance, SettingsError

EVALUATIONS = {
    1: "euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp lms dpmpp_2m dpmpp_2m_cfg_pp "
    "dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde "
    "dpmpp_3m_sde_gpu ddpm lcm ipndm ipndm_v deis res_multistep res_multistep_cfg_pp "
    "res_multistep_ancestral res_multistep_ancestral_cfg_pp gradient_estimation "
    "gradient_estimation_cfg_pp er_sde",
    2: "heun dpm_2 dpm_2_ancestral dpmpp_2s_ancestral dpmpp_2s_ancestral_cfg_pp dpmpp_sde "
    "dpmpp_sde_gpu seeds_2",
    3: "seeds_3",
}
"""How often samplers evaluate the model in each step, but for the last, by the host's names."""

STEP_EVALUATIONS = {
    f"sample_{name}": number for number, names in EVALUATIONS.items() for name in names.split()
}


def mixing_sampler(sampler: Any, settings: AttentiveGuidance) -> Any:
    """A host's SAMPLER that mixes; the same one where the strength is 0.

    Raises SettingsError for a sampler whose steps are not known.
    """
    if settings.gamma == 0:
        return sampler
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__)
    if name not in STEP_EVALUATIONS:
        raise SettingsError(
            f"Attentive Guidance: it is not known where {name.removeprefix('sample_')} begins a "
            "step; take euler, dpmpp_2m or another of the host's samplers with fixed steps"
        )
    mixing = MixingFunction(function, STEP_EVALUATIONS[name], settings)
    return comfy.samplers.KSAMPLER(mixing, sampler.extra_options, sampler.inpaint_options)


class MixingFunction:
    """In the place of a sampler's function."""

    def __init__(self, function: Any, evaluations: int, settings: AttentiveGuidance) -> None:
        self._function, self._evaluations, self._settings = function, evaluations, settings
        self.__name__ = function.__name__

    def __call__(self, model: Any, x: Tensor, sigmas: Tensor, **arguments: Any) -> Any:
        """The host's arguments of a sampler's function."""
        if x.ndim == 4:
            model = Mixed(model, self._evaluations, self._settings, len(sigmas) - 1)
        return self._function(model, x, sigmas, **arguments)


class Mixed:
    """The model of one sampler's run; mixes PFSA into the state where a step begins."""

    def __init__(
        self, model: Any, evaluations: int, settings: AttentiveGuidance, steps: int
    ) -> None:
        self._model, self._evaluations = model, evaluations
        self._settings, self._steps = settings, steps
        self._made = 0  # evaluations
        self._family = family_of(model.inner_model.inner_model.model_sampling)

    def __getattr__(self, name: str) -> Any:
        """Samplers read the noise levels and options of the model that they get."""
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, *rest: Any, **named: Any) -> Any:
        done = steps_behind(self._made, self._evaluations)
        self._made += 1
        if done:
            gamma = gamma_at(done, self._steps, self._settings)
            mix_scaled_(x, sigma[:1], gamma, self._settings, self._family)
        return self._model(x, sigma, *rest, **named)
