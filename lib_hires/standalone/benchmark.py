"""`hires benchmark`: the numbers behind every claim."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lib_hires.standalone.demo import Row, contact_sheet
from lib_hires.standalone.frechet import frechet_distance, native_crops
from lib_hires.standalone.judge import Judge, inspect, load_judge, to_tensor
from lib_hires.standalone.models import load_model
from lib_hires.standalone.request import Request
from lib_hires.standalone.scenes import Scene, draw, random_scene
from lib_hires.standalone.techniques import ALL, NATIVE, Technique, make

FINAL_SEEDS = 10_000  # pictures are reported on seeds from here; settings were chosen on others
TRUE_SEEDS = 900_000  # the true pictures they are compared with
TRUE_PICTURES = 400
CROPS = 2  # native-size crops of each picture


@dataclass
class Collected:
    """What a set of pictures leaves for the measures; the pictures themselves are dropped."""

    whole: list[Tensor] = field(default_factory=list)  # (1, d) features of the reduced picture
    crops: list[Tensor] = field(default_factory=list)  # (CROPS, d) features at full detail
    hits: list[tuple[bool, bool, bool]] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, picture: Image.Image, wanted: Scene, judge: Judge, native: int) -> None:
        """Measure one picture against the scene that was asked for."""
        image = to_tensor(picture)
        rng = np.random.default_rng(len(self.hits))
        self.whole.append(judge.features(image))
        self.crops.append(judge.features(native_crops(image, native, CROPS, rng), side=None))
        (seen,), (subject,) = inspect(image, judge), wanted.subjects
        self.objects.append(seen.objects)
        same_kind, same_colour = seen.kind == subject.kind, seen.colour == subject.colour
        self.hits.append((seen.objects == 1, same_kind, same_colour))


def quality(
    out: Path,
    *,
    pictures: int,
    scale: int,
    techniques: Sequence[Technique] = ALL,
    dtype: torch.dtype = torch.float32,
    first_seed: int = FINAL_SEEDS,
    true_pictures: int = TRUE_PICTURES,
) -> str:
    """Measure every technique on `pictures` pictures at `scale` times the native size.

    Writes report.json (one row per technique) and samples.png into `out`; returns the table.
    Raises ValueError for fewer than 2 pictures, from which no distance can be computed.
    """
    if pictures < 2:
        raise ValueError(f"--pictures: expected at least 2, got {pictures}")
    model, judge = load_model(None, dtype=dtype), load_judge()
    native = model.native[0]
    true = Collected()
    for seed in tqdm(range(true_pictures), desc="true pictures", leave=False):
        scene = scene_of(TRUE_SEEDS + seed)
        true.add(draw(scene, native * scale, native * scale), scene, judge, native)
    plan = [(NATIVE, 1), *((technique, scale) for technique in techniques)]
    report, samples = [_row("true", scale, true, true)], []
    for technique, at in plan:
        collected, shown = _collect(technique, at, pictures, first_seed, model, judge)
        samples.append(shown)
        report.append(_row(technique.name, at, collected, true))
        (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        contact_sheet(samples, captions=()).save(out / "samples.png")
    head = f"{pictures} pictures a technique, seeds from {first_seed}, {model.name}, {dtype}"
    return "\n".join([head, *table(report)])


def scene_of(seed: int) -> Scene:
    """The scene whose caption is the prompt of this seed."""
    return random_scene(np.random.default_rng(seed))


def _collect(
    technique: Technique, scale: int, pictures: int, first_seed: int, model: Any, judge: Judge
) -> tuple[Collected, Row]:
    collected, shown, entries = Collected(), [], []
    for seed in tqdm(range(first_seed, first_seed + pictures), desc=technique.label, leave=False):
        scene = scene_of(seed)
        made = make(technique, model, Request(prompt=scene.caption, seed=seed), scale)
        collected.seconds += made.seconds
        collected.add(made.pictures[0], scene, judge, model.native[0])
        if len(shown) < 8:
            shown.append(made.pictures[0])
            entries.append({"objects": collected.objects[-1], "seconds": made.seconds})
    return collected, Row(technique, scale, shown, entries)


def _row(name: str, scale: int, collected: Collected, true: Collected) -> dict[str, Any]:
    n = len(collected.hits)
    one_object, kind, colour = (float(share) for share in np.mean(collected.hits, axis=0))
    return {
        "technique": name,
        "scale": scale,
        "n": n,
        "objects": round(float(np.mean(collected.objects)), 2),
        "one_object": round(one_object, 3),
        "class_accuracy": round(kind, 3),
        "colour_accuracy": round(colour, 3),
        "fd_whole": _distance(collected.whole, true.whole),
        "fd_crop": _distance(collected.crops, true.crops),
        "seconds_per_picture": round(collected.seconds / n, 2),
    }


def _distance(features: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    return round(frechet_distance(torch.cat([*features]), torch.cat([*true])), 3)


def table(report: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The report as text, a line per technique."""
    names = list(report[0])
    widths = [max(len(name), *(len(str(row[name])) for row in report)) for name in names]
    for row in [dict(zip(names, names, strict=True)), *report]:
        yield "  ".join(
            f"{row[name]!s:>{width}}" for name, width in zip(names, widths, strict=True)
        )


def pfsa_cost(side: int = 128) -> str:
    """Time and peak extra memory of PFSA and of the explicit N x N form, side by side.

    Each is run in a process of its own on a side x side x 4 latent.
    """
    figures = {}
    for form in ("ours", "explicit"):
        command = [
            sys.executable,
            "-c",
            f"from {__name__} import measure; measure({form!r}, {side})",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures[form] = json.loads(done.stdout.splitlines()[-1])
    lines = [f"PFSA of a {side}x{side}x4 latent, {torch.get_num_threads()} threads"]
    lines += [
        f"{form:9} {figure['seconds']:7.3f} s  {figure['mebibytes']:8.1f} MiB extra at the peak"
        for form, figure in figures.items()
    ]
    ratios = [figures["ours"][key] / figures["explicit"][key] for key in ("seconds", "mebibytes")]
    lines.append(f"ratio     {ratios[0]:7.3f}    {ratios[1]:8.4f}")
    return "\n".join(lines)


def measure(form: str, side: int) -> None:
    """Print one form's median seconds and peak extra memory as JSON; for a process of its own."""
    import resource

    from lib_hires.attentive_guidance import pfsa

    def explicit(z: Tensor) -> Tensor:
        flat = z.flatten(2).transpose(1, 2)  # (b, h·w, c)
        weights = (flat @ flat.transpose(1, 2) / math.sqrt(z.shape[1])).softmax(-1)
        return (weights @ flat).transpose(1, 2).reshape(z.shape)

    function = {"ours": pfsa, "explicit": explicit}[form]
    z = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
    function(z[..., :8, :8])  # start threads and kernels before measuring
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(5):
        started = time.perf_counter()
        function(z)
        times.append(time.perf_counter() - started)
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB on Linux
    figures = {"seconds": sorted(times)[2], "mebibytes": extra / 1024}
    sys.stdout.write(json.dumps(figures) + "\n")
