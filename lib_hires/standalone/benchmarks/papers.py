"""`hires benchmark papers`: AP-LDM's own code beside ours, on the same SDXL model.

The authors' code is not part of this project; it is imported from a folder. Both sides get the same
prompt, noise, schedule (Karras, Euler's method), sizes and share of self-attention, so that their
images are equal up to rounding. Every painting is made in a process of its own.
"""

from __future__ import annotations

import io
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib_hires.noise import draw, generators
from lib_hires.settings import AttentiveGuidance, Settings
from lib_hires.standalone.benchmarks.memory import peak_memory
from lib_hires.standalone.benchmarks.processes import in_fresh_process
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import LatentModel, ModelError
from lib_hires.standalone.pipeline import generate
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.png import to_pil
from lib_hires.standalone.pipeline.request import Request

PIPELINE = "pipeline_apldm_sdxl"
PROMPT = "a red house"
CFG = 7.5
SEED = 0


@dataclass(frozen=True)
class Case:
    """Published settings for an image `factor` times the first one's sides."""

    name: str
    factor: int
    eta2: tuple[float, ...]
    tile: int = 0  # ours, in pixels; theirs follow from the U-Net's native size


# "tiles" is 4x with the VAE in tiles, each side's own: the images are not quite equal.
CASES = (
    Case("2x", 2, (0.2,)),
    Case("4x", 4, (0.1, 0.2)),
    Case("tiles", 4, (0.1, 0.2), tile=1024),
)


def chosen(names: Sequence[str]) -> list[Case]:
    """The cases of these names, or all of them. Raises ValueError for an unknown name."""
    known = {case.name: case for case in CASES}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"cases: expected some of {', '.join(known)}, got {unknown[0]!r}")
    return [known[name] for name in names] or list(CASES)


@dataclass(frozen=True)
class Job:
    """One painting."""

    case: Case
    model: Path
    steps: int = 50
    device: str = "cpu"
    dtype: str = "float32"
    gamma: float = AttentiveGuidance().gamma
    first: int = 1024  # sides of the first image; their code knows no others

    @property
    def delay(self) -> int:
        """k, the steps that are left alone."""
        return max(1, round(AttentiveGuidance().eta1 * self.steps))

    @property
    def final(self) -> int:
        return self.first * self.case.factor

    @property
    def left_out(self) -> list[float]:
        """Of each stage's schedule, as a share safely between two whole numbers of steps."""
        kept = [max(1, round(eta2 * self.steps)) for eta2 in self.case.eta2]
        return [1 - (count - 0.5) / self.steps for count in kept]


@dataclass(frozen=True)
class Painting:
    """A finished image and what it took; loading the model is not counted."""

    pixels: Any  # (H, W, 3) uint8
    seconds: float
    processor_seconds: float
    memory: int | None  # bytes at the peak beyond the loaded model, where the system tells
    evaluations: int


def papers(
    out: Path, ap_ldm: Path, jobs: Sequence[Job], *, repeats: int = 3, say: Callable[[str], object]
) -> None:
    """Paint every job by both, in turns, and write images and report.json into `out`.

    Raises ValueError where the folder or the model is not what is expected.
    """
    folder = pipeline_folder(ap_ldm)
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    say(f"{'':6} {'mean':>6} {'worst':>5}  {'seconds':>15} {'processor':>9} {'memory':>6}  calls")
    rows = []
    for job in jobs:
        ours, theirs = [], []
        for _ in range(repeats):
            ours.append(in_fresh_process(paint_ours, job))
            theirs.append(in_fresh_process(paint_theirs, job, folder))
        alike = theirs[0] if job.case.tile else in_fresh_process(paint_theirs, job, folder, True)
        rows.append(_row(job, ours, theirs, alike))
        say(_line(rows[-1]))
        for side, painting in (("ours", ours[0]), ("theirs", alike)):
            Image.fromarray(painting.pixels).save(out / f"{job.case.name}-{side}.png")
    (out / "report.json").write_text(json.dumps(rows, indent=1) + "\n")


def pipeline_folder(path: Path) -> Path:
    """Where the authors' pipeline lies: in `path`, or in its text_to_image."""
    for folder in (path, path / "text_to_image"):
        if (folder / f"{PIPELINE}.py").is_file():
            return folder
    raise ValueError(
        f"{path}: has no {PIPELINE}.py; give the folder of AP-LDM's code (kmittle/AP-LDM on GitHub)"
    )


def _measured(device: torch.device, paint: Callable[[], Image.Image], calls: list[Any]) -> Painting:
    """calls: grows by one with each model evaluation."""
    done: list[Any] = []

    def work() -> None:
        begun = time.perf_counter(), time.process_time()
        pixels = np.asarray(paint())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        done.extend((pixels, time.perf_counter() - begun[0], time.process_time() - begun[1]))

    memory = peak_memory(device, work)
    if not done:
        work()
    pixels, seconds, processor_seconds = done
    return Painting(pixels, seconds, processor_seconds, memory, len(calls))


# --- ours -----------------------------------------------------------------------------------------


def paint_ours(job: Job) -> Painting:
    model = load_model(job.model, device=job.device, dtype=getattr(torch, job.dtype))
    if model.family != "sdxl" or model.native != (job.first, job.first):
        raise ModelError(
            f"{job.model}: AP-LDM's code begins with {job.first}x{job.first} pixels; "
            "give an SDXL model of that native size"
        )
    calls: list[Any] = []
    model.unet.register_forward_pre_hook(lambda *call: calls.append(None))
    return _measured(model.device, lambda: _our_image(job, model), calls)


def _our_image(job: Job, model: LatentModel) -> Image.Image:
    settings = Settings.from_values(
        {
            "pfsa": True,
            "pfsa_gamma": job.gamma,
            "pfsa_eta1": job.delay / job.steps,
            "refine": True,
            "refine_factor": job.case.factor,
            "refine_eta2": ", ".join(map(str, job.case.eta2)),
            "refine_tile": job.case.tile,
        }
    )
    wanted = {"steps": job.steps, "sampler": "Euler", "schedule": "Karras", "cfg": CFG}
    run = Run(model, Request(PROMPT, seed=SEED, **wanted), settings)
    run.stages = tuple(
        replace(stage, size=(side, side))
        for stage, side in zip(run.stages, _their_sides(job, model.factor), strict=True)
    )
    with patch.object(generate, "gamma_at", _their_gamma):
        for painted in run.paint():
            last = painted.images[0]
    return to_pil(last)


def _their_gamma(steps_done: int, total_steps: int, settings: AttentiveGuidance) -> float:
    """As their code spreads it: over one step less than eq. 3 and algorithm 1 say."""
    active = total_steps - round(settings.eta1 * total_steps) - 1
    t = total_steps - steps_done
    wave = (math.cos(math.pi * (active - t) / active) + 1) / 2
    return settings.gamma * wave**settings.beta if t <= active else 0.0


def _their_sides(job: Job, factor: int) -> list[int]:
    """They round the sides between down to the VAE's factor; the paper rounds up."""
    count, first = len(job.case.eta2), job.first**2
    areas = [first + (job.final**2 - first) * stage / count for stage in range(1, count + 1)]
    return [int(math.sqrt(area) // factor) * factor for area in areas]


# --- theirs ---------------------------------------------------------------------------------------


def paint_theirs(job: Job, folder: Path, alike: bool = False) -> Painting:
    """alike: with their VAE laid out in memory as ours, so that both round alike."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")  # their imports are of an older diffusers
    pipeline = _pipeline_class(folder).from_pretrained(
        job.model, torch_dtype=getattr(torch, job.dtype), local_files_only=True
    )
    pipeline.to(job.device)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = _scheduler(pipeline.scheduler.config)
    if alike:
        pipeline.vae.to(memory_format=torch.channels_last)
    calls: list[Any] = []
    pipeline.unet.register_forward_pre_hook(lambda *call: calls.append(None))
    return _measured(torch.device(job.device), lambda: _their_image(job, pipeline), calls)


def _pipeline_class(folder: Path) -> Any:
    sys.path.insert(0, str(folder))
    try:
        return getattr(__import__(PIPELINE), "APLDMSDXLPipeline")  # noqa: B009
    except (ImportError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{folder / PIPELINE}.py: cannot be imported here ({error})") from None


def _scheduler(config: Any) -> Any:
    """Their scheduler on our spacing; it renoises with the noise that our stages draw."""
    from diffusers import EulerDiscreteScheduler

    class SameNoise(EulerDiscreteScheduler):
        stage = 0

        def add_noise(self, samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
            self.stage += 1
            ours = draw(generators([SEED], self.stage), tuple(noise.shape[1:]))
            return super().add_noise(samples, ours.to(noise), timesteps)

    return SameNoise.from_config(config, use_karras_sigmas=True, timestep_spacing="linspace")


def _their_image(job: Job, pipeline: Any) -> Image.Image:
    latent = job.first // pipeline.vae_scale_factor
    noise = draw(generators([SEED]), (pipeline.unet.config.in_channels, latent, latent))
    tiles = bool(job.case.tile)
    with redirect_stdout(io.StringIO()):
        images = pipeline(
            PROMPT,
            height=job.final,
            width=job.final,
            num_inference_steps=job.steps,
            num_resample_timesteps=job.steps,
            guidance_scale=CFG,
            latents=noise.to(pipeline.unet.dtype),
            multi_decoder=tiles,
            multi_encoder=tiles,
            init_rates=job.left_out,
            attn_guidance_scale=job.gamma,
            attn_guidance_density=(1,) * (job.steps - job.delay) + (0,) * job.delay,
            attn_guidance_decay=("cosine", 0, AttentiveGuidance().beta),
        )
    return images[-1]


# --- the report -----------------------------------------------------------------------------------


def _row(
    job: Job, ours: Sequence[Painting], theirs: Sequence[Painting], alike: Painting
) -> dict[str, Any]:
    """Differences in 255ths; ratios are medians of ours to theirs, painted in turns."""
    difference = np.abs(ours[0].pixels.astype(int) - alike.pixels)
    pairs = list(zip(ours, theirs, strict=True))

    def ratio(of: Callable[[Painting], float | None]) -> float | None:
        shares = [(of(own) or 0) / (of(other) or math.nan) for own, other in pairs]
        median = statistics.median(shares)
        return median if math.isfinite(median) else None

    return {
        "name": job.case.name,
        "steps": job.steps,
        "mean": float(difference.mean()),
        "worst": int(difference.max()),
        "seconds": [statistics.median(each.seconds for each in side) for side in (ours, theirs)],
        "ratio": ratio(lambda painting: painting.seconds),
        "processor ratio": ratio(lambda painting: painting.processor_seconds),
        "memory": [side[0].memory for side in (ours, theirs)],
        "memory ratio": ratio(lambda painting: painting.memory),
        "evaluations": [side[0].evaluations for side in (ours, theirs)],
    }


def _line(row: dict[str, Any]) -> str:
    def shown(number: float | None) -> str:
        return "?" if number is None else f"{number:.2f}"

    seconds = f"{row['seconds'][0]:.0f}/{row['seconds'][1]:.0f} = {shown(row['ratio'])}"
    calls = "/".join(map(str, row["evaluations"]))
    return (
        f"{row['name']:6} {row['mean']:6.3f} {row['worst']:5}  {seconds:>15} "
        f"{shown(row['processor ratio']):>9} {shown(row['memory ratio']):>6}  {calls}"
    )
