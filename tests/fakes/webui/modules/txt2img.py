"""The host's own way to make images for the txt2img tab."""

from __future__ import annotations

from modules import processing


def txt2img(p):
    processed = p.scripts.run(p, *p.script_args)
    return processing.process_images(p) if processed is None else processed
