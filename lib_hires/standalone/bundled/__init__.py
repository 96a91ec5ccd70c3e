"""The files that come along: the bundled model, its motion module, judge and upsamplers."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
MODEL = FOLDER / "hires-demo.safetensors"
CFG = 3.0  # with 5 its images have too much contrast
MOTION = FOLDER / "hires-demo-motion.safetensors"
JUDGE = FOLDER / "judge.safetensors"
UPSAMPLERS = FOLDER / "upsamplers"
