"""A stand-in for Forge's evaluation of cond and uncond.

It does what `sampling_function` of Forge and `CFGDenoiser.forward` of reForge do around the model:
the modifiers of the conditioning first, then both predictions, CFG, and the functions after it.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import torch

SIGMAS = torch.linspace(0.03, 14.6, 1000)
FLOW = torch.linspace(0.001, 1, 1000)


class Cond:
    """The host's wrapper of one part of a cond."""

    def __init__(self, cond):
        self.cond = cond


class Model:
    """Predicts an image from all that it receives; `predictor` has its noise levels."""

    def __init__(self, sigmas=SIGMAS):
        self.predictor = SimpleNamespace(sigmas=sigmas, prediction_type="epsilon")
        self.evaluated = []

    def apply_model(self, x, sigma, *, transformer_options, **cond):
        self.evaluated.append((tuple(x.shape[-2:]), cond | transformer_options))
        gain = cond["c_crossattn"] / (1 + sigma.view(-1, *[1] * (x.ndim - 1)) ** 2)
        return gain * x + x.mean((-2, -1), keepdim=True)


class SdModel:
    def __init__(self, model=None):
        unet = SimpleNamespace(model=model or Model(), model_options={"kept": 1})
        unet.load_device = "cpu"
        vae = SimpleNamespace(downscale_ratio=8)
        self.forge_objects = SimpleNamespace(unet=unet, vae=vae)

    @property
    def options(self):
        return self.forge_objects.unet.model_options

    def denoise(self, x, sigma, cond, uncond, scale=3.0):
        model, options = self.forge_objects.unet.model, self.options
        arguments = model, x, sigma, uncond, cond, scale, options, 0
        for modifier in options.get("conditioning_modifiers", []):
            arguments = modifier(*arguments)
        return evaluated(*arguments)


def evaluated(model, x, sigma, uncond, cond, scale, options, seed):
    positive, negative = (
        model.apply_model(
            x,
            sigma,
            **{name: part.cond for name, part in branch[0]["model_conds"].items()},
            transformer_options={"cond_or_uncond": [place], "cond_indices": list(range(len(x)))},
        )
        for place, branch in enumerate((cond, uncond))
    )
    received = {
        "denoised": negative + scale * (positive - negative), "cond": cond, "uncond": uncond,
        "model": model, "model_options": options, "input": x, "sigma": sigma,
    }  # fmt: skip
    for function in options.get("sampler_post_cfg_function", []):
        received["denoised"] = function(received)
    return received["denoised"]


class Sampler:
    def __init__(self, sd_model):
        inner = SimpleNamespace(inner_model=sd_model, sigmas=SIGMAS)
        self.model_wrap_cfg = SimpleNamespace(
            inner_model=inner,
            update_inner_model=lambda: None,
            register_forward_pre_hook=lambda hook: nullcontext(),
        )

    def refine_with(self, sd_model):
        self.model_wrap_cfg.inner_model.inner_model = sd_model
        self.model_wrap_cfg.update_inner_model()


def conds(gain=0.5, **parts):
    wrapped = {name: Cond(part) for name, part in parts.items()}
    return [{"model_conds": {"c_crossattn": Cond(gain), **wrapped}, "control": "hint"}]
