"""Feature upsampler of a host's model (Self-Cascade, tuned): MODEL in, MODEL out.

The host hands its patches of output blocks each skip feature just before a decoder's block takes
it: there the smaller image's are kept, in one evaluation at the clean latent, and there phi of them
is added to the larger image's. A run's features are found again by the ids of its conds, whatever
batches the host makes of them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.samplers
import comfy.utils
import folder_paths
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from lib_hires.comfy.conditioning import Controls, shrunk_conds
from lib_hires.feature_upsampler import UpsamplerError
from lib_hires.settings import SettingsError
from lib_hires.sizes import Size, shown
from lib_hires.upsampler_file import NamedUpsampler, chosen_upsampler, files_in

log = logging.getLogger("hires_guidance")

KEY = "hires_guidance_features"  # of the wrapper
FOLDER = "hires-guidance"  # beside checkpoints, loras and the like

Patch = Callable[[Tensor, Tensor, dict[str, Any]], tuple[Tensor, Tensor]]


def files() -> dict[str, Path]:
    """The feature upsamplers in the host's folders of models, by name."""
    if FOLDER not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]
    return {name: file for folder in folders for name, file in files_in(folder).items()}


def upsampled_model(model: Any, name: str, small: Tensor | None) -> Any:
    """A clone of a host's MODEL that adds the features of `small` where it samples a larger latent.

    name: of a file. small: (b, c, h, w), as a LATENT holds it; a refinement gives each stage its
    own. Raises SettingsError for a file that is missing, damaged or for models of another kind.
    """
    try:
        upsampler = chosen_upsampler(name, files())
        upsampler.weights.info.check(_family(model.model), model.model.diffusion_model)
    except UpsamplerError as error:
        raise SettingsError(f"Feature Upsampler: {error}") from None
    return _with(model, UpsampledSampling(upsampler, small))


def with_small(model: Any, small: Tensor) -> Any:
    """The same for another smaller latent; the model itself where it has no feature upsampler."""
    for wrapper in model.wrappers.get(WrappersMP.SAMPLER_SAMPLE, {}).get(KEY, ()):
        return _with(model, replace(wrapper, small=small))
    return model


def _with(model: Any, sampling: UpsampledSampling) -> Any:
    patched = model.clone()
    patched.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, sampling)
    return patched


def _family(model: Any) -> str:
    """As feature upsamplers name the kinds of models."""
    if isinstance(model, comfy.model_base.SDXL):
        return "sdxl"
    return "sd2" if model.model_config.unet_config.get("context_dim") == 1024 else "sd1"


@dataclass(frozen=True, eq=False)
class UpsampledSampling:
    """The wrapper around a sampler's run."""

    upsampler: NamedUpsampler
    small: Tensor | None

    def __call__(
        self,
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """The arguments are those of the host's `Sampler.sample`."""
        if self.small is not None and self._fits(noise):
            options = extra_args["model_options"]  # the run's own
            clean = comfy.utils.repeat_to_batch_size(self.small, len(noise)).to(noise)
            clean = guider.inner_model.process_latent_in(clean)
            features = Features(self.upsampler, guider.inner_model, _size(noise))
            features.capture(guider, clean, options)
            extra_args["model_options"] = _patched(options, features.add)
        return executor(guider, sigmas, extra_args, callback, noise, *rest, **named)

    def _fits(self, noise: Tensor) -> bool:
        assert self.small is not None
        info, sizes = self.upsampler.weights.info, (_size(self.small), _size(noise))
        fits = noise.ndim == 4 and info.fits(*sizes)
        if not fits:
            log.warning(
                "Feature Upsampler was left out: %s was trained for %g times the sides, and this is"
                " from %s to %s of the latent.",
                self.upsampler.name,
                info.scale,
                *map(shown, sizes),
            )
        return fits


class Features:
    """The skip features of a smaller image in one sampler's run, and what becomes of them."""

    def __init__(self, upsampler: NamedUpsampler, model: Any, large: Size) -> None:
        """model: the host's BaseModel. large: of the latents to which phi is added."""
        self._weights = copy.deepcopy(upsampler.weights)
        self._model, self._large = model, large
        self._layers = {layer: n for n, layer in enumerate(upsampler.weights.info.layers)}
        self._kept: dict[tuple[Any, int], Tensor] = {}  # by a cond's id and n, (b, c_n, h_n, w_n)
        self._psi: dict[tuple[Any, int], Tensor] = {}

    def capture(self, guider: Any, clean: Tensor, options: dict[str, Any]) -> None:
        """Evaluate every cond of a run at the smaller clean latent (b, c, h, w), t = 0."""

        def keep(h: Tensor, skip: Tensor, state: dict[str, Any]) -> tuple[Tensor, Tensor]:
            if state["block"][1] in self._layers:
                n = self._layers[state["block"][1]]
                for cond, part in zip(state["uuids"], _by_cond(skip, state), strict=True):
                    self._kept[cond, n] = part.clone()
            return h, skip

        conds = list(guider.conds.values())
        small = shrunk_conds(conds, _size(clean), self._large, self._model, Controls())
        no_noise = clean.new_zeros(len(clean))
        comfy.samplers.calc_cond_batch(self._model, small, clean, no_noise, _patched(options, keep))

    def add(self, h: Tensor, skip: Tensor, state: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The host's patch of output blocks: h and the skip feature that its block will take."""
        n = self._layers.get(state["block"][1])
        if n is None or tuple(state["original_shape"][-2:]) != self._large:
            return h, skip
        t = self._model.model_sampling.timestep(state["sigmas"]).float()
        t = t.clamp(max=self._weights.info.pivot).to(skip.device)
        changed = skip.clone()
        for cond, part in zip(state["uuids"], _by_cond(changed, state), strict=True):
            if (cond, n) in self._kept:  # a prompt may have ended before t = 0
                phi = self._weights.to(skip.device, skip.dtype).part(n)
                if (cond, n) not in self._psi:
                    self._psi[cond, n] = phi.psi(self._kept[cond, n], _size(skip))
                part += phi.mixed(self._psi[cond, n], t).view_as(part)
        return h, changed


def _by_cond(rows: Tensor, state: dict[str, Any]) -> tuple[Tensor, ...]:
    """Views of the rows of each cond that the host evaluates at once."""
    return rows.chunk(len(state["uuids"]))


def _patched(options: dict[str, Any], patch: Patch) -> dict[str, Any]:
    """A copy of a run's options with one more patch of output blocks, the last one."""
    transformer = options["transformer_options"]
    patches = transformer.get("patches", {})
    more = [*patches.get("output_block_patch", ()), patch]
    patches = {**patches, "output_block_patch": more}
    return {**options, "transformer_options": {**transformer, "patches": patches}}


def _size(latent: Tensor) -> Size:
    return latent.shape[-2], latent.shape[-1]
