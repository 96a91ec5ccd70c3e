"""Feature upsamplers as a run's settings name them."""

from __future__ import annotations

from pathlib import Path

from lib_hires.feature_upsampler import UpsamplerError
from lib_hires.settings import NOTHING, SettingsError
from lib_hires.standalone import bundled
from lib_hires.upsampler_file import (
    SUFFIX,
    NamedUpsampler,
    chosen_upsampler,
    files_in,
    named_upsampler,
)

BUNDLED_2X = "hires-demo-2x"  # for the bundled model


def known_upsamplers() -> dict[str, Path]:
    """Those that can be named without a path: of the working folder, and the bundled ones."""
    return {**files_in(Path()), **files_in(bundled.UPSAMPLERS)}


def find_upsampler(named: str) -> NamedUpsampler | None:
    """What the control names: a file, a name or an image's `name [hash]`; None for NOTHING.

    Raises SettingsError where it is not here or not whole.
    """
    if named == NOTHING:
        return None
    try:
        if Path(named).suffix == SUFFIX:
            return named_upsampler(Path(named))
        return chosen_upsampler(named, known_upsamplers())
    except UpsamplerError as error:
        raise SettingsError(f"refine_upsampler: {error}; or give its file") from None
