"""The extension's entry on the host's Settings page."""

from __future__ import annotations

import gradio as gr
from modules import shared

from lib_hires.webui.infotext import NATIVE
from lib_hires.webui.model import NATIVE_OPTION


def add_options() -> None:
    """The native size, for models whose own answer is wrong."""
    option = shared.OptionInfo(
        0,
        "Native size of the model in pixels, 0 to ask the model",
        gr.Slider,
        {"minimum": 0, "maximum": 4096, "step": 64},
        section=("hires_guidance", "HiRes Guidance"),
        infotext=NATIVE,
    )
    shared.opts.add_option(NATIVE_OPTION, option)
