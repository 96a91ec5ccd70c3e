"""What the loaded model was made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modules import sd_models

from lib_hires.sizes import Size
from lib_hires.webui.hosts import host_of
from lib_hires.webui.hosts.protocol import FACTOR
from lib_hires.webui.surfaces.host_options import NATIVE


@dataclass(frozen=True)
class ModelSizes:
    """Sizes in pixels."""

    native: int  # side of the square that the model was trained on
    multiple: int  # of which sides should be multiples, for the model halves them
    step: int  # of which sides must be multiples

    @classmethod
    def of(cls, sd_model: Any) -> ModelSizes:
        """The loaded model's sizes; the native one as the user has set it, if so."""
        native = NATIVE.chosen() or _native_side(sd_model)
        if is_flow(sd_model):
            patch = 2 * FACTOR  # transformers, which know no half patches
            return cls(native, patch, patch)
        unet = host_of(sd_model).unet(sd_model)
        halvings = len(getattr(unet, "channel_mult", (1, 2, 4, 4))) - 1
        return cls(native, FACTOR * 2**halvings, FACTOR)

    @property
    def native_latent(self) -> Size:
        """(height, width) of a native latent."""
        return self.native // FACTOR, self.native // FACTOR


def _native_side(sd_model: Any) -> int:
    if getattr(sd_model, "is_sdxl", False) or is_flow(sd_model):
        return 1024
    if getattr(sd_model, "is_sd2", False) and host_of(sd_model).predicts_v(sd_model):
        return 768  # its configuration has 512
    return FACTOR * int(getattr(sd_model, "image_size", 64))


def is_supported(sd_model: Any) -> bool:
    """False for flow models in hosts other than Forge."""
    return host_of(sd_model).is_supported(sd_model)


def is_flow(sd_model: Any) -> bool:
    """Whether it is a flow model, such as Stable Diffusion 3 and Flux."""
    return host_of(sd_model).is_flow(sd_model)


def loaded_model() -> Any:
    """The model that is loaded, None before the first one; shared.sd_model would load one."""
    model = sd_models.model_data.sd_model
    placeholder = not hasattr(model, "model") and not hasattr(model, "forge_objects")
    return None if placeholder else model
