"""`hires train-demo`: draws scenes and trains the bundled model on them, resumable at any moment.

Five stages, each of which can be run alone: `crops` (of drawn scenes), `vae` (autoencoder, in its
last phase the decoder alone), `latents` (scenes encoded once), `model` (U-Net and text encoder) and
`export` (files in the LDM layout). In processes of their own, `crops` may go on beside `vae`,
`latents` beside the last phase of `vae`, and `model` beside both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.efficientnet import EfficientNetLite0
from lib_hires.standalone.training.autoencoder import load_vae
from lib_hires.standalone.training.crops import Crops, draw_crops
from lib_hires.standalone.training.diffusion import train_model, trained_model
from lib_hires.standalone.training.latents import Latents, encode_scenes
from lib_hires.standalone.training.loop import Panel, Progress, load, plot, save
from lib_hires.standalone.training.stages import TrainingConfig
from lib_hires.standalone.training.vae import VaeConfig, train_vae
from lib_hires.standalone.world import model as demo
from lib_hires.standalone.world.layout import export, normalise_latents

STAGES = ("crops", "vae", "latents", "model", "export")
BEFORE = "before.json"  # the record of the model that a work folder was started from


def start_from(model: Path, work: Path) -> None:
    """Make the weights of the exported model in the folder `model` those that `work` starts with.

    For a machine on which the checkpoints are gone. The VAE counts as trained; the stage `model`
    goes on from the U-Net and text encoder with a new optimizer and its own minutes. Raises
    ValueError where `work` holds checkpoints already.
    """
    if any(work.glob("*.pt")):
        raise ValueError(f"{work}: holds checkpoints already; give another --work")
    loaded = load_model(model / f"{demo.NAME}.safetensors")
    unet, text, vae = loaded.unet, loaded.encoders[0].model, loaded.vae
    save(work / "vae.pt", {"modules": {"vae": vae.state_dict()}})
    weights = {"unet": unet.state_dict(), "text": text.state_dict()}
    weights |= {f"ema_{name}": state for name, state in weights.items()}
    save(work / "model.pt", {"modules": weights})
    (work / "latents").mkdir(exist_ok=True)
    normalised = {"mean": [0.0] * demo.LATENT_CHANNELS}
    normalised |= {"deviation": [1 / demo.SCALE_FACTOR] * demo.LATENT_CHANNELS}
    (work / "latents" / "normalisation.json").write_text(json.dumps(normalised))
    record = model / "training.json"
    (work / BEFORE).write_text(record.read_text() if record.exists() else "{}")


def export_model(work: Path, out: Path) -> None:
    """Write the bundled model's files, the training's record and its loss curve into `out`."""
    vae, data = load_vae(work), Latents(work / "latents")
    unet, text = trained_model(work)
    normalise_latents(vae, data.mean.flatten(), data.deviation.flatten())
    export(out, vae=vae, unet=unet, text_encoder=text)
    found = {name: load(work / f"{name}.pt") for name in ("vae", "model")}
    record = {"scenes_encoded": len(data.captions)}
    record |= {k: _record(state) for k, state in found.items() if state and "progress" in state}
    before = work / BEFORE
    records = [*_unfolded(json.loads(before.read_text()) if before.exists() else None), record]
    for earlier, later in pairwise(records):
        later["before"] = earlier
    (out / "training.json").write_text(json.dumps(record) + "\n")
    _plot(out / "loss.png", records)


def _record(state: dict[str, Any]) -> dict[str, Any]:
    """How a stage was last run, and its losses as (step, minutes, loss)."""
    progress = Progress.restored(state["progress"])
    return {
        "config": state["config"],
        "dtype": state.get("dtype"),
        "steps": progress.step,
        "minutes": round(progress.seconds / 60, 1),
        "loss": [
            [step, round(minutes, 2), losses["loss"]] for step, minutes, losses in progress.losses
        ],
    }


def _unfolded(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The record of each training that a model went through, the first one first."""
    return [] if record is None else [*_unfolded(record.get("before")), record]


def _plot(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """The loss curve of every stage of every training, in order."""
    panels = [
        Panel(
            name if k == 0 else f"{name}, continued",
            {"": [(step, loss) for step, _, loss in record[name]["loss"]]},
        )
        for k, record in enumerate(records)
        for name in ("vae", "decoder", "model")  # the decoder had a stage of its own in 0.2
        if name in record
    ]
    plot(path, panels)


def train(
    out: Path,
    *,
    stages: Sequence[str] = STAGES,
    config: TrainingConfig | None = None,
    vae: VaeConfig | None = None,
    work: Path = Path("training"),
) -> None:
    """Run `stages` in order. Checkpoints, latents and samples go to `work`, the model to `out`.

    Raises NetworkMissing before anything is drawn where the stage `vae` could not run.
    Called again it goes on where it stopped: at the last checkpoint of an unfinished stage. With
    fewer minutes than have passed, a stage ends at once; to let the rate decay from where a run
    stands, give it minutes a little above those passed.
    """
    config = config or TrainingConfig()
    unknown = [s for s in stages if s not in STAGES]
    if unknown:
        raise ValueError(f"stages: expected some of {', '.join(STAGES)}, got {unknown[0]!r}")
    finished = (work / BEFORE).exists()  # the VAE of a model that the work began with
    if "vae" in stages and not finished:
        EfficientNetLite0()  # raises now, and not when all crops are drawn
    if "crops" in stages and not finished:
        draw_crops(work / "crops", config.shards)
    if "vae" in stages and not finished:
        train_vae(work, Crops(work / "crops"), vae or VaeConfig(seed=config.seed))
    if "latents" in stages:
        encode_scenes(work, config)
    if "model" in stages:
        train_model(work, config)
    if "export" in stages:
        out.mkdir(parents=True, exist_ok=True)
        export_model(work, out)
