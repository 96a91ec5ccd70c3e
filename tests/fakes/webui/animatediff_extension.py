"""A stand-in for sd-webui-animatediff: its state, its hook while the host samples, its contexts.

Its motion module mixes each frame with the mean of all frames of a context, as `mixes` says.
"""

from __future__ import annotations

import sys
from types import MethodType, ModuleType, SimpleNamespace

import torch
from modules import script_callbacks, shared

MODULE = "scripts.animatediff_mm"


class AnimateDiff:
    """The extension in a host. video_length, batch_size: its parameters; the host's batch is the
    larger one, and a request must say so. contexts: those of every call, in order."""

    def __init__(self, monkeypatch, video_length=8, batch_size=8, mixes=0.5, hotshot=False):
        self.params = SimpleNamespace(
            enable=True, video_length=video_length, batch_size=batch_size, step=0
        )
        self.mixes, self.contexts = mixes, []
        module = ModuleType(MODULE)
        module.mm_animatediff = self.state = SimpleNamespace(
            ad_params=self.params, mm_injected=True, mm=SimpleNamespace(is_hotshot=hotshot)
        )
        monkeypatch.setitem(sys.modules, MODULE, module)
        monkeypatch.setattr(script_callbacks, "cfg_denoiser", [self.hook])
        unet = shared.loaded.sd_model.model.diffusion_model
        monkeypatch.setattr(type(unet), "forward", self.with_frames(type(unet).forward))

    def with_frames(self, plain):
        def forward(unet, x, *args, **kwargs):
            out = plain(unet, x, *args, **kwargs)
            if not self.params.enable:
                return out
            clips = out.unflatten(0, (-1, self.params.batch_size))
            mean = clips.mean(1, keepdim=True)
            return torch.lerp(clips, mean.expand_as(clips), self.mixes).flatten(0, 1)

        return forward

    def hook(self, denoiser):
        inner, params = denoiser.inner_model, self.params
        if not params.enable:
            return
        if denoiser.step == 0 and getattr(inner, "original_forward", None) is None:
            inner.original_forward = inner.forward
            inner.forward = MethodType(self.forward, inner)
        params.step = denoiser.step

    def forward(self, inner, x, t, cond):
        out, params = torch.zeros_like(x), self.params
        for context in windows(params.step, params.video_length, params.batch_size):
            self.contexts.append(context)
            rows = context
            if shared.opts.batch_cond_uncond:
                rows = context + [frame + params.video_length for frame in context]
            part = {name: [value[0][rows]] for name, value in cond.items()}
            out[rows] = inner.original_forward(x[rows], t[rows], cond=part)
        return out


def windows(step, length, size):
    """All frames at once, or windows that move with the steps and go round."""
    if length <= size:
        return [list(range(size))]
    starts = range(step, step + length, size // 2)
    return [[(start + frame) % length for frame in range(size)] for start in starts]
