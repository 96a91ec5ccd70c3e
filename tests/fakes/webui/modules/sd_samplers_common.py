"""What all samplers share, and the CFG denoiser."""

from __future__ import annotations

import torch

from modules import prompt_parser, script_callbacks, shared

approximation_indexes = {"Full": 0, "TAESD": 3}


class InterruptedException(BaseException):
    pass


def images_tensor_to_samples(images, approximation=None):
    model = shared.loaded.sd_model
    return model.get_first_stage_encoding(model.encode_first_stage(images * 2 - 1))


def concatenated(conds, unconds):
    """Both in one batch; None where they have different numbers of tokens."""
    if isinstance(conds, dict):
        context = concatenated(conds["crossattn"], unconds["crossattn"])
        vector = torch.cat([conds["vector"], unconds["vector"]])
        return None if context is None else {"crossattn": context, "vector": vector}
    return torch.cat([conds, unconds]) if conds.shape[1] == unconds.shape[1] else None


class CFGDenoiser(torch.nn.Module):
    """cond and uncond in one call, or one after another; conds first, uncond last."""

    def __init__(self, sampler, wrap):
        super().__init__()
        self.sampler, self._wrap, self.model_wrap = sampler, wrap, None
        self.step, self.steps, self.p = 0, None, None

    @property
    def inner_model(self):
        if self.model_wrap is None:
            self.model_wrap = self._wrap(shared.loaded.sd_model)
        return self.model_wrap

    def update_inner_model(self):
        self.model_wrap = None

    def forward(self, x, sigma, uncond, cond, cond_scale, image_cond):
        if shared.state.interrupted or shared.state.skipped:
            raise InterruptedException
        refiner = self.p.refiner_checkpoint_info
        if refiner and self.p.refiner_at is not None and self.step == self.p.refiner_at:
            self.update_inner_model()
        at_step, step = prompt_parser.at_step, self.step
        parts = [[at_step(part.schedules, step) for part in parts] for parts in cond.batch]
        counts = torch.tensor([len(p) for p in parts])
        conds = prompt_parser.stack([c for p in parts for c in p])
        unconds = prompt_parser.stack([at_step(schedule, step) for schedule in uncond])
        x_in = torch.cat([x.repeat_interleave(counts, 0), x])
        t_in = torch.cat([sigma.repeat_interleave(counts, 0), sigma])
        image_in = torch.cat([image_cond.repeat_interleave(counts, 0), image_cond])

        def evaluate(rows, context):
            if not isinstance(context, dict):
                context = {"c_crossattn": [context]}
            received = {**context, "c_concat": [image_in[rows]]}
            return self.inner_model(x_in[rows], t_in[rows], cond=received)

        for callback in script_callbacks.cfg_denoiser:
            callback(self)
        n = int(counts.sum())
        both = concatenated(conds, unconds) if shared.opts.batch_cond_uncond else None
        if both is not None:
            out = evaluate(slice(None), both)
        else:
            out = torch.cat([evaluate(slice(0, n), conds), evaluate(slice(n, None), unconds)])
        result, k = out[n:].clone(), 0
        for i, count in enumerate(counts.tolist()):
            for j in range(k, k + count):
                result[i] += cond_scale * (out[j] - out[n + i])
            k += count
        self.step += 1
        return result


class Sampler:
    def __init__(self, config, wrap):
        self.config = config
        self.model_wrap_cfg = CFGDenoiser(self, wrap)
        self.model_wrap = self.model_wrap_cfg.inner_model
        self.last_latent = None

    def callback_state(self, step):
        pass

    def launch_sampling(self, steps, func):
        self.model_wrap_cfg.steps = steps
        try:
            return func()
        except InterruptedException:
            return self.last_latent

    def initialize(self, p, x, cond, uncond, image_cond):
        self.model_wrap_cfg.p, self.model_wrap_cfg.step, self.last_latent = p, 0, x
        received = {"cond": cond, "uncond": uncond, "image_cond": image_cond}
        return received | {"cond_scale": p.cfg_scale}


def setup_img2img_steps(p, steps=None):
    """Asked for by number, the schedule is stretched; else it is cut by the strength."""
    if steps is not None:
        return int(steps / min(p.denoising_strength, 0.999)), steps - 1
    return p.steps, int(min(p.denoising_strength, 0.999) * p.steps)
