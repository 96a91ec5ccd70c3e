"""Values of configuration files; each failure names the file and the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_hires.standalone.models.latent import ModelError


class Values:
    """A mapping that was read from a file.

    A value that is absent or null counts as not given, and the default takes its place; without a
    default it is refused. Numbers may be written as text or with a decimal point, as some tools do.
    """

    def __init__(self, file: Path, values: Any, place: str = "") -> None:
        """place: of the mapping in the file, before its keys in messages."""
        self.file, self._place = file, place
        if not isinstance(values, Mapping):
            raise self.error("", "a mapping", values)
        self.mapping = values

    def given(self, key: str) -> Any:
        """The value as it is; None where it is absent."""
        return self.mapping.get(key)

    def number(self, key: str, default: float | None = None) -> float:
        value = self._or(key, default)
        number = _number(value)
        if number is None:
            raise self.error(key, "a number", value)
        return number

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._or(key, default)
        number = _number(value)
        if number is None or number != int(number):
            raise self.error(key, "a whole number", value)
        return int(number)

    def wholes(self, key: str, default: list[int] | None = None) -> list[int]:
        """Whole numbers; one alone counts as a list of it."""
        value = self._or(key, default)
        numbers = [_number(each) for each in _listed(value)]
        if not numbers or any(number is None or number != int(number) for number in numbers):
            raise self.error(key, "whole numbers", value)
        return [int(number) for number in numbers if number is not None]

    def truth(self, key: str, default: bool) -> bool:
        value = self._or(key, default)
        known = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
        if known is None:
            raise self.error(key, "true or false", value)
        return known

    def section(self, *keys: str) -> Values:
        """A mapping inside of mappings; an absent one is empty."""
        found: Values = self
        for key in keys:
            inner = found.given(key)
            place = f"{found._place}{key}."
            found = Values(found.file, {} if inner is None else inner, place)
        return found

    def error(self, key: str, expected: str, value: Any) -> ModelError:
        name = f"{self._place}{key}".rstrip(".")
        where = f"{self.file}: {name}" if name else str(self.file)
        return ModelError(f"{where}: expected {expected}, got {str(value)[:80]!r}")

    def _or(self, key: str, default: Any) -> Any:
        value = self.mapping.get(key)
        return default if value is None else value


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
