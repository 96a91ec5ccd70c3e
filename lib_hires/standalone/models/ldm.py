"""Load a safetensors file in the original LDM layout (SD1, SD2, SDXL), with or without its yaml.

diffusers' own single-file pipelines reach for the hub; its converters, used here, do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from lib_hires.standalone.models.latent import (
    Family,
    LatentModel,
    ModelError,
    Prediction,
    TextEncoder,
    assembled,
    check_tokenizer,
    load_tokenizer,
    no_inpainting,
)

Shapes = dict[str, list[int]]
State = dict[str, torch.Tensor]

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


def load_ldm_file(path: Path, device: torch.device, dtype: torch.dtype) -> LatentModel:
    shapes = _read_header(path)
    family = _family(path, shapes)
    params = _original_params(path, family, shapes)
    alphas_cumprod = _alphas_cumprod(path, params)
    folder = _clip_folder(path, params)

    state = load_file(path)
    unet = _ldm_unet(path, params, family, state)
    prediction = _ldm_prediction(path, params, family, unet, state)
    return assembled(
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
        raise ModelError(no_inpainting(path))
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
        params = _standard_params(family)
    else:
        raise ModelError(
            f"{path}: not of a standard {family.upper()} shape and has no yaml; "
            f"put its {file.name} beside it"
        )
    return _filled_params(params)


def _standard_params(family: Family) -> dict[str, Any]:
    return {
        "unet_config": {"params": _UNET_SHAPE | _STANDARD[family]},
        "first_stage_config": {"params": {"ddconfig": _VAE_SHAPE}},
        "scale_factor": 0.13025 if family == "sdxl" else 0.18215,
    }


def _filled_params(params: dict[str, Any]) -> dict[str, Any]:
    """With the U-Net's under one name, and what an LDM yaml may leave out."""
    given = params.get("unet_config") or params["network_config"]
    unet = {"transformer_depth": 1, "context_dim": None} | given["params"]
    return params | {"unet_config": {"params": unet}}


def standard_networks(family: Family) -> tuple[Any, Any]:
    """A family's U-Net and VAE as diffusers' modules, of their real size, with fresh weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    params = _filled_params(_standard_params(family))
    unet = UNet2DConditionModel.from_config(_unet_config(params, family, {}))
    return unet, AutoencoderKL.from_config(_vae_config(params, {}))


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
        if max(unet.get("num_heads", -1), unet.get("num_head_channels", -1)) < 1:
            missing.add("num_heads")
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
    """Of LDM's "linear" schedule."""
    schedule = params.get("beta_schedule", "linear")
    if schedule != "linear":
        raise ModelError(
            f"{path.with_suffix('.yaml')}: beta_schedule: expected linear, got {schedule!r}"
        )
    start, end = float(params.get("linear_start", 0.00085)), float(params.get("linear_end", 0.012))
    return scaled_linear(start, end, int(params.get("timesteps", 1000)))


def scaled_linear(start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> torch.Tensor:
    """alphas_cumprod (steps,), float64, of SD's schedule: linear in the square root of beta."""
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


def _unet_config(params: dict[str, Any], family: Family, state: State) -> dict[str, Any]:
    """diffusers' configuration of the U-Net that an LDM yaml describes."""
    from diffusers.loaders import single_file_utils as ldm

    config = ldm.create_unet_diffusers_config_from_ldm({"model": {"params": params}}, state)
    width = params["unet_config"]["params"].get("num_head_channels", -1)
    if width > 0:
        # LDM's heads of a fixed width; diffusers' name for the number of heads is historical.
        config["attention_head_dim"] = [c // width for c in config["block_out_channels"]]
    if family == "sdxl":
        config |= {"class_embed_type": None, "addition_embed_type": "text_time"}
        config["addition_time_embed_dim"] = 256
    return dict(config)


def _ldm_unet(path: Path, params: dict[str, Any], family: Family, state: State) -> Any:
    from diffusers import UNet2DConditionModel
    from diffusers.loaders import single_file_utils as ldm

    config = _unet_config(params, family, state)
    weights = {key: value for key, value in state.items() if key.startswith(UNET)}
    weights = ldm.convert_ldm_unet_checkpoint(weights, config)
    return _filled(path, lambda: UNet2DConditionModel.from_config(config), weights, "U-Net")


def _vae_config(params: dict[str, Any], state: State) -> dict[str, Any]:
    """diffusers' configuration of the VAE that an LDM yaml describes."""
    from diffusers.loaders import single_file_utils as ldm

    return dict(ldm.create_vae_diffusers_config_from_ldm({"model": {"params": params}}, state))


def _ldm_vae(path: Path, params: dict[str, Any], state: State) -> Any:
    from diffusers import AutoencoderKL
    from diffusers.loaders import single_file_utils as ldm

    config = _vae_config(params, state)
    weights = {key: value for key, value in state.items() if key.startswith(VAE)}
    weights = ldm.convert_ldm_vae_checkpoint(weights, config)
    return _filled(path, lambda: AutoencoderKL.from_config(config), weights, "VAE")


def _ldm_encoders(
    path: Path, params: dict[str, Any], family: Family, folder: Path, state: State
) -> list[TextEncoder]:
    tokenizer = load_tokenizer(folder)
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
