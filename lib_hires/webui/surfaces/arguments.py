"""Script arguments, as the page, the API and queue extensions give them, to Settings and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lib_hires.settings import Settings, SettingsError, declarations
from lib_hires.upsampler_file import NamedUpsampler
from lib_hires.webui.surfaces.user_files import find_upsampler

AXIS_VALUES = "hires_guidance_axis_values"  # a plain dict on p, written by X/Y/Z axes


def read_arguments(arguments: Sequence[object], p: Any = None) -> Settings:
    """Settings from positional values in the declaration's order, or from one dict of names.

    None stands for a control's default. X/Y/Z values on `p` win. A feature upsampler is named with
    its hash. Raises SettingsError, also where it is not in the list.
    """
    return read_run(arguments, p)[0]


def read_run(arguments: Sequence[object], p: Any = None) -> tuple[Settings, NamedUpsampler | None]:
    """What `read_arguments` gives, and the feature upsampler itself, read from its file."""
    values: Mapping[Any, object]
    if arguments and isinstance(arguments[0], Mapping):
        values = {str(name): value for name, value in arguments[0].items() if value is not None}
    else:
        rows = declarations()
        if len(arguments) > len(rows):
            raise SettingsError(
                f"expected at most {len(rows)} arguments or one object of names, "
                f"got {len(arguments)}"
            )
        values = {
            row.name: row.control.meant(value)
            for row, value in zip(rows, arguments, strict=False)
            if value is not None
        }
    settings = Settings.from_values({**values, **getattr(p, AXIS_VALUES, {})})
    upsampler = find_upsampler(settings.refine.upsampler) if settings.refine.enabled else None
    if upsampler is None:
        return settings, None
    return settings.updated({"refine_upsampler": upsampler.title}), upsampler
