"""The techniques that the demo and the quality benchmark set side by side."""

from __future__ import annotations

import re
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from lib_hires.detail import NO_DETAIL, Detail
from lib_hires.presets import preset_for
from lib_hires.settings import Plain, Settings, SettingsError, declarations, meant_hint
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.outputs import to_pil
from lib_hires.standalone.pipeline.request import Request
from lib_hires.standalone.pipeline.upsamplers import BUNDLED_2X


@dataclass(frozen=True)
class Technique:
    """One way to an image of `scale` times the native size.

    starts_large: the first image already has the final size (naive, UG); otherwise it is native
    and `lanczos`, `upscaled` or refinement upsamples it.
    """

    name: str
    label: str
    settings: Mapping[str, Plain]
    settings_4x: Mapping[str, Plain] | None = None  # where 4x wants others
    starts_large: bool = False
    lanczos: bool = False
    upscaled: bool = False  # by the upscaler of `detail`, and nothing else
    sampler: str = ""  # where it is not the request's own
    steps: int = 0  # likewise
    detail: Detail = NO_DETAIL
    detail_4x: Detail | None = None  # where 4x wants another

    def request(self, base: Request, scale: int, model: LatentModel) -> Request:
        """`base` with the first image's size and this technique's sampler and steps."""
        times = scale if self.starts_large else 1
        width, height = model.native[1] * times, model.native[0] * times
        return replace(self.sampled(base), width=width, height=height)

    def sampled(self, base: Request) -> Request:
        """`base` with this technique's sampler and steps."""
        return replace(base, sampler=self.sampler or base.sampler, steps=self.steps or base.steps)

    def settings_at(self, scale: int) -> Settings:
        """The controls for a final image of `scale` times the native sides."""
        values = dict(self.settings if scale < 4 else self.settings_4x or self.settings)
        if values.get("refine"):
            values["refine_factor"] = scale
        return Settings.from_values(values)

    def detail_at(self, scale: int) -> Detail:
        """The techniques that are no controls."""
        return self.detail if scale < 4 else self.detail_4x or self.detail


NATIVE = Technique("native", "native size", {})
NATIVE_PFSA = Technique("native_pfsa", "native size, PFSA", {"pfsa": True})
NAIVE = Technique("naive", "plain sampling", {}, starts_large=True)
LANCZOS = Technique("lanczos", "Lanczos of native", {}, lanczos=True)
_UG = dict(preset_for("2x, UG alone").values)
UG = Technique("ug", "Upsample Guidance", _UG, starts_large=True)
REFINE = Technique(
    "refine",
    "refinement (AP-LDM)",
    {"refine": True, "refine_eta2": "0.2"},
    {"refine": True, "refine_eta2": "0.1, 0.2"},
)
PIVOT = Technique("pivot", "pivot (Self-Cascade)", {"refine": True, "refine_method": "Pivot"})
UG_REFINE = Technique(
    "ug_refine",
    "UG in refinement",
    dict(preset_for("2x, refinement with UG").values),
    dict(preset_for("4x, refinement with UG").values),
)

# What the two additions to the paper bring: the start at m times the noise, and the soft end of a
# window inside the run, with which a one-step and a multistep sampler should agree.
UNSHIFTED = Technique(
    "ug_unshifted",
    "UG, start not shifted",
    {**_UG, "ug_shifted_start": False},
    starts_large=True,
)
WINDOWS = tuple(
    Technique(
        f"ug_eta0.6_edge{edge}_{short}",
        label,
        {**_UG, "ug_eta": 0.6, "ug_edge": edge},
        starts_large=True,
        sampler=sampler,
    )
    for edge, short, sampler, label in (
        (0, "dpmpp_2m", "DPM++ 2M", "UG to 0.6, hard end"),
        (4, "dpmpp_2m", "DPM++ 2M", "UG to 0.6, soft end"),
        (4, "euler", "Euler", "the same with Euler"),
    )
)

FIT_FOR_UPSAMPLERS = {2: (REFINE, PIVOT), 4: (PIVOT,)}
"""By scale, those whose stages are near 2x, which feature upsamplers are trained for."""


def with_upsampler(technique: Technique, named: str) -> Technique:
    """The same with a feature upsampler, as the control names it."""
    return replace(
        technique,
        name=f"{technique.name}_upsampled",
        label=f"{technique.label.partition(' (')[0]}, upsampler",
        settings={**technique.settings, "refine_upsampler": named},
        settings_4x=technique.settings_4x and {**technique.settings_4x, "refine_upsampler": named},
    )


# What a user of the WebUI would pick instead: one pass over the upsampled image, unguided.
HIRES_FIX = tuple(
    Technique(
        f"hires_fix_{space}_{strength}",
        f"Hires. fix, {space}, {strength}",
        {"refine": True, "refine_enlargement": space, "refine_eta2": strength},
    )
    for space in ("pixel", "latent")
    for strength in ("0.3", "0.5", "0.7")
)

# As the papers print them, where ours differ.
PUBLISHED = (
    Technique(
        "ug_published",
        "UG as published",
        {"ug": True, "ug_eta": 0.6, "ug_edge": 0, "ug_cadence": 1, "ug_shifted_start": False}
        | {"ug_enlargement": "nearest"},
        starts_large=True,
    ),
    Technique(
        "ap_ldm_published",
        "AP-LDM as published",
        dict(preset_for("2x, AP-LDM as published").values),
        dict(preset_for("4x, AP-LDM as published").values),
    ),
)


# Rebuilt on this engine from the authors' settings for SDXL: steps, CFG scales, and where stages
# are left. Not RectifiedHR's middle scale (37) and size at 4x, nor FreCaS's reuse of attention.
RECIPES = (
    Technique(
        "rectified_hr_recipe",
        "RectifiedHR, rebuilt",
        {"refine": True, "refine_eta2": "0.4"},  # 30 + 20 steps
        {"refine": True, "refine_eta2": "0.2, 0.06"},  # 40 + 7 + 3
        sampler="Euler",
        steps=50,
        detail=Detail(unfinished="same", cfg_low=30),
        detail_4x=Detail(unfinished="same", cfg_low=50),
    ),
    Technique(
        "frecas_recipe",
        "FreCaS, rebuilt",
        {"refine": True, "refine_eta2": "0.2"},  # 10 steps at 2x
        {"refine": True, "refine_eta2": "0.4, 0.3"},  # 5 and 15 at the larger sizes
        sampler="Euler",
        steps=50,
        detail=Detail(unfinished="matched", cfg_low=7.5, cfg_high=35),
    ),
)


def with_upscaler(file: str) -> tuple[Technique, ...]:
    """The plain upscaler of a file, which is the rival, and refinement that starts from it."""
    detail = Detail(upscaler=file)
    name = re.sub("[^a-zA-Z0-9.-]+", "-", Path(file).stem)
    return (
        Technique(f"upscaler_{name}", f"{name} of native", {}, upscaled=True, detail=detail),
        replace(
            UG_REFINE,
            name=f"ug_refine_upscaler_{name}",
            label=f"UG in refinement, {name}",
            detail=detail,
        ),
    )


def variant(
    technique: Technique, changes: Mapping[str, Plain], details: Mapping[str, Plain] | None = None
) -> Technique:
    """The same with other values of some settings and details, in its name and label too."""
    details = details or {}
    named = {name.partition("_")[2] or name: str(value) for name, value in changes.items()}
    if len(named) < len(changes):  # of two groups alike
        named = {name: str(value) for name, value in changes.items()}
    named |= {name: str(value) for name, value in details.items()}
    suffix = "_".join(f"{name}={value}" for name, value in named.items())
    values_4x = technique.settings_4x and {**technique.settings_4x, **changes}
    detail_4x = technique.detail_4x and replace(technique.detail_4x, **details)
    return replace(
        technique,
        name=f"{technique.name}_{re.sub('[^a-zA-Z0-9_=.-]+', '+', suffix)}",  # also a folder's name
        label=", ".join((technique.label, *(" ".join(each) for each in named.items()))),
        settings={**technique.settings, **changes},
        settings_4x=values_4x,
        detail=replace(technique.detail, **details),
        detail_4x=detail_4x,
    )


UG_GRID = tuple(
    variant(replace(UG, label="UG"), {f"ug_{name}": value})
    for name, values in (
        ("theta", (0.5, 0.8, 1.3)),
        ("eta", (0.4, 0.6, 1)),
        ("cadence", (1, 2)),
    )
    for value in values
)
UG_PIVOT = Technique("ug_pivot", "UG in the pivot", {"ug": True, "ug_eta": 0.6, **PIVOT.settings})

# The large image in windows: by themselves, and held together.
_APART = {"ug": True, "ug_theta": 0, "ug_shifted_start": False}
IN_WINDOWS = (
    Technique(
        "ug_attention",
        "UG, attention in windows",
        {**_UG, "ug_windows": "attention"},
        starts_large=True,
    ),
    Technique(
        "multidiffusion",
        "MultiDiffusion",
        {**_APART, "ug_windows": "average", "ug_overlap": 0.75},
        starts_large=True,
    ),
    Technique("windows", "windows alone", {**_APART, "ug_windows": "Hann"}, starts_large=True),
    Technique("ug_windows", "UG in windows", {**_UG, "ug_windows": "Hann"}, starts_large=True),
    replace(
        variant(UG_REFINE, {"ug_windows": "Hann"}),
        name="ug_refine_windows",
        label="UG in refinement, windows",
    ),
)

# Stages of so few steps that they hardly count.
FEW_STEPS = tuple(
    Technique(
        f"refine_{steps}_of_20",
        f"refinement, {steps} of 20 steps",
        {"refine": True, "refine_eta2": str(steps / 20)},
        {"refine": True, "refine_eta2": f"{steps / 20}, {steps / 20}"},
    )
    for steps in (1, 2)
)

STANDARD = (NAIVE, LANCZOS, UG, REFINE, PIVOT, UG_REFINE, UNSHIFTED, *WINDOWS)


def every(scale: int) -> tuple[Technique, ...]:
    """All that there are at a scale, those with the bundled feature upsampler last."""
    upsampled = (with_upsampler(each, BUNDLED_2X) for each in FIT_FOR_UPSAMPLERS[scale])
    others = (*HIRES_FIX, *PUBLISHED, *UG_GRID, UG_PIVOT, *IN_WINDOWS, *FEW_STEPS)
    return (*STANDARD, *others, *RECIPES, *upsampled)


def chosen(names: Sequence[str], scale: int, base: Request) -> tuple[Technique, ...]:
    """The techniques of these names; "every" stands for all, but for those that would
    generate from `base` the same images as one before them. Raises SettingsError."""
    known = {technique.name: technique for technique in every(scale)}
    if list(names) == ["every"]:
        first: dict[Hashable, Technique] = {}
        for each in known.values():
            start = each.starts_large, each.lanczos
            made = each.sampled(base), each.settings_at(scale), each.detail_at(scale)
            first.setdefault((start, *made), each)
        return tuple(first.values())
    for name in names:
        if name not in known:
            raise SettingsError(f"--techniques: expected some of {', '.join(known)}, got {name!r}")
    return tuple(known[name] for name in names)


def varied(words: Sequence[str], scale: int) -> Technique:
    """A technique's name and then settings or details as NAME=VALUE.

    Raises SettingsError also for settings that would make images of another size, or no other
    images.
    """
    name, *settings = words
    text = " ".join(words)
    given = dict(each.split("=", 1) for each in settings if "=" in each)
    if not settings or len(given) < len(settings):
        raise SettingsError(
            f"--variant: expected NAME SETTING=VALUE, each setting once, got {text!r}; such as "
            "ug_refine refine_eta2=0.4"
        )
    try:
        known = {technique.name: technique for technique in every(scale)}
        if name not in known:
            raise SettingsError(f"there is no technique {name!r}{meant_hint(name, known)}")
        of_detail = {each for each, *_ in Detail.rows()} & given.keys()
        details = vars(Detail.from_values({each: given.pop(each) for each in of_detail}))
        values = Settings.from_values(given).values()
        changes = {each: values[each] for each in given}
        made = variant(known[name], changes, {each: details[each] for each in sorted(of_detail)})
        _check_variant(known[name], made, given, scale)
    except SettingsError as error:
        raise SettingsError(f"--variant {text}: {error}") from None
    return made


def _check_variant(
    technique: Technique, made: Technique, given: Mapping[str, str], scale: int
) -> None:
    sizes = {"refine_factor", "refine_width", "refine_height"} & given.keys()
    if sizes:
        raise SettingsError(f"{min(sizes)}: the images' size is --scale")
    for row in declarations():
        if row.name in given and row.control.webui_only:
            raise SettingsError(f"{row.name}: is for the WebUI alone")
    settings = made.settings_at(scale)
    if made.starts_large and settings.refine.enabled:
        raise SettingsError(f"refine: {technique.name} starts at the final size")
    alike = settings.changed() == technique.settings_at(scale).changed()
    if alike and made.detail_at(scale) == technique.detail_at(scale):
        raise SettingsError("makes the same images")


@dataclass(frozen=True, eq=False)
class Made:
    """A batch of finished images and what making them took."""

    images: list[Image.Image]
    seconds: float  # for the whole batch, text encoding and decoding included
    model_evaluations: int
    about: dict[str, Any]  # what repeats the run


def make(technique: Technique, model: LatentModel, base: Request, scale: int) -> Made:
    """One batch at `scale` times the native size."""
    request, settings = technique.request(base, scale, model), technique.settings_at(scale)
    run = Run(model, request, settings, detail=technique.detail_at(scale))
    *_, last = run.generate()
    height, width = (side * scale for side in model.native)
    made, seconds = last.images, last.seconds
    if technique.upscaled and run.detail.upscale is not None:
        began = time.perf_counter()
        made = run.detail.upscale(made, (height, width))
        seconds += time.perf_counter() - began
    images = [to_pil(image) for image in made]
    if technique.lanczos:
        images = [small.resize((width, height), Image.Resampling.LANCZOS) for small in images]
    return Made(images, seconds, last.model_evaluations, run.about())
