"""`hires benchmark speed`: what each technique costs, as ratios taken side by side in one run.

Beside each ratio stands its bound: what the same model evaluations, decodes and encodes cost when
nothing else takes time, from the seconds that they took in this very run.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lib_hires.attentive_guidance import mix_into_state_
from lib_hires.feature_upsampler import (
    FeatureUpsampler,
    UpsamplerInfo,
    default_layers,
    layout_of,
)
from lib_hires.settings import AttentiveGuidance, Settings
from lib_hires.sizes import Size
from lib_hires.standalone.benchmark_growth import (
    PROMPT,
    evaluation,
    growth,
    latent_size,
    median_of,
    now,
    plot_growth,
)
from lib_hires.standalone.benchmark_tiles import difference_rows, memory_rows
from lib_hires.standalone.generate import Run
from lib_hires.standalone.latent_model import LatentModel
from lib_hires.standalone.request import Request
from lib_hires.upsampler_file import NamedUpsampler

AREAS = (1, 2, 4, 8)  # times the native one, for how cost grows


@dataclass(frozen=True)
class Case:
    """A technique and the plain sampling at the same final size that it is compared with."""

    name: str
    scale: int
    settings: dict[str, Any]
    goal: float | None = None  # a published ratio


def cases(scale: int) -> list[Case]:
    """What is timed at `scale` times the native sides."""
    eta2, published = {2: ("0.2", 0.60)}.get(scale, ("0.1, 0.2", 0.71))
    return [
        Case(f"UG, {scale}x", scale, {"ug": True}),
        Case(f"UG, {scale}x, cadence 2", scale, {"ug": True, "ug_cadence": 2}),
        Case(f"UG, {scale}x, cadence 3", scale, {"ug": True, "ug_cadence": 3}),
        Case(
            f"refinement {eta2}, {scale}x",
            scale,
            {"refine": True, "refine_factor": scale, "refine_eta2": eta2},
            published,
        ),
    ]


def speed(
    out: Path,
    model: LatentModel,
    *,
    scales: Sequence[int] = (2, 4),
    steps: int = 20,
    repeats: int = 3,
    areas: Sequence[int] = AREAS,
) -> str:
    """Time every case and write report.json and growth.png into `out`; returns the table."""
    rows = []
    for scale in scales:
        rows += _rows_at(model, scale, steps, repeats)
    rows += [_upsampler_row(model, method, steps, repeats) for method in ("AP-LDM", "Pivot")]
    rows += [_pfsa_row(model, repeats), *_tile_rows(model, scales)]
    grown = growth(model, areas, repeats)
    rows += [row for each in grown for row in each.rows]
    (out / "report.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot_growth(grown, out / "growth.png")
    head = f"{steps} steps, median of {repeats}, {torch.get_num_threads()} threads, {model.dtype}"
    return "\n".join([head, *_table(rows)])


# --- one run, watched -----------------------------------------------------------------------------


@dataclass
class PartTimes:
    """Seconds of each call of the model's parts, by part and by its input's (height, width)."""

    seconds: dict[tuple[str, Size], list[float]] = field(default_factory=lambda: defaultdict(list))

    def of(self, part: str, size: Size | None = None) -> list[float]:
        """All calls of a part, or those with inputs of one size."""
        return [
            seconds
            for (name, at), calls in self.seconds.items()
            if name == part and size in (None, at)
            for seconds in calls
        ]

    @property
    def total(self) -> float:
        return sum(sum(calls) for calls in self.seconds.values())

    @contextmanager
    def watching(self, model: LatentModel) -> Iterator[None]:
        """Time the parts of `model` inside the block."""
        parts = [("unet", model.unet), ("encode", model.vae.encoder), ("decode", model.vae.decoder)]
        parts += [("text", encoder.model) for encoder in model.encoders]
        with ExitStack() as stack:
            for name, module in parts:
                self._watch(stack, name, module)
            yield

    def _watch(self, stack: ExitStack, name: str, module: Any) -> None:
        begun: list[float] = []

        def before(_: Any, inputs: tuple[Any, ...]) -> None:
            begun[:] = [now()]

        def after(_: Any, inputs: tuple[Any, ...], __: Any) -> None:
            size = tuple(inputs[0].shape[-2:]) if inputs else ()
            self.seconds[name, size].append(now() - begun[0])

        stack.enter_context(module.register_forward_pre_hook(before))
        stack.enter_context(module.register_forward_hook(after))


@dataclass(frozen=True)
class Timed:
    """A run's seconds, in all and by part."""

    seconds: float
    parts: PartTimes


def time_run(model: LatentModel, settings: Settings, size: Size | None, steps: int) -> Timed:
    """Paint one picture; size: the first picture's (height, width), None for native."""
    height, width = size or model.native
    request = Request(prompt=PROMPT, width=width, height=height, steps=steps)
    run, parts = Run(model, request, settings), PartTimes()
    with parts.watching(model):
        begun = now()
        for _ in run.paint():
            pass
        return Timed(now() - begun, parts)


# --- the rows -------------------------------------------------------------------------------------


def _rows_at(model: LatentModel, scale: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Every case of a scale, run in turns with plain sampling so that they share the weather."""
    size = model.native[0] * scale, model.native[1] * scale
    chosen = cases(scale)
    time_run(model, Settings(), size, 2)  # the first calls of a size are slower
    plain: list[Timed] = []
    timed: dict[str, list[Timed]] = defaultdict(list)
    for _ in tqdm(range(repeats), desc=f"{scale}x", leave=False):
        plain.append(time_run(model, Settings(), size, steps))
        for case in chosen:
            settings = Settings.from_values(case.settings)
            first = None if settings.refine.enabled else size
            timed[case.name].append(time_run(model, settings, first, steps))
    rows = []
    for case in chosen:
        runs = timed[case.name]
        row = {"name": case.name, "ratio": _ratio(runs, plain), "bound": _bound(runs, plain)}
        row |= {"goal": case.goal} if case.goal else {}
        rows.append(row | {"settings": case.settings})
        share = statistics.median(1 - run.parts.total / run.seconds for run in runs)
        rows.append(
            {"name": f"  beside the model, {case.name}", "ratio": share, "bound": 0.0, "goal": 0.02}
        )
    return rows


def _ratio(runs: Sequence[Timed], plain: Sequence[Timed]) -> float:
    """Of runs made in turns, so that each is compared with the plain one before it."""
    return statistics.median(
        run.seconds / other.seconds for run, other in zip(runs, plain, strict=True)
    )


def _bound(runs: Sequence[Timed], plain: Sequence[Timed]) -> float:
    """The calls that a run makes, at the median cost of such a call, over the plain run's time."""
    cost: dict[tuple[str, Size], list[float]] = defaultdict(list)
    for run in (*runs, *plain):
        for key, calls in run.parts.seconds.items():
            cost[key] += calls
    ideal = sum(
        statistics.median(cost[key]) * len(calls) for key, calls in runs[0].parts.seconds.items()
    )
    return ideal / statistics.median(run.seconds for run in plain)


def _upsampler_row(model: LatentModel, method: str, steps: int, repeats: int) -> dict[str, Any]:
    """What a feature upsampler adds to the stage to 2x; an untrained one costs as much as any.

    The bound counts the one small evaluation that it makes.
    """
    settings = Settings.from_values({"refine": True, "refine_method": method})
    request = Request(prompt=PROMPT, steps=steps)
    upsampler = _untrained_upsampler(model)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(repeats + 1):  # the first calls of a size are slower
        for upsampled, runs in seconds.items():
            run = Run(model, request, settings, upsampler if upsampled else None)
            first, stage = (painted.seconds for painted in run.paint())
            runs.append(stage - first)
    pairs = zip(seconds[True][1:], seconds[False][1:], strict=True)
    small = median_of(repeats, evaluation(model, latent_size(model, 1)))
    return {
        "name": f"feature upsampler, the stage to 2x, {method}",
        "ratio": statistics.median(ours / plain for ours, plain in pairs),
        "bound": 1 + small / statistics.median(seconds[False][1:]),
        "goal": 1.10,
        "settings": settings.changed(),
    }


def _untrained_upsampler(model: LatentModel) -> NamedUpsampler:
    layers, skips = default_layers(model.unet), layout_of(model.unet).skips
    channels = tuple(skips[layer].channels for layer in layers)
    info = UpsamplerInfo(model.family, model.name, "", layers, channels)
    return NamedUpsampler("untrained", "", FeatureUpsampler(info).requires_grad_(False))


def _pfsa_row(model: LatentModel, repeats: int) -> dict[str, Any]:
    latent = model.native[0] * 2 // model.factor, model.native[1] * 2 // model.factor
    state = torch.randn(1, model.latent_channels, *latent, device=model.device)
    settings = AttentiveGuidance(enabled=True)
    mixing = median_of(repeats, lambda: mix_into_state_(state.clone(), 0.004, settings, 1.0))
    beside = median_of(repeats, evaluation(model, latent))
    return {"name": "PFSA a step, 2x, beside an evaluation", "ratio": mixing / beside}


def _tile_rows(model: LatentModel, scales: Sequence[int]) -> list[dict[str, Any]]:
    height, width = (side * 2 // model.factor for side in model.native)
    (painted,) = Run(model, Request(prompt=PROMPT, steps=8), Settings.from_values({})).paint()
    latent = torch.nn.functional.interpolate(painted.latent, (height, width), mode="bicubic")
    return [*difference_rows(model, latent), *memory_rows(model, scales)]


def _table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"{'':44} {'ratio':>8} {'bound':>8} {'goal':>6}"
    for row in rows:
        cells = [f"{row[key]:.3f}" if key in row else "" for key in ("ratio", "bound", "goal")]
        yield f"{row['name']:44} {cells[0]:>8} {cells[1]:>8} {cells[2]:>6}".rstrip()
