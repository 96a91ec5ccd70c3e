"""The files that come along: the bundled model, its judge and its feature upsamplers."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
MODEL = FOLDER / "hires-demo.safetensors"
JUDGE = FOLDER / "judge.safetensors"
UPSAMPLERS = FOLDER / "upsamplers"
