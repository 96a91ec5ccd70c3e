"""Upsample Guidance on Forge Neo's own model code, run by Forge Neo's Python in its folder.

    PYTHON neo_models_checks.py ROOT

Writes one line of JSON. Each transformer is of the host's class, of random weights and one block,
and is evaluated by the host's own `sampling_function`. For each: how far the coarse part of the
guided prediction is from the prediction of the coarse state at the matched time, how much guidance
changes, and whether the plain prediction is bit for bit the same afterwards; or the error.
"""

import inspect
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

ROOT = sys.argv[1]
sys.argv = [sys.argv[0], "--cpu", "--force-fp32"]
sys.path[:0] = [str(Path.cwd()), str(Path.cwd() / "modules_forge" / "packages"), ROOT]

import torch  # noqa: E402
from backend.args import dynamic_args  # noqa: E402
from backend.modules import k_prediction  # noqa: E402
from backend.nn import anima, chroma, flux, lumina, qwen, wan  # noqa: E402
from backend.patcher.unet import UnetPatcher  # noqa: E402
from backend.sampling.sampling_function import sampling_function  # noqa: E402

from lib_hires.resample import Reduction  # noqa: E402
from lib_hires.settings import UpsampleGuidance  # noqa: E402
from lib_hires.webui import hosts  # noqa: E402
from lib_hires.webui.hosts.protocol import GuidedPass  # noqa: E402

LARGE, SMALL, TEXT, HEAD = (8, 8), (4, 4), 64, 128
FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": TEXT,
    "hidden_size": HEAD, "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True,
    "guidance_embed": True,
}  # fmt: skip
LUMINA = {
    "patch_size": 2, "in_channels": 16, "dim": 96, "cap_feat_dim": TEXT, "n_layers": 1,
    "n_refiner_layers": 1, "qk_norm": True, "n_heads": 1, "n_kv_heads": 1,
    "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512], "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}  # fmt: skip
Z_IMAGE = LUMINA | {
    "dim": 2 * HEAD, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512], "rope_theta": 256.0,
    "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}  # fmt: skip
ANIMA = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
    "patch_spatial": 2, "patch_temporal": 1, "model_channels": HEAD, "num_blocks": 1,
    "num_heads": 1, "crossattn_emb_channels": TEXT, "pos_emb_cls": "rope3d", "use_adaln_lora": True,
    "adaln_lora_dim": 16, "rope_enable_fps_modulation": False,
}  # fmt: skip
CHROMA = {name: value for name, value in FLUX.items() if name != "guidance_embed"} | {
    "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": HEAD, "hidden_dim": 64,
    "n_layers": 1, "vec_in_dim": None, "txt_ids_dims": [],
}  # fmt: skip
WAN = {"dim": HEAD, "ffn_dim": 128, "text_dim": TEXT, "num_heads": 1, "num_layers": 1}
QWEN = {"num_layers": 1, "num_attention_heads": 1, "joint_attention_dim": TEXT}


dynamic_args["ops"] = ""  # the loader sets it


def fitting(make, options):
    """What `make` gives for those options that it has; newer versions have fewer."""
    known = inspect.signature(make).parameters
    return make(**{name: value for name, value in options.items() if name in known})


def flux_levels():
    config = SimpleNamespace(sampling_settings={"shift": 1.15})
    return fitting(k_prediction.PredictionFlux, {"model_config": config})


def discrete(shift):
    return k_prediction.PredictionDiscreteFlow(SimpleNamespace(sampling_settings={"shift": shift}))


MODELS = {
    "Flux": (
        lambda: flux.IntegratedFluxTransformer2DModel(**FLUX),
        flux_levels,
        (),
    ),
    "Chroma": (
        lambda: chroma.IntegratedChromaTransformer2DModel(**CHROMA),
        flux_levels,
        (),
    ),
    "Lumina": (lambda: lumina.NextDiT(**LUMINA), lambda: discrete(6.0), ()),
    "Z-Image": (lambda: lumina.NextDiT(**Z_IMAGE), lambda: discrete(3.0), ()),
    "Qwen-Image": (lambda: qwen.QwenImageTransformer2DModel(**QWEN), lambda: discrete(1.15), (1,)),
    "Anima": (lambda: fitting(anima.Anima, ANIMA), lambda: discrete(3.0), (1,)),
    "Wan": (lambda: wan.WanModel(**WAN), lambda: discrete(8.0), (3,)),
}
"""Of each model what makes it, what makes its noise levels, and its latents' time axis."""


class Loaded:
    """A model as the host has loaded it, and the sampler's denoiser around it."""

    def __init__(self, make, make_predictor, frames):
        torch.manual_seed(0)
        transformer = make()
        for weight in transformer.requires_grad_(False).parameters():
            weight.normal_(0, 0.1)
        transformer.storage_dtype = transformer.computation_dtype = torch.float32
        for name in ("load_device", "initial_device", "offload_device"):
            setattr(transformer, name, torch.device("cpu"))
        predictor = make_predictor()
        config = SimpleNamespace(memory_usage_factor=1.0)
        unet = UnetPatcher.from_model(transformer, None, config, k_predictor=predictor)
        vae = SimpleNamespace(downscale_ratio=(print, 8, 8) if frames else 8)
        self.sd_model = SimpleNamespace(
            forge_objects=SimpleNamespace(unet=unet, vae=vae), is_wan=bool(frames), is_inpaint=False
        )
        inner = SimpleNamespace(inner_model=self.sd_model, sigmas=predictor.sigmas)
        self.denoiser = SimpleNamespace(
            inner_model=inner,
            p=SimpleNamespace(seeds=[1]),
            update_inner_model=lambda: None,
            register_forward_pre_hook=lambda hook: nullcontext(),
        )

    def denoise(self, x, sigma, texts):
        params = SimpleNamespace(
            x=x, sigma=sigma, text_cond=texts[0], text_uncond=texts[1], image_cond=None
        )
        with torch.inference_mode():
            return sampling_function(self.denoiser, params, 3.0, [[(0, 1.0)]], {})[0]


class Texts(dict):
    """Flux's text beside its pooled text, which the host indexes as a whole."""

    def advanced_indexing(self, places):
        return Texts({name: value[places] for name, value in self.items()})


def texts(name):
    made = torch.randn(2, 1, 5, TEXT)
    if name != "Flux":
        return made.unbind(0)
    pooled, scale = torch.randn(2, 1, 32), torch.full((1,), 3.5)
    pairs = zip(made, pooled, strict=True)
    return [Texts(crossattn=text, vector=vector, guidance=scale) for text, vector in pairs]


def check(name):
    make, make_predictor, frames = MODELS[name]
    model, reduction = Loaded(make, make_predictor, frames), Reduction.between(LARGE, SMALL)
    x, sigma, given = torch.randn(1, 16, *frames, *LARGE), torch.tensor([0.8]), texts(name)
    plain, messages = model.denoise(x, sigma, given), []
    settings = UpsampleGuidance(enabled=True, eta=1, shifted_start=False)
    guided = GuidedPass(
        LARGE, reduction, settings, [0.8, 0.0], lambda native: None, messages.append
    )
    host = hosts.host_of(model.sd_model)
    with hosts.guiding(model.denoiser, guided):
        made = model.denoise(x, sigma, given)
    power = 1 - sigma + sigma / 2
    small = model.denoise(reduction.reduce(x) / power, sigma / 2 / power, given)
    return {
        "supported": host.is_supported(model.sd_model),
        "flow": host.is_flow(model.sd_model),
        "messages": messages,
        "finite": bool(made.isfinite().all()),
        "off": float((reduction.reduce(made) - small).abs().max() / small.abs().max()),
        "changed": float((made - plain).abs().mean() / plain.abs().mean()),
        "same after": torch.equal(model.denoise(x, sigma, given), plain),
    }


def checked(name):
    try:
        return check(name)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


sys.stdout.write(json.dumps({name: checked(name) for name in MODELS}) + "\n")
