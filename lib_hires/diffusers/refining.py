"""Progressive refinement with a pipeline's own VAE and image-to-image denoising."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoPipelineForImage2Image
from torch import Tensor

from lib_hires.diffusers.guidance import model_of, native_of
from lib_hires.diffusers.hook import NAME, GuidanceHook, factor_of
from lib_hires.diffusers.layouts import unpacked
from lib_hires.noise import generators
from lib_hires.refinement import Remembering, Stage, plan
from lib_hires.refinement import refine as run_stages
from lib_hires.settings import NOTHING, Settings, SettingsError
from lib_hires.tiled_vae import vae_tiled

OF_THE_FIRST_IMAGE = {  # arguments of a pipeline's call that stages give themselves, or go without
    "height",
    "width",
    "latents",
    "image",
    "strength",
    "output_type",
    "return_dict",
    "timesteps",
    "sigmas",
    "denoising_start",
    "denoising_end",
}


@dataclass(frozen=True, eq=False)
class RefinedStage:
    """A finished stage."""

    stage: Stage
    latent: Tensor  # (b, c, h, w)
    images: list[Any]  # PIL's


def refine(
    pipe: Any, result: Any, *, num_inference_steps: int = 50, generator: Any = None, **call: Any
) -> Iterator[RefinedStage]:
    """Upsample a pipeline's result in stages, yielding each as soon as it is finished.

    result: what the pipeline returned: its output, PIL images, images (b, 3, H, W) in [0, 1], or
    latents (b, c, h, w). call: what the pipeline was called with: prompt, guidance_scale, ...;
    sizes, noise, images, schedules and forms of output are left out. generator: whose seeds the
    noise of every stage is drawn from; None draws one from torch's own. The stages are those of the
    settings that `apply_hires_guidance` was given, or of the defaults.
    Raises SettingsError for what the settings cannot do here, and for pipelines with a ControlNet
    and for inpainting.
    """
    hook = getattr(model_of(pipe), "_diffusers_hook", None)
    hook = hook and hook.get_hook(NAME)
    settings = hook.settings if hook else Settings()
    if settings.refine.upsampler != NOTHING:
        raise SettingsError("refine_upsampler: diffusers pipelines take no feature upsampler")
    _check_kind(pipe)
    call = {key: value for key, value in call.items() if key not in OF_THE_FIRST_IMAGE}
    stages = _Stages(pipe, settings, hook, num_inference_steps, generator, call)
    yield from stages.run(result)


class _Stages:
    """The stages of one run."""

    def __init__(
        self,
        pipe: Any,
        settings: Settings,
        hook: GuidanceHook | None,
        steps: int,
        generator: Any,
        call: dict[str, Any],
    ) -> None:
        self._pipe, self._settings, self._hook = pipe, settings, hook
        self._steps, self._call = settings.refine.steps_of_stages(steps), call
        given = generator if isinstance(generator, list) else [generator]
        self._seeds = [_new_seed() if one is None else one.initial_seed() for one in given]
        self._img2img = pipe if "Img2Img" in type(pipe).__name__ else _image_pipeline(pipe)
        self._factor = factor_of(pipe)

    @torch.no_grad()
    def run(self, result: Any) -> Iterator[RefinedStage]:
        latent = self._latent(result)
        factor = self._factor
        _, multiple = native_of(self._pipe, factor)
        first = latent.shape[-2] * factor, latent.shape[-1] * factor
        refine_settings = self._settings.refine
        stages = plan(refine_settings, first, multiple=multiple * factor, factor=factor * 2)
        decode = Remembering(self._decode)
        results = run_stages(
            latent,
            stages,
            decode=decode,
            encode=self._encode,
            denoise=self._denoise,
            factor=factor,
            colour_match=refine_settings.colour_match,
        )
        for done in results:
            images = self._pipe.image_processor.postprocess(decode(done.latent))
            yield RefinedStage(done.stage, done.latent, images)

    def _latent(self, result: Any) -> Tensor:
        """The first image's latent, of whatever the pipeline returned."""
        images = getattr(result, "images", result)
        if isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] != 3:
            return images
        if isinstance(images, Tensor) and images.ndim != 4:
            raise SettingsError("refine: give the pipeline's images, not its packed latents")
        return self._encode(self._pipe.image_processor.preprocess(images))

    def _denoise(self, latent: Tensor, stage: Stage, _: Tensor) -> Tensor:
        """The pipeline's image-to-image run from a clean latent, of the last steps."""
        steps = self._steps
        height, width = (side * self._factor for side in latent.shape[-2:])
        seeds = self._seeds if len(self._seeds) == len(latent) else self._more_seeds(len(latent))
        last = max(1, min(steps, round(stage.strength * steps)))
        if self._hook is not None:
            self._hook.kind = "stage"
        try:
            out = self._img2img(
                **self._call,
                image=latent.to(model_of(self._pipe).dtype),
                strength=min(1.0, (last + 0.01) / steps),
                num_inference_steps=steps,
                generator=generators(seeds, stage.number),
                output_type="latent",
                return_dict=False,
                **self._sizes(height, width),
            )[0]
        finally:
            if self._hook is not None:
                self._hook.kind = "text"
        if out.ndim == 3:
            return unpacked(out, (latent.shape[-2] // 2, latent.shape[-1] // 2))
        return out

    def _sizes(self, height: int, width: int) -> dict[str, int]:
        taken = inspect.signature(type(self._img2img).__call__).parameters
        return {"height": height, "width": width} if "height" in taken else {}

    def _more_seeds(self, images: int) -> list[int]:
        return [self._seeds[0] + image for image in range(images)]

    def _decode(self, latent: Tensor) -> Tensor:
        scale, shift = self._scale(latent)

        def decode(z: Tensor) -> Tensor:
            return self._vae.decode((z / scale + shift).to(self._vae.dtype), return_dict=False)[0]

        return self._tiled(decode, latent.to(self._device), decode=True).float()

    def _encode(self, image: Tensor) -> Tensor:
        def encode(part: Tensor) -> Tensor:
            found = self._vae.encode(part.to(self._vae.dtype), return_dict=False)[0]
            z = (found if isinstance(found, Tensor) else found.mode()).float()
            scale, shift = self._scale(z)
            return (z - shift) * scale

        return self._tiled(encode, image.to(self._device), decode=False)

    def _tiled(self, function: Callable[[Tensor], Tensor], x: Tensor, decode: bool) -> Tensor:
        vae, tile = self._vae, self._settings.refine.tile
        before = vae.dtype
        if before == torch.float16 and vae.config.get("force_upcast"):
            vae.to(torch.float32)  # SDXL's overflows in float16
        try:
            return vae_tiled(function, x, vae=vae, pixels=tile, factor=self._factor, decode=decode)
        finally:
            if vae.dtype != before:
                vae.to(before)

    @property
    def _vae(self) -> Any:
        return self._pipe.vae

    @property
    def _device(self) -> torch.device:
        offloading = getattr(self._vae, "_hf_hook", None)
        found = getattr(offloading, "execution_device", None)
        return self._vae.device if found is None else torch.device(found)

    def _scale(self, like: Tensor) -> tuple[Any, Any]:
        """Scale and shift with latent = (z - shift)·scale, z being what the VAE sees."""
        config = self._vae.config
        mean = config.get("latents_mean") or [config.get("shift_factor") or 0.0]
        deviation = config.get("latents_std") or [1.0]
        shift, spread = (like.new_tensor(part)[:, None, None] for part in (mean, deviation))
        return config.scaling_factor / spread, shift


def _check_kind(pipe: Any) -> None:
    """Raises SettingsError for pipelines whose further images the stages do not resize."""
    name = type(pipe).__name__
    if "ControlNet" in name or getattr(pipe, "controlnet", None) is not None:
        raise SettingsError(f"refine: {name} has a ControlNet, which stages do not support")
    if "Inpaint" in name:
        raise SettingsError(f"refine: {name} is for inpainting, which stages do not support")


def _new_seed() -> int:
    """From torch's own generator, which keeps its seed."""
    return int(torch.randint(2**63 - 1, ()))


def _image_pipeline(pipe: Any) -> Any:
    """Image to image with the same components and the same hooks."""
    try:
        made = AutoPipelineForImage2Image.from_pipe(pipe)
    except ValueError:
        raise SettingsError(f"refine: {type(pipe).__name__} has no image-to-image form") from None
    made.set_progress_bar_config(**copy.copy(getattr(pipe, "_progress_bar_config", {})))
    return made
