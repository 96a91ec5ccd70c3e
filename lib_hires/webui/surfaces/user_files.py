"""The user's own files in the host's folders: feature upsamplers and presets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modules import paths_internal

from lib_hires.feature_upsampler import UpsamplerError
from lib_hires.presets import PresetFile
from lib_hires.settings import NOTHING, SettingsError
from lib_hires.upsampler_file import NamedUpsampler, chosen_upsampler, files_in

FOLDER = "hires-guidance"  # beside Stable-diffusion, Lora and the like
PRESETS = "hires-guidance-presets.json"  # beside the host's own styles.csv and ui-config.json


def preset_file() -> PresetFile:
    """The user's own presets."""
    return PresetFile(Path(paths_internal.data_path) / PRESETS)


def files() -> dict[str, Path]:
    """What is in the folder now, by name."""
    return files_in(Path(paths_internal.models_path) / FOLDER)


def names() -> list[str]:
    """What the list offers."""
    return [NOTHING, *files()]


def find_upsampler(named: str) -> NamedUpsampler | None:
    """The one of a name from the list, or of an image's `name [hash]`; None for NOTHING.

    Raises SettingsError for anything else, and for a damaged file.
    """
    if named == NOTHING:
        return None
    try:
        return chosen_upsampler(named, files())
    except UpsamplerError as error:
        raise SettingsError(f"refine_upsampler: {error}") from None


def listed(named: str) -> str:
    """What the list shows for an image's `name [hash]`: its name, where the file is the same."""
    try:
        upsampler = find_upsampler(named)
    except SettingsError:
        return named
    return NOTHING if upsampler is None else upsampler.name


def model_family(sd_model: Any) -> str:
    """As feature upsamplers name the kinds of models."""
    if getattr(sd_model, "is_sdxl", False):
        return "sdxl"
    return "sd2" if getattr(sd_model, "is_sd2", False) else "sd1"
