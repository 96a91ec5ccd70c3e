"""The stage `crops` of `hires train-demo`: crops of drawn scenes on disk, to train autoencoders on.

They are drawn once, by any process, also while one trains on those that are there.
Scenes are drawn at the native size and at 2x and 4x, in all views, so that detail of every scale
is among them; a crop keeps its pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib_hires.files import whole_file
from lib_hires.standalone.world.model import NATIVE_SIZE
from lib_hires.standalone.world.scenes import VIEW_SHARES, draw, random_scene

# A view from near at 4x would show what no image of the benchmark does.
VIEWS_AT = (VIEW_SHARES, {"whole": 0.7, "near": 0.2, "far": 0.1}, {"whole": 0.9, "far": 0.1})
SIDE = 192  # of a stored crop; training takes smaller windows of it
SHARD = 240  # crops a file
SCALES = (1, 2, 4)
SHARES = (0.35, 0.35, 0.3)  # of the crops that come from each scale
EACH = (1, 3, 6)  # crops of one drawing at each scale


def drawn_crops(rng: np.random.Generator, scale: int) -> Iterator[np.ndarray]:
    """Crops (SIDE, SIDE, 3) uint8 of one new scene at a scale, at random places."""
    size = NATIVE_SIZE * scale
    number = SCALES.index(scale)
    image = np.asarray(draw(random_scene(rng, view=VIEWS_AT[number]), size, size))
    for _ in range(EACH[number]):
        top, left = rng.integers(0, size - SIDE + 1, 2)
        yield image[top : top + SIDE, left : left + SIDE]


def draw_shard(folder: Path, seed: int, number: int) -> None:
    """Write SHARD crops as `number`.npy, unless the file is there already."""
    path = folder / f"{number:04d}.npy"
    if path.exists():
        return
    rng, crops = np.random.default_rng([seed, number]), []
    for scale, share in zip(SCALES, SHARES, strict=True):
        wanted: list[np.ndarray] = []
        while len(wanted) < round(SHARD * share):
            wanted += drawn_crops(rng, scale)
        crops += wanted[: round(SHARD * share)]
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, np.stack(crops))


class Crops:
    """The shards of a folder; those that come while they are used join at `refresh`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: dict[Path, np.ndarray] = {}
        self.refresh()
        if not self._shards:
            raise ValueError(f"{folder}: holds no crops; draw some first")

    def __len__(self) -> int:
        return sum(len(shard) for shard in self._shards.values())

    def refresh(self) -> None:
        for path in sorted(set(self._folder.glob("[0-9]*.npy")) - self._shards.keys()):
            self._shards[path] = np.load(path, mmap_mode="r")

    def examples(self, count: int) -> list[list[np.ndarray]]:
        """The first `count` crops of each scale."""
        shard = self._shards[min(self._shards)]
        starts = np.cumsum([0, *(round(SHARD * share) for share in SHARES[:-1])])
        return [list(shard[start : start + count]) for start in starts]

    def windows(self, rng: np.random.Generator, count: int, side: int) -> list[np.ndarray]:
        """`count` windows (side, side, 3) uint8 of random crops, half of them mirrored."""
        shards, taken = list(self._shards.values()), []
        for _ in range(count):
            shard = shards[int(rng.integers(len(shards)))]
            crop = shard[int(rng.integers(len(shard)))]
            top, left = rng.integers(0, SIDE - side + 1, 2)
            window = crop[top : top + side, left : left + side]
            taken.append(window[:, ::-1] if rng.random() < 0.5 else window)
        return taken


def draw_crops(folder: Path, shards: int, seed: int = 11) -> None:
    """Draw what is missing of so many shards."""
    for number in tqdm(range(shards), desc="crops", unit="file"):
        draw_shard(folder, seed, number)
