"""What the host's server answers beside its own API."""

from __future__ import annotations

from typing import Any

from modules import shared

from lib_hires.presets import PresetError
from lib_hires.schema import schema
from lib_hires.webui import upsamplers
from lib_hires.webui.presets import preset_file


def add_routes(_demo: Any, app: Any) -> None:
    """GET /hires-guidance/schema: the controls, the presets and the user's own presets."""

    @app.get("/hires-guidance/schema")
    def hires_guidance_schema() -> dict[str, Any]:
        return {**schema(upsamplers.names()), **_own_presets()}


def _own_presets() -> dict[str, Any]:
    """own_presets, and own_presets_error: "", or why there are none.

    Nothing where the host asks users of its API for a password, for this route does not.
    """
    if shared.cmd_opts.api_auth:
        return {}
    try:
        return {"own_presets": preset_file().values(), "own_presets_error": ""}
    except PresetError as error:
        return {"own_presets": {}, "own_presets_error": f"{error}."}
