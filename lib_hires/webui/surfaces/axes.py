"""X/Y/Z plot axes, one for each control, made from the declaration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from modules import scripts

from lib_hires.settings import GROUPS, Declaration, SettingsError, declarations
from lib_hires.webui.surfaces import user_files as upsamplers
from lib_hires.webui.surfaces.arguments import AXIS_VALUES


def add_axes() -> None:
    """Offer the axes in the host's X/Y/Z plot, where it is loaded and does not have them yet."""
    for data in scripts.scripts_data:
        if data.script_class.__module__ == "xyz_grid.py":
            present = {option.label for option in data.module.axis_options}
            made = (_axis(data.module.AxisOption, row) for row in declarations())
            data.module.axis_options += [axis for axis in made if axis.label not in present]


def _axis(axis_option: Callable[..., Any], row: Declaration) -> Any:
    group = GROUPS[row.group]
    name = group if row.name == row.group else f"{group}: {row.control.title}"
    return axis_option(
        f"[HiRes] {name}",
        row.kind if row.kind in (int, float) else str,
        _apply(row.name),
        confirm=_confirm(row),
        choices=_choices(row),
    )


def _choices(row: Declaration) -> Callable[[], list[str]] | None:
    if row.control.listed:
        return upsamplers.names
    choices = ("True", "False") if row.kind is bool else row.control.choices
    return (lambda: list(choices)) if choices else None


def _apply(name: str) -> Callable[..., None]:
    def apply(p: Any, value: object, _values: Sequence[object]) -> None:
        # A new dict each time: the host copies p for each cell, but not what p refers to.
        setattr(p, AXIS_VALUES, {**getattr(p, AXIS_VALUES, {}), name: value})

    return apply


def _confirm(row: Declaration) -> Callable[..., None]:
    def confirm(_p: Any, values: Sequence[object]) -> None:
        """The host runs this before the first cell; an error here reaches the user."""
        for value in values:
            try:
                read = row.control.read(row.name, value, row.kind)
                if row.control.listed:
                    upsamplers.find_upsampler(read)
            except SettingsError as error:
                raise RuntimeError(str(error)) from None

    return confirm
