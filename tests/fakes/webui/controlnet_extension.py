"""What sd-webui-controlnet does to the U-Net, in its simplest form: one unit with one hint.

It replaces `forward` on the U-Net until the next run, marks conds with a token of their own, takes
the hint whose height is nearer to the image's, and fails where its size is not the image's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from modules import scripts, shared
from modules.prompt_parser import ScheduledPromptConditioning
from torch import nn

MARK = 1024


def mark_prompt_context(conds, positive):
    if isinstance(conds, list):
        conds[:] = [mark_prompt_context(part, positive) for part in conds]
    elif hasattr(conds, "batch"):
        conds.batch = mark_prompt_context(conds.batch, positive)
    elif hasattr(conds, "schedules"):
        conds.schedules = mark_prompt_context(conds.schedules, positive)
    elif conds.cond[0].abs().mean() != MARK:
        mark = torch.full_like(conds.cond[:1], MARK if positive else -MARK)
        return ScheduledPromptConditioning(conds.end_at_step, torch.cat([mark, conds.cond]))
    return conds


class Unit:
    """hints: for the image, and for the second pass of Hires. fix or None."""

    def __init__(self, hint, second, side):
        self._hint_cond, self.hr_hint_cond, self.side = hint, second, side
        self.used_hint_cond = self.used_hint_cond_latent = self.used_hint_inpaint_hijack = None
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.control_model = nn.Conv2d(3, 4, 8, stride=8)

    def choose(self, height):
        """Whether it is the second pass, by the height."""
        if self.hr_hint_cond is None:
            self.used_hint_cond = self._hint_cond
            return False
        distance = [abs(hint.shape[-2] - height) for hint in (self._hint_cond, self.hr_hint_cond)]
        self.used_hint_cond = self._hint_cond if distance[0] < distance[1] else self.hr_hint_cond
        return distance[0] >= distance[1]


class Network(nn.Module):
    def __init__(self, model, units):
        super().__init__()
        self.__dict__["model"] = model
        self.control_params = units
        self.seen = []  # of each call: latent size, how many units acted, whether conds were marked
        plain = model.forward

        def forward(x, t, context):
            marked = bool((context[:, 0].abs() == MARK).all())
            control = 0
            for unit in self.control_params:
                second = unit.choose(x.shape[-2] * 8)
                if unit.side in ("both", "second" if second else "first"):
                    control = control + unit.control_model(unit.used_hint_cond)
            self.seen.append((tuple(x.shape[-2:]), isinstance(control, torch.Tensor), marked))
            return plain(x + control, t, context[:, 1:] if marked else context)

        model.forward = forward

    def restore(self):
        vars(self.model).pop("forward", None)


class ControlNetScript(scripts.Script):
    """Active where the request has a `hint` (1, 3, h, w); `side` limits it to a pass."""

    latest_network = None

    def __init__(self):
        self.networks = []  # of all runs

    def title(self):
        return "ControlNet"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return []

    def process(self, p):
        if self.latest_network is not None:
            self.latest_network.restore()
        self.latest_network = None
        if getattr(p, "hint", None) is None:
            return
        hint = F.interpolate(p.hint, (p.height, p.width))
        second = None
        if p.enable_hr:
            scale = p.hr_scale
            second = F.interpolate(p.hint, (int(p.height * scale), int(p.width * scale)))
        unit = Unit(hint, second, getattr(p, "side", "both"))
        model = shared.loaded.sd_model.model.diffusion_model
        self.latest_network = Network(model, [unit])
        sample = p.sample

        def marking_sample(c, uc):
            mark_prompt_context(c, positive=True)
            mark_prompt_context(uc, positive=False)
            return sample(c, uc)

        p.sample = marking_sample
        self.networks.append(self.latest_network)
