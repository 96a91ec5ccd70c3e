"""What differs between the WebUIs that run this extension, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from lib_hires.settings import UpsampleGuidance
from lib_hires.sizes import Size
from lib_hires.upsample_guidance import UpsampleGuided
from lib_hires.webui.hosts import a1111, forge
from lib_hires.webui.messages import Say


class Host(Protocol):
    """A module that knows one kind of WebUI. `sd_model` is the one that the host has loaded."""

    carries_features: bool
    """Whether feature upsamplers can act on what its samplers ask the model."""

    def is_supported(self, sd_model: Any) -> bool:
        """Whether its samplers run in a noise family that guidance knows here."""

    def unet(self, sd_model: Any) -> Any:
        """The U-Net, with its input, middle and output blocks."""

    def alphas_cumprod(self, sd_model: Any) -> Tensor:
        """(T,) DDPM's products abar of the noise levels that the model was trained on."""

    def predicts_v(self, sd_model: Any) -> bool:
        """Whether the model was trained to predict v."""

    def autoencoder(self, sd_model: Any) -> Any:
        """The VAE, ready for pictures of the host's own precision."""

    def scaled(self, sd_model: Any, mean: Tensor) -> Tensor:
        """What the VAE's encoder gives, in the U-Net's scale."""

    def guiding(
        self,
        sampler: Any,
        size: Size,
        settings: UpsampleGuidance,
        new_guide: Callable[..., UpsampleGuided],
        times: Sequence[float],
        say: Say,
    ) -> AbstractContextManager[None]:
        """Put Upsample Guidance around what `sampler` asks the model inside the block.

        size: (height, width) of the pass's latents; others are not guided. new_guide: makes one
        from a predictor, the settings, a noise family, a parametrisation and a function that
        shrinks conds.
        times: the sampler's schedule in its own times, filled by the first evaluation at latest.
        """


def host_of(sd_model: Any) -> Host:
    """Forge and its kin load a model as an object of patchers; the original has its modules."""
    return forge if hasattr(sd_model, "forge_objects") else a1111
