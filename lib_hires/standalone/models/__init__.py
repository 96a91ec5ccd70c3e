"""Load a text-to-image latent diffusion model: the bundled one, an LDM file or a diffusers folder.

All end as the same diffusers and transformers modules. Nothing here reaches for the network.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from lib_hires.devices import is_out_of_memory
from lib_hires.standalone import bundled
from lib_hires.standalone.models.folder import load_folder
from lib_hires.standalone.models.latent import (
    AS_STATED,
    LatentModel,
    ModelError,
    Overrides,
    reason,
)
from lib_hires.standalone.models.ldm import load_ldm_file
from lib_hires.standalone.models.precision import fast_dtype

log = logging.getLogger("hires_guidance")

__all__ = ["LatentModel", "ModelError", "Overrides", "fast_dtype", "load_model", "usable"]


def load_model(
    path: Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    overrides: Overrides = AS_STATED,
) -> LatentModel:
    """Load a model: None is the bundled one, a file the LDM layout, a folder the diffusers one.

    A file's architecture, prediction and native size come from the yaml of the same name beside
    it; without one the file must have the shapes of SD1, SD2 or SDXL. Marks in the file for v
    prediction and zero terminal SNR go before the yaml, and `overrides` before both. What can be
    checked without reading the weights is checked first.

    Raises:
        ModelError: the model is missing, damaged, of an unknown kind, or lacks its tokenizer.
    """
    path = Path(bundled.MODEL if path is None else path)
    try:
        there, is_folder = path.exists(), path.is_dir()
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    if not there:
        raise ModelError(f"{path}: no such model; give a .safetensors file or a diffusers folder")
    device = usable(device)
    load = load_folder if is_folder else load_ldm_file
    try:
        model = load(path, device, dtype, overrides)
        return replace(model, cfg=bundled.CFG) if path.name == bundled.MODEL.name else model
    except ModelError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise ModelError(
                f"{path}: out of memory while loading{_smaller(dtype, device)}"
            ) from error
        log.debug("%s", path, exc_info=True)
        raise ModelError(f"{path}: the model {reason(error)}; download it again") from error


def _smaller(dtype: torch.dtype, device: torch.device) -> str:
    """What would take less memory without being slow."""
    half = torch.float16 if device.type != "cpu" else fast_dtype(device)
    if dtype != torch.float32 or half == torch.float32:
        return ""
    return f"; try --dtype {str(half).removeprefix('torch.')}"


def usable(device: str | torch.device) -> torch.device:
    """The device. Raises ModelError where there is no such one."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {str(device)!r}: cannot be used here ({reason})") from error
