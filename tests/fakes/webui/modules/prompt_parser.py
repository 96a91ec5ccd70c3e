"""Prompts to schedules of conds; `[a:b:3]` and `a AND b` in their simplest forms."""

from __future__ import annotations

import re
from collections import namedtuple

import torch

ScheduledPromptConditioning = namedtuple("ScheduledPromptConditioning", ["end_at_step", "cond"])


class SdConditioning(list):
    def __init__(self, prompts, is_negative_prompt=False, width=None, height=None):
        super().__init__(prompts)
        self.width, self.height = width, height


class ComposableScheduledPromptConditioning:
    def __init__(self, schedules, weight=1.0):
        self.schedules, self.weight = schedules, weight


class MulticondLearnedConditioning:
    def __init__(self, shape, batch):
        self.shape, self.batch = shape, batch


def _schedule(model, prompt, steps, size=None, hires_steps=None):
    edit = re.search(r"\[([\w ]+):([\w ]+):(\d+)\]", prompt)
    if not edit:
        return [ScheduledPromptConditioning(steps, model.encode_prompt(prompt, size))]
    at = int(edit[3])
    if hires_steps is not None:
        at, steps = at - steps, hires_steps
    ends = [(min(at, steps), edit[1]), (steps, edit[2])]
    ends = ends[:1] if at >= steps else ends[at < 1 :]
    return [
        ScheduledPromptConditioning(end, model.encode_prompt(prompt.replace(edit[0], word), size))
        for end, word in ends
    ]


def get_learned_conditioning(model, prompts, steps, hires_steps=None, use_old_scheduling=False):
    return [_schedule(model, prompt, steps, _size(prompts), hires_steps) for prompt in prompts]


def get_multicond_learned_conditioning(
    model, prompts, steps, hires_steps=None, use_old_scheduling=False
):
    batch = [
        [
            ComposableScheduledPromptConditioning(
                _schedule(model, p, steps, _size(prompts), hires_steps)
            )
            for p in q.split("AND")
        ]
        for q in prompts
    ]
    return MulticondLearnedConditioning(shape=(len(prompts),), batch=batch)


def at_step(schedule, step):
    return next((part.cond for part in schedule if step <= part.end_at_step), schedule[0].cond)


def _size(prompts):
    return prompts.height, prompts.width


def stack(conds):
    if isinstance(conds[0], dict):
        vectors = torch.stack([cond["vector"] for cond in conds])
        return {"crossattn": stack([cond["crossattn"] for cond in conds]), "vector": vectors}
    longest = max(len(cond) for cond in conds)
    return torch.stack([cond.repeat(longest // len(cond), 1) for cond in conds])
