"""Some of k-diffusion's samplers, and one that counts timesteps."""

from __future__ import annotations

from collections import namedtuple

import torch

from lib_hires.standalone.models.k_diffusion import import_k_diffusion
from modules import shared
from modules.sd_samplers_common import Sampler, setup_img2img_steps

k_diffusion = import_k_diffusion()


class Config(namedtuple("Config", ["name", "function", "options"])):
    def total_steps(self, steps):
        return steps * (2 if self.options.get("second_order") else 1)


two = {"second_order": True}
CONFIGS = [
    Config("Euler", "sample_euler", {}),
    Config("Euler a", "sample_euler_ancestral", {"noise": True}),
    Config("Heun", "sample_heun", two),
    Config("DPM2", "sample_dpm_2", two),
    Config("LMS", "sample_lms", {}),
    Config("DPM++ 2M", "sample_dpmpp_2m", {}),
    Config("DPM++ 2S a", "sample_dpmpp_2s_ancestral", {"noise": True} | two),
    Config("DPM fast", "sample_dpm_fast", {"own steps": True}),
    Config("DDIM", None, {}),
    Config("UniPC", None, {}),
]
all_samplers_map = {config.name: config for config in CONFIGS}


def find_sampler_config(name):
    return all_samplers_map.get(name)


def create_sampler(name, sd_model):
    config = next(config for config in CONFIGS if config.name == name)
    return KDiffusionSampler(config) if config.function else TimestepSampler(config)


class KDiffusionSampler(Sampler):
    def __init__(self, config):
        super().__init__(config, k_diffusion.external.CompVisDenoiser)

    def get_sigmas(self, p, steps):
        ends = float(self.model_wrap.sigmas[0]), float(self.model_wrap.sigmas[-1])
        return k_diffusion.sampling.get_sigmas_karras(steps, *ends)

    def _run(self, p, x, sigmas, received, steps):
        extra = {}
        if self.config.options.get("noise"):
            extra["noise_sampler"] = lambda *_: p.rng.next()
        function = getattr(k_diffusion.sampling, self.config.function)
        schedule = (sigmas,)
        if self.config.options.get("own steps"):
            schedule = sigmas[-2].item(), sigmas[0].item(), len(sigmas) - 1
        return self.launch_sampling(
            steps,
            lambda: function(
                self.model_wrap_cfg, x, *schedule, extra_args=received, disable=True,
                callback=self.callback_state, **extra,
            ),
        )  # fmt: skip

    def sample(self, p, x, conditioning, unconditional_conditioning, image_conditioning=None):
        sigmas = self.get_sigmas(p, p.steps)
        x = x * sigmas[0]
        received = self.initialize(
            p, x, conditioning, unconditional_conditioning, image_conditioning
        )
        return self._run(p, x, sigmas, received, p.steps)

    def sample_img2img(
        self, p, x, noise, conditioning, unconditional_conditioning, steps=None,
        image_conditioning=None,
    ):  # fmt: skip
        steps, last = setup_img2img_steps(p, steps)
        sigmas = self.get_sigmas(p, steps)[steps - last - 1 :]
        received = self.initialize(
            p, x, conditioning, unconditional_conditioning, image_conditioning
        )
        return self._run(p, x + noise * sigmas[0], sigmas, received, last + 1)


class TimestepWrap(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner_model = model

    def forward(self, x, timesteps, **kwargs):
        return self.inner_model.apply_model(x, timesteps, **kwargs)


class TimestepSampler(Sampler):
    """DDIM without noise. It renoises to the timestep behind the last that it denoises from.

    As UniPC it evaluates at the lowest timestep too, refuses few steps, and calls back.
    """

    def __init__(self, config):
        super().__init__(config, TimestepWrap)

    def get_timesteps(self, p, steps):
        return torch.tensor(range(0, 1000, 1000 // steps)).add(1).clip(0, 999)

    def _run(self, x, timesteps, received, steps):
        if self.config.name == "UniPC":
            assert len(timesteps) >= shared.opts.uni_pc_order
            timesteps = torch.cat([timesteps.new_zeros(1), timesteps])
        abar = shared.loaded.sd_model.alphas_cumprod[timesteps]

        def ddim(x=x):
            for k in range(len(timesteps) - 1, 0, -1):
                eps = self.model_wrap_cfg(x, timesteps[k] * x.new_ones(len(x)), **received)
                x0 = (x - (1 - abar[k]).sqrt() * eps) / abar[k].sqrt()
                x = abar[k - 1].sqrt() * x0 + (1 - abar[k - 1]).sqrt() * eps
                self.callback_state({"x": x, "i": len(timesteps) - 1 - k})
            return x

        return self.launch_sampling(steps, ddim)

    def sample(self, p, x, conditioning, unconditional_conditioning, image_conditioning=None):
        received = self.initialize(
            p, x, conditioning, unconditional_conditioning, image_conditioning
        )
        return self._run(x, self.get_timesteps(p, p.steps), received, p.steps)

    def sample_img2img(
        self, p, x, noise, conditioning, unconditional_conditioning, steps=None,
        image_conditioning=None,
    ):  # fmt: skip
        steps, last = setup_img2img_steps(p, steps)
        timesteps = self.get_timesteps(p, steps)
        abar = shared.loaded.sd_model.alphas_cumprod[timesteps[last]]
        received = self.initialize(
            p, x, conditioning, unconditional_conditioning, image_conditioning
        )
        noisy = abar.sqrt() * x + (1 - abar).sqrt() * noise
        return self._run(noisy, timesteps[:last], received, last + 1)
