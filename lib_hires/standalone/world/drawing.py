"""Scenes as images of any size."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from lib_hires.standalone.world.backdrop import draw_backdrop, draw_shadow, draw_tufts, tint
from lib_hires.standalone.world.description import AIRBORNE, Scene
from lib_hires.standalone.world.objects import creatures, plants, vehicles
from lib_hires.standalone.world.objects.house import house
from lib_hires.standalone.world.pen import Canvas, Pen

_SAMPLES = 2  # a pixel and side

_OBJECTS: dict[str, Callable[[Pen], None]] = {
    "house": house,
    "tree": plants.tree,
    "fish": creatures.fish,
    "face": creatures.face,
    "car": vehicles.car,
    "flower": plants.flower,
    "boat": vehicles.boat,
    "mushroom": plants.mushroom,
    "rocket": vehicles.rocket,
    "bird": creatures.bird,
}


def draw(scene: Scene, width: int, height: int) -> Image.Image:
    """The scene's view as an RGB image of `width` x `height` pixels.

    The same scene at another size is the same image: what is finer than a pixel is averaged.
    """
    canvas = Canvas(width, height, _SAMPLES, scene.view)
    draw_backdrop(canvas, scene)
    draw_tufts(canvas, scene)
    for subject in scene.subjects:
        if subject.kind not in AIRBORNE:
            draw_shadow(canvas, scene, subject)
        _OBJECTS[subject.kind](Pen(canvas, subject, tint(scene)))
        if subject.kind not in AIRBORNE:
            draw_tufts(canvas, scene, subject)
    return canvas.finished()
