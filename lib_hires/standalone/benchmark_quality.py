"""`hires benchmark quality`: what the pictures of each technique show, beside true pictures.

Every picture is first painted into a file of its own, by several processes side by side; then all
are measured. Called again with the same folder it paints only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.demo import Row, contact_sheet
from lib_hires.standalone.distances import (
    bootstrap_error,
    detail,
    frechet_distance,
    kernel_distance,
    native_crops,
    share_interval,
)
from lib_hires.standalone.judge import Judge, inspect, load_judge, to_tensor
from lib_hires.standalone.models import BUNDLED, load_model
from lib_hires.standalone.png import read_about, save
from lib_hires.standalone.quality_page import page, plot
from lib_hires.standalone.request import Request
from lib_hires.standalone.scenes import Scene, draw, random_scene
from lib_hires.standalone.techniques import NATIVE, STANDARD, Technique, make

FINAL_SEEDS = 10_000  # pictures are reported on seeds from here; settings were chosen on others
TRUE_SEEDS = 900_000  # the true pictures they are compared with
TRUE_PICTURES = 400
OTHER_SEEDS = 800_000  # as many other true pictures as of a technique: how near one can come
CROPS = 2  # native-size crops of each picture
SHOWN = 8  # pictures of each technique on the sheet
OF_THE_SIZE = ("fd_crop", "fd_crop_error", "kd_crop", "detail")  # nothing for native pictures


def quality(
    out: Path,
    *,
    pictures: int,
    scale: int,
    techniques: Sequence[Technique] = STANDARD,
    dtype: torch.dtype = torch.float32,
    first_seed: int = FINAL_SEEDS,
    true_pictures: int = TRUE_PICTURES,
    workers: int = 0,
) -> str:
    """Measure every technique on `pictures` pictures at `scale` times the native size.

    workers: processes that paint, 0 for one a core. Writes the pictures, report.json (one row per
    technique), samples.png, quality.png and index.html into `out`; returns the table. Raises
    SettingsError for fewer than 2 pictures, from which no distance can be computed, and for a
    folder with pictures of another model or other settings.
    """
    if pictures < 2:
        raise SettingsError(f"--pictures: expected at least 2, got {pictures}")
    plan = [(NATIVE, 1), *((technique, scale) for technique in techniques)]
    seeds = range(first_seed, first_seed + pictures)
    for technique, at in plan:
        _claim(out, technique, at, dtype)
    paintings = [Painting(technique, at, seed) for seed in seeds for technique, at in plan]
    _paint_missing(out, paintings, dtype, workers or os.cpu_count() or 1)

    judge, native = load_judge(), _side(paintings[0].path(out))
    side = native * scale
    true = _measured_true(range(TRUE_SEEDS, TRUE_SEEDS + true_pictures), side, judge, native)
    others = _measured_true(range(OTHER_SEEDS, OTHER_SEEDS + pictures), side, judge, native)
    report, samples, paths = [_row("true", scale, others, true)], [], {}
    for technique, at in tqdm(plan, desc="measuring", leave=False):
        files = [Painting(technique, at, seed).path(out) for seed in seeds]
        collected = _measured(files, judge, native)
        row = _row(technique.name, at, collected, true)
        if at != scale:
            row |= dict.fromkeys(OF_THE_SIZE)
        settings = technique.settings_at(at).changed()
        report.append(row | {"settings": settings, "sampler": technique.sampler})
        samples.append(Row(technique, at, *_shown(files[:SHOWN], collected)))
        paths[technique.name] = files
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    contact_sheet(samples, captions=()).save(out / "samples.png")
    plot(report, out / "quality.png")
    page(report, paths, out / "index.html")
    head = f"{pictures} pictures a technique, seeds from {first_seed}, {dtype}"
    return "\n".join([head, *table(report)])


# --- painting -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Painting:
    """One picture that is to be painted."""

    technique: Technique
    scale: int
    seed: int

    def path(self, out: Path) -> Path:
        return _folder(out, self.technique, self.scale) / f"{self.seed}.png"


def _folder(out: Path, technique: Technique, scale: int) -> Path:
    return out / "pictures" / f"{scale}x-{technique.name}"


def _claim(out: Path, technique: Technique, scale: int, dtype: torch.dtype) -> None:
    """Note in the technique's folder how its pictures are made, or refuse those made otherwise."""
    made = {
        "settings": technique.settings_at(scale).values(),
        "request": Request(sampler=technique.sampler).values(),
        "dtype": str(dtype),
        "version": version("hires-guidance"),
        "model": hashlib.sha256(BUNDLED.read_bytes()).hexdigest()[:16],
    }
    path = _folder(out, technique, scale) / "made.json"
    if path.exists() and _as_written_now(json.loads(path.read_text())) != made:
        raise SettingsError(
            f"--out: {path.parent} holds pictures of another model or other settings; "
            "give another folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=1) + "\n")


def _as_written_now(made: dict[str, Any]) -> dict[str, Any]:
    """A note of an earlier version, with the controls that came since at their defaults."""
    return made | {"settings": Settings.from_values(made["settings"]).values()}


def _paint_missing(
    out: Path, paintings: Sequence[Painting], dtype: torch.dtype, workers: int
) -> None:
    """Paint what has no file yet, in `workers` processes that share the machine's cores."""
    missing = [painting for painting in paintings if not painting.path(out).exists()]
    if not missing:
        return
    Random(0).shuffle(missing)  # so that every process paints pictures of every technique
    workers = min(workers, len(missing))
    threads = max(1, (os.cpu_count() or 1) // workers)
    # Small pictures gain more from a process a core than from a core more a process.
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        tqdm(total=len(missing), desc="painting", unit="picture") as bar,
    ):
        shares = [missing[number::workers] for number in range(workers)]
        jobs = [pool.submit(paint, out, share, dtype, threads) for share in shares]
        while wait(jobs, timeout=1).not_done:
            bar.n = sum(painting.path(out).exists() for painting in missing)
            bar.refresh()
        for job in jobs:
            job.result()


def paint(out: Path, paintings: Sequence[Painting], dtype: torch.dtype, threads: int) -> None:
    """Paint the pictures one after another; to be called in a process of its own."""
    torch.set_num_threads(threads)
    model = load_model(None, dtype=dtype)
    for painting in paintings:
        wanted = Request(prompt=scene_of(painting.seed).caption, seed=painting.seed)
        made = make(painting.technique, model, wanted, painting.scale)
        took = {"seconds": made.seconds, "model_evaluations": made.model_evaluations}
        save(made.pictures[0], painting.path(out), made.about | took)


def scene_of(seed: int) -> Scene:
    """The scene whose caption is the prompt of this seed."""
    return random_scene(np.random.default_rng(seed))


# --- measuring ------------------------------------------------------------------------------------


@dataclass
class Collected:
    """What a set of pictures leaves for the measures; the pictures themselves are dropped."""

    whole: list[Tensor] = field(default_factory=list)  # (1, d) features of the reduced picture
    crops: list[Tensor] = field(default_factory=list)  # (CROPS, d) features at full detail
    hits: list[tuple[bool, bool, bool]] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    detail: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(
        self, picture: Image.Image, wanted: Scene, judge: Judge, native: int, seconds: float = 0.0
    ) -> None:
        """Measure one picture against the scene that was asked for."""
        image = to_tensor(picture)
        rng = np.random.default_rng(len(self.hits))
        self.whole.append(judge.features(image))
        self.crops.append(judge.features(native_crops(image, native, CROPS, rng), side=None))
        (seen,), (subject,) = inspect(image, judge), wanted.subjects
        same_kind, same_colour = seen.kind == subject.kind, seen.colour == subject.colour
        self.hits.append((seen.objects == 1, same_kind, same_colour))
        self.objects.append(seen.objects)
        self.detail.append(detail(image))
        self.seconds.append(seconds)


def _measured_true(seeds: range, side: int, judge: Judge, native: int) -> Collected:
    collected = Collected()
    for seed in tqdm(seeds, desc="true pictures", leave=False):
        scene = scene_of(seed)
        collected.add(draw(scene, side, side), scene, judge, native)
    return collected


def _measured(paths: Sequence[Path], judge: Judge, native: int) -> Collected:
    collected = Collected()
    for path in paths:
        with Image.open(path) as picture:
            seconds = read_about(path)["seconds"]
            collected.add(picture, scene_of(int(path.stem)), judge, native, seconds)
    return collected


def _shown(
    paths: Sequence[Path], collected: Collected
) -> tuple[list[Image.Image], list[dict[str, Any]]]:
    """The first pictures and what the sheet says of them."""
    entries = [
        {"objects": objects, "seconds": seconds}
        for objects, seconds in zip(collected.objects, collected.seconds, strict=True)
    ]
    return [Image.open(path).convert("RGB") for path in paths], entries[: len(paths)]


def _side(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.width


def _row(name: str, scale: int, collected: Collected, true: Collected) -> dict[str, Any]:
    """A technique's line. Intervals are of 95 %; errors are standard errors by bootstrap."""
    n = len(collected.hits)
    one_object, kind, colour = (float(share) for share in np.mean(collected.hits, axis=0))
    low, high = share_interval(one_object, n)
    whole, true_whole = torch.stack(collected.whole), torch.stack(true.whole)
    crops, true_crops = torch.stack(collected.crops), torch.stack(true.crops)
    return {
        "technique": name,
        "scale": scale,
        "n": n,
        "objects": round(float(np.mean(collected.objects)), 2),
        "one_object": round(one_object, 3),
        "one_object_95": f"{low:.2f}-{high:.2f}",
        "class_accuracy": round(kind, 3),
        "colour_accuracy": round(colour, 3),
        "fd_whole": round(_frechet(whole, true_whole), 2),
        "fd_whole_error": round(bootstrap_error(_frechet, whole, true_whole), 2),
        "fd_crop": round(_frechet(crops, true_crops), 2),
        "fd_crop_error": round(bootstrap_error(_frechet, crops, true_crops), 2),
        "kd_whole": round(_kernel(whole, true_whole), 3),
        "kd_crop": round(_kernel(crops, true_crops), 3),
        "detail": round(float(np.mean(collected.detail) / np.mean(true.detail)), 2),
        "seconds_per_picture": round(float(np.mean(collected.seconds)), 2),
    }


def _frechet(features: Tensor, true: Tensor) -> float:
    """Of (pictures, looks at each, d), so that pictures are redrawn with all their crops."""
    return frechet_distance(features.flatten(0, 1), true.flatten(0, 1))


def _kernel(features: Tensor, true: Tensor) -> float:
    """Of (pictures, looks at each, d), look by look: two looks at a picture are no two pictures."""
    looks = range(features.shape[1])
    return float(np.mean([kernel_distance(features[:, k], true[:, k]) for k in looks]))


def table(report: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The report as text, a line per technique with its settings at the end."""
    names = [name for name in report[0] if name != "settings"]
    lines = [names, *([_shown_value(row[name]) for name in names] for row in report)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line, row in zip(lines, [{}, *report], strict=True):
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        yield "  ".join([*cells, _settings_text(row)]).rstrip()


def _shown_value(value: Any) -> str:
    return "" if value is None else str(value)


def _settings_text(row: dict[str, Any]) -> str:
    parts = [f"{name}={value}" for name, value in row.get("settings", {}).items()]
    return " ".join([*parts, row.get("sampler", "")])
