"""The images before the last stage, kept: saved at once, and shown beside the result."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
from modules import images, shared
from modules.processing import create_infotext
from PIL import Image
from torch import Tensor

from lib_hires.webui.surfaces.infotext import STAGE

KEPT = "hires_guidance_kept_stages"  # on p: a list of images with their PNG info

Kept = tuple[Image.Image, str]


def save_stage(p: Any, batch: Tensor, stage: int, stages: int) -> list[Kept]:
    """Save the images (b, 3, H, W) in [-1, 1] of a finished stage where the host saves its own.

    stage: 0 for the image before the first one. Prompts and seeds are those of the whole run:
    at this point of it the host's own lists of the batch lack the extra networks' tags.
    """
    told = copy.copy(p)  # the result's PNG info is to stay as it is
    told.extra_generation_params = {**p.extra_generation_params, STAGE: f"{stage} of {stages}"}
    kept = []
    for place, pixels in enumerate(batch.add(1).mul(127.5).clamp(0, 255)):
        told.batch_index = place  # the name of its file may hold it
        index = p.iteration * p.batch_size + place
        image = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy().astype(np.uint8))
        info = create_infotext(
            told,
            p.all_prompts,
            p.all_seeds,
            p.all_subseeds,
            index=index,
            all_negative_prompts=p.all_negative_prompts,
        )
        if shared.opts.enable_pnginfo:
            image.info["parameters"] = info
        if p.save_samples():
            images.save_image(
                image,
                p.outpath_samples,
                "",
                p.all_seeds[index],
                p.all_prompts[index],
                shared.opts.samples_format,
                info=info,
                p=told,
                suffix=f"-stage-{stage}",
            )
        kept.append((image, info))
    return kept


def forget_kept(p: Any) -> None:
    """To be called as a run begins: X/Y/Z copies p, and what it refers to stays shared."""
    vars(p).pop(KEPT, None)


def keep(p: Any, kept: Iterable[Kept]) -> None:
    """Remember images until the run's end."""
    setattr(p, KEPT, [*getattr(p, KEPT, []), *kept])


def show_kept(p: Any, processed: Any) -> None:
    """Put the kept images behind the run's own.

    Not where a script of the host's list made the run: those count on the images they asked for.
    """
    if p.script_args and p.script_args[0]:
        return
    for image, info in getattr(p, KEPT, []):
        missing = len(processed.images) - len(processed.infotexts)  # other extensions' images
        processed.infotexts += [""] * missing + [info]
        processed.images.append(image)
