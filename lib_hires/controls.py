"""What a control is: a dataclass field that knows its label, bounds, help and symbol."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, TypeAlias, get_origin, get_type_hints

Plain: TypeAlias = "bool | int | float | str"

NOTHING = "None"  # the value of a control that names nothing from its list


class SettingsError(ValueError):
    """A value that a control does not take. The message is for the user, on one line."""


@dataclass(frozen=True)
class Control:
    """What a surface needs of one setting. Bounds are inclusive."""

    label: str
    help: str
    symbol: str = ""
    minimum: float = -math.inf
    maximum: float = math.inf
    step: float = 1
    choices: tuple[str, ...] = ()
    listed: bool = False  # a name from a list that the surface keeps, or NOTHING
    automatic: bool = False  # 0 stands for an automatic choice, also where below the minimum
    webui_only: bool = False  # it concerns something that the WebUI alone has
    clips: bool = False  # it concerns clips, which the command line alone makes
    since: int = 0  # which addition it came with: later ones stand after all earlier positions
    former: Plain | None = None  # its default before that changed: what a text without it means
    on_page: bool = True  # False: an option of the engine alone, which pages do not show

    @property
    def title(self) -> str:
        """The label with the paper's symbol behind it."""
        return f"{self.label} ({self.symbol})" if self.symbol else self.label

    def read(self, name: str, value: object, kind: type) -> Any:
        """Return `value` as `kind`, or raise SettingsError: what was expected and what came."""
        if kind is bool:
            return _read_bool(name, value)
        if kind is tuple:
            return _read_schedule(name, value)
        if kind is str:
            if self.listed:
                return _read_listed(value)
            return _read_choice(name, value, self.choices) if self.choices else str(value)
        return self._read_number(name, value, kind)

    def _read_number(self, name: str, value: object, kind: type) -> Any:
        whole = kind is int
        try:
            if isinstance(value, bool):
                raise ValueError
            number = float(value)  # type: ignore[arg-type]
            in_bounds = self.minimum <= number <= self.maximum or (self.automatic and number == 0)
            if not math.isfinite(number) or not in_bounds or (whole and number != int(number)):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise SettingsError(f"{name}: expected {self.describe(whole)}, got {value!r}") from None
        return kind(number)

    def meant(self, value: object) -> object:
        """What a slider's value means. Its positions between 0, automatic, and the minimum stand
        for automatic too, so that a small move is not an error."""
        if not self.automatic or not isinstance(value, (int, float)):
            return value
        return 0 if 0 < value < self.minimum else value

    def describe(self, whole: bool) -> str:
        """The accepted numbers, for messages."""
        noun = "a whole number" if whole else "a number"
        if math.isfinite(self.maximum):
            bounds = f" from {self.minimum:.10g} to {self.maximum:.10g}"
        else:
            bounds = f" of at least {self.minimum:.10g}"
        return noun + bounds + (" (0: automatic)" if self.automatic else "")


def _read_bool(name: str, value: object) -> bool:
    spellings = {"true": True, "on": True, "yes": True, "1": True, "1.0": True}
    spellings |= {"false": False, "off": False, "no": False, "0": False, "0.0": False}
    known = spellings.get(str(value).strip().lower())
    if known is None:
        raise SettingsError(f"{name}: expected true or false, got {value!r}")
    return known


def _read_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    for choice in choices:
        if isinstance(value, str) and choice.lower() == value.strip().lower():
            return choice
    raise SettingsError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def _read_listed(value: object) -> str:
    name = str(value).strip()
    return NOTHING if name.lower() in ("", NOTHING.lower()) else name


def _read_schedule(name: str, value: object) -> tuple[float, ...]:
    error = SettingsError(f"{name}: expected numbers in (0, 1], got {value!r}")
    try:
        parts: list[Any]
        if isinstance(value, str):
            parts = value.replace(";", ",").split(",")
        elif isinstance(value, (tuple, list)):
            parts = list(value)
        else:
            parts = [value]
        if any(isinstance(part, bool) for part in parts):
            raise error
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError, OverflowError):
        raise error from None
    if not numbers or not all(0 < number <= 1 for number in numbers):
        raise error
    return numbers


def meant_hint(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: which one may have been meant."""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    near = difflib.get_close_matches(plain, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def control(default: Any, label: str, help: str, symbol: str = "", **bounds: Any) -> Any:
    """A dataclass field that is a control; `bounds` are Control's remaining fields."""
    return field(default=default, metadata={"control": Control(label, help, symbol, **bounds)})


class Declared:
    """A frozen dataclass whose fields are controls, checked and converted when it is built."""

    prefix = ""  # of the controls' public names

    def __post_init__(self) -> None:
        for name, kind, control_, attribute in self.rows():
            value = control_.read(name, getattr(self, attribute), kind)
            object.__setattr__(self, attribute, value)

    @classmethod
    def rows(cls) -> Iterator[tuple[str, type, Control, str]]:
        """(public name, type, control, attribute) of every field, in order."""
        kinds = _kinds(cls)  # type: ignore[arg-type]  # mypy takes a class for its instance
        for item in fields(cls):  # type: ignore[arg-type]
            name = item.name.rstrip("_")
            if cls.prefix:
                name = cls.prefix if name == "enabled" else f"{cls.prefix}_{name}"
            yield name, kinds[item.name], item.metadata["control"], item.name


@cache
def _kinds(cls: type[Declared]) -> Mapping[str, type]:
    """The type of each field, without its parameters: tuple for tuple[float, ...]."""
    return {name: get_origin(hint) or hint for name, hint in get_type_hints(cls).items()}
