"""Load a text-to-image latent diffusion model and show it as what the engine needs.

One class, `LatentModel`, whatever the model came as: the bundled file, a safetensors file in the
original LDM layout (SD1, SD2, SDXL) with or without its yaml, or a diffusers folder. A file and a
folder end as the same diffusers and transformers modules. Nothing here reaches for the network.

Units: sigma is k-diffusion's (variance exploding) noise level, sizes are (height, width) in
pixels, latents are in the model's scaled space, images are (b, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

log = logging.getLogger("hires_guidance")

BUNDLED = Path(__file__).parent / "bundled" / "hires-demo.safetensors"

Family = Literal["sd1", "sd2", "sdxl"]
Prediction = Literal["eps", "v"]
Shapes = dict[str, list[int]]
State = dict[str, torch.Tensor]


class ModelError(ValueError):
    """A model that cannot be used; one sentence that names the file and says what to do."""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the prompts and the negative prompts say, per picture, in the model's dtype."""

    cond: torch.Tensor  # (b, n, d)
    uncond: torch.Tensor  # (b, n, d)
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
        return min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token ids (b, n); a longer prompt is cut, with a warning in the log."""
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
        (a sigma outside the table is told to the U-Net as the table's end); context: (b, n, d);
        pooled: (b, p), SDXL; size: pixels of this call for SDXL, from x where not given.
        x0 has x's dtype, whatever the model computes in. `sigmas`, `sigma_min`, `sigma_max`,
        `sigma_to_t` and `t_to_sigma` are there too.
        """
        external = _k_diffusion_external()
        wrapper = {
            "eps": external.DiscreteEpsDDPMDenoiser,
            "v": external.DiscreteVDDPMDenoiser,
        }[self.prediction]
        return wrapper(self._predict, self.alphas_cumprod, quantize=False).to(self.device)

    def _predict(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        *,
        context: torch.Tensor,
        pooled: torch.Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """The U-Net's own output (eps or v) for the scaled input x at timesteps t (b,)."""
        added = None
        if self.family == "sdxl":
            if pooled is None:
                raise ValueError("pooled: expected SDXL's pooled text embeddings, got None")
            height, width = size or (x.shape[-2] * self.factor, x.shape[-1] * self.factor)
            ids = [height, width, 0, 0, height, width]  # original size, crop, target size
            time_ids = torch.tensor([ids], device=x.device, dtype=self.dtype)
            added = {
                "text_embeds": pooled.to(self.dtype),
                "time_ids": time_ids.expand(x.shape[0], -1),
            }
        out = self.unet(
            x.to(self.dtype), t, context.to(self.dtype), added_cond_kwargs=added, return_dict=False
        )
        return out[0].to(x.dtype)

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """The image (b, 3, H, W), float32 in [-1, 1], of a latent (b, c, h, w)."""
        scale, shift = self._latent_scale(latent)
        z = (latent / scale + shift).to(self.device, self.vae.dtype)
        return self.vae.decode(z, return_dict=False)[0].float().clamp(-1, 1)

    @torch.no_grad()
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """The latent (b, c, h, w), float32, of an image (b, 3, H, W): the posterior's mode."""
        posterior = self.vae.encode(image.to(self.device, self.vae.dtype), return_dict=False)[0]
        z = posterior.mode().float()
        scale, shift = self._latent_scale(z)
        return (z - shift) * scale

    def _latent_scale(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift with latent = (z - shift)·scale, z being what the VAE sees."""
        config = self.vae.config
        mean = getattr(config, "latents_mean", None) or [config.shift_factor or 0.0]
        std = getattr(config, "latents_std", None) or [1.0]
        shift = torch.tensor(mean, dtype=like.dtype, device=like.device)[:, None, None]
        deviation = torch.tensor(std, dtype=like.dtype, device=like.device)[:, None, None]
        return config.scaling_factor / deviation, shift


def load_model(
    path: Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LatentModel:
    """Load a model: None is the bundled one, a file the LDM layout, a folder the diffusers one.

    A file's architecture, prediction and native size come from the yaml of the same name beside
    it; without one the file must have the shapes of SD1, SD2 or SDXL. What can be checked without
    reading the weights is checked first.

    Raises:
        ModelError: the model is missing, damaged, of an unknown kind, or lacks its tokenizer.
    """
    path = Path(BUNDLED if path is None else path)
    if not path.exists():
        raise ModelError(f"{path}: no such model; give a .safetensors file or a diffusers folder")
    device = _usable(device)
    load = _load_folder if path.is_dir() else _load_file
    return load(path, device, dtype)


def _usable(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {str(device)!r}: cannot be used here ({reason})") from error


def _k_diffusion_external() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies announce their own deprecations
        from k_diffusion import external
    return external


def _ready(
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
) -> LatentModel:
    """The parts in evaluation mode, on the device, in the dtype; sample_size in latent units."""
    # SDXL's VAE overflows in float16 and says so; elsewhere the flag is diffusers' default.
    upcast = family == "sdxl" and dtype == torch.float16 and vae.config.force_upcast
    for part in (unet, vae, *(encoder.model for encoder in encoders)):
        part.eval().requires_grad_(False)
        part.to(device, torch.float32 if part is vae and upcast else dtype)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return LatentModel(
        name=name,
        family=family,
        prediction=prediction,
        native=(sample_size[0] * factor, sample_size[1] * factor),
        # A schedule that ends in pure noise has no finite sigma there; diffusers' Euler does this.
        alphas_cumprod=alphas_cumprod.float().clamp(min=2.0**-24),
        unet=unet,
        vae=vae,
        encoders=tuple(encoders),
        device=device,
        dtype=dtype,
        zero_empty_negative=zero_empty_negative,
    )


# ---- diffusers folders -------------------------------------------------------------------------


def _load_folder(path: Path, device: torch.device, dtype: torch.dtype) -> LatentModel:
    index = _read_json(path / "model_index.json", "give a diffusers folder or a .safetensors file")
    parts = _check_folder(path, index)
    scheduler = _read_json(path / "scheduler" / "scheduler_config.json", "download it again")
    prediction = _folder_prediction(path, scheduler)

    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    unet = _part(UNet2DConditionModel, path / "unet")
    vae = _part(AutoencoderKL, path / "vae")
    encoders = [_folder_encoder(path, part, len(parts)) for part in parts]
    size = unet.config.sample_size
    acts = [encoder.model.config.hidden_act for encoder in encoders]
    family: Family = "sdxl" if len(parts) == 2 else "sd1" if acts[0] == "quick_gelu" else "sd2"
    return _ready(
        name=path.resolve().name,
        family=family,
        prediction=prediction,
        sample_size=(size, size) if isinstance(size, int) else tuple(size),
        alphas_cumprod=DDIMScheduler.from_config(_schedule_only(scheduler)).alphas_cumprod,
        unet=unet,
        vae=vae,
        encoders=encoders,
        device=device,
        dtype=dtype,
        zero_empty_negative=family == "sdxl" and index.get("force_zeros_for_empty_prompt", True),
    )


def _read_json(path: Path, advice: str) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"{path.parent}: has no {path.name}; {advice}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: damaged, not JSON; {advice}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: damaged, not a JSON object; {advice}")
    return content


def _check_folder(path: Path, index: dict[str, Any]) -> tuple[str, ...]:
    """Names of the text encoders, once every part is known to be of a kind we load, and there."""
    kinds = {part: kind[1] for part, kind in index.items() if isinstance(kind, list) and kind[1:]}
    second = kinds.get("text_encoder_2")
    supported = (
        kinds.get("unet") == "UNet2DConditionModel"
        and kinds.get("vae") == "AutoencoderKL"
        and kinds.get("text_encoder") == "CLIPTextModel"
        and second in (None, "CLIPTextModelWithProjection")
    )
    if not supported:
        raise ModelError(
            f"{path}: a {index.get('_class_name', 'model without a class name')} is not "
            "supported; give an SD1, SD2 or SDXL text-to-image model"
        )
    encoders = ("text_encoder", "text_encoder_2") if second else ("text_encoder",)
    unet = _read_json(path / "unet" / "config.json", "download it again")
    if unet.get("in_channels", 4) != unet.get("out_channels", 4):
        raise ModelError(_inpainting(path))
    if (unet.get("addition_embed_type") == "text_time") != (len(encoders) == 2):
        raise ModelError(f"{path}: an SDXL refiner is not supported; give an SDXL base model")
    for part in ("unet", "vae", *encoders):
        _variant(path / part)
    for part in encoders:
        _check_tokenizer(path / part.replace("text_encoder", "tokenizer"))
    return encoders


def _check_tokenizer(folder: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: the tokenizer has no {name}; copy it there")


def _inpainting(path: Path) -> str:
    return (
        f"{path}: the U-Net wants more inputs than a latent (inpainting, depth or editing); "
        "give a text-to-image model"
    )


def _variant(folder: Path) -> str | None:
    """The variant of the weights in a part's folder: None, or fp16 where only that is there."""
    plain = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
    names = [file.name for file in plain]
    if any(".fp16" not in name for name in names):
        return None
    if names:
        return "fp16"
    raise ModelError(
        f"{folder}: has no .safetensors weights (.bin files can run code when read and are "
        "refused); download the model's safetensors files"
    )


def _folder_prediction(path: Path, scheduler: dict[str, Any]) -> Prediction:
    kind = scheduler.get("prediction_type", "epsilon")
    predictions: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v"}
    name = str(scheduler.get("_class_name", ""))
    if kind not in predictions or name.startswith(("EDM", "Flow")):
        raise ModelError(
            f"{path}: prediction {kind!r} with {name or 'an unnamed scheduler'} is not "
            "supported; give a model that predicts epsilon or v"
        )
    return predictions[kind]


def _schedule_only(scheduler: dict[str, Any]) -> dict[str, Any]:
    """The settings that define the noise schedule, which every DDPM scheduler shares."""
    names = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "trained_betas")
    names += ("rescale_betas_zero_snr",)
    return {name: scheduler[name] for name in names if name in scheduler}


def _part(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, variant=_variant(folder)
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: {_reason(error)}; download it again") from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"could not be read ({(lines or [type(error).__name__])[0][:200]})"


def _folder_encoder(path: Path, part: str, count: int) -> TextEncoder:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
    tokenizer = _tokenizer(path / part.replace("text_encoder", "tokenizer"))
    # SDXL takes the last layer but one of both encoders.
    layer = -2 if count == 2 else None
    return TextEncoder(tokenizer, _part(kind, path / part), tokenizer.pad_token_id, layer)


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{folder}: the tokenizer {_reason(error)}; copy it again") from error


# ---- single files in the original LDM layout ---------------------------------------------------

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
CLIP_VOCABULARY = "openai/clip-vit-large-patch14"  # SD1, SD2 and SDXL share it

_VAE_SHAPE = {
    "z_channels": 4,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
}
_UNET_SHAPE = {"in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": 2}
_SD1_UNET = {
    "attention_resolutions": [4, 2, 1],
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "context_dim": 768,
}
_SD2_UNET = {
    "attention_resolutions": [4, 2, 1],
    "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "context_dim": 1024,
}
_SDXL_UNET = {
    "attention_resolutions": [4, 2],
    "channel_mult": [1, 2, 4],
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "transformer_depth": [1, 2, 10],
    "context_dim": 2048,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
_STANDARD: dict[Family, dict[str, Any]] = {"sd1": _SD1_UNET, "sd2": _SD2_UNET, "sdxl": _SDXL_UNET}


def _load_file(path: Path, device: torch.device, dtype: torch.dtype) -> LatentModel:
    shapes = _read_header(path)
    family = _family(path, shapes)
    params = _original_params(path, family, shapes)
    alphas_cumprod = _alphas_cumprod(path, params)
    folder = _clip_folder(path, params)

    state = load_file(path)
    unet = _ldm_unet(path, params, family, state)
    prediction = _ldm_prediction(path, params, family, unet, state)
    return _ready(
        name=path.stem,
        family=family,
        prediction=prediction,
        sample_size=(_ldm_sample_size(params, family, prediction),) * 2,
        alphas_cumprod=alphas_cumprod,
        unet=unet,
        vae=_ldm_vae(path, params, state),
        encoders=_ldm_encoders(path, params, family, folder, state),
        device=device,
        dtype=dtype,
        zero_empty_negative=family == "sdxl",
    )


def _read_header(path: Path) -> Shapes:
    """Names and shapes of a safetensors file's tensors, without reading them."""
    if path.suffix.lower() in {".ckpt", ".pt", ".pth", ".bin"}:
        raise ModelError(
            f"{path}: pickled checkpoints can run code when read and are refused; "
            "convert it to .safetensors"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path}: not a safetensors file, or a damaged one ({str(error)[:120]}); "
            "download or copy it again"
        ) from error


def _family(path: Path, shapes: Shapes) -> Family:
    first, last = shapes.get(f"{UNET}input_blocks.0.0.weight"), shapes.get(f"{UNET}out.2.weight")
    if first is None or last is None:
        raise ModelError(
            f"{path}: unknown architecture; give a whole SD1, SD2 or SDXL checkpoint in the "
            "original (LDM) layout"
        )
    if first[1] != last[0]:
        raise ModelError(_inpainting(path))
    if "conditioner.embedders.0.model.token_embedding.weight" in shapes:
        raise ModelError(f"{path}: an SDXL refiner is not supported; give an SDXL base model")
    if not any(key.startswith(VAE) for key in shapes):
        raise ModelError(f"{path}: has no VAE (first_stage_model); give a whole checkpoint")
    families: tuple[tuple[Family, str], ...] = (
        ("sdxl", XL_OPEN_CLIP),
        ("sd2", OPEN_CLIP),
        ("sd1", CLIP),
    )
    for family, prefix in families:
        if any(key.startswith(prefix) for key in shapes):
            return family
    raise ModelError(f"{path}: has no CLIP text encoder; give a whole checkpoint")


def _original_params(path: Path, family: Family, shapes: Shapes) -> dict[str, Any]:
    """`model.params` of the file's yaml, or of the family's standard one, in one form."""
    file = path.with_suffix(".yaml")
    if file.is_file():
        params = _yaml_params(file)
    elif shapes[f"{UNET}input_blocks.0.0.weight"][0] == _UNET_SHAPE["model_channels"]:
        params = {"unet_config": {"params": _UNET_SHAPE | _STANDARD[family]}}
        params["first_stage_config"] = {"params": {"ddconfig": _VAE_SHAPE}}
        params["scale_factor"] = 0.13025 if family == "sdxl" else 0.18215
    else:
        raise ModelError(
            f"{path}: not of a standard {family.upper()} shape and has no yaml; "
            f"put its {file.name} beside it"
        )
    unet = params.get("unet_config") or params.get("network_config")
    unet = {"transformer_depth": 1, "context_dim": None} | unet["params"]
    return params | {"unet_config": {"params": unet}}


def _yaml_params(file: Path) -> dict[str, Any]:
    advice = "give the yaml that the model was trained with"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ModelError(f"{file}: not readable as yaml; {advice}") from error
    try:
        params: dict[str, Any] = content["model"]["params"]
        unet = (params.get("unet_config") or params["network_config"])["params"]
        vae = params["first_stage_config"]["params"]["ddconfig"]
        missing = (_UNET_SHAPE.keys() | {"attention_resolutions", "channel_mult"}) - unet.keys()
        missing |= _VAE_SHAPE.keys() - vae.keys()
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: not an LDM configuration ({error}); {advice}") from error
    if missing:
        raise ModelError(f"{file}: lacks {', '.join(sorted(missing))}; {advice}")
    if params.get("parameterization", "eps") not in ("eps", "v"):
        raise ModelError(
            f"{file}: parameterization: expected eps or v, got {params['parameterization']!r}"
        )
    return params


def _alphas_cumprod(path: Path, params: dict[str, Any]) -> torch.Tensor:
    """LDM's "linear" schedule, linear in the square root of beta; computed in float64."""
    schedule = params.get("beta_schedule", "linear")
    if schedule != "linear":
        raise ModelError(
            f"{path.with_suffix('.yaml')}: beta_schedule: expected linear, got {schedule!r}"
        )
    start, end = float(params.get("linear_start", 0.00085)), float(params.get("linear_end", 0.012))
    steps = int(params.get("timesteps", 1000))
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


def _clip_folder(path: Path, params: dict[str, Any]) -> Path:
    """The folder of the tokenizer (and the text encoder's config) that the yaml names.

    Looked for beside the checkpoint by its last name, then as written, then in the local cache
    of Hugging Face's hub, never on the hub itself.
    """
    version = str(_embedder(params).get("version", CLIP_VOCABULARY))
    for folder in (path.parent / Path(version).name, Path(version)):
        if (folder / "vocab.json").is_file():
            _check_tokenizer(folder)
            return folder
    for repository in (version, CLIP_VOCABULARY):
        cached = _cached(repository, "vocab.json")
        if cached is not None and (cached.parent / "merges.txt").is_file():
            return cached.parent
    raise ModelError(
        f"{path}: its CLIP tokenizer is not on this machine and nothing is downloaded here; put a "
        f"folder {Path(version).name} with vocab.json and merges.txt beside the file, "
        "or give a diffusers folder"
    )


def _embedder(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of SD's text embedder, as the yaml gives them."""
    return (params.get("cond_stage_config") or {}).get("params") or {}


def _cached(repository: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, name)
    except HFValidationError:  # a path, not owner/name
        return None
    return Path(found) if isinstance(found, str) else None


def _strip(state: State, prefix: str) -> State:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _filled(path: Path, build: Any, weights: State, part: str) -> Any:
    """The module that build() makes, without memory of its own, holding the given weights."""
    with torch.device("meta"):
        model = build()
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise ModelError(
            f"{path}: the {part} does not fit its configuration ({lines[0][:160]}); "
            f"put the right {path.stem}.yaml and text encoder folder beside it"
        ) from error
    return model


def _ldm_unet(path: Path, params: dict[str, Any], family: Family, state: State) -> Any:
    from diffusers import UNet2DConditionModel
    from diffusers.loaders import single_file_utils as ldm

    given = params["unet_config"]["params"]
    config = ldm.create_unet_diffusers_config_from_ldm({"model": {"params": params}}, state)
    if given.get("num_head_channels", -1) > 0:
        # LDM's heads of a fixed width; diffusers' name for the number of heads is historical.
        width = given["num_head_channels"]
        config["attention_head_dim"] = [c // width for c in config["block_out_channels"]]
    if family == "sdxl":
        config |= {"class_embed_type": None, "addition_embed_type": "text_time"}
        config["addition_time_embed_dim"] = 256
    weights = {key: value for key, value in state.items() if key.startswith(UNET)}
    weights = ldm.convert_ldm_unet_checkpoint(weights, config)
    return _filled(path, lambda: UNet2DConditionModel.from_config(config), weights, "U-Net")


def _ldm_vae(path: Path, params: dict[str, Any], state: State) -> Any:
    from diffusers import AutoencoderKL
    from diffusers.loaders import single_file_utils as ldm

    config = ldm.create_vae_diffusers_config_from_ldm({"model": {"params": params}}, state)
    weights = {key: value for key, value in state.items() if key.startswith(VAE)}
    weights = ldm.convert_ldm_vae_checkpoint(weights, config)
    return _filled(path, lambda: AutoencoderKL.from_config(config), weights, "VAE")


def _ldm_encoders(
    path: Path, params: dict[str, Any], family: Family, folder: Path, state: State
) -> list[TextEncoder]:
    tokenizer = _tokenizer(folder)
    pad = tokenizer.pad_token_id
    if family == "sd1":
        embedder = _embedder(params)
        layer = embedder.get("layer_idx") if embedder.get("layer") == "hidden" else None
        return [TextEncoder(tokenizer, _ldm_clip(path, folder, _strip(state, CLIP)), pad, layer)]
    if family == "sd2":
        skip = 0 if _embedder(params).get("layer", "penultimate") == "last" else 1
        return [TextEncoder(tokenizer, _ldm_open_clip(path, state, OPEN_CLIP, skip), 0)]
    return [
        TextEncoder(tokenizer, _ldm_clip(path, folder, _strip(state, XL_CLIP)), pad, -2),
        TextEncoder(tokenizer, _ldm_open_clip(path, state, XL_OPEN_CLIP, 0), 0, -2),
    ]


def _ldm_clip(path: Path, folder: Path, weights: State) -> Any:
    """A transformers CLIP text model, its shape from the folder's config.json if it has one."""
    from transformers import CLIPTextConfig, CLIPTextModel

    root = "text_model."  # which some old checkpoints leave out
    weights = {k if k.startswith(root) else root + k: value for k, value in weights.items()}
    weights.pop("text_model.embeddings.position_ids", None)
    if (folder / "config.json").is_file():
        config = CLIPTextConfig.from_pretrained(folder, local_files_only=True)
    else:
        layer = "text_model.encoder.layers."
        config = _clip_config(
            weights["text_model.embeddings.token_embedding.weight"],
            weights["text_model.embeddings.position_embedding.weight"],
            weights[f"{layer}0.mlp.fc1.weight"],
            layers=len({k.split(".")[3] for k in weights if k.startswith(layer)}),
            act="quick_gelu",
        )
    return _whole(_filled(path, lambda: CLIPTextModel(config), weights, "text encoder"))


def _ldm_open_clip(path: Path, state: State, prefix: str, skip: int) -> Any:
    """OpenCLIP's text model in transformers' form, without its last `skip` layers."""
    from diffusers.loaders import single_file_utils as ldm
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    block = f"{prefix}transformer.resblocks."
    depth = len({key[len(block) :].split(".")[0] for key in state if key.startswith(block)})
    config = _clip_config(
        state[f"{prefix}token_embedding.weight"],
        state[f"{prefix}positional_embedding"],
        state[f"{block}0.mlp.c_fc.weight"],
        layers=depth - skip,
        act="gelu",
    )
    kind = CLIPTextModelWithProjection if prefix == XL_OPEN_CLIP else CLIPTextModel
    with torch.device("meta"):
        empty = kind(config)
    weights = ldm.convert_open_clip_checkpoint(empty, state, prefix=prefix)
    weights = {key: weights[key] for key in empty.state_dict() if key in weights}
    return _whole(_filled(path, lambda: kind(config), weights, "text encoder"))


def _clip_config(
    tokens: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor, *, layers: int, act: str
) -> Any:
    """A CLIP text configuration read off the weights; every CLIP of SD has heads of width 64."""
    from transformers import CLIPTextConfig

    width = tokens.shape[1]
    return CLIPTextConfig(
        vocab_size=tokens.shape[0],
        hidden_size=width,
        projection_dim=width,
        intermediate_size=hidden.shape[0],
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=positions.shape[0],
        hidden_act=act,
        bos_token_id=tokens.shape[0] - 2,
        eos_token_id=tokens.shape[0] - 1,
    )


def _whole(model: Any) -> Any:
    """Give a text model filled from "meta" its position ids, which are not among the weights."""
    embeddings = model.text_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.position_ids.shape[-1])[None]
    return model


def _ldm_prediction(
    path: Path, params: dict[str, Any], family: Family, unet: Any, state: State
) -> Prediction:
    if path.with_suffix(".yaml").is_file():
        denoiser = (params.get("denoiser_config") or {}).get("params") or {}
        scaling = str((denoiser.get("scaling_config") or {}).get("target", ""))
        v = params.get("parameterization") == "v" or scaling.endswith("VScaling")
    elif family == "sd2":
        v = _looks_like_v(unet)
    else:
        v = "v_pred" in state  # a mark that some SDXL checkpoints carry
    return "v" if v else "eps"


@torch.no_grad()
def _looks_like_v(unet: Any) -> bool:
    """The WebUI's test of an SD2 without a yaml: at t = 999, eps would about return its input."""
    x = torch.full((1, 4, 8, 8), 0.5)
    context = torch.full((1, 2, unet.config.cross_attention_dim), 0.5)
    out = unet.float()(x, 999, context, return_dict=False)[0]
    return bool((out - x).mean() < -1)


def _ldm_sample_size(params: dict[str, Any], family: Family, prediction: Prediction) -> int:
    """Side of a native latent. SD2's own v yaml says 64 for a model of 768 pixels."""
    standard = params["unet_config"]["params"]["model_channels"] == _UNET_SHAPE["model_channels"]
    if family == "sd2" and prediction == "v" and standard:
        return 96
    return int(params.get("image_size", 128 if family == "sdxl" else 64))
