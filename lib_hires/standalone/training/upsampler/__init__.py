"""`hires train-upsampler`: algorithm 1 of Self-Cascade, for any model that the standalone loads.

Only the feature upsampler's weights move. The loss is that of the model's own prediction (eps, or v
for models of v). Under `accelerate launch` every process computes its part of the same steps; a
step's examples depend on the seed and the step alone, so that the number of processes, the number
of parts and an interruption change nothing beyond rounding.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env

from lib_hires.feature_upsampler import (
    FeatureUpsampler,
    UpsamplerInfo,
    default_layers,
    layout_of,
)
from lib_hires.files import sha256_of
from lib_hires.settings import SettingsError
from lib_hires.sizes import snap
from lib_hires.standalone import bundled
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.models.precision import is_slow, slow_message
from lib_hires.standalone.training.loop import Every, Loop, Pace, Panel, Progress, plot
from lib_hires.standalone.training.upsampler.data import (
    DrawnScenes,
    Examples,
    ImageFolder,
    Images,
)
from lib_hires.standalone.training.upsampler.steps import Objective, Steps
from lib_hires.standalone.training.upsampler_config import UpsamplerTraining
from lib_hires.standalone.world.model import speed_up
from lib_hires.upsampler_file import write_upsampler

log = logging.getLogger("hires_guidance")

SHOWN = 200  # points of the plotted training loss, each the mean of the steps between
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def train_upsampler(
    out: Path,
    *,
    config: UpsamplerTraining,
    model_path: Path | None = None,
    data: Path | None = None,
    work: Path = Path("training-upsampler"),
    cache: Path | None = None,
) -> str:
    """Train until `config.steps` and write `out`; goes on from the checkpoint in `work`.

    model_path: None is the bundled model. data: a folder of captioned images; None are drawn
    scenes, for the bundled model only. cache: a folder for latents and features, computed once.
    Several machines must share `work`.
    Beside `out` its record (json) and its losses (png) are written. Returns a line about it, in
    other processes than the first an empty one.

    Raises SettingsError (or another ValueError) for what cannot be trained.
    """
    device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device.type
    config = replace(config, mixed_precision=precision_of(config, device))
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.accumulation
    )
    config.part(accelerator.num_processes)  # raises before the work starts
    if data is None and model_path is not None:
        raise SettingsError("--data: expected a folder of captioned images for this model")
    if (old := work / "checkpoint.safetensors").exists():
        raise SettingsError(
            f"{old}: of version 0.1, which cannot be gone on from; give another --work or remove it"
        )
    model = _model(model_path, accelerator, config)
    info = info_for(model, config, weights_hash(model_path or bundled.MODEL))
    examples, held_out = examples_for(model, info, config, data, cache)
    torch.manual_seed(config.seed)
    upsampler = FeatureUpsampler(info)
    loop = _loop(accelerator, Objective(model, upsampler), examples, held_out, config, work)
    progress = loop.run()
    summary = ""
    if accelerator.is_main_process:
        summary = write(out, upsampler, config, progress, accelerator.num_processes)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return summary


def precision_of(config: UpsamplerTraining, device: str) -> str:
    """accelerate's name of the precision on a kind of device; warns of a slow one."""
    if config.mixed_precision == "auto":
        return "no" if is_slow(torch.bfloat16, device) else "bf16"
    if message := slow_message(DTYPES[config.mixed_precision], device):
        log.warning("mixed_precision: %s", message)
    return config.mixed_precision


def _model(path: Path | None, accelerator: Accelerator, config: UpsamplerTraining) -> LatentModel:
    on_cpu = accelerator.device.type == "cpu"
    dtype = torch.float32 if on_cpu else DTYPES[config.mixed_precision]
    model = load_model(path, device=accelerator.device, dtype=dtype)
    if on_cpu:
        speed_up(model.unet)
    if config.checkpointing:
        model.unet.enable_gradient_checkpointing()
    return model


def _loop(
    accelerator: Accelerator,
    objective: Objective,
    examples: Examples,
    held_out: int,
    config: UpsamplerTraining,
    work: Path,
) -> Loop:
    upsampler = objective.upsampler
    optimizer = torch.optim.AdamW(
        upsampler.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    prepared, optimizer = accelerator.prepare(objective, optimizer)
    steps = Steps(accelerator, objective, prepared, examples, held_out, config)
    pace = Pace(
        steps=config.steps,
        save=Every(steps=config.save_every),
        look=Every(steps=config.validate_every),
        window=1,
        look_first=True,
    )
    return Loop(
        "upsampler",
        work / "checkpoint.pt",
        pace=pace,
        parts={"upsampler": upsampler},
        optimizer=optimizer,
        compute=steps.compute,
        rate_at=lambda progress: config.rate_at(progress.step) / config.rate,
        look=partial(steps.validate, work / "samples"),
        clip=partial(_clip, accelerator),
        config=upsampler.info.metadata(),
        expects="of another upsampler; give another --work or remove it",
        main=accelerator.is_main_process,
    )


def _clip(accelerator: Accelerator, weights: list[torch.nn.Parameter], most: float) -> None:
    """A norm that is not finite is left to accelerate, which then lowers float16's scale."""
    accelerator.clip_grad_norm_(weights, most)


def info_for(model: LatentModel, config: UpsamplerTraining, model_hash: str) -> UpsamplerInfo:
    """What the file records; raises ValueError for layers that the model does not have."""
    skips = layout_of(model.unet).skips
    try:
        wanted = tuple(int(layer) for layer in config.layers.split(",") if layer.strip())
        layers = wanted or default_layers(model.unet)
        channels = tuple(skips[layer].channels for layer in layers)
    except (ValueError, IndexError) as error:
        raise SettingsError(
            f"layers: expected some of 0 to {len(skips) - 1}, got {config.layers!r}"
        ) from error
    return UpsamplerInfo(
        family=model.family,
        base=model.name,
        base_hash=model_hash,
        layers=layers,
        channels=channels,
        pivot=config.pivot,
        scale=config.scale,
        width=config.width,
        version=version("hires-guidance"),
    )


def weights_hash(path: Path) -> str:
    """SHA-256 of a model's file, or of its U-Net's files where it is a folder."""
    files = sorted((path / "unet").glob("*.safetensors")) if path.is_dir() else [path]
    return sha256_of(files)


def examples_for(
    model: LatentModel,
    info: UpsamplerInfo,
    config: UpsamplerTraining,
    data: Path | None,
    cache: Path | None,
) -> tuple[Examples, int]:
    """All examples, and how many at their end are held out for validation."""
    height, width = (snap(side * config.scale, model.multiple) for side in model.native)
    images: Images
    if data is None:
        images = DrawnScenes(config.scenes + config.held_out, config.seed)
        held_out = config.held_out
    else:
        images = ImageFolder(data, (height, width))
        held_out = min(config.held_out, len(images) // 5)
    examples = Examples(
        model,
        images,
        large=(height, width),
        small=model.native,
        layers=info.layers,
        cache=cache,
        computed_as=[info.base_hash, config.mixed_precision, model.device.type],
    )
    return examples, held_out


def write(
    out: Path,
    upsampler: FeatureUpsampler,
    config: UpsamplerTraining,
    progress: Progress,
    processes: int,
) -> str:
    """Write the file, its record and its plot; returns a line about them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    info = replace(upsampler.info, steps=progress.step)
    write_upsampler(out, upsampler, info)
    losses, validation = progress.curve(), progress.validation
    record = {"info": info.metadata(), "config": config.values(), "processes": processes}
    record |= {"loss": losses, "validation": validation}
    out.with_suffix(".json").write_text(json.dumps(record) + "\n")
    plot(out.with_suffix(".png"), _panels(losses, validation))
    held_out = ""
    if validation:
        held_out = f"; loss held out {validation[-1][1]:.5f}, without it {validation[0][1]:.5f}"
    return f"{out}: {progress.step} steps{held_out}"


def _panels(
    losses: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]]
) -> list[Panel]:
    """The loss in training, and held out with its start (no upsampler) as a line."""
    parts = np.array_split(np.array(losses), min(SHOWN, len(losses)))
    shown = [tuple(part.mean(0)) for part in parts]
    level = ("without it", validation[0][1]) if validation else None
    return [
        Panel("training", {"": shown}, scale="linear"),
        Panel("held out", {"": validation}, level, scale="linear", marker="."),
    ]
