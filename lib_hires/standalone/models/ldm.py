"""Load a safetensors file with a whole SD1, SD2 or SDXL model, with or without its yaml."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_hires.standalone.models import schedule
from lib_hires.standalone.models.checkpoint import (
    Checkpoint,
    Part,
    is_edm,
    marked_prediction,
    marked_zero_snr,
)
from lib_hires.standalone.models.configs import STANDARD_WIDTH, Original
from lib_hires.standalone.models.kinds import part_of_folder, without_unet
from lib_hires.standalone.models.latent import (
    Family,
    LatentModel,
    ModelError,
    Overrides,
    Prediction,
    TextEncoder,
    assembled,
    check_tokenizer,
    load_tokenizer,
    no_inpainting,
    reason,
)
from lib_hires.standalone.models.names import (
    clip_places,
    open_clip_places,
    text_model_of,
    unet_places,
    vae_places,
)

log = logging.getLogger("hires_guidance")

CLIP_VOCABULARY = "openai/clip-vit-large-patch14"  # SD1, SD2 and SDXL share it
OPEN_CLIP_DEPTH = 24  # of SD2's text encoder, whose last layer is not used
FIRST = ("cond_stage_model.", "embedders.0.", "text_encoder.", "clip_l.")
SECOND = ("embedders.1.", "text_encoder_2.", "clip_g.")
"""What prefixes of a first and of SDXL's second text encoder have in them, the usual one first."""
UNCLIP_WIDTH = 1024  # of the context of an SD2 that receives an image's embedding, too


@dataclass(frozen=True)
class Layout:
    """Where the networks lie in a file, and of what family they are."""

    family: Family
    unet: Part
    vae: Part
    encoders: tuple[Part, ...]

    @classmethod
    def of(cls, file: Checkpoint, yaml: Path) -> Layout:
        """Raises ModelError where a network is missing or of a kind that is not supported."""
        unet, vae, found = _unet(file), _vae(file), _encoders(file)
        if not found:
            raise ModelError(f"{file.path}: has no CLIP text encoder; give a whole checkpoint")
        context = _context_width(unet)
        if {"label_emb.0.0.weight", "add_embedding.linear_1.weight"} & unet.names:
            return cls("sdxl", unet, vae, _pair(found, context))
        encoder = min(found, key=lambda part: (_width(part) != context, _rank(part, FIRST)))
        return cls(_family(encoder, yaml, context), unet, vae, (encoder,))


def load_ldm_file(
    path: Path, device: torch.device, dtype: torch.dtype, overrides: Overrides
) -> LatentModel:
    file, yaml = Checkpoint(path), path.with_suffix(".yaml")
    layout = Layout.of(file, yaml)
    original = _original(layout, yaml)
    stated = _stated_schedule(original)
    folder = _clip_folder(path, original)

    unet = _filled_unet(layout, original)
    prediction = overrides.prediction or _prediction(file, original, unet)
    own = file.tensor("alphas_cumprod") if "alphas_cumprod" in file.shapes else None
    alphas_cumprod = schedule.of_file(own, stated)
    marked = marked_zero_snr(file) or original.stated_zero_snr()
    if marked if overrides.zero_snr is None else overrides.zero_snr:
        alphas_cumprod = schedule.zero_snr(alphas_cumprod)
    vae, encoders = _filled_vae(layout, original), _filled_encoders(layout, original, folder)
    file.log_unused()
    return assembled(
        name=path.stem,
        family=layout.family,
        prediction=prediction,
        sample_size=original.sample_size(prediction),
        alphas_cumprod=alphas_cumprod,
        unet=unet,
        vae=vae,
        encoders=encoders,
        device=device,
        dtype=dtype,
        zero_empty_negative=layout.family == "sdxl",
        overrides=overrides,
    )


def standard_networks(family: Family) -> tuple[Any, Any]:
    """A family's U-Net and VAE as diffusers' modules, of their real size, with fresh weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    original = Original.standard(family)
    unet = UNet2DConditionModel.from_config(original.unet_config())
    return unet, AutoencoderKL.from_config(original.vae_config())


# --- what lies where ------------------------------------------------------------------------------


def _unet(file: Checkpoint) -> Part:
    ldm = file.prefixes("input_blocks.0.0.weight", "out.2.weight")
    diffusers = file.prefixes("time_embedding.linear_1.weight", "conv_in.weight", "conv_out.weight")
    if not ldm and not diffusers:
        raise ModelError(f"{file.path}: {_no_unet(file)}")
    unet = Part(file, _preferred(ldm or diffusers, "model.diffusion_model.", "unet."), "U-Net")
    first, last = ("input_blocks.0.0.weight", "out.2.weight")
    if not ldm:
        first, last = "conv_in.weight", "conv_out.weight"
    if unet.shape(first, 4)[1] != unet.shape(last, 4)[0]:
        raise ModelError(no_inpainting(file.path))
    if is_edm(file):
        raise ModelError(
            f"{file.path}: a model of EDM's kind is not supported; give one that predicts epsilon "
            "or v"
        )
    return unet


def _no_unet(file: Checkpoint) -> str:
    kind = without_unet(file.shapes)
    if kind is not None:
        kind = f"holds {kind}; give a whole SD1, SD2 or SDXL checkpoint"
    return (
        part_of_folder(file.path)
        or kind
        or (
            "unknown architecture; give a whole SD1, SD2 or SDXL checkpoint in the original (LDM) "
            "layout"
        )
    )


def _preferred(prefixes: list[str], *known: str) -> str:
    """The first known one of the prefixes that were found, or else the shortest."""
    return next((prefix for prefix in known if prefix in prefixes), prefixes[0])


def _vae(file: Checkpoint) -> Part:
    """That of a file `NAME.vae.safetensors` beside the checkpoint, as the WebUI takes it, or of
    the checkpoint itself."""
    beside = file.path.with_suffix(".vae.safetensors")
    holder = Checkpoint(beside) if beside.is_file() else file
    for pickled in map(file.path.with_suffix, (".vae.pt", ".vae.ckpt")):
        if holder is file and pickled.is_file():
            log.warning(
                "%s: the VAE %s, which the WebUI would take, is pickled and not read; convert it "
                "to %s",
                file.path.name, pickled.name, beside.name,
            )  # fmt: skip
    starts = holder.prefixes("encoder.conv_in.weight", "decoder.conv_in.weight")
    if not starts:
        raise ModelError(
            f"{holder.path}: "
            + (
                part_of_folder(file.path)
                or "has no VAE (first_stage_model); give a whole checkpoint, or put "
                f"{beside.name} beside it"
            )
        )
    if holder is not file:
        log.info("%s: its VAE is that of %s", file.path.name, beside.name)
    return Part(holder, _preferred(starts, "first_stage_model.", "vae."), "VAE")


def _encoders(file: Checkpoint) -> list[Part]:
    """The CLIP text encoders, by their prefixes."""
    prefixes = {
        start.removesuffix("text_model.")
        for start in file.prefixes("embeddings.token_embedding.weight")
    }
    open_clip = file.prefixes("token_embedding.weight", "positional_embedding")
    return [Part(file, start, "text encoder") for start in sorted({*prefixes, *open_clip})]


def _pair(found: list[Part], context: int | None) -> tuple[Part, Part]:
    """SDXL's two text encoders, whose widths add up to that of the U-Net's context.

    A file may hold others, which tools have left in it. Raises ModelError.
    """
    named = [part for part in found if _rank(part, SECOND) < len(SECOND)]
    seconds = named or [part for part in found if _is_open_clip(part)] or found[1:]
    pairs = [(first, second) for second in seconds for first in found if first not in seconds]
    if pairs:
        return min(
            pairs,
            key=lambda pair: (
                sum(map(_width, pair)) != context,
                _rank(pair[1], SECOND),
                _rank(pair[0], FIRST[1:]),
            ),
        )
    path = found[0].checkpoint.path
    if context == UNCLIP_WIDTH:
        raise ModelError(f"{path}: an unCLIP model is not supported; give a text-to-image model")
    if _is_open_clip(found[0]) and "embedders.1." not in found[0].prefix:
        raise ModelError(f"{path}: an SDXL refiner is not supported; give an SDXL base model")
    raise ModelError(f"{path}: has only one of SDXL's two text encoders; give a whole checkpoint")


def _rank(part: Part, names: tuple[str, ...]) -> int:
    """The place of the first of the names that is in a part's prefix; their number for none."""
    places = (place for place, name in enumerate(names) if name in part.prefix)
    return next(places, len(names))


def _context_width(unet: Part) -> int | None:
    """Channels of the text that a U-Net attends to; None for one that attends to none."""
    keys = (name for name in sorted(unet.names) if name.endswith("attn2.to_k.weight"))
    return next((unet.shape(name)[1] for name in keys), None)


def _is_open_clip(part: Part) -> bool:
    return "positional_embedding" in part.names


def _family(encoder: Part, yaml: Path, context: int | None) -> Family:
    """SD1 or SD2, which have one text encoder; context: channels of the standard models'."""
    if context in (768, 1024):
        return "sd1" if context == 768 else "sd2"
    if _is_open_clip(encoder) or encoder.prefix.startswith("cond_stage_model.model."):
        return "sd2"
    if yaml.is_file() and Original.of_file(yaml, "sd2").wants_open_clip:
        return "sd2"
    return "sd1"


def _clip_root(part: Part) -> str:
    """`text_model.` or nothing: what a file in transformers' naming begins its names with."""
    return "text_model." if any(name.startswith("text_model.") for name in part.names) else ""


def _width(part: Part) -> int:
    """Channels of a text encoder; 0 for weights of another shape."""
    name = "" if _is_open_clip(part) else f"{_clip_root(part)}embeddings."
    shape = part.checkpoint.shapes.get(f"{part.prefix}{name}token_embedding.weight", [])
    return shape[1] if len(shape) == 2 else 0


def _original(layout: Layout, yaml: Path) -> Original:
    """The file's yaml, or the family's standard one."""
    if yaml.is_file():
        return Original.of_file(yaml, layout.family)
    unet = layout.unet
    first = next(n for n in ("input_blocks.0.0.weight", "conv_in.weight") if n in unet.names)
    if unet.shape(first, 4)[0] == STANDARD_WIDTH:
        return Original.standard(layout.family)
    raise ModelError(
        f"{unet.checkpoint.path}: not of a standard {layout.family.upper()} shape and has no yaml; "
        f"put its {yaml.name} beside it"
    )


# --- prediction and schedule ----------------------------------------------------------------------


def _stated_schedule(original: Original) -> Tensor:
    """alphas_cumprod of LDM's "linear" schedule, as the yaml states it."""
    params = original.params
    name = params.given("beta_schedule") or "linear"
    if name != "linear":
        raise params.error("beta_schedule", "linear", name)
    start = params.number("linear_start", schedule.START)
    end = params.number("linear_end", schedule.END)
    steps = params.whole("timesteps", schedule.STEPS)
    if not 0 < start <= end < 1:
        raise params.error("linear_end", "linear_start or more, both between 0 and 1", end)
    schedule.check_steps(params, "timesteps", steps)
    return schedule.scaled_linear(start, end, steps)


def _prediction(file: Checkpoint, original: Original, unet: Any) -> Prediction:
    """The file's mark, then its yaml, then what the weights look like."""
    marked, stated = marked_prediction(file), original.stated_prediction()
    if marked == "v":
        if stated == "eps":
            log.warning(
                "%s: marked as predicting v, and sampled so, though its yaml states epsilon "
                "(--prediction eps follows the yaml)",
                file.path.name,
            )
        return "v"
    if original.stated:
        return stated or marked or "eps"
    if marked:
        return marked
    return "v" if original.family == "sd2" and _looks_like_v(unet) else "eps"


@torch.no_grad()
def _looks_like_v(unet: Any) -> bool:
    """The WebUI's test of an SD2 without a yaml: at t = 999, eps would about return its input."""
    x = torch.full((1, 4, 8, 8), 0.5)
    context = torch.full((1, 2, unet.config.cross_attention_dim), 0.5)
    out = unet.float()(x, 999, context, return_dict=False)[0]
    return bool((out - x).mean() < -1)


# --- networks -------------------------------------------------------------------------------------


def _filled_unet(layout: Layout, original: Original) -> Any:
    from diffusers import UNet2DConditionModel

    config = original.unet_config()
    attentive = [kind.startswith("CrossAttn") for kind in config["up_block_types"]]
    places = unet_places(config["layers_per_block"], attentive)
    return layout.unet.filled(partial(UNet2DConditionModel.from_config, config), places)


def _filled_vae(layout: Layout, original: Original) -> Any:
    from diffusers import AutoencoderKL

    config, vae = original.vae_config(), layout.vae
    # Some tools leave them out of VAEs where they change nothing.
    config["use_quant_conv"] = "quant_conv.weight" in vae.names
    config["use_post_quant_conv"] = "post_quant_conv.weight" in vae.names
    places = vae_places(len(config["block_out_channels"]))
    return vae.filled(partial(AutoencoderKL.from_config, config), places)


def _filled_encoders(layout: Layout, original: Original, folder: Path) -> list[TextEncoder]:
    tokenizer = load_tokenizer(folder)
    pad, (first, *others) = tokenizer.pad_token_id, layout.encoders
    if pad is None:
        pad = tokenizer.eos_token_id
    if layout.family == "sd1":
        embedder = original.embedder
        layer = embedder.whole("layer_idx") if embedder.given("layer") == "hidden" else None
        return [TextEncoder(tokenizer, _clip(first, folder, "quick_gelu"), pad, layer)]
    if layout.family == "sd2":
        skip = 0 if original.embedder.given("layer") == "last" else 1
        return [TextEncoder(tokenizer, _clip(first, None, "gelu", skip=skip), 0)]
    second = _clip(others[0], None, "gelu", projection=True)
    return [
        TextEncoder(tokenizer, _clip(first, folder, "quick_gelu"), pad, -2),
        TextEncoder(tokenizer, second, 0, -2),
    ]


def _clip(
    part: Part, folder: Path | None, act: str, *, skip: int = 0, projection: bool = False
) -> Any:
    """A transformers CLIP text model, whatever its tensors are called.

    folder: where its config.json may lie. skip: how many of its last layers are not used, in a
    file that has them. projection: with the one of the pooled text.
    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    if _is_open_clip(part):
        config = _open_clip_config(part, act, skip)
        places = open_clip_places
    else:
        config = _clip_config(part, folder, act)
        if config.num_hidden_layers == OPEN_CLIP_DEPTH:  # else the file leaves them out itself
            config.num_hidden_layers -= skip
        places = clip_places
    model = part.filled(lambda: kind(config), places, exact=not skip)
    embeddings = text_model_of(model).embeddings  # its position ids are not among the weights
    embeddings.position_ids = torch.arange(embeddings.position_ids.shape[-1])[None]
    return model


def _clip_config(part: Part, folder: Path | None, act: str) -> Any:
    """Of the config.json in the folder, or else read off the weights."""
    from transformers import CLIPTextConfig

    root = _clip_root(part)
    positions = part.shape(f"{root}embeddings.position_embedding.weight")[0]
    if folder is not None and (folder / "config.json").is_file():
        try:
            config = CLIPTextConfig.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises whatever a value leads to
            raise ModelError(f"{folder / 'config.json'}: {reason(error)}") from error
        config.max_position_embeddings = positions
        return config
    layers = f"{root}encoder.layers."
    shapes = {
        "tokens": part.shape(f"{root}embeddings.token_embedding.weight"),
        "hidden": part.shape(f"{layers}0.mlp.fc1.weight"),
    }
    return _read_off(shapes, positions, part.count(layers), act)


def _open_clip_config(part: Part, act: str, skip: int) -> Any:
    block = "transformer.resblocks."
    shapes = {
        "tokens": part.shape("token_embedding.weight"),
        "hidden": part.shape(f"{block}0.mlp.c_fc.weight"),
    }
    positions = part.shape("positional_embedding")[0]
    return _read_off(shapes, positions, part.count(block) - skip, act)


def _read_off(shapes: Mapping[str, list[int]], positions: int, layers: int, act: str) -> Any:
    """A CLIP text configuration by its weights; every CLIP of SD has heads of width 64."""
    from transformers import CLIPTextConfig

    vocabulary, width = shapes["tokens"]
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=shapes["hidden"][0],
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=positions,
        hidden_act=act,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
    )


# --- the tokenizer --------------------------------------------------------------------------------


def _clip_folder(path: Path, original: Original) -> Path:
    """The folder of the tokenizer (and the text encoder's config) that the yaml names.

    Looked for beside the checkpoint by its last name, then as written, then in the local cache
    of Hugging Face's hub, never on the hub itself.
    """
    version = str(original.embedder.given("version") or CLIP_VOCABULARY)
    for folder in (path.parent / Path(version).name, Path(version)):
        if any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
            check_tokenizer(folder)
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


def _cached(repository: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, name)
    except HFValidationError:  # a path, not owner/name
        return None
    return Path(found) if isinstance(found, str) else None
