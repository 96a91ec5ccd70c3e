"""What the host's server offers beside its own API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modules import shared

from lib_hires.presets import BUILT_IN, PresetError
from lib_hires.settings import GROUPS, NOTHING, Declaration, declarations
from lib_hires.webui.surfaces import user_files as upsamplers
from lib_hires.webui.surfaces.user_files import preset_file

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", tuple: "numbers"}


def add_routes(_demo: Any, app: Any) -> None:
    """GET /hires-guidance/schema: the controls, the presets and the user's own presets."""

    @app.get("/hires-guidance/schema")
    def hires_guidance_schema() -> dict[str, Any]:
        return {**schema(upsamplers.names()), **_own_presets()}


def _own_presets() -> dict[str, Any]:
    """own_presets, and own_presets_error: "", or why there are none.

    Nothing where the host's API wants a password, for this route has none.
    """
    if shared.cmd_opts.api_auth:
        return {}
    try:
        return {"own_presets": preset_file().values(), "own_presets_error": ""}
    except PresetError as error:
        return {"own_presets": {}, "own_presets_error": f"{error}."}


def schema(upsamplers: Sequence[str] = (NOTHING,)) -> dict[str, Any]:
    """groups: titles by group. controls: in the order of the script's arguments. presets.

    A preset names what differs from the defaults; native and first_size are the model's and the
    first image's side in pixels. "numbers" are a list, or a text with commas. upsamplers: what
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
