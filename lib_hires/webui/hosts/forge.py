"""Forge and its kin, which evaluate cond and uncond in one function of a patcher's options."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lib_hires.detail import slots
from lib_hires.detail.neighbourhood import Neighbourhood
from lib_hires.webui.hosts import noise
from lib_hires.webui.hosts.forge_conds import call_fitting, shrunk_conds, size_embeddings
from lib_hires.webui.hosts.forge_evaluation import BEFORE, ApplyModel, GuidedEvaluation
from lib_hires.webui.hosts.protocol import (
    CONTROLNET_SEES_WHOLE,
    FACTOR,
    GuidedPass,
    ModelCalls,
)
from lib_hires.webui.patching import replaced


def is_host_of(sd_model: Any) -> bool:
    """Forge and its kin load a model as an object of patchers."""
    return hasattr(sd_model, "forge_objects")


def is_supported(sd_model: Any) -> bool:
    """False where no model is loaded yet, for flow models of reForge, and where a latent's position
    is of more pixels than `FACTOR` a side, as in Flux 2."""
    if sd_model.forge_objects is None:
        return False
    if _pixels_per_position(sd_model.forge_objects.vae) != FACTOR:
        return False
    return hasattr(sd_model.forge_objects.unet.model, "predictor") or not is_flow(sd_model)


def is_flow(sd_model: Any) -> bool:
    return noise.is_flow(_sigmas(sd_model))


def guides_clips(sd_model: Any) -> bool:
    """Not here: its own copy of the extension patches otherwise."""
    return False


def has_frames(sd_model: Any) -> bool:
    """Forge Neo's name for them is that of the first one: Wan, Qwen-Image and Anima."""
    return bool(getattr(sd_model, "is_wan", False))


def sees_first_image(sd_model: Any) -> bool:
    return getattr(sd_model, "cond_stage_key", "") == "edit"


def _pixels_per_position(vae: Any) -> int:
    ratio = getattr(vae, "downscale_ratio", FACTOR)
    return int(ratio[-1] if isinstance(ratio, tuple) else ratio)


def reason_for_whole(sd_model: Any) -> str:
    """Beside ControlNet's models, whatever goes by the self-attention of the whole image:
    reference units, StyleAlign, Self-Attention Guidance."""
    if has_frames(sd_model):
        return "this model's latents have a time axis"
    patcher = sd_model.forge_objects.unet
    if patcher.controlnet_linked_list is not None:
        return CONTROLNET_SEES_WHOLE
    options = patcher.model_options
    replaced_parts = options.get("transformer_options", {}).get("patches_replace", {})
    if options.get(BEFORE) or "attn1" in replaced_parts:
        return "another extension acts on the attention of whole images"
    return ""


def reason_for_whole_attention(sd_model: Any) -> str:
    """The model's kind, or another extension, whose attention stays."""
    return slots.reason_for_whole_attention(
        sd_model.forge_objects.unet.model_options, unet(sd_model)
    )


def unet(sd_model: Any) -> Any:
    return sd_model.forge_objects.unet.model.diffusion_model


def alphas_cumprod(sd_model: Any) -> Tensor:
    return 1 / (_sigmas(sd_model) ** 2 + 1)


def predicts_v(sd_model: Any) -> bool:
    prediction = getattr(_noise_levels(sd_model), "prediction_type", None)
    return prediction == "v_prediction" or getattr(sd_model, "parameterization", None) == "v"


def autoencoder(sd_model: Any) -> Any:
    return sd_model.forge_objects.vae.first_stage_model


def frugal_attention(sd_model: Any) -> AbstractContextManager[None]:
    """The host sees to that itself."""
    return nullcontext()


def scaled(sd_model: Any, mean: Tensor) -> Tensor:
    owner = autoencoder(sd_model)
    if not hasattr(owner, "process_in"):
        owner = sd_model.forge_objects.unet.model.model_config.latent_format
    latent: Tensor = owner.process_in(mean)
    return latent


def reason_not_to_guide(config: Any) -> str:
    """Known before the schedule is made, which guidance would stretch."""
    if "CFG++" in config.name:
        return "CFG++ goes on from uncond alone, which guidance does not reach in this WebUI"
    return ""


def model_calls(denoiser: Any) -> ModelCalls:
    """Each of the host's calls has the whole batch once or more often, image by image."""
    sd_model = denoiser.inner_model.inner_model
    return ModelCalls(
        sd_model.forge_objects.unet.model,
        "apply_model",
        fitting=partial(call_fitting, sd_model=sd_model, sizes=size_embeddings(sd_model)),
        images_of=lambda x, state: torch.arange(len(x)) % len(state),
        branches=_branches,
    )


def _branches(cond: Mapping[str, Any]) -> Hashable:
    return tuple(cond["transformer_options"]["cond_or_uncond"])


@contextmanager
def guiding_model(denoiser: Any, guided: GuidedPass) -> Iterator[None]:
    """Adds to the options of the patcher that the model has now."""
    model = denoiser.inner_model.inner_model
    if is_flow(model) and not hasattr(denoiser.inner_model, "sigmas"):
        guided.warn(
            "Upsample Guidance was left out, because this sampler knows no flow models; take Euler."
        )
        yield
        return
    patcher = model.forge_objects.unet
    guide = partial(
        guided.guide,
        family=noise.family_of_sigmas(_sigmas(model).to(patcher.load_device)),
        shrink_cond=partial(
            shrunk_conds,
            large=guided.large,
            controlled=guided.settings.controlnet,
            sizes=size_embeddings(model),
        ),
    )
    evaluation = GuidedEvaluation(
        lambda predict: guide(predict, times=_as_sigmas(denoiser, guided.times)),
        guided.large,
        guided.warn,
        reaches_all=lambda: not getattr(denoiser, "need_last_noise_uncond", False),
    )
    options = patcher.model_options
    if guided.settings.windows == "attention":
        options = slots.with_windows(
            options, unet(model), Neighbourhood(guided.large, guided.native)
        )
    with (
        replaced(patcher, "model_options", evaluation.added_to(options)),
        _in_windows(denoiser, guided, evaluation),
    ):
        yield


@contextmanager
def _in_windows(denoiser: Any, guided: GuidedPass, evaluation: GuidedEvaluation) -> Iterator[None]:
    """Where the settings want it, the model's calls of the large image are made in windows."""
    if not guided.settings.evaluates_windows:
        yield
        return
    calls = model_calls(denoiser)
    apply_model = ApplyModel(calls, guided, evaluation)
    with (
        replaced(calls.owner, calls.name, apply_model),
        denoiser.register_forward_pre_hook(lambda *_: apply_model.begin_evaluation()),
    ):
        yield


def _sigmas(sd_model: Any) -> Tensor:
    """(T,) the noise levels that the model was trained on, increasing."""
    table: Tensor = _noise_levels(sd_model).sigmas
    return table


def _noise_levels(sd_model: Any) -> Any:
    model = sd_model.forge_objects.unet.model
    return model.predictor if hasattr(model, "predictor") else model.model_sampling


def _as_sigmas(denoiser: Any, times: Sequence[float]) -> list[float]:
    """A schedule as noise levels, in which the host evaluates; DDIM and its kin have timesteps."""
    inner = denoiser.inner_model
    if hasattr(inner, "sigmas"):
        return list(times)
    table = (1 / inner.inner_model.alphas_cumprod - 1).sqrt().tolist()
    return [table[min(round(time), len(table) - 1)] for time in times]
