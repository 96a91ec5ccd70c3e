"""PNG info: changed settings as flat keys under one prefix, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lib_hires.settings import Plain, Settings, SettingsError, declarations
from lib_hires.webui.surfaces.host_options import HOST_OPTIONS
from lib_hires.webui.surfaces.user_files import listed

PREFIX = "HiRes "
NOTE = PREFIX + "note"  # what was left out, for those who see no page
STAGE = PREFIX + "stage"  # of an image that was kept on the way


def key(name: str) -> str:
    """The PNG info's key of a control: "HiRes ug theta"."""
    return PREFIX + name.replace("_", " ")


def write(settings: Settings, parameters: dict[str, Any]) -> None:
    """Put the changed settings, and the host's options that act, into the host's `parameters`, in
    place; nothing where all is off.

    Keys of an earlier run are removed: X/Y/Z shares one dict between its cells.
    """
    declared = [row.name for row in declarations(clips=True)]
    for name in [NOTE, *map(key, [option.key for option in HOST_OPTIONS] + declared)]:
        parameters.pop(name, None)
    parameters.update({key(name): value for name, value in settings.changed().items()})
    for option in HOST_OPTIONS:
        if option.acts(settings) and (value := option.chosen()) != option.default:
            parameters[key(option.key)] = value


def keep_only(settings: Settings, parameters: dict[str, Any]) -> None:
    """Take controls out of the host's `parameters`, in place, that are not in `settings` any more.

    What is left of them stays as it is, and so does the note.
    """
    changed = settings.changed()
    gone = [row.name for row in declarations(clips=True) if row.name not in changed]
    gone += [option.key for option in HOST_OPTIONS if not option.acts(settings)]
    for name in gone:
        parameters.pop(key(name), None)


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
            value = _alone(row.name, parameters.get(key(row.name), row.unstated))
            return listed(str(value)) if row.control.listed else value
        except SettingsError:
            return None

    return read


def _alone(name: str, value: object) -> Plain:
    """One value checked without its neighbours: a width without its height is no error here."""
    row = next(row for row in declarations() if row.name == name)
    checked = row.control.read(name, value, row.kind)
    return ", ".join(map(repr, checked)) if isinstance(checked, tuple) else checked
