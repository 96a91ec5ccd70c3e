"""What a WebUI's adapter provides and receives: the vocabulary of the modules beside it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from lib_hires.noise import NoiseFamily, Prediction
from lib_hires.resample import Reduction
from lib_hires.settings import UpsampleGuidance
from lib_hires.sizes import Size
from lib_hires.upsample_guidance import Opening, Predictor, ShrinkCond, UpsampleGuided
from lib_hires.webui.messages import Warn

FACTOR = 8
"""Pixels per latent position, for every model that the WebUIs load."""

CONTROLNET_SEES_WHOLE = "ControlNet's units see whole images only"
"""Why a model is not evaluated in windows."""


@dataclass(frozen=True)
class ModelCalls:
    """How a host's CFG denoiser evaluates its model: by the innermost calls, row by row.

    They are calls of the method `name` of `owner`: (x, t, **cond) -> prediction, with x
    (n, c, h, w) and t (n,).
    fitting: a call's keyword arguments (cond) made for one about x at t, in place of latents of
    size `large`, (height, width); the rows stay those of the same images and prompts.
    images_of: for each row of x (n, c, h, w), which image of the sampler's state (b, c, h, w) it
    is of. branches: which rows are cond's and which uncond's, as far as the keyword arguments name
    them.
    """

    owner: Any
    name: str
    fitting: Callable[[Mapping[str, Any], Tensor, Tensor, Size], Mapping[str, Any]]
    images_of: Callable[[Tensor, Tensor], Tensor]
    branches: Callable[[Mapping[str, Any]], Hashable]


@dataclass(frozen=True)
class GuidedPass:
    """One sampling with Upsample Guidance around it, whatever the host.

    large: (height, width) of the pass's latents; others are not guided. reduction: from there to
    the native evaluation's size and back, on the latents' device. times: the sampler's schedule in
    its own times, filled by the first evaluation at latest. on_guided: called for every guided
    evaluation, with whether a native evaluation was made for it. native_scope: entered around each
    native evaluation, so that what lies deeper knows it from any other of its size. surrounds:
    guide from outside of what another extension puts around the model while the host samples.
    opening: where the pass began, also for guidance that a host's call asks for in its middle.
    """

    large: Size
    reduction: Reduction
    settings: UpsampleGuidance
    times: Sequence[float]
    on_guided: Callable[[bool], None]
    warn: Warn
    native_scope: Callable[[], AbstractContextManager[None]] = nullcontext
    surrounds: bool = False
    opening: Opening = field(default_factory=Opening)

    @property
    def native(self) -> Size:
        """(height, width) of the native evaluation's latents."""
        return self.reduction.small

    def guide(
        self,
        predict: Predictor,
        *,
        family: NoiseFamily,
        shrink_cond: ShrinkCond,
        prediction: Prediction = "denoised",
        times: Sequence[float] | None = None,
    ) -> UpsampleGuided:
        """The guidance around the host's `predict`; times: where they are not the sampler's own."""

        def predict_native(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            with self.native_scope():
                return predict(x, t, **cond)

        return UpsampleGuided(
            predict,
            self.settings,
            family=family,
            reduction=self.reduction,
            times=self.times if times is None else times,
            prediction=prediction,
            shrink_cond=shrink_cond,
            on_guided=self.on_guided,
            predict_native=predict_native,
            opening=self.opening,
        )


class Host(Protocol):
    """A module that knows one kind of WebUI. `sd_model` is the one that the host has loaded."""

    def is_host_of(self, sd_model: Any) -> bool:
        """Whether the model was loaded by this kind of WebUI."""

    def is_supported(self, sd_model: Any) -> bool:
        """Whether its samplers run in a noise family that guidance knows here."""

    def is_flow(self, sd_model: Any) -> bool:
        """Whether it is a flow model, such as Stable Diffusion 3 and Flux."""

    def guides_clips(self, sd_model: Any) -> bool:
        """Whether clips that sd-webui-animatediff makes are guided and refined here."""

    def has_frames(self, sd_model: Any) -> bool:
        """Whether its latents are (b, c, T, h, w), as those of models that make videos too."""

    def sees_first_image(self, sd_model: Any) -> bool:
        """Whether img2img gives it the image itself, or its depth, at the size of the latent."""

    def reason_for_whole(self, sd_model: Any) -> str:
        """Why the present sampling cannot evaluate it in windows, "" where it can."""

    def reason_for_whole_attention(self, sd_model: Any) -> str:
        """Why its self-attention cannot see windows in the present sampling, "" where it can."""

    def unet(self, sd_model: Any) -> Any:
        """The U-Net, with its input, middle and output blocks."""

    def alphas_cumprod(self, sd_model: Any) -> Tensor:
        """(T,) DDPM's products abar of the noise levels that are sampled with the model."""

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
        """How a sampler's CFG denoiser evaluates its present model."""

    def guiding_model(self, denoiser: Any, guided: GuidedPass) -> AbstractContextManager[None]:
        """Guide the evaluations by a sampler's CFG denoiser of its present model in the block."""
