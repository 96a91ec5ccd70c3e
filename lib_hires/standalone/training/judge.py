"""Trains the judge on drawn scenes of 0 to 16 objects, degraded as generated images are.

`hires train-demo --stages judge`; started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import logging
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from lib_hires.standalone.world.judge import MANY, SIDE, Judge, Sight, inspect, save_judge
from lib_hires.standalone.world.scenes import (
    AIRBORNE,
    CLASSES,
    COLOURS,
    GROUNDS,
    SKIES,
    Scene,
    Subject,
    draw,
)

log = logging.getLogger("hires_guidance")

MOST = 16  # objects in a training image
COUNTS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, MOST)
COUNT_SHARES = (0.07, 0.43, 0.18, 0.08, 0.07, 0.04, 0.03, 0.03, 0.03, 0.02, 0.02)
SHAPES = ((SIDE, SIDE), (160, 96), (96, 160))  # width, height; one shape a batch
SHAPE_SHARES = (0.8, 0.1, 0.1)
NOTHING, UNSURE = 0, -1  # labels of a place with no object, and of an object's rim


@dataclass(frozen=True)
class Config:
    """How the judge is trained. `scenes`: drawn images, each degraded anew whenever it is used;
    `clean`: the share of images left as drawn; `average`: the decay of the averaged weights."""

    steps: int = 3500
    batch: int = 64
    scenes: int = 16_000
    rate: float = 2e-3
    clean: float = 0.2
    average: float = 0.998
    seed: int = 1


# --- images -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """Images of one shape and what they show. `objects`: (n, MOST, 6) with centre x and y, half
    width and half height in fractions of the image, class and colour; class -1 for no object."""

    pixels: Tensor  # (n, 3, H, W) uint8
    objects: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def pick(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (b, 3, H, W) in [-1, 1] and their objects (b, MOST, 6)."""
        return self.pixels[indices].float() / 127.5 - 1, self.objects[indices]


def random_layout(rng: np.random.Generator, aspect: float) -> Scene:
    """A scene with every number and size of objects; alike more often than not, as the repeats of a
    image sampled too large are. `aspect`: width over height."""
    number = int(rng.choice(COUNTS, p=COUNT_SHARES))
    scene = Scene(
        subjects=(),
        sky=str(rng.choice(tuple(SKIES))),
        ground=str(rng.choice(tuple(GROUNDS))),
        horizon=float(rng.uniform(0.4, 0.85)),
        relief=float(rng.random()),
    )
    largest = 0.72 if number < 2 else min(0.55, 1.0 / math.sqrt(number))
    typical = float(
        rng.uniform(0.1, 0.95) if rng.random() < 0.15 else rng.uniform(0.4, 1) * largest
    )
    alike = bool(rng.random() < 0.6)
    placed: list[Subject] = []
    for _ in range(number):
        like = placed[0] if alike and placed else None
        size = typical * float(np.exp(0.2 * rng.standard_normal()))
        subject = place(rng, scene, placed, max(size, 0.085), aspect, like)
        placed += [subject] if subject else []
    return _with_subjects(scene, placed)


def place(
    rng: np.random.Generator,
    scene: Scene,
    others: list[Subject],
    size: float,
    aspect: float,
    like: Subject | None = None,
) -> Subject | None:
    """A subject at a free place, sometimes touching others or cut off by the border; None if there
    was no place. `like`: a subject whose class and colour it takes."""
    wide, high = size * min(1, 1 / aspect), size * min(1, aspect)  # in fractions of each side
    inside = 0.3 if rng.random() < 0.15 else 0.5
    gap = rng.uniform(0.05, 0.55)  # 0: half hidden behind the larger one; 0.5: side by side
    kind = like.kind if like else str(rng.choice(CLASSES))
    for _ in range(30):
        x = _between(rng, inside * wide, 1 - inside * wide)
        y = _between(rng, inside * high, 1 - inside * high)
        if kind not in AIRBORNE and rng.random() < 0.6:  # stands on the ground
            y = _between(rng, max(scene.horizon + 0.05 - high / 2, high / 2), 1 - inside * high)
        if all(
            max(abs(x - o.x) / wide, abs(y - o.y) / high) * size
            > max(size, o.size) / 2 + gap * min(size, o.size)
            for o in others
        ):
            return Subject(
                kind=kind,
                colour=like.colour if like else str(rng.choice(tuple(COLOURS))),
                x=x,
                y=y,
                size=size,
                stretch=float(rng.uniform(0.85, 1.18)),
                tilt=float(rng.uniform(-15, 15) if kind in AIRBORNE else rng.uniform(-4, 4)),
                mirrored=bool(rng.random() < 0.5),
                variant=float(rng.random()),
            )
    return None


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high)) if low < high else 0.5


def _with_subjects(scene: Scene, subjects: list[Subject]) -> Scene:
    ordered = sorted(subjects, key=lambda s: s.y + s.size / 2)
    return Scene(tuple(ordered), scene.sky, scene.ground, scene.horizon, scene.relief)


def random_image(rng: np.random.Generator, width: int, height: int) -> tuple[Image.Image, Scene]:
    """A drawn image and the objects to be counted in it.

    Now and then it holds a ghost (an object half seen through, counted when it is more than half
    there), a sliver of an object at the border or stray shapes, which do not count.
    """
    aspect = width / height
    scene = random_layout(rng, aspect)
    image = draw(scene, width, height)
    subjects = list(scene.subjects)
    if rng.random() < 0.12 and len(subjects) < MOST:
        counted = bool(rng.random() < 0.5)
        size = float(rng.uniform(0.12, 0.4))
        like = subjects[0] if subjects and rng.random() < 0.6 else None
        ghost = place(rng, scene, subjects, size, aspect, like)
        if ghost:
            seen = rng.uniform(0.6, 0.95) if counted else rng.uniform(0.05, 0.28)
            haunted = draw(_with_subjects(scene, [*subjects, ghost]), width, height)
            image = Image.blend(image, haunted, float(seen))
            subjects += [ghost] if counted else []
    if rng.random() < 0.15:
        _stray_shapes(rng, image)
    return image, _with_subjects(scene, subjects)


def _stray_shapes(rng: np.random.Generator, image: Image.Image) -> None:
    """Draw a few spots and slabs, too plain to be an object, into `image`."""
    ink = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 5))):
        base = np.array(list(COLOURS.values())[int(rng.integers(len(COLOURS)))])
        fill = tuple(int(v) for v in base * rng.uniform(0.4, 1))
        w, h = rng.uniform(0.01, 0.07, 2) * min(image.size)
        x, y = rng.uniform(0, 1, 2) * image.size
        shape = ink.ellipse if rng.random() < 0.5 else ink.rectangle
        shape((x - w, y - h, x + w, y + h), fill=fill)


def _objects_of(scene: Scene, aspect: float) -> np.ndarray:
    rows = np.full((MOST, 6), -1.0, np.float32)
    for row, s in zip(rows, scene.subjects[:MOST], strict=False):
        half_width = s.size / 2 * s.stretch * min(1, 1 / aspect)
        half_height = s.size / 2 * min(1, aspect)
        kind, colour = CLASSES.index(s.kind), tuple(COLOURS).index(s.colour)
        row[:] = (s.x, s.y, half_width, half_height, kind, colour)
    return rows


def _draw_chunk(job: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    seed, count, width, height = job
    rng = np.random.default_rng(seed)
    pairs = [random_image(rng, width, height) for _ in range(count)]
    pixels = np.stack([np.asarray(image) for image, _ in pairs]).transpose(0, 3, 1, 2)
    return pixels, np.stack([_objects_of(scene, width / height) for _, scene in pairs])


def draw_images(number: int, width: int, height: int, seed: int) -> Images:
    """Draw `number` images, on all cores; the same ones for the same seed."""
    chunk = 100
    sizes = [min(chunk, number - start) for start in range(0, number, chunk)]
    seeds = np.random.SeedSequence([seed, width, height]).generate_state(len(sizes))
    jobs = [(int(s), size, width, height) for s, size in zip(seeds, sizes, strict=True)]
    bar = partial(tqdm, desc=f"draw {width}x{height}", total=len(jobs), leave=False)
    if len(jobs) == 1:
        parts = [_draw_chunk(jobs[0])]
    else:  # spawned: forking a process in which torch has threads can hang
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as workers:
            parts = list(bar(workers.map(_draw_chunk, jobs)))
    pixels, objects = (torch.from_numpy(np.concatenate(p)) for p in zip(*parts, strict=True))
    return Images(pixels, objects)


# --- degradations: what a small diffusion model and its decoder do to an image ------------------


def warp(x: Tensor) -> Tensor:
    """Bend by a smooth random field of up to some 3 % of the side."""
    b, _, h, w = x.shape
    bends = sum(
        _smooth(b, 2, cells, h, w) * torch.rand(b, 1, 1, 1) * strength
        for cells, strength in ((4, 0.05), (12, 0.02))
    )
    rows, columns = torch.meshgrid(_centres(h) * 2 - 1, _centres(w) * 2 - 1, indexing="ij")
    grid = torch.stack([columns, rows], -1) + bends.permute(0, 2, 3, 1)  # (b, h, w, 2)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def soften(x: Tensor) -> Tensor:
    """Reduce by 1.3 to 3.5 and enlarge again."""
    size = [max(8, round(n / _uniform(1.3, 3.5))) for n in x.shape[-2:]]
    small = F.interpolate(x, size, mode="bilinear", antialias=True)
    return F.interpolate(small, x.shape[-2:], mode="bicubic")


def sharpen(x: Tensor) -> Tensor:
    """Overshoot at edges, as guided samples do."""
    return x + _uniform(0.3, 1.5) * (x - F.avg_pool2d(x, 3, 1, 1))


def grain(x: Tensor) -> Tensor:
    """Noise of one to four pixels, in brightness or colour, stronger in coloured parts."""
    b, _, h, w = x.shape
    size = [-(-n // int(torch.randint(1, 5, ()))) for n in (h, w)]
    noise = torch.randn(b, 3 if _uniform(0, 1) < 0.5 else 1, *size)
    noise = F.interpolate(noise, (h, w), mode="nearest" if _uniform(0, 1) < 0.5 else "bilinear")
    coloured = x.amax(1, keepdim=True) - x.amin(1, keepdim=True)
    where = coloured if _uniform(0, 1) < 0.5 else torch.ones(())
    return x + noise * where * torch.rand(b, 1, 1, 1) * 0.3


def blotches(x: Tensor) -> Tensor:
    """Smooth patches of another brightness and tint."""
    b, _, h, w = x.shape
    cells = int(torch.randint(3, 17, ()))
    tint = _smooth(b, 3, cells, h, w) * 0.5 + _smooth(b, 1, cells, h, w)
    return x + tint * torch.rand(b, 1, 1, 1) * 0.3


def fade(x: Tensor) -> Tensor:
    """Wash out smooth parts of the image toward its mean colour."""
    b, _, h, w = x.shape
    share = (_smooth(b, 1, int(torch.randint(3, 12, ())), h, w) * 0.5).clamp(0, 0.45)
    return x.lerp(x.mean((2, 3), keepdim=True), share)


def recolour(x: Tensor) -> Tensor:
    """Change brightness, contrast and the balance of the channels, within the colours' names."""
    b = len(x)
    gain = 1 + 0.2 * torch.randn(b, 1, 1, 1).clamp(-2, 2) + 0.05 * torch.randn(b, 3, 1, 1)
    return x * gain + 0.1 * torch.randn(b, 1, 1, 1) + 0.04 * torch.randn(b, 3, 1, 1)


def jpeg(x: Tensor) -> Tensor:
    """Through a JPEG of quality 15 to 70."""
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    decoded = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(torch.randint(15, 71, ())))
        decoded.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2) / 127.5 - 1


EFFECTS: tuple[tuple[Callable[[Tensor], Tensor], float], ...] = (
    (warp, 0.5),
    (fade, 0.2),
    (blotches, 0.3),
    (grain, 0.35),
    (soften, 0.35),
    (sharpen, 0.2),
    (recolour, 0.5),
    (jpeg, 0.1),
    (grain, 0.15),
)


def degrade(x: Tensor, clean: float = 0.0) -> Tensor:
    """Apply each effect to a random part of the batch, and none to a share `clean` of it."""
    x = x.clone()
    touched = torch.rand(len(x)) >= clean
    for effect, share in EFFECTS:
        chosen = touched & (torch.rand(len(x)) < share)
        if chosen.any():
            x[chosen] = effect(x[chosen]).clamp(-1, 1)
    return x


def _smooth(b: int, channels: int, cells: int, h: int, w: int) -> Tensor:
    """(b, channels, h, w) of unit normal values on a coarse grid, interpolated."""
    return F.interpolate(torch.randn(b, channels, cells, cells), (h, w), mode="bicubic")


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _centres(n: int) -> Tensor:
    return (torch.arange(n) + 0.5) / n


# --- what the maps should be ----------------------------------------------------------------------


def targets(objects: Tensor, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    """Objects (b, MOST, 6) -> density (b, h, w), class and colour labels (b, h, w).

    The density is a Gaussian of volume one at each centre, wider for larger objects. A class label
    is 0 for nothing, 1 + the class inside an object, -1 (not asked) at its rim.
    """
    objects = objects[:, : int((objects[..., 4] >= 0).sum(1).max())]
    density = torch.zeros(len(objects), h, w)
    kinds = torch.full((len(objects), h, w), NOTHING)
    colours = torch.full((len(objects), h, w), UNSURE)
    for row in objects[..., None, None].unbind(1):
        x, y, half_width, half_height, kind, colour = row.unbind(1)  # each (b, 1, 1)
        there = kind >= 0
        dx, dy = _centres(w)[None, None, :] - x, _centres(h)[None, :, None] - y
        spread = 0.2 * (half_width * w + half_height * h) / 2 + 0.6  # cells
        hill = torch.exp(-((dx * w) ** 2 + (dy * h) ** 2) / (2 * spread**2)) * there
        density += hill / hill.sum((1, 2), keepdim=True).clamp_min(1e-6)
        radius = torch.hypot(dx / half_width, dy / half_height)
        inside, rim = there & (radius < 0.75), there & (radius >= 0.75) & (radius < 1.2)
        kinds = torch.where(inside, kind.long() + 1, torch.where(rim, UNSURE, kinds))
        colours = torch.where(inside, colour.long(), torch.where(rim, UNSURE, colours))
    return density, kinds, colours


def loss_of(sight: Sight, objects: Tensor) -> dict[str, Tensor]:
    """The parts of the training loss, each a mean over the batch."""
    density, kinds, colours = targets(objects, *sight.density.shape[1:])
    number = (objects[..., 4] >= 0).sum(1).float()
    seen = sight.density.sum((1, 2))
    poisson = sight.density - density * sight.density.clamp_min(1e-8).log()
    return {
        "place": poisson.sum((1, 2)).sub(number).div(1 + number).mean(),
        "count": F.smooth_l1_loss(seen, number, beta=0.25, reduction="none")
        .div(1 + 0.15 * number)
        .mean(),
        "class": F.cross_entropy(sight.kinds, kinds, ignore_index=UNSURE),
        "colour": F.cross_entropy(sight.colours, colours, ignore_index=UNSURE),
        "named": _naming_loss(sight, objects),
    }


def _naming_loss(sight: Sight, objects: Tensor) -> Tensor:
    """How surprising the true names are to the verdicts on images with exactly one object."""
    alone = (objects[..., 4] >= 0).sum(1) == 1
    truth = objects[alone, 0, 4:].long().unbind(1)
    return sum(
        F.nll_loss((shares[alone] + 1e-4).log(), names, reduction="sum") / len(objects)
        for shares, names in zip(sight.shares(), truth, strict=True)
    )


# --- training -------------------------------------------------------------------------------------


def train(out: Path, config: Config | None = None, minutes: float = math.inf) -> Path | None:
    """Train a judge and write `judge.safetensors`, `judge-training.json` and `judge-loss.png`.

    Args:
        out: a folder; its `judge-state.pt` holds the training so far and goes when it is done.
        minutes: stop after so long; the next call goes on from there.

    Returns:
        The path of the weights, or None when it was stopped before the end.
    """
    config = config or Config()
    out.mkdir(parents=True, exist_ok=True)
    shapes = [
        draw_images(max(1, round(config.scenes * share)), *shape, config.seed)
        for shape, share in zip(SHAPES, SHAPE_SHARES, strict=True)
    ]
    run = _Run.resume(out / "judge-state.pt", config)
    until = time.monotonic() + 60 * minutes
    bar = tqdm(range(run.step, config.steps), "train judge", initial=run.step, total=config.steps)
    try:
        for _ in bar:
            if time.monotonic() > until:
                break
            losses = run.advance(shapes)
            bar.set_postfix({k: f"{v:.3f}" for k, v in losses.items()}, refresh=False)
            if run.step % 250 == 0:
                run.save()
    finally:
        run.save()
    if run.step < config.steps:
        log.warning(
            "judge: stopped at step %d of %d; start it again to go on", run.step, config.steps
        )
        return None
    return _finish(out, run)


class _Run:
    """A training under way: the network, its averaged copy, the optimiser and the curve so far."""

    def __init__(self, path: Path, config: Config) -> None:
        torch.manual_seed(config.seed)
        self.path, self.config, self.step = path, config, 0
        self.curve: list[dict[str, float]] = []
        self.judge = Judge(CLASSES, tuple(COLOURS)).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.judge).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.judge.parameters(), weight_decay=0.02)

    @classmethod
    def resume(cls, path: Path, config: Config) -> _Run:
        run = cls(path, config)
        if path.exists():
            state = torch.load(path, weights_only=True)
            if state["config"] != asdict(config):
                raise ValueError(f"{path}: expected a training with {config}, got another; move it")
            run.step, run.curve = state["step"], state["curve"]
            for name in ("judge", "average", "optimiser"):
                getattr(run, name).load_state_dict(state[name])
        return run

    def save(self) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("judge", "average")}
        state |= {"optimiser": self.optimiser.state_dict(), "config": asdict(self.config)}
        unfinished = self.path.with_suffix(".unfinished")
        torch.save({**state, "step": self.step, "curve": self.curve}, unfinished)
        unfinished.replace(self.path)

    def advance(self, shapes: Sequence[Images]) -> dict[str, float]:
        """One step on images of one of the shapes; returns the parts of the loss."""
        torch.manual_seed(1_000_003 * self.config.seed + self.step)  # resumed, it is the same run
        self._set_rate()
        drawn = shapes[int(torch.multinomial(torch.tensor(SHAPE_SHARES), 1))]
        images, objects = drawn.pick(torch.randint(len(drawn), (self.config.batch,)))
        if torch.rand(()) < 0.5:
            images, objects = images.flip(3), _mirrored(objects)
        images = degrade(images, self.config.clean).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            sight = self.judge(images)
        losses = loss_of(sight, objects)
        self.optimiser.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(self.judge.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        self._update_average()
        values = {name: round(value.item(), 4) for name, value in losses.items()}
        self.curve.append(values)
        return values

    def _set_rate(self) -> None:
        done = self.step / self.config.steps
        rate = self.config.rate * min(1.0, self.step / 200) * (1 + math.cos(math.pi * done)) / 2
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.average, self.step / (self.step + 10))
        news = self.judge.state_dict()
        for name, mean in self.average.state_dict().items():
            if mean.is_floating_point():  # the weights, and the statistics of the normalisations
                mean.lerp_(news[name], 1 - decay)


def _mirrored(objects: Tensor) -> Tensor:
    mirrored = objects.clone()
    mirrored[..., 0] = 1 - mirrored[..., 0]
    return mirrored


def _finish(out: Path, run: _Run) -> Path:
    path = out / "judge.safetensors"
    judge = run.average.eval()
    save_judge(judge, path, seed=run.config.seed)
    about = {
        "config": asdict(run.config),
        "held_out": {name: evaluate(judge, name == "degraded") for name in ("clean", "degraded")},
        "curve_every_20": run.curve[::20],
    }
    (out / "judge-training.json").write_text(json.dumps(about, indent=1))
    plot(run.curve, out / "judge-loss.png")
    run.path.unlink(missing_ok=True)
    log.info("judge: %s", about["held_out"])
    return path


def evaluate(
    judge: Judge, degraded: bool, number: int = 2000, seed: int = 990_001
) -> dict[str, float]:
    """Accuracy on images that were not trained on.

    `count_N`: exact, of images with N objects (`count_4_or_more` likewise); `many_called_one`: of
    those with two or more, `one_called_other`: of those with one; `class`, `colour`: of those with
    one object.
    """
    drawn = draw_images(number, SIDE, SIDE, seed)
    torch.manual_seed(seed)
    images, objects = drawn.pick(torch.arange(number))
    if degraded:
        images = torch.cat([degrade(part) for part in images.split(50)])
    verdicts = inspect(images, judge, batch=50)
    true = (objects[..., 4] >= 0).sum(1).clamp(max=MANY).numpy()
    seen = np.array([v.objects for v in verdicts])
    one = [(v, row[0]) for v, row, n in zip(verdicts, objects, true, strict=True) if n == 1]
    kinds = [v.kind == CLASSES[int(row[4])] for v, row in one]
    colours = [v.colour == tuple(COLOURS)[int(row[5])] for v, row in one]
    shares = {f"count_{n}": (seen[true == n] == n).mean() for n in range(4)}
    shares |= {
        "count_4_or_more": (seen == true)[true >= 4].mean(),
        "many_called_one": (seen[true >= 2] == 1).mean(),
        "one_called_other": (seen[true == 1] != 1).mean(),
        "class": np.mean(kinds),
        "colour": np.mean(colours),
    }
    return {name: round(float(share), 4) for name, share in shares.items()}


def plot(curve: list[dict[str, float]], path: Path, window: int = 50) -> None:
    """The parts of the loss over the steps, averaged over `window` of them."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for name in curve[0]:
        values = np.convolve([row[name] for row in curve], np.ones(window) / window, "valid")
        axes.plot(np.arange(len(values)) + window, values, label=name)
    axes.set(xlabel="step", ylabel="loss", yscale="symlog", title="judge")
    axes.legend()
    figure.savefig(path, dpi=100, bbox_inches="tight")


def main(arguments: list[str] | None = None) -> None:
    """The command line: `--out DIR`, `--minutes M` and every field of `Config`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("training/judge"))
    parser.add_argument("--minutes", type=float, default=math.inf)
    for name, value in asdict(Config()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    options = vars(parser.parse_args(arguments))
    train(options.pop("out"), minutes=options.pop("minutes"), config=Config(**options))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
