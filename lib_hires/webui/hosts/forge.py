"""Forge and reForge, which evaluate cond and uncond in one function of a patcher's options."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from lib_hires.sizes import Size
from lib_hires.upsample_guidance import UpsampleGuided
from lib_hires.webui.hosts import noise
from lib_hires.webui.hosts.forge_conds import (
    call_fitting,
    options_in_windows,
    shrunk_conds,
    size_embeddings,
)
from lib_hires.webui.hosts.guided_pass import GuidedPass
from lib_hires.webui.hosts.model_calls import CONTROLNET_SEES_WHOLE, ModelCalls
from lib_hires.webui.hosts.per_call import Denoiser, PlacedModel
from lib_hires.webui.messages import Say
from lib_hires.webui.patching import replaced
from lib_hires.windows import Windowed

log = logging.getLogger("hires_guidance")

BEFORE, AFTER = "conditioning_modifiers", "sampler_post_cfg_function"
"""Lists in a patcher's options: functions that the host calls around each evaluation."""

EVALUATION = (
    ("backend.sampling.sampling_function", "sampling_function_inner"),
    ("ldm_patched.modules.samplers", "sampling_function"),
)
"""Where the host has the function (model, x, sigma, uncond, cond, scale, options, seed) -> x0."""


def is_supported(sd_model: Any) -> bool:
    """False where no model is loaded yet, and for flow models of reForge."""
    if sd_model.forge_objects is None:
        return False
    return hasattr(sd_model.forge_objects.unet.model, "predictor") or not is_flow(sd_model)


def is_flow(sd_model: Any) -> bool:
    return noise.is_flow(_sigmas(sd_model))


def reason_for_whole(sd_model: Any) -> str:
    """Beside ControlNet's models, whatever goes by the self-attention of the whole image:
    reference units, StyleAlign, Self-Attention Guidance."""
    patcher = sd_model.forge_objects.unet
    if patcher.controlnet_linked_list is not None:
        return CONTROLNET_SEES_WHOLE
    options = patcher.model_options
    replaced_parts = options.get("transformer_options", {}).get("patches_replace", {})
    if options.get(BEFORE) or "attn1" in replaced_parts:
        return "another extension acts on the attention of whole images"
    return ""


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
        guided.say(
            "Upsample Guidance was left out, because this sampler knows no flow models; take Euler."
        )
        yield
        return
    patcher = model.forge_objects.unet
    guide = partial(
        guided.new_guide,
        settings=guided.settings,
        family=noise.family_of_sigmas(_sigmas(model).to(patcher.load_device)),
        shrink_cond=partial(
            shrunk_conds,
            large=guided.size,
            controlled=guided.settings.controlnet,
            sizes=size_embeddings(model),
        ),
    )
    evaluation = GuidedEvaluation(
        lambda predict: guide(predict, times=_as_sigmas(denoiser, guided.times)),
        guided.size,
        guided.say,
        reaches_all=lambda: not getattr(denoiser, "need_last_noise_uncond", False),
    )
    with (
        replaced(patcher, "model_options", evaluation.added_to(patcher.model_options)),
        _asking_in_windows(denoiser, guided, evaluation),
    ):
        yield


@contextmanager
def _asking_in_windows(
    denoiser: Any, guided: GuidedPass, evaluation: GuidedEvaluation
) -> Iterator[None]:
    """Where the settings say so; in each of the host's calls about the large image, unless the
    small question has failed."""
    if guided.settings.windows == "off":
        yield
        return
    calls = model_calls(denoiser)
    ask: Denoiser = getattr(calls.owner, calls.name)

    def ask_some(
        parts: Tensor, t: Tensor, *, options_of: Callable[[int], Mapping[str, Any]], **told: Any
    ) -> Tensor:
        told["transformer_options"] = options_of(len(parts))
        return ask(parts, t, **calls.fitting(told, parts, t, guided.size))

    windows = Windowed(
        ask_some,
        window=guided.small,
        overlap=guided.settings.overlap,
        blend=guided.settings.windows,
    )

    def ask_all(
        x: Tensor, t: Tensor, *, transformer_options: Mapping[str, Any], **cond: Any
    ) -> Tensor:
        options_of = partial(options_in_windows, transformer_options, len(x))
        return windows(x, t, options_of=options_of, **cond)

    model = PlacedModel(
        ask,
        lambda *_: ask_all,
        size=guided.size,
        technique="windows",
        say=guided.say,
        branches=_branches,
    )

    def asked(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        denoised: Tensor = (ask if evaluation.failed else model)(x, t, **cond)
        return denoised

    with (
        replaced(calls.owner, calls.name, asked),
        denoiser.register_forward_pre_hook(lambda *_: model.begin_evaluation()),
    ):
        yield


class GuidedEvaluation:
    """Guides the host's evaluations, during one sampling, from the question to the answer.

    The host combines cond and uncond itself, so its whole answer is guided, and the small question
    is one to the same function: with the same CFG, and with every other extension's part in it.
    """

    def __init__(
        self,
        new_guide: Callable[[Callable[..., Tensor]], UpsampleGuided],
        size: Size,
        say: Say,
        reaches_all: Callable[[], bool],
    ) -> None:
        """reaches_all: whether the sampler goes on from the combined prediction alone."""
        self._new_guide, self._size, self._say = new_guide, size, say
        self._reaches_all = reaches_all
        self._guide: UpsampleGuided | None = None
        self._asked: _Question | None = None  # what the host is being asked
        self.failed = False  # then the rest of the sampling is not guided

    def added_to(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """A patcher's options with this behind every other extension's part in them."""
        before, after = options.get(BEFORE, []), options.get(AFTER, [])
        return {**options, BEFORE: [*before, self.ask], AFTER: [*after, self.answer]}

    def ask(self, model: Any, x: Tensor, sigma: Tensor, *rest: Any) -> tuple[Any, ...]:
        """One of `BEFORE`: the question as it is to be put about the large image."""
        if self._asked is not None and not self.failed:
            self._give_up("this sampler puts a function of its own in the place of guidance")
        if not self.failed and not self._reaches_all():
            self._give_up("this sampler goes on from uncond alone, which guidance does not reach")
        self._asked = None
        if self.failed or tuple(x.shape[-2:]) != self._size:
            return model, x, sigma, *rest
        if self._guide is None:
            self._guide = self._new_guide(self._predict_small)
        _uncond, _cond, scale, _options, seed = rest
        self._asked = _Question(x, sigma, scale, seed)
        return model, *self._guide.model_input(x, sigma), *rest

    def answer(self, told: dict[str, Any]) -> Tensor:
        """One of `AFTER`: the host's answer, guided."""
        denoised: Tensor = told["denoised"]
        question, self._asked = self._asked, None
        if question is None:
            return denoised
        assert self._guide is not None
        try:
            conds = {"told": told, "question": question, "cond": told["cond"]}
            conds["uncond"] = told["uncond"]
            return self._guide.guide(denoised, question.x, question.sigma, conds)
        except Exception as error:
            log.exception("Upsample Guidance failed")
            self._give_up(f"asking about the small image failed ({type(error).__name__}: {error})")
            return denoised

    def _give_up(self, reason: str) -> None:
        self.failed = True
        self._say(f"the rest of the image was made without Upsample Guidance, because {reason}.")

    def _predict_small(
        self,
        x: Tensor,
        sigma: Tensor,
        *,
        told: dict[str, Any],
        question: _Question,
        cond: Any,
        uncond: Any,
    ) -> Tensor:
        options = told["model_options"]
        others = [function for function in options.get(AFTER, []) if function != self.answer]
        return _evaluation()(
            told["model"],
            x,
            sigma,
            uncond,
            cond,
            told.get("cond_scale", question.scale),
            {**options, AFTER: others},
            question.seed,
        )


@dataclass(frozen=True, eq=False)
class _Question:
    """What the sampler asks: a state at a noise level, and how cond and uncond are combined."""

    x: Tensor
    sigma: Tensor
    scale: float
    seed: Any


def _evaluation() -> Callable[..., Tensor]:
    for module, name in EVALUATION:
        with suppress(ImportError):
            function: Callable[..., Tensor] = getattr(import_module(module), name)
            return function
    raise RuntimeError("this WebUI's evaluation of cond and uncond was not found")


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
