"""Ready settings for a model family and a target size, and the user's own presets.

A preset names the controls that it changes; all others are at their defaults.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from types import MappingProxyType

from lib_hires.controls import Plain, SettingsError
from lib_hires.files import whole_file
from lib_hires.settings import Settings, as_kept
from lib_hires.sizes import Size, size_of_area

LONGEST_NAME = 60


class PresetError(ValueError):
    """A preset that cannot be read, applied, saved or deleted. The message is for the user."""


@dataclass(frozen=True)
class Preset:
    """Values by the controls' public names.

    native: the side in pixels of the model family it is meant for, 0 for any. first: the first
    image's sides relative to it, 0 to leave the size as it is.
    """

    name: str
    values: Mapping[str, Plain]
    native: int = 0
    first: float = 0

    def settings(self) -> Settings:
        """Raises SettingsError for values that the controls do not take."""
        return Settings.from_values(self.values)

    def first_size(self, current: Size, multiple: int = 64) -> Size:
        """The first image's (height, width) at the aspect ratio of the `current` size.

        Raises PresetError where that is empty.
        """
        if min(current) < 1:
            raise PresetError("give a width and height first")
        if not self.first:
            return current
        return size_of_area((self.native * self.first) ** 2, current[0] / current[1], multiple)

    def size_for(self, model: Size, multiple: int) -> Size:
        """The first image's (height, width) in pixels where the user has given none; (0, 0)
        leaves it to the model.

        model: its native (height, width); multiple: that its sizes must have.
        """
        return (0, 0) if self.first in (0, 1) else self.first_size(model, multiple)


# (purpose, the first image's sides relative to the native ones, values)
_RECIPES: tuple[tuple[str, float, dict[str, Plain]], ...] = (
    (
        "2x, refinement with UG",
        1,
        {
            "ug": True,
            "ug_theta": 0.3,
            "ug_cadence": 2,
            "ug_windows": "attention",
            "refine": True,
            "refine_eta2": "0.5, 0.5",
            "refine_steps": 6,
        },
    ),
    (
        "4x, refinement with UG",
        1,
        {
            "ug": True,
            "ug_theta": 0.5,
            "ug_windows": "attention",
            "refine": True,
            "refine_factor": 4.0,
            "refine_method": "Pivot",  # two stages of twice the sides each
            "refine_enlargement": "pixel",
            "refine_pivot": 250,
            "refine_steps": 6,
        },
    ),
    ("2x, UG alone", 2, {"ug": True}),
    ("2x, AP-LDM as published", 1, {"pfsa": True, "refine": True, "refine_eta2": "0.2"}),
    (
        "4x, AP-LDM as published",
        1,
        {"pfsa": True, "refine": True, "refine_factor": 4.0, "refine_eta2": "0.1, 0.2"},
    ),
)
PURPOSES = tuple(purpose for purpose, *_ in _RECIPES)
_FAMILIES = {"SD 1.5": 512, "SD 2": 768, "SDXL": 1024, "Bundled demo": 256}
WHOLE, TILE = 2048, 2048  # sides in pixels: up to WHOLE decoded at once, above in tiles


def _built_in(family: str, native: int, recipe: tuple[str, float, dict[str, Plain]]) -> Preset:
    purpose, first, values = recipe
    final = int(native * first * float(values.get("refine_factor", 2 if "refine" in values else 1)))
    tiles = {"refine_tile": TILE} if "refine" in values and final > WHOLE else {}
    name = f"{family} ({native}) {purpose}"
    return Preset(name, MappingProxyType({**values, **tiles}), native, first)


BUILT_IN = tuple(
    _built_in(family, native, recipe) for family, native in _FAMILIES.items() for recipe in _RECIPES
)


def preset_for(purpose: str, native: Size = (0, 0)) -> Preset:
    """The built-in preset of one of PURPOSES for a model of that native (height, width) in pixels.

    native: (0, 0) where only its values count; what depends on the size is then left out. Raises
    PresetError where there is no such purpose.
    """
    for recipe in _RECIPES:
        if recipe[0].casefold() == purpose.casefold():
            return _built_in("any model", isqrt(native[0] * native[1]), recipe)
    known = ", ".join(f'"{known}"' for known in PURPOSES)
    raise PresetError(f"expected one of {known}, got {purpose!r}")


def offered(native: int) -> tuple[Preset, ...]:
    """The built-in presets, those first that are for models of that native side."""
    return tuple(sorted(BUILT_IN, key=lambda preset: preset.native != native))


def counterpart(name: object, native: int) -> str:
    """The name of the preset for the same purpose and models of that native side.

    A name that is not built in stays, and every name where there are no presets for that side.
    """
    names, first = [preset.name for preset in BUILT_IN], offered(native)
    if name not in names or first[0].native != native:
        return str(name or "")
    return first[names.index(str(name)) % len(_RECIPES)].name


def clean_name(name: object) -> str:
    """A name for a user's preset: printable, on one line. Raises PresetError."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(name or "")).split())
    if not text or len(text) > LONGEST_NAME:
        raise PresetError(f"a preset's name has 1 to {LONGEST_NAME} characters")
    if any(text.casefold() == preset.name.casefold() for preset in BUILT_IN):
        raise PresetError(f'"{text}" comes with the extension; choose another name')
    return text


class PresetFile:
    """The user's presets in one JSON file, `{name: {control: value}}`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def values(self) -> dict[str, dict[str, Plain]]:
        """All of them as they were meant when they were saved, by name.

        Raises PresetError where the file is damaged.
        """
        try:
            presets = json.loads(self.path.read_text("utf-8-sig"))
            if not all(isinstance(values, dict) for values in presets.values()):
                raise ValueError("expected objects of settings")
            _json(presets).encode()
            kept: dict[str, dict[str, Plain]] = {
                name: as_kept(values) for name, values in presets.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise PresetError(f"{self.path} cannot be read ({error})") from None
        return kept

    def find(self, name: object) -> Preset:
        """A built-in or a user's preset. Raises PresetError where there is none or it is bad."""
        for preset in BUILT_IN:
            if preset.name == name:
                return preset
        values = self.values().get(str(name))
        if values is None:
            raise PresetError(f'there is no preset "{name}"')
        preset = Preset(str(name), values)
        try:
            preset.settings()
        except SettingsError as error:
            raise PresetError(f'the preset "{name}" cannot be used ({error})') from None
        return preset

    def save(self, name: object, settings: Settings) -> str:
        """Save what differs from the defaults; returns the name as it was saved."""
        kept = clean_name(name)
        self._write({**self.values(), kept: settings.stated()})
        return kept

    def delete(self, name: object) -> None:
        presets = self.values()
        if str(name) not in presets:
            raise PresetError(f'"{name}" is not one of your own presets')
        del presets[str(name)]
        self._write(presets)

    def _write(self, presets: Mapping[str, Mapping[str, Plain]]) -> None:
        """All or nothing: an interrupt leaves the old file."""
        text = _json(presets)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path) as partial:
                partial.write_text(text, encoding="utf-8")
        except OSError as error:
            raise PresetError(f"{self.path} cannot be written ({error.strerror})") from None


def _json(presets: Mapping[str, Mapping[str, Plain]]) -> str:
    """JSON that any program reads. Raises ValueError for NaN, which Python alone accepts."""
    return json.dumps(presets, indent=1, ensure_ascii=False, allow_nan=False)
