"""The images before the last stage, kept: saved at once, and shown beside the result."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from modules import images, shared
from modules.processing import create_infotext
from PIL import Image
from torch import Tensor

from lib_hires.webui.run_state import HostRun
from lib_hires.webui.surfaces.infotext import STAGE

Kept = tuple[Image.Image, str]


def save_stage(p: Any, batch: Tensor, stage: int, stages: int) -> list[Kept]:
    """Save the images (b, 3, H, W) in [-1, 1] of a finished stage where the host saves its own.

    stage: 0 for the image before the first one. Prompts and seeds are those of the whole run:
    at this point of it the host's own lists of the batch lack the extra networks' tags.
    """
    shown = copy.copy(p)  # the result's PNG info is to stay as it is
    shown.extra_generation_params = {**p.extra_generation_params, STAGE: f"{stage} of {stages}"}
    kept = []
    for place, pixels in enumerate(batch.add(1).mul(127.5).clamp(0, 255)):
        shown.batch_index = place  # the name of its file may hold it
        index = p.iteration * p.batch_size + place
        image = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy().astype(np.uint8))
        info = create_infotext(
            shown,
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
                p=shown,
                suffix=f"-stage-{stage}",
            )
        kept.append((image, info))
    return kept


def show_kept(run: HostRun, processed: Any) -> None:
    """Put the kept images behind the run's own.

    Not where a script of the host's list makes the run: those count on the images they asked for.
    """
    if run.state.caller.is_script:
        return
    for image, info in run.state.kept:
        missing = len(processed.images) - len(processed.infotexts)  # other extensions' images
        processed.infotexts += [""] * missing + [info]
        processed.images.append(image)
