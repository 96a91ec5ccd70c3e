"""What the host's server answers beside its own API."""

from __future__ import annotations

from typing import Any

from lib_hires.presets import PresetError
from lib_hires.schema import schema
from lib_hires.webui.presets import preset_file


def add_routes(_demo: Any, app: Any) -> None:
    """GET /hires-guidance/schema: the controls, the presets and the user's own presets."""

    @app.get("/hires-guidance/schema")
    def hires_guidance_schema() -> dict[str, Any]:
        try:
            own: dict[str, Any] = preset_file().values()
        except PresetError:
            own = {}
        return {**schema(), "own_presets": own}
