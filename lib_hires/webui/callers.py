"""Who has started a run, and whether that caller goes on with images of the size it asked for.

The host has no field for it, so the stack is read: a run that the host makes for its page or API
hands its images to the user; scripts and extensions that make runs of their own may paste them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import FrameType
from typing import Literal

HOSTS_OWN = "modules.txt2img", "modules.img2img", "modules.api.api"
"""The host's modules that make runs for the page and the API."""

SHOWN_AS_THEY_ARE = "xyz_grid.py", "prompt_matrix.py", "prompts_from_file.py"
"""The host's scripts that show each run's images, whatever their size."""


@dataclass(frozen=True)
class Caller:
    """name: the script's title, or the module of the extension's that made the run."""

    kind: Literal["host", "script", "run", "extension"]
    name: str = ""
    module: str = ""

    @property
    def is_script(self) -> bool:
        """Whether a script of the host's list makes the run."""
        return self.kind == "script"

    def reason_to_keep_size(self) -> str:
        """Why the images must have the size that was asked for, "" where they need not."""
        if self.kind == "host" or self.module in SHOWN_AS_THEY_ARE:
            return ""
        if self.kind == "script":
            return f'the script "{self.name}" counts on images of the size that it asks for'
        if self.kind == "run":
            return "it is made inside another run, which counts on the size that it asks for"
        return f'"{self.name}", which makes this run, counts on images of the size that it asks for'


HOST = Caller("host")


def caller_of_run() -> Caller:
    """The caller of the run whose hook is being called in this thread."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not _makes_a_run(frame):
        frame = frame.f_back
    if frame is None:  # the host's own way in was passed by
        return Caller("extension", "another extension")
    caller = frame.f_back
    nearest = caller.f_globals.get("__name__", "") if caller is not None else ""
    while caller is not None:
        if _makes_a_run(caller):
            return Caller("run")
        if _runs_a_script(caller):
            script = caller.f_locals.get("script")
            title = script.title() if script is not None else "of the list"
            return Caller("script", title, type(script).__module__)
        if caller.f_globals.get("__name__") in HOSTS_OWN:
            return HOST
        caller = caller.f_back
    return Caller("extension", nearest)


def _makes_a_run(frame: FrameType) -> bool:
    return _is(frame, "modules.processing", "process_images")


def _runs_a_script(frame: FrameType) -> bool:
    return _is(frame, "modules.scripts", "run")


def _is(frame: FrameType, module: str, function: str) -> bool:
    return frame.f_code.co_name == function and frame.f_globals.get("__name__") == module
