"""The page's controls, made from the same declarations as everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gradio as gr

from lib_hires.presets import Preset
from lib_hires.settings import (
    GROUPS,
    NOTHING,
    Control,
    Declaration,
    Settings,
    as_kept,
    declarations,
)
from lib_hires.sizes import Size
from lib_hires.standalone.pipeline.request import Request
from lib_hires.standalone.pipeline.upsamplers import find_upsampler, known_upsamplers

LONG_SLIDER = 200  # steps; a control with more is a number to type


def element_id(name: str) -> str:
    """The page's element of a control, and of everything else that has a name."""
    return f"hires_app_{name}"


@dataclass(frozen=True)
class Controls:
    """The components by name: what to generate, and the settings."""

    request: dict[str, Any]
    settings: dict[str, Any]
    groups: dict[str, Any]  # the accordions; what is in one exists only once it has been open

    @classmethod
    def made(cls, *, clips: bool = False) -> Controls:
        """Make them where the page stands; the prompts first, the settings in accordions.

        clips: those of clips too.
        """
        defaults = Request()
        request = {}
        with gr.Group():
            request |= {
                name: _component(name, kind, control, getattr(defaults, name))
                for name, kind, control, _ in Request.rows()
                if _is_text(kind, control)
            }
        with gr.Row():
            request |= {
                name: _component(name, kind, control, getattr(defaults, name), min_width=200)
                for name, kind, control, _ in _request_rows(clips)
                if not _is_text(kind, control)
            }
        settings: dict[str, Any] = {}
        groups = {}
        for group, title in GROUPS.items():
            with gr.Accordion(title, open=False) as groups[group]:
                rows = [row for row in _rows(clips) if row.group == group]
                settings |= {row.name: _setting(row) for row in rows}
        order = [name for name, *_ in _request_rows(clips)]
        return cls({name: request[name] for name in order}, settings, groups)

    @property
    def components(self) -> list[Any]:
        """All of them, in the order in which a handler gets their values."""
        return [*self.request.values(), *self.settings.values()]

    @property
    def repeating(self) -> list[Any]:
        """What `values` is for."""
        return [*self.components, *self.groups.values()]

    def read(self, values: Sequence[object]) -> tuple[Request, Settings]:
        """The request and settings of the components' values. Raises SettingsError."""
        named = dict(zip([*self.request, *self.settings], values, strict=True))
        known = {name: value for name, value in named.items() if value is not None}
        request = {name: known[name] for name in self.request if name in known}
        settings = {
            row.name: row.control.meant(known[row.name]) for row in _rows(True) if row.name in known
        }
        return Request.from_values(request), Settings.from_values(settings)

    def values(self, about: Mapping[str, Any]) -> list[Any]:
        """The components' values that repeat an image, and which groups to open for them.

        Raises SettingsError, also where a feature upsampler is not here.
        """
        request = asdict(Request.from_values(about.get("request", {})))
        settings = Settings.from_values(as_kept(about.get("settings", {}))).values()
        upsampler = find_upsampler(settings["refine_upsampler"])
        settings["refine_upsampler"] = NOTHING if upsampler is None else upsampler.name
        return [*(request[name] for name in self.request), *self._setting_values(settings)]

    @property
    def preset(self) -> list[Any]:
        """What `preset_values` is for."""
        sizes = [self.request["width"], self.request["height"]]
        return [*sizes, *self.settings.values(), *self.groups.values()]

    def preset_values(self, preset: Preset, size: Size, native: Size, multiple: int) -> list[Any]:
        """The first image's size and the settings' values, and which groups to open for them.

        A size that stands is brought to the preset's area in its shape, as in the WebUI; `hires
        generate` keeps one that is given. size: (height, width) as it stands, 0 where the model is
        to choose; multiple: of what the model takes. All in pixels.
        """
        height, width = size
        if height or width:
            height, width = preset.first_size((height or width, width or height), multiple)
        else:
            height, width = preset.size_for(native, multiple)
        return [width, height, *self._setting_values(preset.settings().values())]

    def _setting_values(self, settings: Mapping[str, Any]) -> list[Any]:
        return [
            *(settings[name] for name in self.settings),
            *(gr.update(open=settings[group]) for group in self.groups),
        ]


def _request_rows(clips: bool) -> list[tuple[str, type, Control, str]]:
    return [row for row in Request.rows() if clips or not row[2].clips]


def _rows(clips: bool) -> list[Declaration]:
    return [row for row in declarations(clips=clips) if not row.control.webui_only]


def _is_text(kind: type, control: Control) -> bool:
    return kind is str and not control.choices and not control.listed


def _setting(row: Declaration) -> Any:
    return _component(row.name, row.kind, row.control, row.default)


def _component(name: str, kind: type, control: Control, value: Any, **layout: Any) -> Any:
    common = {"label": control.title, "info": control.help, "value": value, **layout}
    common |= {"elem_id": element_id(name), "visible": control.on_page}
    if kind is bool:
        return gr.Checkbox(**common)
    if control.listed:
        return gr.Dropdown(choices=[NOTHING, *known_upsamplers()], **common)
    if control.choices:
        few = len(control.choices) < 5
        return (gr.Radio if few else gr.Dropdown)(choices=list(control.choices), **common)
    if kind in (int, float):
        low = 0 if control.automatic else control.minimum
        bounds = {"minimum": low, "maximum": control.maximum, "step": control.step}
        if (control.maximum - low) / control.step > LONG_SLIDER * 10:
            return gr.Number(precision=0 if kind is int else None, **bounds, **common)
        return gr.Slider(**bounds, **common)
    return gr.Textbox(lines=2 if name == "prompt" else 1, **common)
