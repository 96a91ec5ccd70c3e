"""Load a diffusers folder (model_index.json; SD1, SD2, SDXL, pixels) without the network."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lib_hires.standalone.models import schedule
from lib_hires.standalone.models.checkpoint import listed, of_known_form
from lib_hires.standalone.models.latent import (
    Family,
    LatentModel,
    ModelError,
    Overrides,
    Prediction,
    TextEncoder,
    assembled,
    check_no_bom,
    check_tokenizer,
    load_tokenizer,
    no_inpainting,
    placed,
    reason,
    with_finite_sigmas,
)
from lib_hires.standalone.models.pixel import PixelModel
from lib_hires.standalone.models.values import Values

log = logging.getLogger("hires_guidance")


VAES = ("AutoencoderKL", "AutoencoderTiny")
PARTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": VAES,
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": (None, "CLIPTextModelWithProjection"),
}
"""The classes of each part that are loaded."""
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
"""What the files of a part's weights are called; `model` where nothing stands here."""
OTHER_INPUTS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
"""Keys of a U-Net that wants more than noise, a time and a text."""
SIDES: dict[Family, int] = {"sd1": 64, "sd2": 64, "sdxl": 128}
"""Of a native latent, where the U-Net's configuration gives none; 96 for SD2 that predicts v."""


def load_folder(
    path: Path, device: torch.device, dtype: torch.dtype, overrides: Overrides
) -> LatentModel:
    advice = "give a diffusers folder or a .safetensors file"
    if cached := sorted(path.glob("snapshots/*/model_index.json")):
        advice = f"this is a folder of the hub's cache; give {cached[-1].parent}"
    index = _read_json(path / "model_index.json", advice)
    if _kind(index.mapping, "unet") == "UNet2DModel":
        return _load_pixels(path, index, device, dtype, overrides)
    parts = _check_folder(path, index.mapping)
    scheduler = _read_json(path / "scheduler" / "scheduler_config.json", "download it again")
    prediction = overrides.prediction or _folder_prediction(path, scheduler)
    alphas_cumprod = _alphas_cumprod(scheduler, overrides)

    import diffusers

    unet = _part(diffusers.UNet2DConditionModel, path / "unet")
    vae = _part(getattr(diffusers, _kind(index.mapping, "vae")), path / "vae")
    encoders = [_folder_encoder(path, part, len(parts)) for part in parts]
    acts = [encoder.model.config.hidden_act for encoder in encoders]
    family: Family = "sdxl" if len(parts) == 2 else "sd1" if acts[0] == "quick_gelu" else "sd2"
    return assembled(
        name=path.resolve().name,
        family=family,
        prediction=prediction,
        sample_size=_sample_size(path, family, prediction),
        alphas_cumprod=alphas_cumprod,
        unet=unet,
        vae=vae,
        encoders=encoders,
        device=device,
        dtype=dtype,
        zero_empty_negative=family == "sdxl" and index.truth("force_zeros_for_empty_prompt", True),
        overrides=overrides,
    )


def _load_pixels(
    path: Path, index: Values, device: torch.device, dtype: torch.dtype, overrides: Overrides
) -> PixelModel:
    """Of `DDPMPipeline` and its like: a `UNet2DModel` and a scheduler."""
    config = _read_json(path / "unet" / "config.json", "download it again")
    scheduler = _read_json(path / "scheduler" / "scheduler_config.json", "download it again")
    _check_pixels(path, index.mapping, config)
    name = str(scheduler.given("_class_name") or "")
    clips = scheduler.truth("clip_sample", name.startswith(("DDPM", "DDIM")))
    sizes = config.wholes("sample_size")

    import diffusers

    unet = _part(diffusers.UNet2DModel, path / "unet")
    return PixelModel(
        name=path.resolve().name,
        family="pixel",
        prediction=overrides.prediction or _folder_prediction(path, scheduler),
        native=(sizes[0], sizes[-1]),
        alphas_cumprod=with_finite_sigmas(_alphas_cumprod(scheduler, overrides)),
        unet=placed(unet, device, dtype),
        device=device,
        dtype=dtype,
        overrides=overrides,
        names=_class_names(index),
        clip=scheduler.number("clip_sample_range", 1.0) if clips else None,
    )


def _check_pixels(path: Path, index: Mapping[str, Any], config: Values) -> None:
    """Raises ModelError where the U-Net's inputs or outputs are not those of pixels."""
    if (vae := _kind(index, "vae") or _kind(index, "vqvae")) is not None:
        raise ModelError(f"{path}: a UNet2DModel with a {vae} is not supported; give one of pixels")
    channels = config.whole("in_channels", 3)
    if channels not in (1, 3):
        raise config.error("in_channels", "1 or 3", channels)
    out = config.whole("out_channels", 3)
    if out not in (channels, 2 * channels):  # twice as many: a variance too
        raise config.error("out_channels", f"{channels} or {2 * channels}", out)
    for key, known in (("time_embedding_type", "positional"), ("class_embed_type", None)):
        if (given := config.given(key)) not in (None, known):
            raise config.error(key, str(known), given)


def _class_names(index: Values) -> dict[str, int]:
    """Numbers of the classes by their names in lower case; one may have several, with commas."""
    return {
        name.strip().lower(): int(number)
        for number, names in index.section("id2label").mapping.items()
        for name in str(names).split(",")
        if str(number).isdecimal()
    }


def _alphas_cumprod(scheduler: Values, overrides: Overrides) -> torch.Tensor:
    alphas_cumprod = schedule.of_folder(scheduler)
    if _zero_snr(scheduler) if overrides.zero_snr is None else overrides.zero_snr:
        return schedule.zero_snr(alphas_cumprod)
    return alphas_cumprod


def _sample_size(path: Path, family: Family, prediction: Prediction) -> tuple[int, int]:
    unet = _read_json(path / "unet" / "config.json", "download it again")
    side = 96 if (family, prediction) == ("sd2", "v") else SIDES[family]
    if unet.given("sample_size") is None:
        log.warning(
            "%s: sample_size is not given; taken as %d, the native size of %s",
            unet.file, side, family.upper(),
        )  # fmt: skip
    sizes = unet.wholes("sample_size", [side])
    if len(sizes) > 2 or min(sizes) < 1:
        raise unet.error("sample_size", "one side or two", unet.given("sample_size"))
    return sizes[0], sizes[-1]


def _read_json(path: Path, advice: str, *, bom: bool = True) -> Values:
    """bom: whether a byte order mark is allowed; diffusers and transformers read none."""
    if not path.is_file():
        raise ModelError(f"{path.parent}: has no {path.name}; {advice}")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: damaged, not JSON; {advice}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: damaged, not a JSON object; {advice}")
    if not bom:
        check_no_bom(path)
    return Values(path, content)


def _kind(index: Mapping[str, Any], part: str) -> str | None:
    """The class of a part; None where there is no such part."""
    kind = index.get(part)
    return str(kind[1]) if isinstance(kind, list) and kind[1:] and kind[1] else None


def _check_folder(path: Path, index: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the text encoders, once every part is known to be of a kind we load, and there."""
    for part, known in PARTS.items():
        kind = _kind(index, part)
        if kind not in known:
            name = index.get("_class_name", "model without a class name")
            raise ModelError(
                f"{path}: a {name} with {kind or 'nothing'} as its {part} is not supported; give "
                "an SD1, SD2 or SDXL text-to-image model"
            )
    encoders = ("text_encoder", "text_encoder_2")[: 2 if _kind(index, "text_encoder_2") else 1]
    configs = {
        part: _read_json(path / part / "config.json", "download it again", bom=False)
        for part in ("unet", "vae", *encoders)
    }
    for config in configs.values():
        if config.given("quantization_config") is not None:
            given = config.section("quantization_config").given("quant_method") or "unnamed"
            expected = "none; download the model's weights that are not quantized"
            raise config.error("quantization_config", expected, given)
    unet = configs["unet"]
    if unet.whole("in_channels", 4) != unet.whole("out_channels", 4):
        raise ModelError(no_inpainting(path))
    for key in OTHER_INPUTS:
        if unet.given(key) is not None:
            raise unet.error(key, "none; give a text-to-image model", unet.given(key))
    if unet.given("time_cond_proj_dim") is not None:
        log.warning("%s: its embedding of the CFG scale (LCM) is not used", path.name)
    if (unet.given("addition_embed_type") == "text_time") != (len(encoders) == 2):
        raise ModelError(f"{path}: an SDXL refiner is not supported; give an SDXL base model")
    for part in ("unet", "vae", *encoders):
        _variant(path / part)
    for part in encoders:
        check_tokenizer(path / part.replace("text_encoder", "tokenizer"))
    return encoders


def _variant(folder: Path) -> str | None:
    """The variant of the weights in a part's folder: None, or else fp16 before any other."""
    name = WEIGHTS.get(folder.name, "model")
    form = rf"{name}(?:\.([^.]+?))?(?:-\d+-of-\d+)?\.safetensors"
    there = sorted(file.name for file in folder.glob("*.safetensors"))
    found = [match[1] for match in (re.fullmatch(form, file) for file in there) if match]
    if None in found or (folder / f"{name}.safetensors.index.json").is_file():
        return None
    if found:
        return "fp16" if "fp16" in found else str(found[0])
    if there:
        raise ModelError(f"{folder}: expected weights named {name}.safetensors, got {there[0]}")
    raise ModelError(
        f"{folder}: has no .safetensors weights (.bin files can run code when read and are "
        "refused); download the model's safetensors files"
    )


def _folder_prediction(path: Path, scheduler: Values) -> Prediction:
    kind = scheduler.given("prediction_type") or "epsilon"
    predictions: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v"}
    name = str(scheduler.given("_class_name") or "")
    if kind not in predictions or name.startswith(("EDM", "Flow", "CM", "ScoreSde", "Karras")):
        raise ModelError(
            f"{path}: prediction {kind!r} with {name or 'an unnamed scheduler'} is not "
            "supported; give a model that predicts epsilon or v"
        )
    return predictions[kind]


def _zero_snr(scheduler: Values) -> bool:
    return scheduler.truth("rescale_betas_zero_snr", False)


def _part(kind: Any, folder: Path) -> Any:
    try:
        model, info = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            variant=_variant(folder),
            output_loading_info=True,
        )
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder}: {reason(error)}; download it again") from error
    except Exception as error:  # whatever a value leads to
        raise ModelError(
            f"{folder}: its config.json or weights {reason(error)}; download it again"
        ) from error
    _check_filled(folder, info, model.state_dict())
    return model


def _check_filled(folder: Path, info: Mapping[str, Any], names: Collection[str]) -> None:
    """Raises ModelError where weights are missing, which the libraries fill with random numbers,
    or where there are more blocks than the configuration has."""
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{folder}: its weights lack {listed(missing)}; download it again")
    if more := of_known_form(info["unexpected_keys"], names):
        raise ModelError(
            f"{folder}: its config.json has no place for {more}; download both files again"
        )


def _folder_encoder(path: Path, part: str, count: int) -> TextEncoder:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
    tokenizer = load_tokenizer(path / part.replace("text_encoder", "tokenizer"))
    # SDXL takes the last layer but one of both encoders.
    layer = -2 if count == 2 else None
    model = _part(kind, path / part)
    pad = tokenizer.pad_token_id
    if pad is None:  # CLIP's fill with the end, OpenCLIP's with the first token
        pad = tokenizer.eos_token_id if model.config.hidden_act == "quick_gelu" else 0
    return TextEncoder(tokenizer, model, pad, layer)
