"""Script arguments, as the page, the API and queue extensions give them, to Settings and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lib_hires.settings import GROUPS, Settings, SettingsError, declarations
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
    """What `read_arguments` gives, and the feature upsampler itself, read from its file.

    Of positional values those of groups that are off do not count: the page shows them folded.
    """
    values: Mapping[Any, object]
    axis: Mapping[str, object] = getattr(p, AXIS_VALUES, {})
    if arguments and isinstance(arguments[0], Mapping):
        values = {str(name): value for name, value in arguments[0].items() if value is not None}
    else:
        rows = declarations()
        if len(arguments) > len(rows):
            raise SettingsError(
                f"expected at most {len(rows)} arguments or one object of names, "
                f"got {len(arguments)}"
            )
        given = zip(rows, arguments, strict=False)
        values = {row.name: row.control.meant(v) for row, v in given if v is not None}
        values = _of_groups_that_are_on(values, axis)
    settings = Settings.from_values({**values, **axis})
    upsampler = find_upsampler(settings.refine.upsampler) if settings.refine.enabled else None
    if upsampler is None:
        return settings, None
    return settings.updated({"refine_upsampler": upsampler.title}), upsampler


def _of_groups_that_are_on(
    values: Mapping[str, object], axis: Mapping[str, object]
) -> dict[str, object]:
    """Of the page's values those of groups that it or an X/Y/Z axis has on."""
    switches = {name: value for name, value in {**values, **axis}.items() if name in GROUPS}
    on = Settings.from_values(switches).values()
    group_of = {row.name: row.group for row in declarations()}
    return {name: value for name, value in values.items() if on[group_of[name]]}
