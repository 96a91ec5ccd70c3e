"""Upsample Guidance in the evaluations of Forge and reForge: a class for each hook of theirs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor

from lib_hires.sizes import Size
from lib_hires.upsample_guidance import Predictor, UpsampleGuided
from lib_hires.webui.hosts.forge_conds import options_in_windows
from lib_hires.webui.hosts.per_call import Denoiser, PlacedModel
from lib_hires.webui.hosts.protocol import GuidedPass, ModelCalls
from lib_hires.webui.messages import Warn
from lib_hires.windows import Windowed

log = logging.getLogger("hires_guidance")

BEFORE, AFTER = "conditioning_modifiers", "sampler_post_cfg_function"
"""Lists in a patcher's options: functions that the host calls around each evaluation."""

EVALUATION = (
    ("backend.sampling.sampling_function", "sampling_function_inner"),
    ("ldm_patched.modules.samplers", "sampling_function"),
)
"""Where the host has the function (model, x, sigma, uncond, cond, scale, options, seed) -> x0."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the sampler evaluates: a state at a noise level, and how cond and uncond combine."""

    x: Tensor
    sigma: Tensor
    scale: float
    seed: Any


class GuidedEvaluation:
    """The host's two hooks around each evaluation, during one sampling.

    The host combines cond and uncond itself, so its combined prediction is guided, and the native
    evaluation calls the same function: with the same CFG, and with every other extension's part.
    """

    def __init__(
        self,
        new_guide: Callable[[Predictor], UpsampleGuided],
        size: Size,
        warn: Warn,
        reaches_all: Callable[[], bool],
    ) -> None:
        """size: (height, width) of the latents that the guide is made for; others are not guided.
        reaches_all: whether the sampler goes on from the combined prediction alone."""
        self._new_guide, self._size, self._warn = new_guide, size, warn
        self._reaches_all = reaches_all
        self._guide: UpsampleGuided | None = None
        self._begun: Evaluation | None = None  # between the two hooks
        self.native = False  # whether a native evaluation is under way
        self.failed = False  # then the rest of the sampling is not guided

    def added_to(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """A patcher's options with this behind every other extension's part in them."""
        before, after = options.get(BEFORE, []), options.get(AFTER, [])
        return {
            **options,
            BEFORE: [*before, self.conditioning_modifier],
            AFTER: [*after, self.sampler_post_cfg],
        }

    def conditioning_modifier(
        self, model: Any, x: Tensor, sigma: Tensor, *rest: Any
    ) -> tuple[Any, ...]:
        """One of `BEFORE`: the arguments of the evaluation as guidance wants them."""
        if self.native:
            return model, x, sigma, *rest
        if self._begun is not None and not self.failed:
            self._give_up("this sampler puts a function of its own in the place of guidance")
        if not self.failed and not self._reaches_all():
            self._give_up("this sampler goes on from uncond alone, which guidance does not reach")
        self._begun = None
        if self.failed or tuple(x.shape[-2:]) != self._size:
            return model, x, sigma, *rest
        if self._guide is None:
            self._guide = self._new_guide(self._evaluate_native)
        _uncond, _cond, scale, _options, seed = rest
        self._begun = Evaluation(x, sigma, scale, seed)
        return model, *self._guide.model_input(x, sigma), *rest

    def sampler_post_cfg(self, arguments: dict[str, Any]) -> Tensor:
        """One of `AFTER`: the host's combined prediction, guided."""
        denoised: Tensor = arguments["denoised"]
        if self.native:
            return denoised
        evaluation, self._begun = self._begun, None
        if evaluation is None:
            return denoised
        assert self._guide is not None
        conds = {name: arguments[name] for name in ("cond", "uncond")}
        conds |= {"arguments": arguments, "evaluation": evaluation}
        try:
            x, sigma = evaluation.x, evaluation.sigma
            guided = self._guide.guide(_without_frames(denoised), _without_frames(x), sigma, conds)
            return guided.reshape(denoised.shape)
        except Exception as error:
            log.exception("Upsample Guidance failed")
            self._give_up(f"the native evaluation failed ({type(error).__name__}: {error})")
            return denoised

    def _give_up(self, reason: str) -> None:
        self.failed = True
        self._warn(f"the rest of the image was made without Upsample Guidance, because {reason}.")

    def _evaluate_native(
        self,
        x: Tensor,
        sigma: Tensor,
        *,
        arguments: dict[str, Any],
        evaluation: Evaluation,
        cond: Any,
        uncond: Any,
    ) -> Tensor:
        options = arguments["model_options"]
        others = [part for part in options.get(AFTER, []) if part != self.sampler_post_cfg]
        self.native = True
        try:
            denoised = _sampling_function()(
                arguments["model"],
                x.unflatten(1, evaluation.x.shape[1:-2]),
                sigma,
                uncond,
                cond,
                arguments.get("cond_scale", evaluation.scale),
                {**options, AFTER: others},
                evaluation.seed,
            )
            return _without_frames(denoised)
        finally:
            self.native = False


class ApplyModel:
    """In place of the model's `apply_model`: the large image's calls in overlapping windows.

    Native evaluations are left whole, and so is everything once guidance has failed.
    """

    def __init__(self, calls: ModelCalls, guided: GuidedPass, evaluation: GuidedEvaluation) -> None:
        self._apply: Denoiser = getattr(calls.owner, calls.name)
        self._fitting, self._large, self._evaluation = calls.fitting, guided.large, evaluation
        self._windows = Windowed(
            self._evaluate_windows,
            window=guided.native,
            overlap=guided.settings.overlap,
            blend=guided.settings.windows,
        )
        self._placed = PlacedModel(
            self._apply,
            lambda *_: self._evaluate_large,
            size=guided.large,
            technique="windows",
            warn=guided.warn,
            branches=calls.branches,
        )

    def begin_evaluation(self) -> None:
        """To be called before the host's first call of an evaluation."""
        self._placed.begin_evaluation()

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        whole = self._evaluation.failed or self._evaluation.native
        return (self._apply if whole else self._placed)(x, t, **cond)

    def _evaluate_large(
        self, x: Tensor, t: Tensor, *, transformer_options: Mapping[str, Any], **cond: Any
    ) -> Tensor:
        options_of = partial(options_in_windows, transformer_options, len(x))
        return self._windows(x, t, options_of=options_of, **cond)

    def _evaluate_windows(
        self,
        parts: Tensor,
        t: Tensor,
        *,
        options_of: Callable[[int], Mapping[str, Any]],
        **cond: Any,
    ) -> Tensor:
        cond["transformer_options"] = options_of(len(parts))
        return self._apply(parts, t, **self._fitting(cond, parts, t, self._large))


def _without_frames(x: Tensor) -> Tensor:
    """Latents (b, c, T, h, w) as (b, c·T, h, w), in which guidance knows each channel alone; others
    are as they are."""
    return x.flatten(1, -3)


def _sampling_function() -> Callable[..., Tensor]:
    for module, name in EVALUATION:
        with suppress(ImportError):
            function: Callable[..., Tensor] = getattr(import_module(module), name)
            return function
    raise RuntimeError("this WebUI's evaluation of cond and uncond was not found")
