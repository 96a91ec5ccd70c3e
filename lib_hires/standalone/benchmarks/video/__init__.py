"""`hires benchmark video`: clips of each technique, measured beside true clips of the world.

Each clip is generated and measured once and kept, so that a second call makes what is missing.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lib_hires.files import whole_file
from lib_hires.noise import TURN
from lib_hires.settings import Plain, Settings, SettingsError
from lib_hires.standalone.benchmarks.quality.real_features import CropFeatures
from lib_hires.standalone.benchmarks.reports import claim_folders, write_report
from lib_hires.standalone.benchmarks.video.calibration import (
    THROUGH_VAE,
    TRUE,
    Change,
    changes_for,
)
from lib_hires.standalone.benchmarks.video.interpolation import (
    Between,
    RifeMissing,
    linear,
    rife,
)
from lib_hires.standalone.benchmarks.video.measures import Seen, seen
from lib_hires.standalone.benchmarks.video.report import Report, table
from lib_hires.standalone.benchmarks.video.shown import sheet, side_by_side, strip
from lib_hires.standalone.models.latent import LatentModel, hash_of_weights
from lib_hires.standalone.pipeline import clip_files
from lib_hires.standalone.pipeline.generate import FPS, Run
from lib_hires.standalone.pipeline.outputs import save_clip
from lib_hires.standalone.pipeline.request import AUTOMATIC, OWN, TURNING, Request
from lib_hires.standalone.world.description import Scene
from lib_hires.standalone.world.judge import Judge, load_judge, to_tensor
from lib_hires.standalone.world.motion import Motion, draw_clip, random_clip

FIRST_SEED, TRUE_SEEDS = 20_000, 950_000

UG: Mapping[str, Plain] = {"ug": True, "ug_eta": 0.6, "ug_cadence": 1}
REFINE: Mapping[str, Plain] = {"refine": True, "refine_factor": 2.0, "refine_eta2": "0.4"}
PIVOT: Mapping[str, Plain] = {"refine": True, "refine_factor": 2.0, "refine_method": "Pivot"}


@dataclass(frozen=True)
class Case:
    """A way to a clip of `sides` times the native sides and `times` the native frames."""

    name: str
    sides: int = 1
    times: int = 1
    settings: Mapping[str, Plain] = field(default_factory=dict)
    between: Between | None = None  # interpolation in time, from a native clip
    noise: str = AUTOMATIC  # that a clip starts from

    @property
    def title(self) -> str:
        return f"{self.name}, {self.sides}x the sides, {self.times}x the frames"

    @property
    def folder(self) -> str:
        return f"{self.name.replace(', ', '-').replace(' ', '-')}-{self.sides}x-{self.times}t"


CASES: tuple[Case, ...] = (
    Case("plain"),
    Case("plain, own noise", noise=OWN),
    Case("plain", 2),
    Case("UG", 2, 1, UG),
    Case("refinement", 2, 1, REFINE),
    Case("refinement, UG", 2, 1, {**REFINE, "ug": True, "ug_cadence": 1}),
    Case("pivot", 2, 1, PIVOT),
    Case("pivot, UG", 2, 1, {**PIVOT, **UG}),
    Case("plain", 1, 2),
    Case("UG", 1, 2, UG),
    Case("UG, own noise", 1, 2, UG, noise=OWN),
    Case("interpolation", 1, 2, {}, linear),
    Case("plain", 2, 2),
    Case("UG", 2, 2, UG),
)

FOUR = tuple(
    case for case in CASES if case.name in ("plain", "UG") and case.sides * case.times == 2
)
"""Shown side by side in four.webp: more pixels, and more frames."""


def chosen(cases: Sequence[Case], names: Sequence[str]) -> tuple[Case, ...]:
    """The cases of these folders, in their own order; all where none is named.

    Raises SettingsError for others.
    """
    known = {case.folder: case for case in cases}
    for name in names:
        if name not in known:
            raise SettingsError(f"--cases: expected some of {', '.join(known)}, got {name!r}")
    return tuple(case for name, case in known.items() if name in names or not names)


def known_cases() -> tuple[tuple[Case, ...], str]:
    """CASES and, where its package is installed, interpolation by RIFE; else what is missing."""
    try:
        found = rife()
    except RifeMissing as error:
        return CASES, str(error)
    place = [case.name for case in CASES].index("interpolation") + 1
    return (*CASES[:place], Case("RIFE", 1, 2, {}, found), *CASES[place:]), ""


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

    Returns the table. Raises SettingsError for a model without a motion module, fewer than 2
    clips, a folder of clips that were made otherwise, or where the real network is missing.
    """
    if model.motion is None:
        raise SettingsError("--motion: expected a motion module's file or folder")
    if clips < 2:
        raise SettingsError(f"--clips: expected at least 2, got {clips}")
    Request(steps=steps)  # raises for steps that cannot be
    eyes = Eyes.open(judge)
    _claim(out, model, cases, steps)
    seeds, others = _seeds(clips), range(TRUE_SEEDS, TRUE_SEEDS + clips)
    sizes = dict.fromkeys((case.sides, case.times) for case in cases)
    reports: dict[tuple[int, int], Report] = {}
    for size in tqdm(sizes, desc="true clips", leave=False):
        changes = changes_for(model, size[1])
        beside = _true(out, model, eyes, size, others, {TRUE: changes[TRUE]})
        reports[size] = Report(*size, beside[TRUE])
        for name, some in _true(out, model, eyes, size, seeds, changes).items():
            reports[size].add(name, some)
    shown: list[tuple[Case, Path]] = []
    for case in tqdm(cases, desc="cases", leave=False):
        made = [_made(out, model, eyes, case, seed, steps) for seed in seeds]
        costs = [cost for _, cost in made]
        reports[case.sides, case.times].add(
            case.name,
            [each for each, _ in made],
            seconds=round(float(np.median([cost["seconds"] for cost in costs])), 2),
            settings=dict(case.settings),
            evaluations=int(costs[0]["evaluations"]),
        )
        shown.append((case, out / case.folder / f"{FIRST_SEED}.webp"))
    rows = [row for report in reports.values() for row in report.rows]
    rows.sort(key=lambda row: (row["sides"], row["times"]))
    write_report(out / "report.json", rows, dtype=model.dtype, device=model.device)
    text = table(rows) + [line for report in reports.values() for line in report.close()]
    (out / "report.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    sheet([path.with_suffix(".png") for _, path in shown]).save(out / "samples.png")
    four = {case.title: path for case, path in shown if case in FOUR}
    if len(four) == len(FOUR):
        rate = FPS * max(case.times for case in FOUR)
        clip_files.save_clip(side_by_side(four), out / "four.webp", "", rate)
    head = f"{clips} clips a technique, {model.motion.frames} native frames, {steps} steps"
    return "\n".join([head, *text])


def _claim(out: Path, model: LatentModel, cases: Sequence[Case], steps: int) -> None:
    """Note in each case's folder how its clips are made.

    Raises SettingsError, before anything is written, where one holds clips made otherwise.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    motion = {name: v for name, v in model.unet.state_dict().items() if "motion_modules" in name}
    motion_hash, vae_hash = hash_of_weights(motion), hash_of_weights(model.vae.state_dict())
    how = {"model": model.name, "motion": motion_hash, "steps": steps, "dtype": dtype}
    true = {"native": list(model.native), "frames": _frames(model)}
    through_vae = {**true, "vae": vae_hash, "dtype": dtype}
    notes: dict[Path, dict[str, Any]] = {}
    for case in cases:
        settings = Settings.from_values(case.settings).values()
        noise = Request(clip_noise=case.noise).noised(model.motion.ours).clip_noise
        own = {"settings": settings, "noise": noise, "turn": TURN if noise == TURNING else 0}
        notes[out / case.folder / "made.json"] = how | own
        for name in changes_for(model, case.times):
            folder = out / Case(name, case.sides, case.times).folder
            notes[folder / "made.json"] = through_vae if name == THROUGH_VAE else true
    claim_folders(notes, "clips of another model or other settings")


def _seeds(clips: int) -> range:
    return range(FIRST_SEED, FIRST_SEED + clips)


def clip_of(seed: int) -> tuple[Scene, Motion]:
    """The scene and the motion that a seed stands for."""
    return random_clip(np.random.default_rng(seed))


# --- one clip -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Eyes:
    """What looks at a clip."""

    judge: Judge
    network: CropFeatures

    @classmethod
    def open(cls, judge: Judge | None) -> Eyes:
        """Raises NetworkMissing."""
        return cls(judge or load_judge(), CropFeatures())

    def __call__(self, clip: Tensor, scene: Scene) -> Seen:
        (subject,) = scene.subjects
        return seen(clip, self.judge, subject.kind, subject.colour, self.network)


def _true(
    out: Path,
    model: LatentModel,
    eyes: Eyes,
    size: tuple[int, int],
    seeds: Sequence[int],
    changes: Mapping[str, Change],
) -> dict[str, list[Seen]]:
    """Measures of the true clips of some seeds after each of the changes, by their names.

    size: how many times the native sides and frames.
    """
    found: dict[str, list[Seen]] = defaultdict(list)
    for seed in seeds:
        drawn: tuple[Scene, Tensor] | None = None
        for name, change in changes.items():
            path = out / Case(name, *size).folder / f"{seed}.npz"
            if not path.exists():
                scene, clip = drawn = drawn or _drawn(model, *size, seed)
                _keep(path, eyes(change(clip), scene), {})
            found[name].append(_kept(path)[0])
    return found


def _drawn(model: LatentModel, sides: int, times: int, seed: int) -> tuple[Scene, Tensor]:
    scene, motion = clip_of(seed)
    height, width = (side * sides for side in model.native)
    frames = draw_clip(scene, motion, width, height, _frames(model) * times)
    return scene, torch.cat([to_tensor(frame) for frame in frames]).transpose(0, 1)


def _made(
    out: Path, model: LatentModel, eyes: Eyes, case: Case, seed: int, steps: int
) -> tuple[Seen, Mapping[str, float]]:
    """A clip's measures and its cost; the first one is kept to be looked at too."""
    path = out / case.folder / f"{seed}.npz"
    if not path.exists():
        scene, _ = clip_of(seed)
        started = time.perf_counter()
        clip, evaluations = _generated(model, case, scene.caption, seed, steps)
        cost = {"seconds": time.perf_counter() - started, "evaluations": float(evaluations)}
        save_clip(clip, path.with_suffix(".webp"), {"caption": scene.caption}, FPS * case.times)
        if seed == FIRST_SEED:
            strip(clip).save(path.with_suffix(".png"))
        _keep(path, eyes(clip, scene), cost)  # the last one: it says that all is there
    return _kept(path)


def _generated(
    model: LatentModel, case: Case, caption: str, seed: int, steps: int
) -> tuple[Tensor, int]:
    """A clip (3, f, H, W) and the evaluations that it took."""
    settings = Settings.from_values(case.settings)
    sides = 1 if settings.refine.enabled else case.sides
    height, width = (side * sides for side in model.native)
    frames = _frames(model) * (1 if case.between else case.times)
    sizes = {"width": width, "height": height, "frames": frames}
    request = Request(caption, seed=seed, steps=steps, clip_noise=case.noise, **sizes)
    *_, last = Run(model, request, settings).generate()
    clip = last.images[0]
    if case.between:
        clip = case.between(clip, frames * case.times)
    return clip, last.model_evaluations


def _frames(model: LatentModel) -> int:
    assert model.motion is not None
    return model.motion.frames


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
