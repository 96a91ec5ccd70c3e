"""The stage `few-steps` of `hires train-demo`: a consistency model of the one in the work folder.

Its U-Net learns where the guided sampling of its teacher ends, from whole trajectories of that
sampling (Luhman and Luhman 2021, arXiv 2101.02388) and at each of their states: the consistency
function of Song et al. 2023 (arXiv 2303.01469), with the guidance inside as in latent consistency
models (Luo et al. 2023, arXiv 2310.04378). The training of the latter two, where the answer at one
state is the target for the state before, came after half an hour to answers that agree and leave
noise in. The model is for measuring what the techniques do for models of few steps, and is not
bundled.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from lib_hires.standalone import demo_model as demo
from lib_hires.standalone.train_demo import (
    Latents,
    Progress,
    TokenCache,
    TrainingConfig,
    load,
    load_vae,
    run_stage,
    show_samples,
)

NAME = f"{demo.NAME}-lcm"
DDIM_STEPS = 10  # of the teacher, from the noisiest time to 0
HUBER = 0.1  # a tenth of the latents' deviation


@dataclass(frozen=True)
class FewStepsConfig(TrainingConfig):
    """What decides how the student comes out."""

    minutes: float = 16.0
    batch: int = 8
    rate: float = 3e-4
    cfg: float = 5.0  # the guidance that the few steps have inside
    ema: float = 0.99


def train(work: Path, out: Path, config: FewStepsConfig | None = None) -> Path:
    """Distil `work`/model.pt into `out`/hires-demo-lcm.safetensors, which is returned.

    Resumable while the teacher stays as it is: the checkpoint is `work`/few-steps-TEACHER.pt.
    Raises ValueError without a trained model.
    """
    config = config or FewStepsConfig()
    state = load(work / "model.pt")
    if state is None:
        raise ValueError(
            f"{work / 'model.pt'}: not there; run the stage 'model' first, or give --start-from"
        )
    torch.manual_seed(config.seed)
    rng = np.random.default_rng([config.seed, 4])
    data, vae = Latents(work / "latents"), load_vae(work)
    tokenizer = demo.build_tokenizer(work / "tokenizer")
    teacher, text = demo.build_unet(), demo.build_text_encoder()
    teacher.load_state_dict(state["modules"]["ema_unet"])
    text.load_state_dict(state["modules"]["ema_text"])
    checkpoint = work / f"few-steps-{_digest(teacher, text)}.pt"
    for frozen in (teacher, text):
        frozen.eval().requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True).train()
    average = copy.deepcopy(teacher)
    for unet in (teacher, student, average):
        demo.speed_up(unet)
    student.set_attn_processor(AttnProcessor())  # its backward pass is the faster one here
    trajectories = Trajectories(teacher, text, TokenCache(tokenizer), config)

    def loss_of(_: Progress) -> Tensor:
        x, t, context, end = trajectories.batch(data, rng)
        return pseudo_huber(denoised(answering(student, context), x, t), end)

    def look(step: int) -> None:
        path = work / "samples" / f"few-steps-{step:06d}.png"
        show_samples(average, text, vae, data, tokenizer, path, sampler=sample)

    run_stage(
        "few-steps", checkpoint, config, config.minutes,
        rate=config.rate, parts={"unet": student}, averages={"unet": average},
        rng=rng, loss_of=loss_of, look=look,
    )  # fmt: skip
    demo.normalise_latents(vae, data.mean.flatten(), data.deviation.flatten())
    return demo.export(out, vae=vae, unet=average, text_encoder=text, name=NAME)


def _digest(*parts: nn.Module) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for weights in part.state_dict().values():
            digest.update(weights.numpy().tobytes())
    return digest.hexdigest()[:8]


class Trajectories:
    """States of the teacher's guided DDIM, and where they end, in random order."""

    def __init__(
        self,
        teacher: nn.Module,
        text: Callable[[Tensor], object],
        tokens: Callable[[Sequence[str]], Tensor],
        config: FewStepsConfig,
    ) -> None:
        self._teacher, self._text, self._tokens, self._config = teacher, text, tokens, config
        self._waiting: list[tuple[Tensor, ...]] = []

    @torch.no_grad()
    def batch(self, data: Latents, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """States x (b, c, h, w), timesteps t (b,), contexts (b, n, d), ends (b, c, h, w)."""
        if not self._waiting:
            parts = self._sampled(data, rng)
            shuffled = torch.randperm(len(parts[0])).split(self._config.batch)
            self._waiting = [tuple(part[picks] for part in parts) for picks in shuffled]
        return self._waiting.pop()

    def _sampled(self, data: Latents, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """All states of one trajectory a scene; every other time from the noisiest time on."""
        x0, captions = data.batch(rng, self._config.batch, dropout=0)
        context, empty = self._embed(captions), self._embed([""] * len(captions))
        velocity = guided(self._teacher, context, empty, self._config.cfg)
        steps = DDIM_STEPS if rng.random() < 0.5 else int(rng.integers(1, DDIM_STEPS))
        stride = demo.TRAINING_STEPS // DDIM_STEPS
        times = [torch.full((len(x0),), max(k * stride - 1, 0)) for k in range(steps, -1, -1)]
        a, s = scales(times[0])
        states = [a * x0 + s * torch.randn_like(x0)]
        for late, early in pairwise(times):
            states.append(ddim_step(velocity, states[-1], late, early))
        end = states.pop()
        return (
            torch.cat(states),
            torch.cat(times[:-1]),
            context.repeat(steps, 1, 1),
            end.repeat(steps, 1, 1, 1),
        )

    def _embed(self, captions: Sequence[str]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self._text(self._tokens(captions)).last_hidden_state


Velocity = Callable[[Tensor, Tensor], Tensor]
"""velocity(x, t) -> v, float32: a U-Net's answer for x (b, c, h, w) at timesteps t (b,)."""


def answering(unet: nn.Module, context: Tensor) -> Velocity:
    """The U-Net's v for these captions."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return unet(x, t, context).sample.float()

    return velocity


def guided(unet: nn.Module, context: Tensor, empty: Tensor, cfg: float) -> Velocity:
    """The U-Net's v under classifier-free guidance."""
    both = answering(unet, torch.cat([empty, context]))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        uncond, cond = both(torch.cat([x] * 2), torch.cat([t] * 2)).chunk(2)
        return uncond + cfg * (cond - uncond)

    return velocity


def ddim_step(velocity: Velocity, x: Tensor, late: Tensor, early: Tensor) -> Tensor:
    """x (b, c, h, w) at timesteps `late` (b,) brought to `early` by one step of DDIM."""
    v, (a, s), (a_early, s_early) = velocity(x, late), scales(late), scales(early)
    return a_early * (a * x - s * v) + s_early * (s * x + a * v)


def denoised(velocity: Velocity, x: Tensor, t: Tensor) -> Tensor:
    """x0 (b, c, h, w) as a v-prediction says it; the student's is its consistency function.

    The published c_skip and c_out are 0 and 1 to seven digits at every time that is asked for.
    """
    a, s = scales(t)
    return a * x - s * velocity(x, t)


def pseudo_huber(x: Tensor, target: Tensor) -> Tensor:
    """The mean of sqrt(d² + c²) - c over all values: squares of small d, sizes of large ones."""
    return ((x - target).square() + HUBER**2).sqrt().mean() - HUBER


def scales(t: Tensor) -> tuple[Tensor, Tensor]:
    """a(t) and s(t) of timesteps (b,), (b, 1, 1, 1) each."""
    abar = demo.alphas_cumprod().float()[t].view(-1, 1, 1, 1)
    return abar.sqrt(), (1 - abar).sqrt()


@torch.no_grad()
def sample(
    unet: nn.Module, context: Tensor, empty: Tensor, noise: Tensor, *, steps: int = 4
) -> Tensor:
    """Normalised latents by multistep consistency sampling, for looks while training.

    `context`: (b, 77, 128); `empty` is not asked about; `noise`: (b, 4, h, w) of unit variance.
    """
    velocity, x = answering(unet, context), noise
    stream = torch.Generator().manual_seed(8)
    times = torch.linspace(demo.TRAINING_STEPS - 1, 0, steps + 1).round().long()
    for now, then in pairwise(times):
        x0 = denoised(velocity, x, now.expand(len(x)))
        a, s = scales(then.expand(len(x)))
        x = a * x0 + s * torch.randn(x.shape, generator=stream)
    return x0
