"""The world's public names: scenes as numbers, and their drawing at any size.

A `Scene` holds only relative coordinates, so the same scene can be drawn at any size: at 512x512 it
is the image of 256x256, only sharper, with detail that 256x256 could not show.
"""

from lib_hires.standalone.world.description import (
    AIRBORNE,
    APPARENT,
    CLASSES,
    COLOURS,
    GROUNDS,
    SKIES,
    VIEW_SHARES,
    VIEWS,
    Scene,
    Subject,
    View,
    random_scene,
)
from lib_hires.standalone.world.drawing import draw

__all__ = [
    "AIRBORNE",
    "APPARENT",
    "CLASSES",
    "COLOURS",
    "GROUNDS",
    "SKIES",
    "VIEWS",
    "VIEW_SHARES",
    "Scene",
    "Subject",
    "View",
    "draw",
    "random_scene",
]
