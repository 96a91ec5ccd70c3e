"""The techniques that the demo and the quality benchmark set side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from lib_hires.settings import Plain, Settings, SettingsError
from lib_hires.standalone.generate import Run
from lib_hires.standalone.latent_model import LatentModel
from lib_hires.standalone.png import to_pil
from lib_hires.standalone.request import Request
from lib_hires.standalone.upsamplers import Upsampler


@dataclass(frozen=True)
class Technique:
    """One way to a picture of `scale` times the native size.

    starts_large: the first picture already has the final size (naive, UG); otherwise it is native
    and `lanczos` or refinement enlarges it.
    """

    name: str
    label: str
    settings: Mapping[str, Plain]
    settings_4x: Mapping[str, Plain] | None = None  # where 4x wants others
    starts_large: bool = False
    lanczos: bool = False
    upsampled: bool = False  # with a feature upsampler
    sampler: str = "DPM++ 2M"

    def request(self, base: Request, scale: int, model: LatentModel) -> Request:
        """`base` with the first picture's size and this technique's sampler."""
        times = scale if self.starts_large else 1
        width, height = model.native[1] * times, model.native[0] * times
        return replace(base, width=width, height=height, sampler=self.sampler)

    def settings_at(self, scale: int) -> Settings:
        """The controls for a final picture of `scale` times the native sides."""
        values = dict(self.settings if scale < 4 else self.settings_4x or self.settings)
        if values.get("refine"):
            values["refine_factor"] = scale
        return Settings.from_values(values)


NATIVE = Technique("native", "native size", {})
NATIVE_PFSA = Technique("native_pfsa", "native size, PFSA", {"pfsa": True})
NAIVE = Technique("naive", "plain sampling", {}, starts_large=True)
LANCZOS = Technique("lanczos", "Lanczos of native", {}, lanczos=True)
UG = Technique("ug", "Upsample Guidance", {"ug": True}, starts_large=True)
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
    {"ug": True, "refine": True, "refine_eta2": "0.3"},
    {"ug": True, "refine": True, "refine_eta2": "0.2, 0.3"},
)

# What the two additions to the paper bring: the start at m times the noise, and the soft end of a
# window inside the run, with which a one-step and a multistep sampler should agree.
UNSHIFTED = Technique(
    "ug_unshifted",
    "UG, start not shifted",
    {"ug": True, "ug_shifted_start": False},
    starts_large=True,
)
WINDOWS = tuple(
    Technique(
        f"ug_eta0.6_edge{edge}_{short}",
        label,
        {"ug": True, "ug_eta": 0.6, "ug_edge": edge},
        starts_large=True,
        sampler=sampler,
    )
    for edge, short, sampler, label in (
        (0, "dpmpp_2m", "DPM++ 2M", "UG to 0.6, hard end"),
        (4, "dpmpp_2m", "DPM++ 2M", "UG to 0.6, soft end"),
        (4, "euler", "Euler", "the same with Euler"),
    )
)

# With a feature upsampler trained for 2x, by scale: refinement's stages to 4x are not near 2x.
REFINE_UPSAMPLED = replace(
    REFINE, name="refine_upsampled", label="refinement, upsampler", upsampled=True
)
PIVOT_UPSAMPLED = replace(PIVOT, name="pivot_upsampled", label="pivot, upsampler", upsampled=True)
UPSAMPLED = {2: (REFINE_UPSAMPLED, PIVOT_UPSAMPLED), 4: (PIVOT_UPSAMPLED,)}

ENLARGING = (NAIVE, LANCZOS, UG, REFINE, PIVOT, UG_REFINE)
ALL = (*ENLARGING, UNSHIFTED, *WINDOWS)


def chosen(names: Sequence[str]) -> tuple[Technique, ...]:
    """The techniques of these names. Raises SettingsError for one that there is not."""
    known = {technique.name: technique for technique in ALL}
    for name in names:
        if name not in known:
            raise SettingsError(f"--techniques: expected some of {', '.join(known)}, got {name!r}")
    return tuple(known[name] for name in names)


@dataclass(frozen=True, eq=False)
class Made:
    """A batch of finished pictures and what making them took."""

    pictures: list[Image.Image]
    seconds: float  # for the whole batch, text encoding and decoding included
    model_evaluations: int
    about: dict[str, Any]  # what repeats the run


def make(
    technique: Technique,
    model: LatentModel,
    base: Request,
    scale: int,
    upsampler: Upsampler | None = None,
) -> Made:
    """One batch at `scale` times the native size."""
    request, settings = technique.request(base, scale, model), technique.settings_at(scale)
    run = Run(model, request, settings, upsampler if technique.upsampled else None)
    painted = list(run.paint())[-1]
    pictures = [to_pil(image) for image in painted.images]
    if technique.lanczos:
        size = model.native[1] * scale, model.native[0] * scale
        pictures = [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]
    return Made(pictures, painted.seconds, painted.model_evaluations, run.about())
