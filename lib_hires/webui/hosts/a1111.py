"""The AUTOMATIC1111 WebUI, whose samplers evaluate cond and uncond in one inner denoiser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from modules import devices
from torch import Tensor

from lib_hires.detail.neighbourhood import Neighbourhood
from lib_hires.sizes import Size
from lib_hires.webui.hosts.attention import attention_in_windows
from lib_hires.webui.hosts.conditioning import SizeEmbeddings, shrink_cond
from lib_hires.webui.hosts.noise import family_of
from lib_hires.webui.hosts.per_call import PlacedModel, SurroundedModel
from lib_hires.webui.hosts.protocol import GuidedPass, ModelCalls
from lib_hires.webui.patching import replaced


def is_host_of(sd_model: Any) -> bool:
    """The original has a model's modules; so it is taken where no other host knows the model."""
    return True


def is_supported(sd_model: Any) -> bool:
    """False for Stable Diffusion 3."""
    return not is_flow(sd_model)


def is_flow(sd_model: Any) -> bool:
    return bool(getattr(sd_model, "is_sd3", False))


def guides_clips(sd_model: Any) -> bool:
    return True


def has_frames(sd_model: Any) -> bool:
    return False


def sees_first_image(sd_model: Any) -> bool:
    """InstructPix2Pix and depth2img, known as the host knows them."""
    is_depth = type(sd_model).__name__ == "LatentDepth2ImageDiffusion"
    return is_depth or getattr(sd_model, "cond_stage_key", "") == "edit"


def reason_for_whole(sd_model: Any) -> str:
    """ControlNet, an extension here, is found with the run's scripts."""
    return ""


def reason_for_whole_attention(sd_model: Any) -> str:
    """Each self-attention is called as it is, so none is in the way."""
    return ""


def unet(sd_model: Any) -> Any:
    return sd_model.model.diffusion_model


def alphas_cumprod(sd_model: Any) -> Tensor:
    products: Tensor = sd_model.alphas_cumprod
    return products


def predicts_v(sd_model: Any) -> bool:
    return bool(sd_model.parameterization == "v")


def autoencoder(sd_model: Any) -> Any:
    return sd_model.first_stage_model.to(devices.dtype_vae)


@contextmanager
def frugal_attention(sd_model: Any) -> Iterator[None]:
    """Some of its optimisations leave the VAE the plain form: 275 GB for a latent of 512x512."""
    from modules import sd_hijack_optimizations as optimizations  # of no use in Forge

    plain = (
        optimizations.diffusionmodules_model_AttnBlock_forward,
        optimizations.sgm_diffusionmodules_model_AttnBlock_forward,
    )
    with ExitStack() as stack:
        for part in autoencoder(sd_model).modules():
            if type(part).forward in plain:
                frugal = partial(optimizations.sub_quad_attnblock_forward, part)
                stack.enter_context(replaced(part, "forward", frugal))
        yield


def scaled(sd_model: Any, mean: Tensor) -> Tensor:
    latent: Tensor = sd_model.scale_factor * mean
    return latent


def reason_not_to_guide(config: Any) -> str:
    """Its samplers all go on from the guided inner denoiser's prediction."""
    return ""


def model_calls(denoiser: Any) -> ModelCalls:
    """Each call has all conds of an image, then those of the next, and uncond last."""
    inner = denoiser.inner_model
    sizes = SizeEmbeddings.of(inner.inner_model)

    def fitting(cond: Mapping[str, Any], x: Tensor, t: Tensor, large: Size) -> Mapping[str, Any]:
        small = x.shape[-2], x.shape[-1]
        return shrink_cond(cond, small, large=large, sizes=sizes)

    return ModelCalls(
        inner, "forward", fitting=fitting, images_of=images_of, branches=lambda cond: None
    )


def images_of(x: Tensor, state: Tensor) -> Tensor:
    """By likeness: a call may have an image's rows as often as its prompt has parts."""
    differences = (x[:, None] - state[None]).abs().flatten(2).mean(2)
    return differences.argmin(1)


@contextmanager
def guiding_model(denoiser: Any, guided: GuidedPass) -> Iterator[None]:
    """Stands in for the inner denoiser that the model has now."""
    inner = denoiser.inner_model
    family, prediction = family_of(inner)
    sizes = SizeEmbeddings.of(inner.inner_model)
    forward = partial(_present_forward, inner) if guided.surrounds else inner.forward
    guide = partial(
        guided.guide,
        forward,
        family=family,
        shrink_cond=partial(shrink_cond, large=guided.large, sizes=sizes),
        prediction=prediction,
    )
    model = (SurroundedModel if guided.surrounds else PlacedModel)(
        forward,
        lambda *_: guide(),
        size=guided.large,
        technique="Upsample Guidance",
        warn=guided.warn,
    )
    windows = None
    if guided.settings.windows == "attention":
        windows = Neighbourhood(guided.large, guided.native)
    with (
        attention_in_windows(unet(inner.inner_model), windows),
        _placed(inner, model),
        denoiser.register_forward_pre_hook(lambda *_: model.begin_evaluation()),
    ):
        yield


def _placed(inner: Any, model: PlacedModel) -> AbstractContextManager[None]:
    if isinstance(model, SurroundedModel):
        return model.around(inner)
    return replaced(inner, "forward", model)


def _present_forward(inner: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Whatever stands in the place of its `forward` when it is called."""
    prediction: Tensor = inner.forward(*args, **kwargs)
    return prediction
