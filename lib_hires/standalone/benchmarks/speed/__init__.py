"""`hires benchmark speed`: what each technique costs, as ratios taken side by side in one run.

Beside each ratio stands its bound: what the same model evaluations, decodes and encodes cost when
nothing else takes time, from the seconds that they took in this very run.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
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
from lib_hires.standalone.benchmarks.memory import peak_alone, peak_memory
from lib_hires.standalone.benchmarks.reports import write_report
from lib_hires.standalone.benchmarks.speed.growth import (
    PROMPT,
    evaluation,
    growth,
    latent_size,
    median_of,
    peak_of_evaluation,
    plot_growth,
)
from lib_hires.standalone.benchmarks.speed.real_size import (
    SIDES,
    real_size_rows,
    real_size_table,
    skipped,
)
from lib_hires.standalone.benchmarks.speed.tiles import difference_rows, memory_rows
from lib_hires.standalone.benchmarks.speed.timing import Timed, bound, ratio, time_run
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.request import Request
from lib_hires.upsampler_file import NamedUpsampler

AREAS = (1, 2, 4, 8)  # times the native one, for how cost grows

TO_THE_END = {"ug": True, "ug_eta": 1}


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
        Case(f"UG, {scale}x", scale, {**TO_THE_END, "ug_cadence": 1}),
        Case(f"UG, {scale}x, cadence 2", scale, {**TO_THE_END, "ug_cadence": 2}),
        Case(f"UG, {scale}x, cadence 3", scale, {**TO_THE_END, "ug_cadence": 3}),
        Case(
            f"refinement {eta2}, {scale}x",
            scale,
            {"refine": True, "refine_factor": scale, "refine_eta2": eta2},
            published,
        ),
    ]


@dataclass(frozen=True)
class Setup:
    """What every kind of row is measured with."""

    model: LatentModel
    scales: Sequence[int]
    steps: int
    repeats: int


def speed(
    out: Path,
    model: LatentModel,
    *,
    scales: Sequence[int] = (2, 4),
    steps: int = 20,
    repeats: int = 3,
    areas: Sequence[int] = AREAS,
    card: torch.device | None = None,
    sides: Sequence[int] = SIDES,
) -> str:
    """Time every case and write report.json and growth.png into `out`; returns the table.

    card: a CUDA device, on which networks of real size generate images with these sides; None
    leaves them out, with a line in the table. The report is written before that, and again after
    each row.
    """
    setup = Setup(model, scales, steps, repeats)
    rows = [row for measured in MEASURED for row in measured(setup)]
    grown = growth(model, areas, repeats)
    rows += [row for each in grown for row in each.rows]
    plot_growth(grown, out / "growth.png")
    large: list[dict[str, Any]] = []
    write = partial(
        write_report, out / "report.json", dtype=model.dtype, device=card or model.device
    )
    write(rows)
    for row in real_size_rows(card, sides, steps) if card else [skipped(sides)]:
        large.append(row)
        write([*rows, *large])
    head = f"{steps} steps, median of {repeats}, {torch.get_num_threads()} threads, {model.dtype}"
    return "\n".join([head, *_table(rows), "", *real_size_table(large)])


# --- the rows -------------------------------------------------------------------------------------


def _rows_at(model: LatentModel, scale: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Every case of a scale, in turns with plain sampling, so that other load slows both."""
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
    rows: list[dict[str, Any]] = []
    for case in chosen:
        runs = timed[case.name]
        row = {"name": case.name, "ratio": ratio(runs, plain), "bound": bound(runs, plain)}
        row |= {"goal": case.goal} if case.goal else {}
        rows += [row | {"settings": case.settings}, _beside_the_model(case.name, runs)]
    return [*rows, _beside_the_model(f"plain, {scale}x", plain)]


def _beside_the_model(name: str, runs: Sequence[Timed]) -> dict[str, Any]:
    """The share of a run that is neither evaluation nor decoding nor encoding."""
    share = statistics.median(1 - run.parts.total / run.seconds for run in runs)
    return {"name": f"  beside the model, {name}", "ratio": share, "bound": 0.0, "goal": 0.02}


def _case_rows(setup: Setup) -> Iterator[dict[str, Any]]:
    for scale in setup.scales:
        yield from _rows_at(setup.model, scale, setup.steps, setup.repeats)


def _upsampler_rows(setup: Setup) -> Iterator[dict[str, Any]]:
    for method in ("AP-LDM", "Pivot"):
        yield _upsampler_row(setup.model, method, setup.steps, setup.repeats)


def _upsampler_row(model: LatentModel, method: str, steps: int, repeats: int) -> dict[str, Any]:
    """What a feature upsampler adds to the stage to 2x; an untrained one costs as much as any.

    The bound counts its one native evaluation.
    """
    settings = Settings.from_values({"refine": True, "refine_method": method})
    request = Request(prompt=PROMPT, steps=steps)
    upsampler = _untrained_upsampler(model)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(repeats + 1):  # the first calls of a size are slower
        for upsampled, runs in seconds.items():
            run = Run(model, request, settings, upsampler if upsampled else None)
            first, stage = (done.seconds for done in run.generate())
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


def _pfsa_rows(setup: Setup) -> list[dict[str, Any]]:
    """Seconds of mixing a state of twice the native sides, over those of an evaluation there.

    Likewise its memory, where the system reports it.
    """
    model, repeats = setup.model, setup.repeats
    latent = latent_size(model, 4)
    shape = 1, model.latent_channels, *latent
    mixing = median_of(repeats, _mixing(shape, model.device))
    beside = median_of(repeats, evaluation(model, latent))
    rows = [{"name": "PFSA a step, 2x, beside an evaluation", "ratio": mixing / beside}]
    peak = peak_alone(model.device, partial(_peak_of_mixing, shape, model.device))
    held = peak_of_evaluation(model, latent)
    if peak is not None and held:
        rows.append({"name": "  memory of it", "ratio": peak / held})
    return rows


def _mixing(shape: tuple[int, ...], device: torch.device) -> Callable[[], None]:
    state, settings = torch.randn(shape, device=device), AttentiveGuidance(enabled=True)
    return lambda: mix_into_state_(state.clone(), 0.004, settings, 1.0)


def _peak_of_mixing(shape: tuple[int, ...], device: torch.device) -> int | None:
    _mixing((*shape[:2], 8, 8), device)()  # what the first call loads
    return peak_memory(device, _mixing(shape, device))


def _tile_rows(setup: Setup) -> list[dict[str, Any]]:
    model = setup.model
    height, width = (side * 2 // model.factor for side in model.native)
    (first,) = Run(model, Request(prompt=PROMPT, steps=8), Settings.from_values({})).generate()
    latent = torch.nn.functional.interpolate(first.latent, (height, width), mode="bicubic")
    return [*difference_rows(model, latent), *memory_rows(model, setup.scales)]


MEASURED: tuple[Callable[[Setup], Iterable[dict[str, Any]]], ...] = (
    _case_rows,
    _upsampler_rows,
    _pfsa_rows,
    _tile_rows,
)
"""The kinds of rows on the bundled model, in the table's order; a new kind is one entry here."""


def _table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"{'':44} {'ratio':>8} {'bound':>8} {'goal':>6}"
    for row in rows:
        cells = [f"{row[key]:.3f}" if key in row else "" for key in ("ratio", "bound", "goal")]
        yield f"{row['name']:44} {cells[0]:>8} {cells[1]:>8} {cells[2]:>6}".rstrip()
