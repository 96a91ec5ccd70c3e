"""Scripts of the host's list in their simplest forms, and an extension with its own button."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from modules import processing, scripts


class Selectable(scripts.Script):
    def title(self):
        return type(self).__name__

    def show(self, is_img2img):
        return True

    def ui(self, is_img2img):
        return []


class Plot(Selectable):
    """Two cells with other seeds, as the host's X/Y/Z plot makes them."""

    __module__ = "xyz_grid.py"

    def run(self, p):
        cells = []
        for seed in (1, 2):
            cell = copy.copy(p)
            cell.seed = seed
            cells.append(processing.process_images(cell))
        made = cells[0]
        made.images = [image for cell in cells for image in cell.images]
        made.infotexts = [text for cell in cells for text in cell.infotexts]
        p.comments.update(cell.comments)
        return made


class Upscale(Selectable):
    """Tiles of the size that the run asks for, side by side, as the host's "SD upscale"."""

    __module__ = "sd_upscale.py"

    def run(self, p):
        large = F.interpolate(p.init_image[None], scale_factor=2)[0]
        pasted = torch.zeros_like(large)
        for top in range(0, large.shape[-2], p.height):
            for left in range(0, large.shape[-1], p.width):
                place = (..., slice(top, top + p.height), slice(left, left + p.width))
                p.init_image = large[place]
                made = processing.process_images(p)
                pasted[place] = made.images[0][:, : p.height, : p.width]
                assert made.images[0].shape == p.init_image.shape
        made.images = [pasted]
        return made


class Loopback(Selectable):
    """Each image is the next one's start."""

    __module__ = "loopback.py"

    def run(self, p):
        for _ in range(2):
            made = processing.process_images(p)
            p.init_image = made.images[0]
        return made


class Unknown(Selectable):
    """Of an extension, made by a run of its own in the txt2img tab."""

    __module__ = "mosaic.py"

    def run(self, p):
        own = processing.StableDiffusionProcessingTxt2Img(width=p.width, height=p.height)
        own.scripts, own.script_args = p.scripts, p.script_args
        made = processing.process_images(own)
        p.comments.update(own.comments)
        return made


def make_by_a_button(p):
    """As extensions with a tab of their own do."""
    return processing.process_images(p)
