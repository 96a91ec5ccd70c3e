"""The host's own components of one tab, found as the host makes them."""

from __future__ import annotations

from typing import Any, Protocol

_BOTH = (
    *("width", "height", "steps", "sampling", "scheduler", "denoising_strength"),
    *("batch_size", "batch_count"),
)
_HIRES_FIX = "hr-checkbox", "hr_scale", "hr_resize_x", "hr_resize_y", "hires_steps"

HOST_CONTROLS = {
    "txt2img": {name: f"txt2img_{name}" for name in (*_BOTH, *_HIRES_FIX)}
    | {name: name for name in ("hr_sampler", "hr_scheduler")},
    "img2img": {name: f"img2img_{name}" for name in _BOTH},
}
"""What a run's plan depends on: the element's id by our name for it."""

_NAMES = {element: name for tab in HOST_CONTROLS.values() for name, element in tab.items()}


class Tab:
    """Waits until the host has made everything that our events need, then connects them.

    The host's order of components can be set; its output panel comes after all of them. A page
    that is made for the API's defaults alone has none, and nothing is connected there.
    """

    def __init__(self) -> None:
        self.host: dict[str, Any] = {}  # component by its name in HOST_CONTROLS
        self.controls: dict[str, Any] = {}  # our own by the control's name
        self._parts: tuple[Part, ...] = ()

    def add(self, controls: dict[str, Any], *parts: Part) -> None:
        """What is ours in this tab; each part is connected when the tab is complete."""
        self.controls, self._parts = controls, parts

    def notice(self, component: Any) -> None:
        """To be called for every component that the host has made."""
        element = str(getattr(component, "elem_id", None))
        if element in _NAMES:
            self.host[_NAMES[element]] = component
        elif element.startswith("generation_info_"):
            for part in self._parts:
                part.connect(self)


class Part(Protocol):
    def connect(self, tab: Tab) -> None:
        """Attach the part's events."""
