"""`hires benchmark flops`: what the techniques cost on SD 1.5 and SDXL, in counted operations.

The networks have their real size and lie on torch's meta device, which computes shapes alone: no
weights, no card. A multiplication and an addition count as two operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lib_hires.detail.neighbourhood import Neighbourhood
from lib_hires.detail.processors import attention_in_windows
from lib_hires.presets import TILE, WHOLE, preset_for
from lib_hires.refinement import enlargement_of
from lib_hires.run.plan import RunPlan, run_plan
from lib_hires.run.schedules import Model, Sampler, Sampling, sigmas_of
from lib_hires.settings import Plain, Settings
from lib_hires.sizes import Size, shown
from lib_hires.standalone.models.latent import Family
from lib_hires.standalone.models.ldm import standard_networks
from lib_hires.standalone.models.schedule import scaled_linear
from lib_hires.tiled_vae import vae_tiled

FACTOR = 8  # of the VAE
TOKENS, POOLED, SIZES = 77, 1280, 6  # of a prompt; SDXL's pooled embedding and size numbers
STEPS, PUBLISHED_STEPS = 20, 50  # of the presets; of the papers
FAMILIES: tuple[tuple[Family, str, int, tuple[int, ...]], ...] = (
    ("sd1", "SD 1.5", 512, (1024, 2048, 4096)),
    ("sdxl", "SDXL", 1024, (2048, 4096)),
)
"""Family, title, native side and the sides above it that are counted, in pixels."""

RECTIFIED_HR = {2: ((1, 30), (2, 20)), 4: ((1, 40), (2.5, 7), (4, 3))}
FRECAS = {2: ((1, 40), (2, 10)), 4: ((1, 30), (2, 5), (4, 15))}
"""Steps at multiples of the native side, by the multiple of the target: the settings for SDXL in
the authors' code (EnVision-Research/RectifiedHR, xtudbxk/FreCaS). The middle size of RectifiedHR at
4x is taken as half-way between the sides."""

WINDOWS: Mapping[str, Plain] = {"ug_windows": "attention"}
STRENGTHS = {2: ("0.3", "0.25"), 4: ("0.2, 0.3", "0.1, 0.2", "0.1, 0.15", "0.2")}
"""Denoising strengths of stages that are counted beside each other."""


@dataclass(frozen=True)
class Counted:
    """TFLOP of one family's networks. Sizes are (height, width) in pixels.

    window: the native side in pixels, where self-attention sees neighbourhoods; 0: it sees all.
    """

    family: Family
    window: int = 0

    def evaluation(self, size: Size) -> float:
        """One evaluation of the U-Net on one image with CFG: cond and uncond."""
        return _evaluation(self.family, size, self.window)

    def decode(self, size: Size) -> float:
        """Decoding one image, in tiles where the presets use them."""
        return _vae(size, decode=True)

    def encode(self, size: Size) -> float:
        """Encoding one image, in tiles where the presets use them."""
        return _vae(size, decode=False)


@lru_cache
def _networks(family: Family) -> tuple[Any, Any]:
    with torch.device("meta"):
        return standard_networks(family)


def counted(call: Callable[[], object]) -> float:
    """TFLOP of what `call` computes."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops() / 1e12


def _model(family: Family, native: int) -> Model:
    """What a plan must know of a family's networks."""
    halvings = len(_networks(family)[0].config.down_block_types) - 1
    sides = (native, native), FACTOR, FACTOR * 2**halvings
    return Model(sigmas_of(scaled_linear()), *sides)


@lru_cache
def _evaluation(family: Family, size: Size, window: int) -> float:
    unet, _ = _networks(family)
    x = torch.empty(2, 4, size[0] // FACTOR, size[1] // FACTOR, device="meta")
    text = torch.empty(2, TOKENS, unet.config.cross_attention_dim, device="meta")
    added = {}
    if family == "sdxl":
        pooled, numbers = (torch.empty(2, width, device="meta") for width in (POOLED, SIZES))
        added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": numbers}}
    native = window // FACTOR, window // FACTOR
    windows = Neighbourhood((x.shape[-2], x.shape[-1]), native)
    with attention_in_windows(unet, windows if window else None):
        return counted(lambda: unet(x, torch.ones(2, device="meta"), text, **added))


@lru_cache
def _vae(size: Size, decode: bool) -> float:
    _, vae = _networks("sd1")  # SDXL's has the same layers
    latent = torch.empty(1, 4, size[0] // FACTOR, size[1] // FACTOR, device="meta")
    image = torch.empty(1, 3, *size, device="meta")

    def once(x: Tensor) -> Tensor:
        result: Tensor = vae.decode(x).sample if decode else vae.encode(x).latent_dist.mode()
        return result

    tile = TILE if max(size) > WHOLE else 0
    x = latent if decode else image
    return counted(lambda: vae_tiled(once, x, vae=vae, pixels=tile, factor=FACTOR, decode=decode))


@dataclass(frozen=True)
class Work:
    """Evaluations by size, and the sizes that are decoded and encoded. windows: whether
    self-attention sees windows."""

    evaluations: Sequence[tuple[Size, int]]
    decodes: Sequence[Size]
    encodes: Sequence[Size] = ()
    windows: bool = False

    @classmethod
    def of(cls, planned: RunPlan, settings: Settings) -> Work:
        """That of a planned run; every pass is decoded, and what stages upsample is encoded."""
        evaluations = [(p.size, p.evaluations - p.native_evaluations) for p in planned.passes]
        evaluations += [(p.small, p.native_evaluations) for p in planned.passes if p.small]
        sizes = [part.size for part in planned.passes]
        encodes = sizes[1:] if enlargement_of(settings.refine) == "pixel" else ()
        windows = settings.ug.enabled and settings.ug.windows == "attention"
        return cls(evaluations, sizes, encodes, windows)

    @classmethod
    def of_stages(cls, native: int, stages: Sequence[tuple[float, int]]) -> Work:
        """Unfinished stages: (multiple of the native side, steps), decoded and encoded between."""
        sizes = [(round(native * multiple),) * 2 for multiple, _ in stages]
        counts = [steps for _, steps in stages]
        return cls(list(zip(sizes, counts, strict=True)), sizes, sizes[1:])

    def tflop(self, networks: Counted) -> float:
        """All of it."""
        return (
            sum(count * networks.evaluation(size) for size, count in self.evaluations)
            + sum(map(networks.decode, self.decodes))
            + sum(map(networks.encode, self.encodes))
        )


@dataclass(frozen=True)
class Way:
    """A way to a large image."""

    name: str
    work: Work
    goal: Mapping[str, float] | None = None  # at most, by the row's column


def ways(family: Family, native: int, side: int) -> Iterator[Way]:
    """Plain sampling in 20 steps first; AP-LDM as published is named "ap_ldm_published"."""
    model = _model(family, native)
    scale = side / native

    def planned(first: int, steps: int, **values: Plain) -> Work:
        sampling = Sampling((first, first), steps, Sampler(schedule="Karras"))
        settings = Settings.from_values(values)
        return Work.of(run_plan(settings, sampling, model), settings)

    def refined(purpose: str, steps: int) -> Work:
        values = preset_for(purpose).values
        return planned(native, steps, **{**values, "refine_factor": scale})

    target = "2x" if scale <= 2 else "4x"
    xl = family == "sdxl"
    yield Way("plain_20", planned(side, STEPS))
    yield Way("plain_50", planned(side, PUBLISHED_STEPS))
    for cadence in (1, 2, 3):
        guided = planned(side, STEPS, ug=True, ug_eta=1, ug_cadence=cadence)
        yield Way(f"ug_cadence_{cadence}", guided)
    yield Way("ap_ldm_published", refined(f"{target}, AP-LDM as published", PUBLISHED_STEPS))
    if scale == 2:
        goal = {"ratio_to_plain": 1.06} if xl else None
        guided = planned(side, STEPS, **preset_for("2x, UG alone").values)
        yield Way("preset_2x_ug", guided, goal)
    pivot = {"refine": True, "refine_method": "Pivot", "refine_factor": scale}
    yield Way("pivot", planned(native, STEPS, **pivot))
    goals = {2.0: {"ratio_to_plain": 0.5}, 4.0: {"tflop": 2100.0}} if xl else {}
    name = f"preset_{target}_ug_refine"
    yield Way(name, refined(f"{target}, refinement with UG", STEPS), goals.get(scale))
    if scale in RECTIFIED_HR:
        yield Way("rectified_hr_published", Work.of_stages(native, RECTIFIED_HR[int(scale)]))
        yield Way("frecas_published", Work.of_stages(native, FRECAS[int(scale)]))


def towards_goals(family: Family, native: int, side: int) -> Iterator[Way]:
    """What brings refinement and UG nearer to their goals, one change after another."""
    model = _model(family, native)
    scale = side / native
    if scale not in (2, 4):
        return
    sampler = Sampler(schedule="Karras")

    def refined(unfinished: bool, **values: Plain) -> Work:
        settings = Settings.from_values(
            {"ug": True, "refine": True, "refine_factor": scale, **values}
        )
        sampling = Sampling((native, native), STEPS, sampler)
        left = "same" if unfinished else "no"
        return Work.of(run_plan(settings, sampling, model, unfinished=left), settings)

    large = Sampling((side, side), STEPS, sampler)
    for cadence in (1, 2, 3):
        settings = Settings.from_values({"ug": True, "ug_eta": 1, "ug_cadence": cadence, **WINDOWS})
        work = Work.of(run_plan(settings, large, model), settings)
        yield Way(f"ug_cadence_{cadence}, windows", work)
    name = f"refinement {scale:g}x"
    for strengths in STRENGTHS[int(scale)]:
        for unfinished in (False, True):
            for windows in (False, True):
                seen = WINDOWS if windows else {}
                work = refined(unfinished, refine_eta2=strengths, ug_cadence=2, **seen)
                parts = [name, strengths, "cadence 2"]
                parts += ["unfinished"] * unfinished + ["windows"] * windows
                yield Way(", ".join(parts), work)


def flops_rows() -> Iterator[dict[str, Any]]:
    """Rows of one evaluation, decode and encode at every size, then of every way to each side."""
    for family, title, native, sides in FAMILIES:
        networks, windowed = Counted(family), Counted(family, native)
        for side in (native, *sides):
            size = side, side
            for part in ("evaluation", "decode", "encode"):
                tflop = getattr(networks, part)(size)
                yield _row(part, title, side, tflop)
            if side > native:
                tflop = windowed.evaluation(size)
                yield _row("evaluation, attention in windows", title, side, tflop)
        for side in sides:
            found = [*ways(family, native, side), *towards_goals(family, native, side)]
            cost = {
                way.name: way.work.tflop(windowed if way.work.windows else networks)
                for way in found
            }
            for way in found:
                row = _row(way.name, title, side, cost[way.name])
                row["ratio_to_plain"] = cost[way.name] / cost["plain_20"]
                row["ratio_to_ap_ldm"] = cost[way.name] / cost["ap_ldm_published"]
                yield row | ({"goal": dict(way.goal)} if way.goal else {})


def _row(name: str, model: str, side: int, tflop: float) -> dict[str, Any]:
    return {"name": name, "model": model, "side": side, "tflop": tflop}


def flops_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as text."""
    columns = f"{'':52}{'TFLOP':>10}{'of plain':>10}{'of AP-LDM':>10}  goal"
    heading = None
    for row in rows:
        title = f"{row['model']}, {shown((row['side'], row['side']))}"
        if title != heading:
            heading = title
            yield f"\n{title}\n{columns}"
        ratios = "".join(
            f"{row[name]:>10.2f}" if name in row else f"{'':>10}"
            for name in ("ratio_to_plain", "ratio_to_ap_ldm")
        )
        goal = ", ".join(f"{name} {most:g}" for name, most in row.get("goal", {}).items())
        yield f"{row['name']:52}{row['tflop']:>10.2f}{ratios}  {goal}".rstrip()
