"""The controls and presets as plain JSON values, for programs that drive a host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lib_hires.presets import BUILT_IN
from lib_hires.settings import GROUPS, NOTHING, Declaration, declarations

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", tuple: "numbers"}


def schema(upsamplers: Sequence[str] = (NOTHING,)) -> dict[str, Any]:
    """groups: titles by group. controls: in the order of the script's arguments. presets.

    A preset names what differs from the defaults; native and first_size are the model's and the
    first picture's side in pixels. "numbers" are a list, or a text with commas. upsamplers: what
    the host's list of feature upsamplers offers.
    """
    return {
        "groups": dict(GROUPS),
        "controls": [_control(row, upsamplers) for row in declarations()],
        "presets": [
            {
                "name": preset.name,
                "native": preset.native,
                "first_size": round(preset.native * preset.first),
                "values": dict(preset.values),
            }
            for preset in BUILT_IN
        ],
    }


def _control(row: Declaration, upsamplers: Sequence[str]) -> dict[str, Any]:
    control = row.control
    described: dict[str, Any] = {
        "name": row.name,
        "group": row.group,
        "label": control.label,
        "help": control.help,
        "symbol": control.symbol,
        "type": _TYPES[row.kind],
        "default": row.default,
    }
    if row.kind in (int, float):
        bounds = {"minimum": control.minimum, "maximum": control.maximum, "step": control.step}
        described |= bounds | {"automatic_at_0": control.automatic}
    choices = upsamplers if control.listed else control.choices
    if choices:
        described["choices"] = list(choices)
    return described
