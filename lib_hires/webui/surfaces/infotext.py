"""PNG info: changed settings as flat keys under one prefix, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lib_hires.refinement import enlargement_of
from lib_hires.settings import Plain, Settings, SettingsError, declarations
from lib_hires.webui.surfaces.user_files import listed

PREFIX = "HiRes "
NOTE = PREFIX + "note"  # what was left out, for those who see no page
STAGE = PREFIX + "stage"  # of an image that was kept on the way
NATIVE = PREFIX + "native size"  # the host's option, where it is set
UPSCALER = PREFIX + "upscaler"  # likewise


def key(name: str) -> str:
    """The PNG info's key of a control: "HiRes ug theta"."""
    return PREFIX + name.replace("_", " ")


def write(
    settings: Settings, parameters: dict[str, Any], native: int = 0, upscaler: str = ""
) -> None:
    """Put the changed settings into the host's `parameters`, in place; nothing where all is off.

    native: the native size that the user has set for Upsample Guidance, 0 for none. upscaler: the
    host's, for refinement, "" for none.

    Keys of an earlier run are removed: X/Y/Z shares one dict between its cells.
    """
    for name in [NOTE, NATIVE, UPSCALER, *(key(row.name) for row in declarations(clips=True))]:
        parameters.pop(name, None)
    parameters.update({key(name): value for name, value in settings.changed().items()})
    if native and settings.ug.enabled:
        parameters[NATIVE] = native
    if upscaler and settings.refine.enabled and enlargement_of(settings.refine) == "pixel":
        parameters[UPSCALER] = upscaler


def keep_only(settings: Settings, parameters: dict[str, Any]) -> None:
    """Take controls out of the host's `parameters`, in place, that are not in `settings` any more.

    What is left of them stays as it is, and so does the note.
    """
    changed = settings.changed()
    gone = [key(row.name) for row in declarations(clips=True) if row.name not in changed]
    gone += [] if settings.ug.enabled else [NATIVE]
    gone += [] if settings.refine.enabled else [UPSCALER]
    for name in gone:
        parameters.pop(name, None)


def reader(name: str) -> Callable[[Mapping[str, Any]], Plain | None]:
    """A function from parsed PNG info to the control's value; it never raises.

    None leaves the control alone: where its group is off, and where the text makes no sense.
    """
    row = next(row for row in declarations() if row.name == name)

    def read(parameters: Mapping[str, Any]) -> Plain | None:
        try:
            on = Settings.from_values({row.group: parameters.get(key(row.group), False)})
            if row.name == row.group:
                return on.values()[row.name]
            if not on.values()[row.group]:
                return None
            value = _alone(row.name, parameters.get(key(row.name), row.default))
            return listed(str(value)) if row.control.listed else value
        except SettingsError:
            return None

    return read


def _alone(name: str, value: object) -> Plain:
    """One value checked without its neighbours: a width without its height is no error here."""
    row = next(row for row in declarations() if row.name == name)
    checked = row.control.read(name, value, row.kind)
    return ", ".join(map(repr, checked)) if isinstance(checked, tuple) else checked
