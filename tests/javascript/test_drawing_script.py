"""The page's script in node: it draws the engine's plans, and estimates seconds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_hires.run.drawing import drawing
from lib_hires.run.plan import TailPass, run_plan
from lib_hires.run.schedules import Model, Sampling, sigmas_of
from lib_hires.settings import Settings

SCRIPT = Path(__file__).with_name("drawing.test.js")
EVERYTHING = {"ug": True, "ug_eta": 0.7, "pfsa": True, "refine": True, "refine_factor": 4.0}


def plans() -> dict[str, dict[str, Any]]:
    """The server's responses, by what they are about."""
    abar = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2).cumprod(0)
    model, native = Model(sigmas_of(abar), (512, 512)), Sampling((512, 512), 20)
    clips = replace(model, native_frames=16)
    everything = Settings.from_values(EVERYTHING | {"refine_eta2": "0.25, 0.45"})
    ug = Settings.from_values({"ug": True, "ug_eta": 1, "ug_cadence": 3})
    second = TailPass((768, 768), 8, 16)
    twice = replace(native, first=(1024, 1024))
    left = run_plan(everything, native, model, unfinished="same")
    return {
        "unfinished": drawing(left, everything, model),
        "plain": drawing(run_plan(Settings(), native, model), Settings(), model),
        "ug": drawing(run_plan(ug, twice, model), ug, model),
        "hires": drawing(run_plan(everything, native, model, second), everything, model),
        "clip": drawing(run_plan(ug, replace(twice, frames=32), clips), ug, clips),
        "notes": drawing(run_plan(ug, twice, model), ug, model, notes=["<b>", "it's"]),
    }


def test_the_script_draws_the_engines_plans(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    file = tmp_path / "plans.json"
    file.write_text(json.dumps(plans()), encoding="utf-8")
    done = subprocess.run(
        [node, "--test", str(SCRIPT)],
        env=os.environ | {"HIRES_PLANS": str(file)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
