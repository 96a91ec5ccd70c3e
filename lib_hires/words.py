"""How numbers and sizes are told."""

from __future__ import annotations

from lib_hires.sizes import Size


def shown(size: Size) -> str:
    """(height, width) as users write it."""
    return f"{size[1]}x{size[0]}"


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
