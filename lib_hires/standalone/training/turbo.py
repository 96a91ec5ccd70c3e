"""The stage `turbo` of `hires train-demo`: the model of few steps, trained against a critic.

Adversarial distillation (Sauer et al. 2023, arXiv 2311.17042) in latents (Sauer et al. 2024, arXiv
2403.12015): a critic looks at the student's images and at true ones, both noised, through the
teacher's own features, and the student learns to please it while it stays near where its teacher
ends. It starts from the student of the stage `few-steps`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.func import functional_call

from lib_hires.standalone.models.precision import fast_autocast
from lib_hires.standalone.training.diffusion import scales
from lib_hires.standalone.training.few_steps import (
    FewStepsConfig,
    Lesson,
    denoised,
    pseudo_huber,
    velocity_of,
)
from lib_hires.standalone.training.loop import Progress, load
from lib_hires.standalone.world import model as demo

NAME = f"{demo.NAME}-turbo"
HEAD_CHANNELS = 64
NOISIEST = 600  # timestep; above it true and made images look alike


@dataclass(frozen=True)
class TurboConfig(FewStepsConfig):
    """What decides how the student comes out."""

    minutes: float = 22.0
    rate: float = 1e-4
    critic_rate: float = 2e-3
    pleasing: float = 0.05  # the critic's part of the student's loss


def train(work: Path, out: Path, config: TurboConfig | None = None) -> Path:
    """Train the student of `few-steps` into `out`/hires-demo-turbo.safetensors, which is returned.

    Resumable while that student stays as it is: the checkpoint is `work`/turbo-DIGEST.pt. Raises
    ValueError without a trained model or a student.
    """
    config = config or TurboConfig()
    lesson = Lesson(work, config)
    state = load(lesson.checkpoint("few-steps", lesson.teacher))
    if state is None:
        raise ValueError(f"{work}: holds no student of this model; run the stage 'few-steps' first")
    student = lesson.student()
    student.load_state_dict(state["modules"]["ema_unet"])
    critic = Critic(demo.UNET_CHANNELS * k for k in demo.UNET_MULTIPLIERS)
    demo.speed_up(critic)  # torch's own GroupNorm crashes learning from channels-last features

    def loss_of(_: Progress) -> Tensor:
        x, t, context, end = lesson.states()
        made = denoised(velocity_of(student, context), x, t)
        made_features = features(lesson.teacher, made, context)
        with torch.no_grad():
            true_features = features(lesson.teacher, *lesson.scenes(len(made)))
        pleasing = pleased(critic, made_features)
        return (
            pseudo_huber(made, end)
            - config.pleasing * pleasing
            + hinge_loss(critic, true_features, made_features)
        )

    average = lesson.teach("turbo", config, student, loss_of, critic=(critic, config.critic_rate))
    return lesson.export(out, average, NAME)


class Critic(nn.Module):
    """critic(features) -> (b, n) marks, above 0 where the image looks true: one at every position
    of each of the features (b, c, h, w). `channels`: of each of them, multiples of 32."""

    def __init__(self, channels: Iterable[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(32, count),
                nn.SiLU(),
                nn.Conv2d(count, HEAD_CHANNELS, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(HEAD_CHANNELS, 1, 1),
            )
            for count in channels
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        marks = [head(each) for head, each in zip(self.heads, features, strict=True)]
        return torch.cat([each.flatten(1) for each in marks], 1)


def features(unet: UNet2DConditionModel, x0: Tensor, context: Tensor) -> list[Tensor]:
    """Features of x0 (b, c, h, w), noised anew, at each of the U-Net's levels on the way down.

    Of each level the first block, its attention included: still at the level's full size.
    """
    t = torch.randint(NOISIEST, (len(x0),))
    a, s = scales(t)
    x = (a * x0 + s * torch.randn_like(x0)).contiguous(memory_format=torch.channels_last)
    seen = []
    with fast_autocast():
        embedded = unet.time_embedding(unet.time_proj(t))
        x = unet.conv_in(x)
        for level in unet.down_blocks:
            attends = getattr(level, "has_cross_attention", False)
            given = {"encoder_hidden_states": context} if attends else {}
            x, states = level(x, embedded, **given)
            seen.append(states[0].float())
    return seen


def hinge_loss(critic: Critic, true: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """The critic's hinge loss, by which nothing but the critic learns."""
    marks = critic([each.detach() for each in made])
    return (1 - critic(true)).relu().mean() + (1 + marks).relu().mean()


def pleased(critic: Critic, made: Sequence[Tensor]) -> Tensor:
    """The mean mark, by which the critic does not learn."""
    weights = {name: weight.detach() for name, weight in critic.named_parameters()}
    return functional_call(critic, weights, (made,)).mean()
