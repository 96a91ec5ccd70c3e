"""The AUTOMATIC1111 WebUI, whose samplers ask one inner denoiser for cond and uncond stacked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from modules import devices
from torch import Tensor

from lib_hires.settings import UpsampleGuidance
from lib_hires.sizes import Size
from lib_hires.upsample_guidance import UpsampleGuided
from lib_hires.webui.conditioning import shrink_cond
from lib_hires.webui.messages import Say
from lib_hires.webui.noise import family_of
from lib_hires.webui.patching import replaced
from lib_hires.webui.placed_model import PlacedModel

carries_features = True


def is_supported(sd_model: Any) -> bool:
    """False for Stable Diffusion 3, a flow model."""
    return not getattr(sd_model, "is_sd3", False)


def unet(sd_model: Any) -> Any:
    return sd_model.model.diffusion_model


def alphas_cumprod(sd_model: Any) -> Tensor:
    products: Tensor = sd_model.alphas_cumprod
    return products


def predicts_v(sd_model: Any) -> bool:
    return bool(sd_model.parameterization == "v")


def autoencoder(sd_model: Any) -> Any:
    return sd_model.first_stage_model.to(devices.dtype_vae)


def scaled(sd_model: Any, mean: Tensor) -> Tensor:
    latent: Tensor = sd_model.scale_factor * mean
    return latent


@contextmanager
def guiding(
    sampler: Any,
    size: Size,
    settings: UpsampleGuidance,
    new_guide: Callable[..., UpsampleGuided],
    times: Sequence[float],
    say: Say,
) -> Iterator[None]:
    """The refiner takes another model, and with it another inner denoiser, in the middle."""
    denoiser = sampler.model_wrap_cfg
    current: list[PlacedModel] = []
    with ExitStack() as stack:

        def wrap() -> None:
            inner = denoiser.inner_model
            family, prediction = family_of(inner)
            conditioner = getattr(inner.inner_model, "conditioner", None)
            make = partial(
                new_guide,
                inner.forward,
                settings,
                family=family,
                times=times,
                prediction=prediction,
                shrink_cond=partial(shrink_cond, large=size, conditioner=conditioner),
            )
            model = PlacedModel(
                inner, lambda *_: make(), size=size, technique="Upsample Guidance", say=say
            )
            current[:] = [model]
            stack.enter_context(replaced(inner, "forward", model))

        def update_inner_model() -> None:
            update()
            wrap()

        update = denoiser.update_inner_model
        wrap()
        stack.enter_context(replaced(denoiser, "update_inner_model", update_inner_model))
        hook = denoiser.register_forward_pre_hook(lambda *_: current[0].begin_evaluation())
        stack.enter_context(hook)
        yield
