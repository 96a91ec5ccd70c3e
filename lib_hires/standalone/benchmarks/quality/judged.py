"""Measuring the bundled model's images: a judge knows its world, and true images are drawn."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lib_hires.standalone.benchmarks.quality.generation import scene_of
from lib_hires.standalone.benchmarks.quality.measures import Mark, Names
from lib_hires.standalone.world.drawing import draw
from lib_hires.standalone.world.judge import load_judge

TRUE_SEEDS = 900_000  # the true images that those of the techniques are compared with
TRUE_IMAGES = 400
OTHER_SEEDS = 800_000  # as many other true images as of a technique: how near one can come


class Judged:
    """A `Measurer`: objects, class and colour, and distances of the judge's features."""

    names = Names("judge_fd_whole", "judge_fd_crop", "judge_kd_whole", "judge_kd_crop")
    apart = slice(None)

    def __init__(self, true_images: int = TRUE_IMAGES) -> None:
        self._judge = load_judge()
        self._true = true_images
        self.notes: list[str] = []
        if true_images != TRUE_IMAGES:
            self.notes.append(
                f"Distances are taken from {true_images} true images, not {TRUE_IMAGES}: compare "
                "them with no other report's"
            )

    def true_images(self, width: int, height: int) -> Iterator[Image.Image]:
        for _, image in _drawn(TRUE_SEEDS, self._true, width, height):
            yield image

    def other_true_images(
        self, count: int, width: int, height: int
    ) -> Iterator[tuple[int, Image.Image]]:
        return _drawn(OTHER_SEEDS, count, width, height)

    def features(self, images: Tensor, crops: bool) -> Tensor:
        if crops:
            return self._judge.features(images, side=None)
        return self._judge.features(images)

    def marks(self, image: Tensor, seed: int) -> dict[str, Mark]:
        (seen,), (wanted,) = self._judge.look(image), scene_of(seed).subjects
        return {
            "objects": float(seen.objects),
            "one_object": seen.objects == 1,
            "class_accuracy": seen.kind == wanted.kind,
            "colour_accuracy": seen.colour == wanted.colour,
        }


def _drawn(first: int, count: int, width: int, height: int) -> Iterator[tuple[int, Image.Image]]:
    for seed in tqdm(range(first, first + count), desc="true images", leave=False):
        yield seed, draw(scene_of(seed), width, height)
