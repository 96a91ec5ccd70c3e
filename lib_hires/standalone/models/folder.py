"""Load a diffusers folder (model_index.json; SD1, SD2, SDXL) without reaching for the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

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
    reason,
)


def load_folder(path: Path, device: torch.device, dtype: torch.dtype) -> LatentModel:
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
    return assembled(
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
        raise ModelError(no_inpainting(path))
    if (unet.get("addition_embed_type") == "text_time") != (len(encoders) == 2):
        raise ModelError(f"{path}: an SDXL refiner is not supported; give an SDXL base model")
    for part in ("unet", "vae", *encoders):
        _variant(path / part)
    for part in encoders:
        check_tokenizer(path / part.replace("text_encoder", "tokenizer"))
    return encoders


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
        raise ModelError(f"{folder}: {reason(error)}; download it again") from error


def _folder_encoder(path: Path, part: str, count: int) -> TextEncoder:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
    tokenizer = load_tokenizer(path / part.replace("text_encoder", "tokenizer"))
    # SDXL takes the last layer but one of both encoders.
    layer = -2 if count == 2 else None
    return TextEncoder(tokenizer, _part(kind, path / part), tokenizer.pad_token_id, layer)
