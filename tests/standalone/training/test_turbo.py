"""Adversarial training of the model of few steps: who learns from what, and its way into a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.precision import fast_autocast
from lib_hires.standalone.training import few_steps as train_few_steps
from lib_hires.standalone.training import turbo as train_turbo
from lib_hires.standalone.training.diffusion import scales
from lib_hires.standalone.training.few_steps import FewStepsConfig, train
from lib_hires.standalone.training.stages import StageConfig, run_stage
from lib_hires.standalone.training.turbo import TurboConfig
from lib_hires.standalone.world import model as demo


@pytest.mark.slow
def test_a_turbo_model_begins_as_the_model_of_few_steps(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_few_steps, "show_samples", lambda *_, **given: None)
    with pytest.raises(ValueError, match="holds no student of this model; run the stage 'few-st"):
        train_turbo.train(work, tmp_path)
    few_steps = load_model(train(work, tmp_path, FewStepsConfig(minutes=0.005, batch=1)))
    turbo = [
        load_model(train_turbo.train(work, tmp_path, TurboConfig(minutes=minutes, batch=1)))
        for minutes in (0.0, 0.005)
    ]
    weights = [model.unet.state_dict() for model in (few_steps, *turbo)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert len(list(work.glob("turbo-*.pt"))) == 1
    heads = torch.load(next(work.glob("turbo-*.pt")), weights_only=True)["modules"]["critic"]
    assert {name.split(".")[1] for name in heads} == {"0", "1", "2"}
    (checkpoint,) = work.glob("few-steps-*.pt")
    state = torch.load(checkpoint, weights_only=True)
    next(iter(state["modules"]["ema_unet"].values())).add_(1)
    torch.save(state, checkpoint)
    train_turbo.train(work, tmp_path, TurboConfig(minutes=0.0, batch=1))
    assert len(list(work.glob("turbo-*.pt"))) == 2  # of another student


def some_features(seed: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 32, size, size, generator=source) for size in (8, 4)]


def test_the_critic_marks_every_position_and_learns_to_tell_apart() -> None:
    torch.manual_seed(0)
    critic = train_turbo.Critic([32, 32])
    true, made = some_features(1), some_features(2)
    assert critic(true).shape == (2, 8 * 8 + 4 * 4)
    losses = []
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    for _ in range(40):
        losses.append(train_turbo.hinge_loss(critic, true, made))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > 1.5
    assert losses[-1] < 0.2
    assert train_turbo.pleased(critic, true) > 0.8 > -0.8 > train_turbo.pleased(critic, made)


def test_the_critic_and_the_student_learn_from_losses_of_their_own() -> None:
    critic = train_turbo.Critic([32, 32])
    true, made = some_features(1), [each.requires_grad_() for each in some_features(2)]
    train_turbo.hinge_loss(critic, true, made).backward()
    assert all(each.grad is None for each in made)
    assert all(weight.grad is not None for weight in critic.parameters())
    critic.zero_grad()
    train_turbo.pleased(critic, made).backward()
    assert all(each.grad is not None and each.grad.any() for each in made)
    assert all(weight.grad is None for weight in critic.parameters())


def test_the_critic_sees_what_the_unet_sees_on_its_way_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unet, t = demo.speed_up(demo.build_unet()), torch.tensor([300])
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 128)
    torch.manual_seed(0)
    a, s = scales(t)
    noised = a * x + s * torch.randn_like(x)
    seen: list[Tensor] = []
    for level in unet.down_blocks:
        last = level.attentions[0] if hasattr(level, "attentions") else level.resnets[0]
        last.register_forward_hook(
            lambda *given: seen.append(given[-1][0] if isinstance(given[-1], tuple) else given[-1])
        )
    with torch.no_grad(), fast_autocast():
        unet(noised.contiguous(memory_format=torch.channels_last), t, context)
    expected = [each.float() for each in seen]
    monkeypatch.setattr(torch, "randint", lambda *_: t)
    torch.manual_seed(0)
    with torch.no_grad():
        found = train_turbo.features(unet, x, context)
    assert [each.shape[-1] for each in found] == [8, 4, 2]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_critic_learns_at_a_rate_of_its_own(tmp_path: Path) -> None:
    """AdamW's first step is as long as the rate, whatever the gradient."""
    student, critic = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    parts = {"unet": student, "critic": critic}
    before = {name: part.weight.item() for name, part in parts.items()}
    run_stage(
        "turbo", tmp_path / "turbo.pt", StageConfig(warmup_steps=1), 1e-9,
        rates={"unet": 1e-3, "critic": 1e-2}, parts=parts, averages={},
        rng=np.random.default_rng(0),
        loss_of=lambda _: sum(part.weight.sum() for part in parts.values()), look=lambda _: None,
    )  # fmt: skip
    moved = {name: before[name] - part.weight.item() for name, part in parts.items()}
    assert moved["unet"] == pytest.approx(1e-3, rel=0.1)
    assert moved["critic"] == pytest.approx(1e-2, rel=0.1)
