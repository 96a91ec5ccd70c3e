"""Put the guidance on a pipeline, and take it off."""

from __future__ import annotations

import logging
from typing import Any

from diffusers.hooks import HookRegistry

from lib_hires.attentive_guidance import gamma_at, mix_into_state_
from lib_hires.diffusers.hook import NAME, GuidanceHook, factor_of
from lib_hires.diffusers.levels import is_flow, scales_noise, schedule
from lib_hires.diffusers.shifted import shift_start, unshift_start
from lib_hires.run.passes import mixes
from lib_hires.settings import Settings, SettingsError
from lib_hires.sizes import Size

log = logging.getLogger("hires_guidance")


class HiresGuidance:
    """What `apply_hires_guidance` put on a pipeline."""

    def __init__(self, pipe: Any, hook: GuidanceHook) -> None:
        self._pipe, self._hook = pipe, hook

    @property
    def settings(self) -> Settings:
        return self._hook.settings

    def on_step_end(
        self, pipe: Any, step: int, timestep: Any, given: dict[str, Any]
    ) -> dict[str, Any]:
        """Attentive Guidance, as a pipeline's `callback_on_step_end`: mixes into its latents.

        Latents of other forms than (b, c, h, w), and those of refinement stages, are left as they
        are.
        """
        self._hook.called_back = True
        pfsa, scheduler = self.settings.pfsa, pipe.scheduler
        latents = given.get("latents")
        if not mixes(self.settings, self._hook.kind) or latents is None or latents.ndim != 4:
            return given
        levels = schedule(scheduler)
        steps = pipe.num_timesteps
        sigma = levels[len(levels) - steps + step]
        gamma = gamma_at(step + 1, steps, pfsa)
        if gamma == 0 or sigma == 0:
            return given
        scale = 1.0  # of the state to one of unscaled signal
        if is_flow(scheduler):
            if sigma == 1:
                return given
            sigma, scale = sigma / (1 - sigma), 1 / (1 - sigma)
        elif not scales_noise(scheduler):
            scale = (1 + sigma**2) ** 0.5
        state = latents.float() * scale
        mix_into_state_(state, gamma, pfsa, sigma)
        return {**given, "latents": (state / scale).to(latents.dtype)}


def apply_hires_guidance(
    pipe: Any, *, native: int | Size | None = None, **values: object
) -> HiresGuidance:
    """Guide every run of a diffusers pipeline, `apply_hires_guidance(pipe, ug=True)`.

    pipe: with a `unet` or a `transformer`, which keeps its class. native: the model's native side,
    or (height, width), in pixels; None takes it from the model. values: settings by their public
    names. A second call replaces the first.
    Raises SettingsError for an unknown setting or value, and for a pipeline of another kind.
    """
    settings = Settings.from_values(values)
    module = model_of(pipe)
    size, multiple = native_of(pipe, native)
    remove_hires_guidance(pipe)
    hook = GuidanceHook(pipe, settings, size, multiple)
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, NAME)
    shift_start(pipe, hook)
    return HiresGuidance(pipe, hook)


def remove_hires_guidance(pipe: Any) -> None:
    """Leave a pipeline as it was before `apply_hires_guidance`; nothing where it was not called."""
    unshift_start(pipe)
    module = model_of(pipe)
    registry = getattr(module, "_diffusers_hook", None)
    if registry is None or registry.get_hook(NAME) is None:
        return
    outer = module.forward
    inside = _is_offloading(outer) and list(registry.hooks)[-1] == NAME
    registry.remove_hook(NAME, recurse=False)
    if inside:  # accelerate's hook came later and stays
        module._old_forward, module.forward = module.forward, outer
    if not registry.hooks:
        del getattr(module, "_orig_mod", module)._diffusers_hook
    if getattr(vars(module).get("forward"), "__func__", None) is type(module).forward:
        del module.forward


def model_of(pipe: Any) -> Any:
    """A pipeline's U-Net or transformer. Raises SettingsError where it has neither."""
    for name in ("unet", "transformer"):
        module = getattr(pipe, name, None)
        if module is not None:
            return module
    raise SettingsError(f"{type(pipe).__name__}: expected a pipeline with a unet or a transformer")


def native_of(pipe: Any, given: int | Size | None) -> tuple[Size, int]:
    """The native size, and what sizes are rounded to, in latent positions."""
    config = model_of(pipe).config
    blocks = config.get("down_block_types")
    multiple = 2 ** (len(blocks) - 1) if blocks else int(config.get("patch_size") or 1)
    if "FluxTransformer" in config.get("_class_name", "") or type(pipe).__name__.startswith("Flux"):
        multiple = 2
    factor = factor_of(pipe)
    if given is not None:
        pixels = (given, given) if isinstance(given, int) else given
        return (pixels[0] // factor, pixels[1] // factor), multiple
    size = config.get("sample_size") or getattr(pipe, "default_sample_size", None)
    if isinstance(size, (int, float)):
        return (int(size), int(size)), multiple
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise SettingsError(
            f"native: {type(pipe).__name__} does not say its native size; give it in pixels"
        )
    return (int(size[0]), int(size[1])), multiple


def _is_offloading(forward: Any) -> bool:
    """Whether accelerate's hook is the outermost around a module."""
    function = getattr(forward, "func", None)
    return getattr(function, "__module__", "") == "accelerate.hooks"
