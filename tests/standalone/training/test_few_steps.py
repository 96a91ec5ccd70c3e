"""The parts of consistency distillation beside diffusers' own, and its way into a file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from lib_hires.standalone import cli
from lib_hires.standalone.bundled import FOLDER
from lib_hires.standalone.cli.train import BUNDLED_STAGES
from lib_hires.standalone.models import load_model
from lib_hires.standalone.training import few_steps as train_few_steps
from lib_hires.standalone.training import turbo as train_turbo
from lib_hires.standalone.training.bundled import STAGES
from lib_hires.standalone.training.diffusion import scales
from lib_hires.standalone.training.few_steps import (
    FewStepsConfig,
    Trajectories,
    ddim_step,
    denoised,
    guided,
    sample,
    train,
    velocity_of,
)
from lib_hires.standalone.training.turbo import TurboConfig
from lib_hires.standalone.world import model as demo

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
}


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """Some prediction that depends on both."""
    return x.flip(-1) * (1 + t.view(-1, 1, 1, 1) / 1000)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("late", [999, 599, 99])
def test_the_teachers_step_is_ddim(x: Tensor, late: int) -> None:
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(10)
    times = torch.tensor([late]), torch.tensor([max(late - 100, 0)])
    expected = scheduler.step(velocity(x, times[0]), late, x).prev_sample
    torch.testing.assert_close(ddim_step(velocity, x, *times), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("t", [999, 249, 99])
def test_the_students_prediction_is_the_published_consistency_function(x: Tensor, t: int) -> None:
    scheduler = LCMScheduler(**SCHEDULE)
    scheduler.set_timesteps(1, original_inference_steps=1)
    scheduler.timesteps, scheduler._step_index = torch.tensor([t]), 0
    expected = scheduler.step(velocity(x, torch.tensor([t])), t, x).denoised
    found = denoised(velocity, x, torch.tensor([t]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


class Network(torch.nn.Module):
    """A U-Net's stand-in whose prediction is the mean of its caption."""

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> object:
        prediction = torch.zeros_like(x) + context.mean((1, 2)).view(-1, 1, 1, 1)
        return SimpleNamespace(sample=prediction)


def test_the_teacher_is_guided(x: Tensor) -> None:
    context, empty = torch.full((1, 2, 3), 2.0), torch.full((1, 2, 3), 0.5)
    velocity = guided(Network(), context, empty, 5.0)(x, torch.tensor([3]))
    torch.testing.assert_close(velocity, torch.full_like(x, 0.5 + 5 * 1.5))
    alone = velocity_of(Network(), context)(x, torch.tensor([3]))
    torch.testing.assert_close(alone, torch.full_like(x, 2.0))


@pytest.mark.parametrize(("draws", "steps"), [((0.0,), 10), ((1.0, 3), 3)])
def test_every_state_stands_beside_the_end_of_its_own_trajectory(draws, steps: int) -> None:
    """Of a teacher that always predicts its caption's image, DDIM keeps the noise as it is."""
    images = {"": 0.0, "a": 0.1, "b": -0.2}

    class Knowing(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, context: Tensor) -> object:
            a, s = scales(t)
            return SimpleNamespace(sample=(a * x - context.mean((1, 2)).view(-1, 1, 1, 1)) / s)

    def embed(captions: list[str]) -> Tensor:
        values = torch.tensor([images[caption] for caption in captions])
        return values.view(-1, 1, 1).expand(-1, 2, 3)

    data = SimpleNamespace(batch=lambda rng, n, dropout: (torch.zeros(2, 4, 32, 32), ["a", "b"]))
    rng = SimpleNamespace(random=lambda: draws[0], integers=lambda low, high: draws[1])
    trajectories = Trajectories(Knowing(), embed, FewStepsConfig(batch=2, cfg=5.0))
    batches = [trajectories.batch(data, rng) for _ in range(steps)]
    x, t, context, end = (torch.cat(part) for part in zip(*batches, strict=True))
    assert sorted(t.tolist()) == sorted([k * 100 - 1 for k in range(1, steps + 1)] * 2)
    image = 5 * context.mean((1, 2)).view(-1, 1, 1, 1)  # what guidance makes of it
    (a, s), (a_end, s_end) = scales(t), scales(torch.zeros_like(t))
    noise, noise_left = (x - a * image) / s, (end - a_end * image) / s_end
    torch.testing.assert_close(noise, noise_left, atol=1e-3, rtol=1e-3)
    assert noise.std() > 0.9


def test_a_sample_is_evaluated_at_few_times(x: Tensor) -> None:
    times = []

    class Counting(Network):
        def forward(self, x: Tensor, t: Tensor, context: Tensor) -> object:
            times.append(int(t[0]))
            return super().forward(x, t, context)

    context = torch.zeros(1, 2, 3)
    assert sample(Counting(), context, context, x).shape == x.shape
    assert times == [999, 749, 500, 250]


def test_each_step_of_a_sample_has_noise_of_its_own() -> None:
    given = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))  # as the sheet's
    seen = []

    class Seeing(Network):
        def forward(self, x: Tensor, t: Tensor, context: Tensor) -> object:
            a, _ = scales(t)
            seen.append(x)
            return SimpleNamespace(sample=a * x / (1 - a**2).sqrt())  # x0 = 0

    sample(Seeing(), torch.zeros(2, 2, 3), torch.zeros(2, 2, 3), given)
    flat = torch.corrcoef(torch.stack([each.flatten() for each in seen]))
    assert (flat - torch.eye(4)).abs().max() < 0.2


@pytest.mark.slow
def test_a_distilled_model_is_a_model(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a step it is its teacher, after some it is not; another teacher begins anew."""
    looked = []
    monkeypatch.setattr(train_few_steps, "show_samples", lambda *_, **given: looked.append(given))
    with pytest.raises(ValueError, match="not there; run the stage 'model' first, or give --start"):
        train(tmp_path / "nothing", tmp_path)
    distilled = []
    for minutes in (0.0, 0.005):
        path = train(work, tmp_path / "out", FewStepsConfig(minutes=minutes, batch=1))
        distilled.append(load_model(path))
    assert path.name == f"{demo.NAME}-lcm.safetensors"
    assert distilled[0].native == (256, 256)
    assert looked == [{"sampler": sample}] * 2
    teacher = load_model(FOLDER / f"{demo.NAME}.safetensors")
    weights = [model.unet.state_dict() for model in (teacher, *distilled)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    vaes = [model.vae.state_dict() for model in (teacher, distilled[1])]
    assert all(torch.equal(vaes[0][name], vaes[1][name]) for name in vaes[0])
    state = torch.load(work / "model.pt", weights_only=True)
    next(iter(state["modules"]["ema_unet"].values())).add_(1)
    torch.save(state, work / "model.pt")
    train(work, tmp_path / "out", FewStepsConfig(minutes=0.0))
    assert len(list(work.glob("few-steps-*.pt"))) == 2


def test_stages_are_known_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (*STAGES, "judge") == BUNDLED_STAGES
    folders = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert cli.main(["train-demo", *folders, "--stages", "few-step"]) == 2
    assert "--stages: expected some of crops, vae, latents, " in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    ran = []
    for stage in (train_few_steps, train_turbo):
        monkeypatch.setattr(stage, "train", lambda *given: ran.append(given))
    options = ["--few-steps-minutes", "3", "--turbo-minutes", "4"]
    assert cli.main(["train-demo", *folders, "--stages", "few-steps,turbo", *options]) == 0
    given = (tmp_path / "work", tmp_path / "out")
    assert ran == [(*given, FewStepsConfig(minutes=3)), (*given, TurboConfig(minutes=4))]
