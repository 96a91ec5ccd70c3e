"""Sentences for the user: under the image, in the log, and in the PNG info for the API."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from lib_hires.webui.surfaces.infotext import NOTE

log = logging.getLogger("hires_guidance")

Warn = Callable[[str], None]


def warn_failed(warn: Warn, technique: str, error: Exception) -> None:
    """Tell, in the block that handles `error`, that a technique is left out from here on."""
    log.exception("%s failed", technique)
    warn(
        f"the rest of the image was made without {technique}, because it failed "
        f"({type(error).__name__}: {error})."
    )


def warner_of(p: Any) -> Warn:
    """A function that tells the user of run `p` a sentence, once."""

    def warn(sentence: str) -> None:
        sentence = sentence.replace("?.", "?")  # what is wrong may itself end in a question
        text = f"HiRes Guidance: {sentence}"
        if text not in p.comments:
            log.warning(text)
            p.comment(text)
        note = p.extra_generation_params.get(NOTE, "")
        if sentence not in note:
            p.extra_generation_params[NOTE] = f"{note} {sentence}".lstrip()

    return warn
