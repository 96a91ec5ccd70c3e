"""`hires benchmark video`: clips of each technique, measured beside true clips of the world.

Each clip is generated and measured once and kept, so that a second call makes what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lib_hires.files import whole_file
from lib_hires.settings import Plain, Settings, SettingsError
from lib_hires.standalone.benchmarks.quality.distances import kernel_distance
from lib_hires.standalone.benchmarks.reports import write_report
from lib_hires.standalone.benchmarks.video.measures import (
    Seen,
    jitter,
    seen,
    short_clips,
    steadiness,
)
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import FPS, Run
from lib_hires.standalone.pipeline.outputs import save_clip, to_pil
from lib_hires.standalone.pipeline.request import Request
from lib_hires.standalone.world.description import Scene
from lib_hires.standalone.world.judge import Judge, load_judge, to_tensor
from lib_hires.standalone.world.motion import Motion, draw_clip, random_clip

FIRST_SEED, TRUE_SEEDS = 20_000, 950_000
SHOWN = 8  # frames of a clip on the sheet

UG: Mapping[str, Plain] = {"ug": True, "ug_eta": 0.6}
REFINE: Mapping[str, Plain] = {"refine": True, "refine_factor": 2.0, "refine_eta2": "0.4"}
PIVOT: Mapping[str, Plain] = {"refine": True, "refine_factor": 2.0, "refine_method": "Pivot"}
STAGES: Mapping[str, Plain] = {"ug": True, "ug_eta": 1.0}  # guided in the stages


@dataclass(frozen=True)
class Case:
    """A way to a clip of `sides` times the native sides and `times` the native frames."""

    name: str
    sides: int = 1
    times: int = 1
    settings: Mapping[str, Plain] = field(default_factory=dict)
    interpolated: bool = False  # in time, linearly, from a native clip

    @property
    def folder(self) -> str:
        return f"{self.name.replace(', ', '-').replace(' ', '-')}-{self.sides}x-{self.times}t"


CASES: tuple[Case, ...] = (
    Case("plain"),
    Case("plain", 2),
    Case("UG", 2, 1, UG),
    Case("refinement", 2, 1, REFINE),
    Case("refinement, UG", 2, 1, {**REFINE, **STAGES}),
    Case("pivot", 2, 1, PIVOT),
    Case("pivot, UG", 2, 1, {**PIVOT, **STAGES}),
    Case("plain", 1, 2),
    Case("UG", 1, 2, UG),
    Case("interpolation", 1, 2, {}, True),
    Case("plain", 2, 2),
    Case("UG", 2, 2, UG),
)


def video(
    out: Path,
    model: LatentModel,
    *,
    clips: int,
    steps: int = 20,
    cases: Sequence[Case] = CASES,
    judge: Judge | None = None,
) -> str:
    """Measure every case on as many clips; writes report.json, report.md, a sheet and the clips.

    Returns the table. Raises SettingsError for a model without a motion module, or fewer than 2
    clips.
    """
    if model.motion is None:
        raise SettingsError("--motion: expected a motion module's file or folder")
    if clips < 2:
        raise SettingsError(f"--clips: expected at least 2, got {clips}")
    judge = judge or load_judge()
    true = {
        (case.sides, case.times): [
            _true(out, model, judge, case, TRUE_SEEDS + k) for k in range(clips)
        ]
        for case in tqdm(cases, desc="true clips", leave=False)
    }
    rows: list[dict[str, Any]] = []
    shown: list[Path] = []
    for (sides, times), some in true.items():
        others = [_true(out, model, judge, Case("true", sides, times), k) for k in _seeds(clips)]
        rows.append(_row("true", sides, times, others, some))
    for case in tqdm(cases, desc="cases", leave=False):
        made = [_made(out, model, judge, case, seed, steps) for seed in _seeds(clips)]
        row = _row(
            case.name,
            case.sides,
            case.times,
            [each for each, _ in made],
            true[case.sides, case.times],
        )
        seconds = [float(cost["seconds"]) for _, cost in made]
        row |= {"seconds": round(float(np.median(seconds)), 2), "settings": dict(case.settings)}
        rows.append(row | {"evaluations": int(made[0][1]["evaluations"])})
        shown.append(out / case.folder / f"{FIRST_SEED}.png")
    rows.sort(key=lambda row: (row["sides"], row["times"], row["technique"] != "true"))
    write_report(out / "report.json", rows, dtype=model.dtype, device=model.device)
    text = table(rows)
    (out / "report.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    _sheet(shown).save(out / "samples.png")
    head = f"{clips} clips a technique, {model.motion.frames} native frames, {steps} steps"
    return "\n".join([head, *text])


def _seeds(clips: int) -> range:
    return range(FIRST_SEED, FIRST_SEED + clips)


def clip_of(seed: int) -> tuple[Scene, Motion]:
    """The scene and the motion that a seed stands for."""
    return random_clip(np.random.default_rng(seed))


# --- one clip -------------------------------------------------------------------------------------


def _true(out: Path, model: LatentModel, judge: Judge, case: Case, seed: int) -> Seen:
    path = out / f"true-{case.sides}x-{case.times}t" / f"{seed}.npz"
    if not path.exists():
        scene, motion = clip_of(seed)
        height, width = (side * case.sides for side in model.native)
        frames = draw_clip(scene, motion, width, height, _frames(model) * case.times)
        clip = torch.cat([to_tensor(frame) for frame in frames]).transpose(0, 1)
        _keep(path, _measured(clip, judge, scene), {})
    return _kept(path)[0]


def _made(
    out: Path, model: LatentModel, judge: Judge, case: Case, seed: int, steps: int
) -> tuple[Seen, Mapping[str, float]]:
    """A clip's measures and its cost; the first one is kept to be looked at too."""
    path = out / case.folder / f"{seed}.npz"
    if not path.exists():
        scene, _ = clip_of(seed)
        started = time.perf_counter()
        clip, evaluations = _generated(model, case, scene.caption, seed, steps)
        cost = {"seconds": time.perf_counter() - started, "evaluations": float(evaluations)}
        _keep(path, _measured(clip, judge, scene), cost)
        save_clip(clip, path.with_suffix(".webp"), {"caption": scene.caption}, FPS * case.times)
        if seed == FIRST_SEED:
            _strip(clip).save(path.with_suffix(".png"))
    return _kept(path)


def _generated(
    model: LatentModel, case: Case, caption: str, seed: int, steps: int
) -> tuple[Tensor, int]:
    """A clip (3, f, H, W) and the evaluations that it took."""
    settings = Settings.from_values(case.settings)
    sides = 1 if settings.refine.enabled else case.sides
    height, width = (side * sides for side in model.native)
    frames = _frames(model) * (1 if case.interpolated else case.times)
    request = Request(caption, seed=seed, steps=steps, width=width, height=height, frames=frames)
    *_, last = Run(model, request, settings).generate()
    clip = last.images[0]
    if case.interpolated:
        clip = between(clip, frames * case.times)
    return clip, last.model_evaluations


def between(clip: Tensor, frames: int) -> Tensor:
    """A clip (3, f, H, W) with more frames, each mixed of its two neighbours in time."""
    flat = clip.permute(0, 2, 3, 1).flatten(1, 2)
    mixed = F.interpolate(flat, size=frames, mode="linear", align_corners=False)
    return mixed.unflatten(1, clip.shape[-2:]).permute(0, 3, 1, 2)


def _frames(model: LatentModel) -> int:
    assert model.motion is not None
    return model.motion.frames


def _measured(clip: Tensor, judge: Judge, scene: Scene) -> Seen:
    (subject,) = scene.subjects
    return seen(clip, judge, subject.kind, subject.colour)


def _keep(path: Path, measures: Seen, cost: Mapping[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(
            file, **measures.saved(), **{f"cost_{name}": value for name, value in cost.items()}
        )


def _kept(path: Path) -> tuple[Seen, Mapping[str, float]]:
    with np.load(path) as stored:
        cost = {name[5:]: float(stored[name]) for name in stored if name.startswith("cost_")}
        return Seen(**{name: stored[name] for name in Seen.__dataclass_fields__}), cost


def _strip(clip: Tensor) -> Image.Image:
    """Some frames side by side, 160 pixels high."""
    picks = np.linspace(0, clip.shape[1] - 1, SHOWN).round().astype(int)
    frames = [to_pil(clip[:, int(pick)]).resize((160, 160)) for pick in picks]
    strip = Image.new("RGB", (160 * SHOWN, 160))
    for place, frame in enumerate(frames):
        strip.paste(frame, (160 * place, 0))
    return strip


def _sheet(paths: Sequence[Path]) -> Image.Image:
    sheet = Image.new("RGB", (160 * SHOWN, 164 * len(paths)), "white")
    for row, path in enumerate(paths):
        with Image.open(path) as strip:
            sheet.paste(strip, (0, 164 * row))
    return sheet


# --- the report -----------------------------------------------------------------------------------


def _row(
    name: str, sides: int, times: int, clips: Sequence[Seen], true: Sequence[Seen]
) -> dict[str, Any]:
    """One technique; numbers with `beside` are divided by those of the true clips."""

    def mean(of: Any, some: Sequence[Seen] = clips) -> float:
        return float(np.mean([of(each) for each in some]))

    def beside(of: Any) -> float:
        return round(mean(of) / mean(of, true), 3)

    frames, true_frames = (np.concatenate([c.features for c in s]) for s in (clips, true))
    short, true_short = (
        np.concatenate([short_clips(c.features) for c in s]) for s in (clips, true)
    )
    return {
        "technique": name,
        "sides": sides,
        "times": times,
        "clips": len(clips),
        "one_object": round(mean(lambda c: c.one_object.mean()), 3),
        "right_class": round(mean(lambda c: c.right_class.mean()), 3),
        "right_colour": round(mean(lambda c: c.right_colour.mean()), 3),
        "path_jitter_beside": beside(lambda c: jitter(c.centre)),
        "size_jitter_beside": beside(lambda c: jitter(c.size)),
        "steadiness": round(mean(lambda c: steadiness(c.features)), 3),
        "change_beside": beside(lambda c: c.change.mean()),
        "residual_beside": beside(lambda c: c.residual.mean()),
        "kd_frames": round(kernel_distance(frames, true_frames), 4),
        "kd_clips": round(kernel_distance(short, true_short), 4),
    }


COLUMNS = (
    ("technique", "technique"),
    ("sides", "sides"),
    ("times", "frames"),
    ("one_object", "one object"),
    ("right_class", "class"),
    ("right_colour", "colour"),
    ("path_jitter_beside", "path's jitter"),
    ("size_jitter_beside", "size's jitter"),
    ("steadiness", "steady"),
    ("change_beside", "change"),
    ("residual_beside", "change without motion"),
    ("kd_frames", "kd frames"),
    ("kd_clips", "kd clips"),
    ("seconds", "s a clip"),
)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown. Jitter and change are relative to those of true clips."""
    return list(_lines(rows))


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| " + " | ".join(title for _, title in COLUMNS) + " |"
    yield "|" + "---|" * len(COLUMNS)
    for row in rows:
        cells = (row.get(name, "") for name, _ in COLUMNS)
        yield "| " + " | ".join(map(str, cells)) + " |"
