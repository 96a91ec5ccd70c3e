"""The bundled model: its files, and Upsample Guidance's exact property on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_hires.noise import VarianceExploding, draw, generators
from lib_hires.resample import Reduction
from lib_hires.settings import UpsampleGuidance
from lib_hires.standalone.bundled import MODEL, MOTION
from lib_hires.standalone.cli import main
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.models.motion import with_motion
from lib_hires.standalone.pipeline.outputs import read_run, save_clip
from lib_hires.standalone.pipeline.request import SAMPLERS, Request
from lib_hires.standalone.pipeline.sampling import ClassifierFreeGuidance, sample, schedule_sigmas
from lib_hires.upsample_guidance import UpsampleGuided, shifted_schedule

pytestmark = pytest.mark.skipif(not MODEL.is_file(), reason="the bundled model is not there")


@pytest.fixture(scope="module")
def model() -> LatentModel:
    return load_model(None)


def test_files_are_small_and_the_layout_is_sd1(model: LatentModel) -> None:
    files = [MODEL, MODEL.with_suffix(".yaml"), *MODEL.parent.glob("hires-demo-clip/*")]
    assert sum(file.stat().st_size for file in files) <= 23_000_000
    assert (MODEL.parent / "judge.safetensors").stat().st_size <= 1_000_000
    assert (model.family, model.prediction, model.native) == ("sd1", "v", (256, 256))
    assert (model.factor, model.latent_channels) == (8, 4)


def test_the_motion_module_is_small_and_fits(model: LatentModel) -> None:
    assert MOTION.stat().st_size <= 3_000_000
    moving = with_motion(model, MOTION)
    assert moving.motion is not None
    assert (moving.motion.frames, moving.motion.most, moving.motion.ours) == (16, 32, True)


def test_frames_alone_take_the_bundled_motion_module(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["generate", "a red house", "--steps", "1", "--out", str(tmp_path)]
    assert main([*wanted, "--frames", "2", "--width", "64"]) == 0
    path = Path(capsys.readouterr().out.strip())
    about = read_run(path)
    assert (path.suffix, about["motion"]) == (".webp", MOTION.stem)
    assert main(["generate", "--from", str(path), "--out", str(tmp_path)]) == 0
    again = Path(capsys.readouterr().out.strip())
    assert again != path and again.read_bytes() == path.read_bytes()


def test_a_clip_of_another_motion_module_is_not_repeated_with_the_bundled_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.webp"
    request = Request(prompt="a red house", frames=2).values()
    about = {"model": "hires-demo", "settings": {}, "request": request, "motion": "mm"}
    save_clip(torch.zeros(3, 2, 8, 8), path, about, 8)
    assert main(["generate", "--from", str(path), "--out", str(tmp_path)]) == 2
    assert "made with mm; name its file with --motion" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("shifted_start", [False, True])
@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M", "Heun", "LMS"])
def test_the_coarse_image_walks_the_native_way(
    model: LatentModel, name: str, shifted_start: bool
) -> None:
    """theta = 1, eta = 1: D of the large run is the native run from D[x_T] on sigmas/m."""
    denoiser = model.denoiser()
    prompts = model.encode_prompts(["a red house under a clear sky"], [""])
    reduction = Reduction.between((16, 16), (8, 8))
    sigmas = schedule_sigmas(denoiser, "Karras", 6)
    if shifted_start:
        sigmas = shifted_schedule(sigmas, reduction.noise_gain)
    guided = UpsampleGuided(
        denoiser,
        UpsampleGuidance(enabled=True, eta=1, cadence=1, shifted_start=shifted_start),
        family=VarianceExploding(denoiser.sigmas),
        reduction=reduction,
        times=sigmas.tolist(),
    )

    def native(x: torch.Tensor, sigma: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
        return denoiser(x, sigma.clamp(denoiser.sigma_min, denoiser.sigma_max), **cond)

    start = draw(generators([0]), (4, 16, 16)) * sigmas[0]
    ends = [
        sample(
            ClassifierFreeGuidance(denoise, prompts, 4.0), x, schedule, SAMPLERS[name], sources=[]
        )
        for denoise, x, schedule in (
            (guided, start, sigmas),
            (native, reduction.reduce(start), sigmas * reduction.noise_gain),
        )
    ]
    torch.testing.assert_close(reduction.reduce(ends[0]), ends[1], rtol=1e-4, atol=1e-4)
