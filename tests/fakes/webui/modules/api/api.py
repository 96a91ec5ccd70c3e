"""The API's way to make images: a script runs where the request names one, whatever stands first in
its arguments; a request through `infotext` has a text there."""

from __future__ import annotations

from modules import processing


def text2imgapi(p):
    return processing.process_images(p)
