"""Messages for the user: under the image, in the log, and in the PNG info for the API."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib_hires.webui.surfaces.infotext import NOTE

log = logging.getLogger("hires_guidance")

Warn = Callable[[str], None]

OURS = Path(__file__).parents[2]  # the folder of this extension
FOLDERS = "extensions", "extensions-builtin"  # of the host's, in which each extension has one


def warn_user(p: Any, message: str) -> None:
    """Show a message to the user of the host's run `p`, once."""
    message = message.replace("?.", "?")  # what is wrong may itself end in a question mark
    text = f"HiRes Guidance: {message}"
    if text not in p.comments:
        log.warning(text)
        p.comment(text)
    note = p.extra_generation_params.get(NOTE, "")
    if message not in note:
        p.extra_generation_params[NOTE] = f"{note} {message}".lstrip()


def warn_failed(warn: Warn, technique: str, error: Exception) -> None:
    """To be called in the block that handles `error`: a technique is left out from here on."""
    log.exception("%s failed", technique)
    place = f' in the extension "{name}"' if (name := extension_of(error)) else ""
    warn(
        f"the rest of the image was made without {technique}, because it failed{place} "
        f"({type(error).__name__}: {error})."
    )


def extension_of(error: BaseException) -> str:
    """The name of the other extension in whose code the error was raised or passed last, or ""."""
    folders = "|".join(FOLDERS)
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = Path(frame.f_code.co_filename)
        found = re.findall(rf"/(?:{folders})/([^/]+)/", file.as_posix())
        if found and OURS not in file.parents:
            return str(found[-1])
    return ""
