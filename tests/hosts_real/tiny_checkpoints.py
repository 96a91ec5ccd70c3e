"""Models of random weights for the real WebUI, so small that an image takes a second on a CPU.

| file | what it is |
|---|---|
| hires-demo | the bundled model's shape, but narrower |
| other | the same with other weights |
| v | the first one's weights, read as predicting v |
| inpaint | the same, received a mask and a masked image beside the latent |
| control | SD1's twelve input blocks, which ControlNet counts on |
| clips | SD1's widths in their proportions, for which `put_motion` writes a motion module |
| xl | SDXL's layout: received the image's size, its VAE draws a sample inside |
| flux, sd3 | the layouts of Flux and Stable Diffusion 3, for Forge |

Forge and reForge know a model by its shapes. For them the text encoder and the U-Net's widths are
those of Stable Diffusion 1.5, and the U-Net has fewer layers: `put_known_models`. The VAE, xl, flux
and sd3 are of shapes that they know with the extension small_shapes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_shapes import VAE_CHANNELS, VAE_MULTIPLIERS, XL_TEXT_LAYERS
from tiny_upscaler import tiny_weights
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
)

from lib_hires.feature_upsampler import (
    FeatureUpsampler,
    UpsamplerInfo,
    default_layers,
    layout_of,
)
from lib_hires.standalone.models.names import text_model_of
from lib_hires.standalone.world import layout
from lib_hires.standalone.world import model as demo_model
from lib_hires.upsampler_file import write_upsampler

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
NARROW = {"UNET_CHANNELS": 32, "UNET_HEADS": 1, "VAE_CHANNELS": 32}
SD1_BLOCKS = {
    "UNET_MULTIPLIERS": (1, 1, 1, 1), "UNET_BLOCKS": 2, "UNET_ATTENTION_FACTORS": (1, 2, 4),
}  # fmt: skip
SD15_SHAPE = {
    "UNET_CHANNELS": 320, "UNET_HEADS": 8, "CONTEXT": 768,
    "VAE_CHANNELS": VAE_CHANNELS, "VAE_MULTIPLIERS": VAE_MULTIPLIERS, "VAE_BLOCKS": 2,
}  # fmt: skip
NUMBER_CHANNELS = 256  # SDXL's embedding of one number
XL_CONTEXT, XL_POOLED = 2048, 1280  # of SDXL's text encoders
SIZES = "original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple"


def put_models(folder: Path) -> Path:
    """Write all of them; returns the first one's file. A CLIP folder is shared between them."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    _export(folder, "control", NARROW | SD1_BLOCKS)
    _export(folder, "clips", NARROW | SD1_BLOCKS | {"UNET_MULTIPLIERS": (1, 2, 4, 4)})
    file = _export(folder, demo_model.NAME, NARROW)
    config, weights = yaml.safe_load(file.with_suffix(".yaml").read_text()), load_file(file)
    _put_variants(folder, weights, config)
    _put(folder / "xl", _xl_weights(weights), _xl_config(config))
    return file


def put_known_models(folder: Path) -> Path:
    """hires-demo, other, v, inpaint and xl in shapes that Forge knows; returns the first one."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    file = _export(folder, demo_model.NAME, SD15_SHAPE, text_encoder=_sd15_text_encoder())
    config, weights = yaml.safe_load(file.with_suffix(".yaml").read_text()), load_file(file)
    _put_variants(folder, weights, config)
    save_file(_known_xl_weights(beside_unet(weights)), folder / "xl.safetensors")
    return file


def put_controlnet(model: Path, file: Path) -> None:
    """A ControlNet for `model`: its encoder, a hint encoder, and output layers that are not 0."""
    weights = load_file(model)
    width = len(weights[f"{UNET}input_blocks.0.0.weight"])
    parts = "time_embed.", "input_blocks.", "middle_block."
    state = {
        key.removeprefix(UNET): value.float()
        for key, value in weights.items()
        if key.removeprefix(UNET).startswith(parts)
    }
    widths = [3, 16, 16, 32, 32, 96, 96, 256, width]
    for layer, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        state |= convolution(f"input_hint_block.{2 * layer}", before, after, side=3)
    blocks = {key.split(".")[1] for key in state if key.startswith("input_blocks.")}
    for block in range(len(blocks)):
        state |= convolution(f"zero_convs.{block}.0", width, width)
    state |= convolution("middle_block_out.0", width, width)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file)


def put_lora(model: Path, file: Path) -> None:
    """A LoRA of rank 2 on the first model's first attention layer."""
    layer = "input_blocks.3.1.transformer_blocks.0.attn1.to_q"
    rows, columns = load_file(model)[f"{UNET}{layer}.weight"].shape
    name = "lora_unet_" + layer.replace(".", "_")
    state = {
        f"{name}.lora_up.weight": torch.randn(rows, 2),
        f"{name}.lora_down.weight": torch.randn(2, columns),
        f"{name}.alpha": torch.tensor(2.0),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file)


def put_motion(file: Path) -> None:
    """A motion module in the layout of AnimateDiff v3, for the checkpoint `clips`: 32 positions."""
    weights: dict[str, Tensor] = {}
    for sides, layers in (("down", 2), ("up", 3)):
        widths = (32, 64, 128, 128) if sides == "down" else (128, 128, 64, 32)
        for block, width in enumerate(widths):
            for layer in range(layers):
                weights |= _motion(f"{sides}_blocks.{block}.motion_modules.{layer}", width)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, file)


def _motion(name: str, width: int) -> dict[str, Tensor]:
    """One motion module; its last layer is not 0, as AnimateDiff's begin."""
    name += ".temporal_transformer"
    block = f"{name}.transformer_blocks.0"
    state = norm(f"{name}.norm", width) | norm(f"{block}.ff_norm", width)
    state |= linear(f"{name}.proj_in", width, width) | linear(f"{name}.proj_out", width, width)
    state |= linear(f"{block}.ff.net.0.proj", width, 8 * width)
    state |= linear(f"{block}.ff.net.2", 4 * width, width)
    for place in (0, 1):
        attention = f"{block}.attention_blocks.{place}"
        for part in ("to_q", "to_k", "to_v"):
            state[f"{attention}.{part}.weight"] = linear("", width, width)[".weight"]
        state |= linear(f"{attention}.to_out.0", width, width)
        state[f"{attention}.pos_encoder.pe"] = torch.randn(1, 32, width)
        state |= norm(f"{block}.norms.{place}", width)
    return state


def put_upsamplers(folder: Path, *, known: bool) -> None:
    """`mine`, `untrained` and `for xl`. known: for hires-demo as `put_known_models` writes it."""
    shape = SD15_SHAPE if known else NARROW
    put_upsampler(folder / "mine.safetensors", shape)
    put_upsampler(folder / "untrained.safetensors", shape, trained=False)
    put_upsampler(folder / "for xl.safetensors", shape, family="sdxl")


def put_upscaler(file: Path) -> None:
    """An ESRGAN of random weights that enlarges images 4 times.

    In torch's format of before 1.6: A1111 refuses what today's torch puts into its archives.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"params_ema": tiny_weights()}, file, _use_new_zipfile_serialization=False)


def put_upsampler(
    file: Path, shape: dict[str, Any], *, family: str = "sd1", trained: bool = True
) -> None:
    """A feature upsampler of random weights for a U-Net of this shape, for twice the sides."""
    torch.manual_seed(1)
    with _shaped(shape), torch.device("meta"):
        unet = demo_model.build_unet()
    layers, skips = default_layers(unet), layout_of(unet).skips
    channels = tuple(skips[layer].channels for layer in layers)
    upsampler = FeatureUpsampler(UpsamplerInfo(family, "tiny", "0" * 64, layers, channels))
    for weight in upsampler.requires_grad_(False).parameters() if trained else ():
        weight.copy_(torch.randn(weight.shape) / 2)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_upsampler(file, upsampler, upsampler.info)


def beside_unet(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if key.startswith((VAE, TEXT))}


def _sd15_text_encoder() -> CLIPTextModel:
    """SD 1.5's shape; its tokenizer comes with the host."""
    config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    model = CLIPTextModel(config)
    # As in build_text_encoder.
    torch.nn.init.constant_(text_model_of(model).final_layer_norm.bias, 0.1)
    return model


@contextmanager
def _shaped(shape: dict[str, Any]) -> Iterator[None]:
    """Inside the block the bundled model's parts and their layout are of this shape."""
    with pytest.MonkeyPatch.context() as patch:
        for constant, value in shape.items():
            patch.setattr(demo_model, constant, value)
            patch.setattr(layout, constant, value)
        yield


def _export(
    folder: Path, name: str, shape: dict[str, Any], text_encoder: CLIPTextModel | None = None
) -> Path:
    """text_encoder: if not the bundled model's."""
    with _shaped(shape):
        parts = {
            "vae": demo_model.build_vae(),
            "unet": demo_model.build_unet(),
            "text_encoder": text_encoder or demo_model.build_text_encoder(),
        }
        file = layout.export(folder, **parts, name=name)
    config = file.with_suffix(".yaml")
    clip = str(folder / demo_model.CLIP_FOLDER)
    config.write_text(config.read_text().replace(layout.WEBUI_CLIP, clip))
    return file


def _put(stem: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    save_file(weights, stem.with_suffix(".safetensors"), metadata={"format": "pt"})
    stem.with_suffix(".yaml").write_text(yaml.safe_dump(config))


def _put_variants(folder: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    """`other` and `inpaint`."""
    first = f"{UNET}input_blocks.0.0.weight"
    _put(folder / "other", weights | {first: -weights[first]}, config)
    _put(folder / "v", weights, _predicting_v(config))
    extra = torch.randn(len(weights[first]), 5, 3, 3) / 10
    wider = weights | {first: torch.cat([weights[first], extra.half()], 1)}
    _put(folder / "inpaint", wider, _inpainting(config))


def _predicting_v(config: dict[str, Any]) -> dict[str, Any]:
    params = config["model"]["params"] | {"parameterization": "v"}
    return {"model": config["model"] | {"params": params}}


def _inpainting(config: dict[str, Any]) -> dict[str, Any]:
    params = config["model"]["params"]
    unet = params["unet_config"]
    wider = {**unet, "params": {**unet["params"], "in_channels": 9}}
    return {
        "model": {
            **config["model"],
            "params": {**params, "unet_config": wider, "conditioning_key": "hybrid"},
        }
    }


def _xl_weights(
    weights: dict[str, Tensor], received: int = 2 * len(SIZES) * NUMBER_CHANNELS
) -> dict[str, Tensor]:
    """The same under SDXL's names, with layers for the vector of `received` numbers."""
    hidden = 4 * len(weights[f"{UNET}input_blocks.0.0.weight"])
    label = linear(f"{UNET}label_emb.0.0", received, hidden)
    label |= linear(f"{UNET}label_emb.0.2", hidden, hidden)
    kept = {key: value for key, value in weights.items() if key.startswith((UNET, VAE))}
    text = renamed(weights, TEXT, "conditioner.embedders.0.")
    return kept | text | half(label)


def _known_xl_weights(beside: dict[str, Tensor]) -> dict[str, Tensor]:
    """SDXL in full width. beside: the VAE and SD 1.5's text encoder."""
    with _shaped(SD15_SHAPE | {"CONTEXT": XL_CONTEXT}):
        names, state = layout._unet_names(), demo_model.build_unet().state_dict()
        unet = half(layout._renamed(state, names, UNET))
    for key, value in unet.items():
        if ".proj_" in key and value.ndim == 4:
            unet[key] = value[:, :, 0, 0].contiguous()  # SDXL's are linear layers
    received = XL_POOLED + 2 * len(SIZES) * NUMBER_CHANNELS
    return _xl_weights(unet | beside, received) | half(_open_clip("conditioner.embedders.1.model."))


def _open_clip(prefix: str) -> dict[str, Tensor]:
    """SDXL's larger text encoder, with fewer layers."""
    width, words, positions = XL_POOLED, 49408, 77
    state = {
        "positional_embedding": torch.randn(positions, width) / 10,
        "token_embedding.weight": torch.randn(words, width) / 10,
        "text_projection": torch.randn(width, width) * width**-0.5,
        **norm("ln_final", width),
    }
    for layer in range(XL_TEXT_LAYERS):
        block = f"transformer.resblocks.{layer}"
        into = linear("", width, 3 * width)
        state |= {f"{block}.attn.in_proj_{part[1:]}": value for part, value in into.items()}
        state |= linear(f"{block}.attn.out_proj", width, width)
        state |= linear(f"{block}.mlp.c_fc", width, 4 * width)
        state |= linear(f"{block}.mlp.c_proj", 4 * width, width)
        state |= norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
    return {prefix + key: value for key, value in state.items()}


def _xl_config(config: dict[str, Any]) -> dict[str, Any]:
    params = config["model"]["params"]
    received = {"num_classes": "sequential", "adm_in_channels": 2 * len(SIZES) * NUMBER_CHANNELS}
    unet = {
        **params["unet_config"]["params"],
        **received,
        "spatial_transformer_attn_type": "softmax",
    }
    del unet["image_size"]
    first_stage = params["first_stage_config"]["params"]
    text = {"target": "sgm.modules.encoders.modules.FrozenCLIPEmbedder", "input_key": "txt"}
    text["params"] = params["cond_stage_config"]["params"]
    number = "sgm.modules.encoders.modules.ConcatTimestepEmbedderND"
    numbers = [
        {"target": number, "input_key": key, "params": {"outdim": NUMBER_CHANNELS}} for key in SIZES
    ]
    of = _sgm("sgm.modules.diffusionmodules.")
    denoiser = {
        "num_idx": 1000,
        "weighting_config": of("denoiser_weighting.EpsWeighting"),
        "scaling_config": of("denoiser_scaling.EpsScaling"),
        "discretization_config": of("discretizer.LegacyDDPMDiscretization"),
    }
    xl = {
        "scale_factor": params["scale_factor"],
        "disable_first_stage_autocast": True,
        "denoiser_config": of("denoiser.DiscreteDenoiser", denoiser),
        "network_config": of("openaimodel.UNetModel", unet),
        "conditioner_config": _sgm("sgm.modules.")(
            "GeneralConditioner", {"emb_models": [text, *numbers]}
        ),
        "first_stage_config": _sgm("sgm.models.")(
            "autoencoder.AutoencoderKLInferenceWrapper", first_stage
        ),
    }
    return {"model": {"target": "sgm.models.diffusion.DiffusionEngine", "params": xl}}


def _sgm(package: str) -> Callable[..., dict[str, Any]]:
    def part(name: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"target": package + name, **({"params": params} if params else {})}

    return part


def convolution(name: str, before: int, after: int, side: int = 1) -> dict[str, Tensor]:
    scale = (before * side * side) ** -0.5
    weight = torch.randn(after, before, side, side) * scale
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(after)}


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.half() for key, value in state.items()}


def renamed(state: dict[str, Tensor], before: str, after: str) -> dict[str, Tensor]:
    """Those of `state` that begin with `before`, beginning with `after`."""
    return {
        after + key.removeprefix(before): value
        for key, value in state.items()
        if key.startswith(before)
    }


def norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.full((width,), 0.1)}


def linear(name: str, before: int, after: int) -> dict[str, Tensor]:
    weight = torch.randn(after, before) * before**-0.5
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(after)}
