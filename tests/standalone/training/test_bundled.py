"""The stages of `hires train-demo`: their rates, and beginning from a finished model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lib_hires.standalone.bundled import FOLDER
from lib_hires.standalone.training.bundled import start_from, train
from lib_hires.standalone.training.loop import Progress
from lib_hires.standalone.training.stages import TrainingConfig, rate_at
from lib_hires.standalone.world import model as demo


def test_rates_warm_up_hold_and_fall_to_zero() -> None:
    config = TrainingConfig(warmup_steps=10, decay_share=0.5)
    rate = [
        rate_at(config, Progress(step, seconds), 1.0, 2.0)
        for step, seconds in ((0, 0), (9, 1), (500, 30), (800, 45), (999, 60))
    ]
    assert rate == pytest.approx([0.2, 2.0, 2.0, 1.0, 0.0])


def test_training_can_start_from_an_exported_model(tmp_path: Path) -> None:
    """Exported again before a step is taken, it is the same file; its record is kept."""
    work, out = tmp_path / "work", tmp_path / "out"
    start_from(FOLDER, work)
    scene = np.zeros((1, 4, 32, 32), np.float16)
    np.savez(work / "latents" / "0000.npz", latents=scene, captions=np.array([["a", "a"]]))
    train(out, stages=["vae", "export"], work=work)  # its VAE counts as trained
    name = f"{demo.NAME}.safetensors"
    assert (out / name).read_bytes() == (FOLDER / name).read_bytes()
    record = json.loads((out / "training.json").read_text())
    assert record["before"] == json.loads((FOLDER / "training.json").read_text())
    with pytest.raises(ValueError, match="holds checkpoints already"):
        start_from(FOLDER, work)
