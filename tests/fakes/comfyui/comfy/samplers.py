"""Samplers, and the evaluation of conds that they all end in."""

import copy
import uuid

import torch

from comfy.patcher_extension import WrappersMP, wrapped


class KSAMPLER:
    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.sampler_function = sampler_function
        self.extra_options = extra_options or {}
        self.inpaint_options = inpaint_options or {}

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, mask=None):
        model = Denoiser(guider, extra_args["model_options"])
        if isinstance(guider.inner_model.model_sampling.sigmas, torch.Tensor):
            state = noise * sigmas[0] + latent_image
        return self.sampler_function(model, state, sigmas, callback=callback)


class Denoiser:
    def __init__(self, guider, options):
        self.inner_model, self.options = guider, options

    def __call__(self, x, sigma):
        return self.inner_model.evaluate(x, sigma, self.options)


def sample_euler(model, x, sigmas, callback=None):
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i].repeat(len(x)))
        if callback:
            callback({"i": i, "x": x, "denoised": denoised})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def sample_heun(model, x, sigmas, callback=None):
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i].repeat(len(x)))
        if callback:
            callback({"i": i, "x": x, "denoised": denoised})
        slope, step = (x - denoised) / sigmas[i], sigmas[i + 1] - sigmas[i]
        if sigmas[i + 1] > 0:
            there = x + slope * step
            again = model(there, sigmas[i + 1].repeat(len(x)))
            slope = (slope + (there - again) / sigmas[i + 1]) / 2
        x = x + slope * step
    return x


def sample_dpm_adaptive(model, x, sigmas, callback=None):
    raise NotImplementedError


FUNCTIONS = {"euler": sample_euler, "heun": sample_heun, "dpm_adaptive": sample_dpm_adaptive}


def sampler_object(name):
    return KSAMPLER(FUNCTIONS[name])


class KSampler:
    SAMPLERS = tuple(FUNCTIONS)
    SCHEDULERS = ("normal", "karras")

    def __init__(self, model, steps, device, sampler, scheduler, denoise):
        table = model.get_model_object("model_sampling").sigmas
        picked = table[torch.linspace(len(table) - 1, 0, steps).round().long()]
        if scheduler == "karras":
            picked = torch.linspace(table[-1] ** (1 / 7), table[0] ** (1 / 7), steps) ** 7
        self.sigmas = torch.cat([picked, table.new_zeros(1)])


def calc_cond_batch(model, conds, x, sigma, options):
    evaluate = wrapped(WrappersMP.CALC_COND_BATCH, _calc_cond_batch, options)
    return evaluate(model, conds, x, sigma, options)


def _calc_cond_batch(model, conds, x, sigma, options):
    model.calls.append((tuple(x.shape), float(sigma[0]), conds))
    return [
        torch.zeros_like(x) if branch is None else _evaluated(model, branch, x, sigma, options)
        for branch in conds
    ]


def _evaluated(model, branch, x, sigma, options):
    """One branch in one call, with what patches of the network receive."""
    model.state = {
        **options.get("transformer_options", {}),
        "uuids": [branch[0]["uuid"]],
        "sigmas": sigma,
        "original_shape": list(x.shape),
    }
    return model.net(x, sigma, branch)


class Guider:
    """One sampling. model_options are the sampling's own copy."""

    def __init__(self, model, conds, cfg):
        self.inner_model = model.model
        self.model_options = copy.deepcopy(model.model_options, {id(model.model): model.model})
        self.model_options.setdefault("transformer_options", {})["wrappers"] = {
            kind: {key: list(part) for key, part in by_key.items()}
            for kind, by_key in model.wrappers.items()
        }
        self.conds, self.cfg = dict(zip(("positive", "negative"), conds, strict=True)), cfg

    def fitted(self, noise):
        for name, branch in self.conds.items():
            parts = [dict(cond) for _, cond in branch]
            for part in parts:
                part["model_conds"] = self.inner_model.extra_conds(part, noise)
                part["uuid"] = uuid.uuid4()
            self.conds[name] = parts

    def evaluate(self, x, sigma, options):
        predict = wrapped(WrappersMP.PREDICT_NOISE, self.predict_noise, self.model_options)
        return predict(x, sigma, options)

    def predict_noise(self, x, sigma, options):
        conds = list(self.conds.values())
        cond, uncond = calc_cond_batch(self.inner_model, conds, x, sigma, options)
        combined = uncond + self.cfg * (cond - uncond)
        for function in options.get("sampler_post_cfg_function", []):
            combined = function(self, x, sigma, options, combined, cond)
        return combined
