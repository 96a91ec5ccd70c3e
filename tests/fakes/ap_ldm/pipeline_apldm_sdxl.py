"""Written for the tests from the paper, in the place and with the call of the authors' pipeline."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionXLPipeline
from torch import Tensor


class APLDMSDXLPipeline(StableDiffusionXLPipeline):
    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str,
        *,
        height: int,
        width: int,
        num_inference_steps: int,
        num_resample_timesteps: int,
        guidance_scale: float,
        latents: Tensor,
        multi_decoder: bool,
        multi_encoder: bool,
        init_rates: list[float],
        attn_guidance_scale: float,
        attn_guidance_density: tuple[int, ...],
        attn_guidance_decay: tuple[str, float, float],
    ) -> list[Any]:
        embeds, empty, pooled, empty_pooled = self.encode_prompt(prompt)
        text = torch.cat([empty, embeds]), torch.cat([empty_pooled, pooled])

        def denoise(z: Tensor, t: Tensor) -> Tensor:
            side = z.shape[-1] * self.vae_scale_factor
            ids = torch.tensor([[side, side, 0, 0, side, side]] * 2)
            both = self.scheduler.scale_model_input(torch.cat([z, z]), t)
            added = {"text_embeds": text[1], "time_ids": ids}
            noise = self.unet(both, t, text[0], added_cond_kwargs=added).sample
            away, toward = noise.chunk(2)
            return self.scheduler.step(away + guidance_scale * (toward - away), t, z).prev_sample

        mixed = sum(attn_guidance_density)
        self.scheduler.set_timesteps(num_inference_steps)
        z = latents * self.scheduler.init_noise_sigma
        for step, t in enumerate(self.scheduler.timesteps):
            z = denoise(z, t)
            to_go = num_inference_steps - 1 - step
            if attn_guidance_density[to_go]:
                wave = (math.cos(math.pi * (mixed - 1 - to_go) / (mixed - 1)) + 1) / 2
                gamma = attn_guidance_scale * wave ** attn_guidance_decay[2]
                z = gamma * attention(z) + (1 - gamma) * z

        scale, first = self.vae.config.scaling_factor, z.shape[-1] * self.vae_scale_factor
        areas = torch.linspace(first**2, height * width, len(init_rates) + 1)[1:].sqrt()
        sides = areas // self.vae_scale_factor * self.vae_scale_factor
        for side, left_out in zip(sides.int().tolist(), init_rates, strict=True):
            image = self.vae.decode(z / scale).sample
            image = F.interpolate(image, (side, side), mode="bicubic").clamp(-1, 1)
            z = self.vae.encode(image).latent_dist.mean * scale
            self.scheduler.set_timesteps(num_resample_timesteps)
            times = self.scheduler.timesteps[int(num_resample_timesteps * left_out) :]
            z = self.scheduler.add_noise(z, torch.randn_like(z), times[:1])
            for t in times:
                z = denoise(z, t)
        return self.image_processor.postprocess(self.vae.decode(z / scale).sample)


def attention(z: Tensor) -> Tensor:
    flat = z.flatten(2).mT
    return ((flat @ flat.mT / math.sqrt(z.shape[1])).softmax(-1) @ flat).mT.reshape(z.shape)
