"""A text-to-image latent diffusion model as what the engine needs, whatever it came as.

Units: sigma is k-diffusion's (variance exploding) noise level, sizes are (height, width) in
pixels, latents are in the model's scaled space, images are (b, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import codecs
import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch

from lib_hires.standalone.models.k_diffusion import import_k_diffusion

log = logging.getLogger("hires_guidance")

Family = Literal["sd1", "sd2", "sdxl", "pixel"]
Prediction = Literal["eps", "v"]


ALIGNED = 64  # bytes, as torch allocates


class ModelError(ValueError):
    """A model that cannot be used; the message names the file and what to do."""


@dataclass(frozen=True)
class Overrides:
    """What a user knows better than a model's files; None leaves it to them."""

    prediction: Prediction | None = None
    zero_snr: bool | None = None

    def values(self) -> dict[str, str | bool]:
        """Those that are given."""
        return {name: value for name, value in vars(self).items() if value is not None}


AS_STATED = Overrides()


@dataclass(frozen=True)
class Motion:
    """What a model with a motion module knows of it."""

    name: str
    frames: int  # native, as it was trained
    most: int  # for which it has positions
    ours: bool = False  # trained here


@dataclass(frozen=True)
class Lora:
    """A LoRA that a model's weights have in them, as an image states it."""

    name: str
    weight: float
    sha256: str  # of its file, the first digits


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The embeddings of the prompts and the negative prompts, per image, in the model's dtype.

    Of a model of pixels: class numbers (b,), and None where there is no negative class.
    """

    cond: torch.Tensor  # (b, n, d)
    uncond: torch.Tensor | None  # (b, n, d)
    pooled_cond: torch.Tensor | None = None  # (b, p), SDXL only
    pooled_uncond: torch.Tensor | None = None  # (b, p), SDXL only


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A CLIP text model, its tokenizer, and which of its layers the U-Net was trained with.

    layer None is the last one after the final layer norm; a number indexes the hidden states,
    taken as they are. pad fills a prompt to the full length (OpenCLIP fills with 0).
    """

    tokenizer: Any
    model: Any
    pad: int
    layer: int | None = None

    @property
    def length(self) -> int:
        """Tokens of every prompt, the two special ones included (77 in SD)."""
        positions = int(self.model.config.max_position_embeddings)
        return min(int(self.tokenizer.model_max_length or positions), positions)

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token ids (b, n); a longer prompt loses its end, with a warning in the log."""
        rows = []
        for prompt in prompts:
            ids = self.tokenizer(prompt, verbose=False).input_ids
            if len(ids) > self.length:
                log.warning(
                    "prompt of %d tokens: the text encoder takes %d, so its end is ignored: %r",
                    len(ids),
                    self.length,
                    prompt,
                )
                ids = [*ids[: self.length - 1], ids[-1]]
            rows.append(ids + [self.pad] * (self.length - len(ids)))
        return torch.tensor(rows, device=self.model.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings (b, n, d), and the pooled ones (b, p) of an encoder with a projection."""
        out = self.model(self.tokens(prompts), output_hidden_states=self.layer is not None)
        hidden = out.last_hidden_state if self.layer is None else out.hidden_states[self.layer]
        return hidden, getattr(out, "text_embeds", None)


@dataclass(frozen=True, eq=False)
class LatentModel:
    """A latent diffusion model: prompts in, a k-diffusion denoiser, latents to images and back."""

    name: str
    family: Family
    prediction: Prediction
    native: tuple[int, int]  # (height, width) in pixels
    alphas_cumprod: torch.Tensor = field(repr=False)  # (T,), float32
    unet: Any = field(repr=False)
    vae: Any = field(repr=False)
    encoders: tuple[TextEncoder, ...] = field(repr=False)
    device: torch.device
    dtype: torch.dtype
    # An empty negative prompt is all zeros for SDXL base, as it was trained.
    zero_empty_negative: bool = False
    overrides: Overrides = AS_STATED
    motion: Motion | None = None  # of a U-Net that makes clips
    loras: tuple[Lora, ...] = ()  # in the weights
    cfg: float = 5.0  # the CFG scale of requests that name none

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config.in_channels)

    @property
    def factor(self) -> int:
        """Pixels to a latent position, along each axis."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def multiple(self) -> int:
        """Pixels of which a height and width must be a multiple for U-Net and VAE to take them."""
        return self.factor * 2 ** (len(self.unet.config.down_block_types) - 1)

    def check_prompt(self, prompt: str, negative: str) -> None:
        """Raises SettingsError for what the model does not know; a text encoder takes any text."""

    def encode_prompts(self, prompts: Sequence[str], negatives: Sequence[str]) -> Conditioning:
        """Text embeddings of as many prompts as negative prompts.

        Raises:
            ValueError: the two lists differ in length.
        """
        if len(prompts) != len(negatives):
            raise ValueError(
                f"negatives: expected one for each of {len(prompts)} prompts, got {len(negatives)}"
            )
        cond, pooled_cond = self._embed(prompts)
        uncond, pooled_uncond = self._embed(negatives)
        if self.zero_empty_negative:
            keep = torch.tensor([text != "" for text in negatives], device=self.device)
            uncond = uncond * keep[:, None, None]
            pooled_uncond = None if pooled_uncond is None else pooled_uncond * keep[:, None]
        return Conditioning(cond, uncond, pooled_cond, pooled_uncond)

    def _embed(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden, pooled = zip(*(encoder.encode(prompts) for encoder in self.encoders), strict=True)
        return torch.cat(hidden, dim=-1), pooled[-1]

    def denoiser(self) -> Any:
        """k-diffusion's own wrapper: denoise(x, sigma, *, context, pooled=None, size=None) -> x0.

        x, x0: (b, c, h, w); sigma: (b,), between which and the model's timesteps it interpolates
        (a sigma outside the table reaches the U-Net as the table's end); context: (b, n, d);
        pooled: (b, p), SDXL; size: pixels of this call for SDXL, from x where not given.
        x0 has x's dtype, whatever the model computes in. `sigmas`, `sigma_min`, `sigma_max`,
        `sigma_to_t` and `t_to_sigma` are there too.
        """
        external = import_k_diffusion().external
        wrapper = {
            "eps": external.DiscreteEpsDDPMDenoiser,
            "v": external.DiscreteVDDPMDenoiser,
        }[self.prediction]
        return wrapper(self.predict, self.alphas_cumprod, quantize=False).to(self.device)

    def predict(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        *,
        context: torch.Tensor,
        pooled: torch.Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """The U-Net's own output (eps or v) for the scaled input x at timesteps t (b,).

        x: (b, c, h, w); with a motion module clips, (b, c, f, h, w), whose frames it sees together.
        """
        added = None
        if self.family == "sdxl":
            if pooled is None:
                raise ValueError("pooled: expected SDXL's pooled text embeddings, got None")
            height, width = size or (x.shape[-2] * self.factor, x.shape[-1] * self.factor)
            time_ids = self._time_ids(height, width, x.device)
            added = {
                "text_embeds": pooled.to(self.dtype),
                "time_ids": time_ids.expand(x.shape[0], -1),
            }
        context = context.to(self.dtype)
        if x.ndim == 5:  # diffusers' pipelines repeat the prompts too
            context = context.repeat_interleave(x.shape[2], dim=0)
        out = self.unet(x.to(self.dtype), t, context, added_cond_kwargs=added, return_dict=False)
        return out[0].to(x.dtype)

    @cached_property
    def _time_ids(self) -> Callable[[int, int, torch.device], torch.Tensor]:
        """`size_numbers`, brought to the device once for each size."""
        return lru_cache(maxsize=16)(partial(size_numbers, dtype=self.dtype))

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """The image (b, 3, H, W), float32 around [-1, 1], of a latent (b, c, h, w).

        What lies outside is kept, for AP-LDM's own code upsamples it as it is.
        """
        scale, shift = self._latent_scale(latent)
        z = (latent / scale + shift).to(self.device, self.vae.dtype)
        return self.vae.decode(z, return_dict=False)[0].float()

    @torch.no_grad()
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """The latent (b, c, h, w), float32, of an image (b, 3, H, W): the posterior's mode.

        AutoencoderTiny has no posterior and gives the latent itself.
        """
        found = self.vae.encode(image.to(self.device, self.vae.dtype), return_dict=False)[0]
        z = (found if isinstance(found, torch.Tensor) else found.mode()).float()
        scale, shift = self._latent_scale(z)
        return (z - shift) * scale

    def broken_weight(self) -> str | None:
        """The name of a weight that is not a number, as in files whose merging went wrong.

        In half precision infinite ones do not count: there a number of the file may be too large.
        """
        networks = {"U-Net": self.unet, "VAE": self.vae}
        networks |= {f"text encoder {n}": e.model for n, e in enumerate(self.encoders, start=1)}
        whole = self.dtype == torch.float32
        for title, network in networks.items():
            for name, weight in network.named_parameters():
                if (~weight.isfinite() if whole else weight.isnan()).any():
                    return f"{title}, {name}"
        return None

    def _latent_scale(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift with latent = (z - shift)·scale, z being what the VAE sees."""
        config = self.vae.config
        mean = getattr(config, "latents_mean", None) or [getattr(config, "shift_factor", 0) or 0.0]
        std = getattr(config, "latents_std", None) or [1.0]
        shift = torch.tensor(mean, dtype=like.dtype, device=like.device)[:, None, None]
        deviation = torch.tensor(std, dtype=like.dtype, device=like.device)[:, None, None]
        return config.scaling_factor / deviation, shift


def size_numbers(
    height: int, width: int, device: torch.device, *, dtype: torch.dtype
) -> torch.Tensor:
    """(1, 6) what SDXL receives of an image's size in pixels."""
    ids = [height, width, 0, 0, height, width]  # original size, crop, target size
    return torch.tensor([ids], device=device, dtype=dtype)


def assembled(
    *,
    name: str,
    family: Family,
    prediction: Prediction,
    sample_size: tuple[int, int],
    alphas_cumprod: torch.Tensor,
    unet: Any,
    vae: Any,
    encoders: Sequence[TextEncoder],
    device: torch.device,
    dtype: torch.dtype,
    zero_empty_negative: bool,
    overrides: Overrides = AS_STATED,
) -> LatentModel:
    """The parts in evaluation mode, on the device, in the dtype; sample_size in latent units.

    Raises ModelError for parts that are of different models.
    """
    # SDXL's VAE overflows in float16, as its configuration states; elsewhere the flag is a default.
    upcast = family == "sdxl" and dtype == torch.float16 and vae.config.force_upcast
    _check_latents(name, vae)
    _check_parts(name, unet, vae, encoders)
    for part in (unet, vae, *(encoder.model for encoder in encoders)):
        placed(part, device, torch.float32 if part is vae and upcast else dtype)
    vae.to(memory_format=torch.channels_last)  # its wide images decode 1.6 times faster on a CPU
    for encoder in encoders:
        if (highest := int(encoder.tokens([""]).max())) >= encoder.model.config.vocab_size:
            raise ModelError(
                f"{name}: the tokenizer gives token {highest}, and the text encoder knows "
                f"{encoder.model.config.vocab_size} tokens; copy the tokenizer again"
            )
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return LatentModel(
        name=name,
        family=family,
        prediction=prediction,
        native=(sample_size[0] * factor, sample_size[1] * factor),
        alphas_cumprod=with_finite_sigmas(alphas_cumprod),
        unet=unet,
        vae=vae,
        encoders=tuple(encoders),
        device=device,
        dtype=dtype,
        zero_empty_negative=zero_empty_negative,
        overrides=overrides,
    )


def _check_parts(name: str, unet: Any, vae: Any, encoders: Sequence[TextEncoder]) -> None:
    """Raises ModelError where the U-Net wants text or latents of other channels.

    A model without text encoders is for measuring alone.
    """
    text = sum(encoder.model.config.hidden_size for encoder in encoders)
    for title, wanted, made in (
        ("text", unet.config.encoder_hid_dim or unet.config.cross_attention_dim, text),
        ("latents", unet.config.in_channels, vae.config.latent_channels),
    ):
        if isinstance(wanted, int) and made and wanted != made:
            raise ModelError(
                f"{name}: parts of different models: its U-Net wants {title} of {wanted} channels, "
                f"and gets {made}"
            )


def _check_latents(name: str, vae: Any) -> None:
    """Make a number of the VAE's scaling factor. Raises ModelError for what is no scale or shift
    of its latents."""
    config = vae.config

    def numbers(key: str, count: int, given: Any) -> list[float]:
        try:
            values = [float(value) for value in given]
            if len(values) != count or not all(map(math.isfinite, values)):
                raise ValueError
        except (TypeError, ValueError):
            expected = "a number" if count == 1 else f"{count} numbers"
            given = given[0] if count == 1 else given
            raise _wrong_value(name, key, expected, given) from None
        return values

    scaling = getattr(config, "scaling_factor", None)
    scale = [0.0] if isinstance(scaling, bool) else numbers("scaling_factor", 1, [scaling])
    if scale[0] <= 0:
        raise _wrong_value(name, "scaling_factor", "a number above 0", scaling)
    vae.register_to_config(scaling_factor=scale[0])
    numbers("shift_factor", 1, [getattr(config, "shift_factor", None) or 0])
    for key in ("latents_mean", "latents_std"):
        if given := getattr(config, key, None):
            values = numbers(key, config.latent_channels, given)
            if key == "latents_std" and min(values) <= 0:
                raise _wrong_value(name, key, "numbers above 0", given)


def _wrong_value(name: str, key: str, expected: str, given: Any) -> ModelError:
    shown = str(given)[:80] if isinstance(given, (list, tuple)) else repr(given)
    return ModelError(f"{name}, vae/config.json: {key}: expected {expected}, got {shown}")


def with_finite_sigmas(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """(T,), float32. A schedule that ends in pure noise has no finite sigma there; diffusers' Euler
    does this."""
    return alphas_cumprod.float().clamp(min=2.0**-24)


def placed(network: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The network, brought to where it is evaluated only, in its dtype."""
    network.eval().requires_grad_(False)
    torch.nn.Module.to(network, device, dtype)  # diffusers' own warns of every dtype
    return aligned(network)


def aligned(network: torch.nn.Module) -> torch.nn.Module:
    """Copy the weights that begin between two lines of the cache, as those mapped from a file may:
    with such ones kernels round otherwise, so that a file and a folder would not be sampled alike.
    """
    for weight in network.parameters():
        if weight.device.type == "cpu" and weight.data_ptr() % ALIGNED:
            weight.data = weight.data.clone()
    return network


def reason(error: Exception) -> str:
    """Why something could not be read, in one line; an error of a kind that users know is quoted
    without its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    known = lines and isinstance(error, (OSError, ValueError, RuntimeError))
    words = lines[:1] if known else [type(error).__name__, *lines[:1]]
    return f"could not be read ({': '.join(words)[:200]})"


def load_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer, CLIPTokenizerFast

    slow = all((folder / name).is_file() for name in TOKENIZER)
    kind = CLIPTokenizer if slow else CLIPTokenizerFast  # which newer tools write alone
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever its files lead to
        raise ModelError(f"{folder}: the tokenizer {reason(error)}; copy it again") from error


TOKENIZER = ("vocab.json", "merges.txt")
"""The files of a CLIP tokenizer, where they are not in one tokenizer.json."""


def check_tokenizer(folder: Path) -> None:
    """Raises ModelError where a tokenizer is not whole."""
    missing = [name for name in TOKENIZER if not (folder / name).is_file()]
    if missing and not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder}: the tokenizer has no {missing[0]}; copy it there")
    for file in folder.glob("*.json"):
        check_no_bom(file)


def check_no_bom(file: Path) -> None:
    """Raises ModelError for JSON with a byte order mark, as some editors write it: diffusers and
    transformers cannot read it."""
    with file.open("rb") as opened:
        if opened.read(3) == codecs.BOM_UTF8:
            raise ModelError(f"{file}: begins with a byte order mark; save it as UTF-8 without one")


def no_inpainting(path: Path) -> str:
    return (
        f"{path}: the U-Net wants more inputs than a latent (inpainting, depth or editing); "
        "give a text-to-image model"
    )


def hash_of_weights(*networks: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of networks' weights by name, as float32, in hexadecimal digits.

    For what is kept of a network: its file may keep its name while it is trained on.
    """
    digest = hashlib.sha256()
    for weights in networks:
        for values in weights.values():
            digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()
