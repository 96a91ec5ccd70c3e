"""Scenes as images of any size."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from lib_hires.standalone.world import built, grown
from lib_hires.standalone.world.backdrop import draw_backdrop, draw_shadow, draw_tufts, tint
from lib_hires.standalone.world.description import AIRBORNE, Scene
from lib_hires.standalone.world.pen import Canvas, Pen

_SAMPLES = 2  # a pixel and side

_OBJECTS: dict[str, Callable[[Pen], None]] = {
    "house": built.house,
    "tree": grown.tree,
    "fish": grown.fish,
    "face": grown.face,
    "car": built.car,
    "flower": grown.flower,
    "boat": built.boat,
    "mushroom": grown.mushroom,
    "rocket": built.rocket,
    "bird": grown.bird,
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
