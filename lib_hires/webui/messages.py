"""Sentences for the user: under the picture, in the log, and in the PNG info for the API."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from lib_hires.webui.infotext import NOTE

log = logging.getLogger("hires_guidance")

Say = Callable[[str], None]


def say_to(p: Any) -> Say:
    """A function that tells the user of run `p` a sentence, once."""

    def say(sentence: str) -> None:
        text = f"HiRes Guidance: {sentence}"
        if text in p.comments:
            return
        p.comment(text)
        log.warning(text)
        earlier = p.extra_generation_params.get(NOTE)
        p.extra_generation_params[NOTE] = f"{earlier} {sentence}" if earlier else sentence

    return say
