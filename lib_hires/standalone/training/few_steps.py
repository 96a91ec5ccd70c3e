"""The stage `few-steps` of `hires train-demo`: a consistency model of the one in the work folder.

Its U-Net learns where the guided sampling of its teacher ends, from whole trajectories of that
sampling (Luhman and Luhman 2021, arXiv 2101.02388) and at each of their states: the consistency
function of Song et al. 2023 (arXiv 2303.01469), with the guidance inside as in latent consistency
models (Luo et al. 2023, arXiv 2310.04378). Their own training, where the prediction at one state is
the target for the state before, gave after half an hour predictions that agree but are noisy. The
model is for measuring what the techniques do for models of few steps, and is not bundled.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from lib_hires.standalone.models.latent import hash_of_weights
from lib_hires.standalone.models.precision import fast_autocast
from lib_hires.standalone.training.autoencoder import load_vae
from lib_hires.standalone.training.diffusion import (
    TokenCache,
    scales,
    show_samples,
    trained_model,
)
from lib_hires.standalone.training.latents import Latents
from lib_hires.standalone.training.loop import Progress, averaged
from lib_hires.standalone.training.stages import StageConfig, run_stage
from lib_hires.standalone.world import model as demo
from lib_hires.standalone.world.layout import export, normalise_latents

NAME = f"{demo.NAME}-lcm"
DDIM_STEPS = 10  # of the teacher, from the noisiest time to 0
HUBER = 0.1  # a tenth of the latents' deviation


@dataclass(frozen=True)
class FewStepsConfig(StageConfig):
    """What decides how the student comes out."""

    ema: float = 0.99
    minutes: float = 16.0
    batch: int = 8
    rate: float = 3e-4
    cfg: float = 3.0  # the guidance that the few steps have inside: what the bundled model wants


def train(work: Path, out: Path, config: FewStepsConfig | None = None) -> Path:
    """Distil `work`/model.pt into `out`/hires-demo-lcm.safetensors, which is returned.

    Resumable while the teacher stays as it is: the checkpoint is `work`/few-steps-DIGEST.pt.
    Raises ValueError without a trained model.
    """
    config = config or FewStepsConfig()
    lesson = Lesson(work, config)
    student = lesson.student()

    def loss_of(_: Progress) -> Tensor:
        x, t, context, end = lesson.states()
        return pseudo_huber(denoised(velocity_of(student, context), x, t), end)

    average = lesson.teach("few-steps", config, student, loss_of)
    return lesson.export(out, average, NAME)


class Lesson:
    """A teacher, the trained model of a work folder, and what its students learn from.

    Seeds torch's random numbers. Raises ValueError where the folder has no model or no latents.
    """

    def __init__(self, work: Path, config: FewStepsConfig) -> None:
        self._work = work
        self.teacher, self._text = trained_model(work)
        demo.speed_up(self.teacher)
        torch.manual_seed(config.seed)
        self._rng = np.random.default_rng([config.seed, 4])
        self._data, self._vae = Latents(work / "latents"), load_vae(work)
        self._tokenizer = demo.build_tokenizer(work / "tokenizer")
        self._tokens = TokenCache(self._tokenizer)
        self._trajectories = Trajectories(self.teacher, self.embed, config)

    def student(self) -> nn.Module:
        """A copy of the teacher, to be trained."""
        student = copy.deepcopy(self.teacher).requires_grad_(True).train()
        student.set_attn_processor(AttnProcessor())  # its backward pass is the faster one here
        return student

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> Tensor:
        """Contexts (b, 77, 128)."""
        with fast_autocast():
            return self._text(self._tokens(captions)).last_hidden_state

    def states(self) -> tuple[Tensor, ...]:
        """Some states of the teacher's way: what `Trajectories.batch` returns."""
        return self._trajectories.batch(self._data, self._rng)

    def scenes(self, n: int) -> tuple[Tensor, Tensor]:
        """Latents (n, 4, 32, 32) of true images and their contexts (n, 77, 128)."""
        latents, captions = self._data.batch(self._rng, n, dropout=0)
        return latents, self.embed(captions)

    def checkpoint(self, stage: str, start: nn.Module) -> Path:
        """Where a stage stands whose student begins as `start`."""
        key = hash_of_weights(start.state_dict(), self._text.state_dict())
        return self._work / f"{stage}-{key[:8]}.pt"

    def teach(
        self,
        stage: str,
        config: FewStepsConfig,
        student: nn.Module,
        loss_of: Callable[[Progress], Tensor],
        **beside: tuple[nn.Module, float],
    ) -> nn.Module:
        """Train the student; returns its average. beside: what else is trained, and its rate."""
        learning = {"unet": (student, config.rate), **beside}
        start = copy.deepcopy(self.teacher)  # with the attention that is fast without gradients
        start.load_state_dict(student.state_dict())
        average = averaged(start, config.ema)

        def look(step: int) -> None:
            path = self._work / "samples" / f"{stage}-{step:06d}.png"
            given = (average.module, self._text, self._vae, self._data, self._tokenizer)
            show_samples(*given, path, sampler=sample)

        run_stage(
            stage, self.checkpoint(stage, student), config, config.minutes,
            rates={name: rate for name, (_, rate) in learning.items()},
            parts={name: part for name, (part, _) in learning.items()}, averages={"unet": average},
            rng=self._rng, loss_of=loss_of, look=look,
        )  # fmt: skip
        return average.module

    def export(self, out: Path, unet: nn.Module, name: str) -> Path:
        """Write `out`/NAME.safetensors, with what belongs beside it."""
        vae = copy.deepcopy(self._vae)
        normalise_latents(vae, self._data.mean.flatten(), self._data.deviation.flatten())
        return export(out, vae=vae, unet=unet, text_encoder=self._text, name=name)


class Trajectories:
    """States of the teacher's guided DDIM, and where they end, in random order."""

    def __init__(
        self,
        teacher: nn.Module,
        embed: Callable[[Sequence[str]], Tensor],
        config: FewStepsConfig,
    ) -> None:
        self._teacher, self._embed, self._config = teacher, embed, config
        self._empty = embed([""])
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
        context = self._embed(captions)
        empty = self._empty.expand(len(captions), -1, -1)
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


Velocity = Callable[[Tensor, Tensor], Tensor]
"""velocity(x, t) -> v, float32: a U-Net's prediction for x (b, c, h, w) at timesteps t (b,)."""


def velocity_of(unet: nn.Module, context: Tensor) -> Velocity:
    """The U-Net's v for these captions."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        with fast_autocast():
            return unet(x, t, context).sample.float()

    return velocity


def guided(unet: nn.Module, context: Tensor, empty: Tensor, cfg: float) -> Velocity:
    """The U-Net's v under classifier-free guidance."""
    both = velocity_of(unet, torch.cat([empty, context]))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        uncond, cond = both(torch.cat([x] * 2), torch.cat([t] * 2)).chunk(2)
        return uncond + cfg * (cond - uncond)

    return velocity


def ddim_step(velocity: Velocity, x: Tensor, late: Tensor, early: Tensor) -> Tensor:
    """x (b, c, h, w) at timesteps `late` (b,) brought to `early` by one step of DDIM."""
    v, (a, s), (a_early, s_early) = velocity(x, late), scales(late), scales(early)
    return a_early * (a * x - s * v) + s_early * (s * x + a * v)


def denoised(velocity: Velocity, x: Tensor, t: Tensor) -> Tensor:
    """x0 (b, c, h, w) of a v prediction; the student's is its consistency function.

    The published c_skip and c_out are 0 and 1 to seven digits at every time that is used.
    """
    a, s = scales(t)
    return a * x - s * velocity(x, t)


def pseudo_huber(x: Tensor, target: Tensor) -> Tensor:
    """The mean of sqrt(d² + c²) - c over all values: squares of small d, sizes of large ones."""
    return ((x - target).square() + HUBER**2).sqrt().mean() - HUBER


@torch.no_grad()
def sample(
    unet: nn.Module, context: Tensor, empty: Tensor, noise: Tensor, *, steps: int = 4
) -> Tensor:
    """Normalised latents by multistep consistency sampling, to look at while training.

    `context`: (b, 77, 128); `empty` is not used; `noise`: (b, 4, h, w) of unit variance.
    """
    velocity, x = velocity_of(unet, context), noise
    generator = torch.Generator().manual_seed(8)
    times = torch.linspace(demo.TRAINING_STEPS - 1, 0, steps + 1).round().long()
    for now, then in pairwise(times):
        x0 = denoised(velocity, x, now.expand(len(x)))
        a, s = scales(then.expand(len(x)))
        x = a * x0 + s * torch.randn(x.shape, generator=generator)
    return x0
