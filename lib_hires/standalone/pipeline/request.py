"""What to generate: prompt, size, sampler, seed. Imports nothing heavy."""

from __future__ import annotations

import logging
import math
import re
import secrets
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lib_hires.presets import preset_for
from lib_hires.settings import Declared, Settings, SettingsError, control, meant_hint
from lib_hires.sizes import Size

log = logging.getLogger("hires_guidance")


@dataclass(frozen=True)
class Sampler:
    """One of k-diffusion's sampling functions and what it needs from its caller."""

    function: str
    evaluations: int = 1  # of the model, in every step but the last
    noise: Literal["none", "white", "brownian"] = "none"
    eta: float | None = None  # how much of the noise is new in each step; None: its own default


SAMPLERS = {
    "Euler": Sampler("sample_euler"),
    "Euler a": Sampler("sample_euler_ancestral", noise="white"),
    "LCM": Sampler("sample_euler_ancestral", noise="white", eta=1e6),  # all that there can be
    "Heun": Sampler("sample_heun", evaluations=2),
    "DPM2": Sampler("sample_dpm_2", evaluations=2),
    "DPM2 a": Sampler("sample_dpm_2_ancestral", evaluations=2, noise="white"),
    "LMS": Sampler("sample_lms"),
    "DPM++ 2S a": Sampler("sample_dpmpp_2s_ancestral", evaluations=2, noise="white"),
    "DPM++ 2M": Sampler("sample_dpmpp_2m"),
    "DPM++ SDE": Sampler("sample_dpmpp_sde", evaluations=2, noise="brownian"),
    "DPM++ 2M SDE": Sampler("sample_dpmpp_2m_sde", noise="brownian"),
    "DPM++ 3M SDE": Sampler("sample_dpmpp_3m_sde", noise="brownian"),
}

WEBUI_NAMES = {
    "negative_prompt": "negative",
    "sampler_name": "sampler",
    "sampler_index": "sampler",
    "scheduler": "schedule",
    "cfg_scale": "cfg",
    "batch_size": "batch",
}
"""What A1111's WebUI calls the controls of a request that have another name here."""

WEBUI_ONLY = frozenset({
    "do_not_save_grid", "do_not_save_samples", "n_iter", "outpath_grids", "outpath_samples",
    "prompt_for_display", "restore_faces", "sd_model", "seed_resize_from_h", "seed_resize_from_w",
    "styles", "subseed", "subseed_strength", "tiling",
})  # fmt: skip
"""Options of A1111's script of prompts that `hires` has nothing for."""

_SYNTAX = re.compile(r"\([^()]+:\s*[\d.]+\s*\)|\bBREAK\b|<(lora|lyco|hypernet):[^<>]+>")

SCHEDULES = ("Karras", "Exponential", "Uniform", "SGM Uniform")

K_DIFFUSION, COMFYUI = "k-diffusion", "ComfyUI"

AUTOMATIC, TURNING, OWN = "automatic", "turning", "own"  # noise of a clip's frames


@dataclass(frozen=True)
class Request(Declared):
    """What to generate, beside the guidance."""

    prompt: str = control("", "Prompt", "What to show.")
    negative: str = control("", "Negative prompt", "What not to show.")
    width: int = control(
        0,
        "Width",
        "The first image's width in pixels, rounded to what the model takes. 0: native.",
        minimum=8,
        maximum=16384,
        step=8,
        automatic=True,
    )
    height: int = control(
        0,
        "Height",
        "The first image's height in pixels, rounded to what the model takes. 0: native.",
        minimum=8,
        maximum=16384,
        step=8,
        automatic=True,
    )
    steps: int = control(20, "Steps", "Sampling steps.", minimum=1, maximum=1000)
    sampler: str = control("DPM++ 2M", "Sampler", "k-diffusion's sampler.", choices=tuple(SAMPLERS))
    schedule: str = control("Karras", "Schedule", "Spacing of the noise levels.", choices=SCHEDULES)
    cfg: float = control(
        0.0,
        "CFG scale",
        "Classifier-free guidance; 1 is none. 0: 3 for the bundled model, 5 for others.",
        minimum=1,
        maximum=100,
        step=0.5,
        automatic=True,
    )
    seed: int = control(
        0, "Seed", "Of the first image. -1: a random one.", minimum=-1, maximum=2**32 - 1
    )
    batch: int = control(
        1, "Batch", "Images at once, their seeds counting up.", minimum=1, maximum=1000
    )
    frames: int = control(
        0,
        "Frames",
        "Of a clip, which needs --motion. 0: the motion module's native number, or an image.",
        minimum=1,
        maximum=1024,
        automatic=True,
        clips=True,
    )
    fps: float = control(
        0.0,
        "Frames a second",
        "Of the clip's file. 0: 8, as motion modules are trained, or so many times as many as "
        "frames share a native one.",
        minimum=0.5,
        maximum=120,
        automatic=True,
        clips=True,
    )
    context: int = control(
        0,
        "Context",
        "Frames that the motion module sees at once, in overlapping windows of its attention "
        "(FreeNoise), no fewer than its native number. 0: all; the native number where it has no "
        "positions for all.",
        minimum=2,
        maximum=1024,
        automatic=True,
        clips=True,
    )
    keep_frames: bool = control(
        False, "Keep frames", "Write each frame of a clip as a PNG too.", clips=True
    )
    clip_format: str = control(
        "webp",
        "Clip format",
        "Of a clip's file. webp: loops, browsers play it; mp4: for video players and editors, with "
        "pip install -e '.[video]'.",
        choices=("webp", "mp4"),
        clips=True,
    )
    clip_noise: str = control(
        AUTOMATIC,
        "Clip noise",
        "Which a clip starts from. turning: its coarse part turns slowly from frame to frame, so "
        "that objects keep their places; own: each frame has its own. automatic: turning for "
        "modules that hires has trained, own for others, with which it is not measured.",
        choices=(AUTOMATIC, TURNING, OWN),
        clips=True,
    )
    rules: str = control(
        "k-diffusion",
        "Sampling rules",
        "k-diffusion: timesteps between whole ones, noise times the first sigma. ComfyUI: each "
        "evaluation at the nearest whole timestep, starting noise for a variance of 1, so that "
        "ComfyUI's image of the same seed and settings comes out (not of DPM2 and LMS).",
        choices=(K_DIFFUSION, COMFYUI),
        since=1,
    )

    @property
    def seeds(self) -> list[int]:
        """One seed per image of the batch."""
        return [self.seed + image for image in range(self.batch)]

    def drawn(self) -> Request:
        """With a seed that repeats it, where it is random until now."""
        return self if self.seed >= 0 else replace(self, seed=secrets.randbelow(2**32))

    def scaled(self, cfg: float) -> Request:
        """With that CFG scale, where it leaves it to the model."""
        return self if self.cfg else replace(self, cfg=cfg)

    def noised(self, ours: bool) -> Request:
        """With a clip's noise, where it leaves it to the motion module; ours: trained here."""
        if self.clip_noise != AUTOMATIC:
            return self
        return replace(self, clip_noise=TURNING if ours else OWN)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Request:
        """Build from plain values. Raises SettingsError for unknown names and for bad values."""
        unknown = sorted(set(values) - {name for name, *_ in cls.rows()})
        if unknown:
            raise SettingsError(f"{unknown[0]}: there is no such setting")
        return cls(**values)

    def values(self) -> dict[str, Any]:
        """Plain values, as from_values takes them; those of clips, and those that came later, only
        where they are given, so that a batch finds the files of an earlier version."""
        given = asdict(self)
        for _, _, declared, name in self.rows():
            later = declared.clips or declared.since
            if later and given[name] == type(self).__dataclass_fields__[name].default:
                del given[name]
        return given


@cache
def warn_of_syntax(prompt: str) -> None:
    """Warn, once for each prompt, of what the WebUI would act on and the text encoder reads."""
    if found := _SYNTAX.search(prompt):
        hint = "; hires has --lora FILE:WEIGHT" if found[1] == "lora" else ""
        log.warning("%s is read as plain words; only the WebUI acts on it%s", found[0], hint)


def weighted_file(text: str) -> tuple[Path, float | None]:
    """The parts of FILE[:WEIGHT]; None where no weight is given. Raises SettingsError.

    The path is a whole one where the given one ends in no name: `.` is the folder's own name.
    """
    name, colon, number = text.rpartition(":")
    if not colon or Path(text).exists() or re.search(r"[\\/]", number):  # a drive is no file
        return _named_file(text), None
    try:
        weight = float(number)
        if not math.isfinite(weight):
            raise ValueError
    except ValueError:
        raise SettingsError(f"--lora: expected FILE:WEIGHT, a number, got {text!r}") from None
    return _named_file(name), weight


def _named_file(text: str) -> Path:
    path = Path(text)
    return path if path.stem.strip(".") else path.resolve()


def name_hint(name: str, known: Iterable[str]) -> str:
    """The end of a message that refuses a name: the one that may have been meant."""
    own = WEBUI_NAMES.get(name)
    if name in WEBUI_ONLY:
        return "; the WebUI has it, and hires does not"
    return f"; did you mean {own}?" if own else meant_hint(name, known)


def fitted(
    purpose: str | None,
    native: Size,
    multiple: int,
    request: Request,
    settings: Settings,
    given: Container[str],
) -> tuple[Request, Settings]:
    """What a preset leaves to the model, where the user has not: the first size and the tiles.

    A size that the user gives stays as it is; `hires app` brings one to the preset's area.
    purpose: None for no preset; native: (height, width) in pixels; multiple: of what the model
    takes; given: the settings that the user named. Raises PresetError.
    """
    if purpose is None:
        return request, settings
    preset = preset_for(purpose, native)
    if "refine_tile" not in given:
        settings = settings.updated({"refine_tile": preset.values.get("refine_tile", 0)})
    if not request.width and not request.height:
        height, width = preset.size_for(native, multiple)
        request = replace(request, width=width, height=height)
    return request, settings
