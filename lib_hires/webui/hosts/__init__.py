"""What differs between the WebUIs that run this extension, behind one interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

from torch import Tensor

from lib_hires.webui.hosts import a1111, forge
from lib_hires.webui.hosts.guided_pass import GuidedPass
from lib_hires.webui.hosts.model_calls import ModelCalls
from lib_hires.webui.patching import replaced


class Host(Protocol):
    """A module that knows one kind of WebUI. `sd_model` is the one that the host has loaded."""

    def is_supported(self, sd_model: Any) -> bool:
        """Whether its samplers run in a noise family that guidance knows here."""

    def is_flow(self, sd_model: Any) -> bool:
        """Whether it is a flow model, such as Stable Diffusion 3 and Flux."""

    def reason_for_whole(self, sd_model: Any) -> str:
        """Why what it samples now cannot be asked about in windows, "" where it can."""

    def unet(self, sd_model: Any) -> Any:
        """The U-Net, with its input, middle and output blocks."""

    def alphas_cumprod(self, sd_model: Any) -> Tensor:
        """(T,) DDPM's products abar of the noise levels that the model was trained on."""

    def predicts_v(self, sd_model: Any) -> bool:
        """Whether the model was trained to predict v."""

    def autoencoder(self, sd_model: Any) -> Any:
        """The VAE, ready for images of the host's own precision."""

    def frugal_attention(self, sd_model: Any) -> AbstractContextManager[None]:
        """Inside the block the VAE's attention makes no matrix of all positions by all."""

    def scaled(self, sd_model: Any, mean: Tensor) -> Tensor:
        """What the VAE's encoder gives, in the U-Net's scale."""

    def reason_not_to_guide(self, config: Any) -> str:
        """Why Upsample Guidance cannot act on a sampler of the host's, "" where it can."""

    def model_calls(self, denoiser: Any) -> ModelCalls:
        """How a sampler's CFG denoiser asks its present model."""

    def guiding_model(self, denoiser: Any, guided: GuidedPass) -> AbstractContextManager[None]:
        """Guide what the sampler's CFG denoiser asks its present model inside the block."""


def host_of(sd_model: Any) -> Host:
    """Forge and its kin load a model as an object of patchers; the original has its modules."""
    return forge if hasattr(sd_model, "forge_objects") else a1111


@contextmanager
def guiding(denoiser: Any, guided: GuidedPass) -> Iterator[None]:
    """Put Upsample Guidance around what a sampler's CFG denoiser asks inside the block.

    It is placed anew where the refiner takes another model in the middle.
    """
    host = host_of(denoiser.inner_model.inner_model)
    with ExitStack() as placed:

        def update_inner_model() -> None:
            update()
            placed.close()
            placed.enter_context(host.guiding_model(denoiser, guided))

        update = denoiser.update_inner_model
        placed.enter_context(host.guiding_model(denoiser, guided))
        with replaced(denoiser, "update_inner_model", update_inner_model):
            yield
