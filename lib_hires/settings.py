"""Every control, declared once.

A control is a field of one of the three frozen groups below. The field carries everything that any
surface needs: label, bounds, default, help and the paper's symbol. Command-line options, widgets,
API names, PNG text and the table in docs/settings.md are made from it; no other list names a
control.

A control's public name is `<group>_<field>` (`ug_theta`), and `<group>` alone for the switch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lib_hires.controls import (
    NOTHING,
    Control,
    Declared,
    Plain,
    SettingsError,
    control,
    meant_hint,
)

GROUPS = {
    "ug": "Upsample Guidance",
    "pfsa": "Attentive Guidance",
    "refine": "Progressive Refinement",
}

PASSES = ("automatic", "first pass", "Hires. fix", "both", "img2img")

Value = TypeVar("Value")

# What automatic settings of UG go by (docs/choosing-settings.md).
EARLY_END = 0.8  # eta of a pass that begins above EARLY_START of the timesteps
EARLY_START = 0.65
FEW_STEPS, MANY_STEPS = 10, 18


@dataclass(frozen=True)
class UpsampleGuidance(Declared):
    """UG: at each step also evaluate the model on the image at its native size."""

    prefix = "ug"

    enabled: bool = control(
        False,
        "Enable",
        "Guide the image's coarse structure by the model's prediction at its native size.",
    )
    theta: float = control(
        1.0,
        "Strength",
        "How far the coarse structure follows the native-size prediction. 1: fully; 0: off.",
        "θ",
        minimum=0,
        maximum=2,
        step=0.05,
    )
    eta: float = control(
        0.0,
        "Guided share of steps",
        "The share of the run that is guided, from its start, counted in training timesteps as in "
        f"the paper: with a Karras schedule 0.8 is about 13 of 20 steps. 0: automatic, {EARLY_END} "
        f"from noise and in passes of a denoising strength above {EARLY_START}, where guidance to "
        "the end gives grain; 1 in all others, which repeat the last steps only, and in runs of "
        f"fewer than {FEW_STEPS} steps.",
        "η",
        minimum=0.05,
        maximum=1,
        step=0.05,
        automatic=True,
        former=1.0,
    )
    edge: float = control(
        4.0,
        "Fade-out steps",
        "Steps over which the guidance fades out, where it ends before the last step. 0 stops at "
        "once, as in the paper; multistep samplers need a few.",
        minimum=0,
        maximum=50,
        step=0.5,
        on_page=False,
    )
    scale: float = control(
        0.0,
        "Scale",
        "The image's sides relative to those of the native-size evaluation. 0: from the model's "
        "native size.",
        "m",
        minimum=1,
        maximum=16,
        step=0.25,
        automatic=True,
    )
    cadence: int = control(
        0,
        "Evaluate every n-th step",
        "Evaluate the native size at every n-th step only, and reuse the prediction between. "
        f"Higher is faster. 0: automatic, 3 in a run of {MANY_STEPS} steps or more, 2 from "
        f"{FEW_STEPS} steps on, 1 below.",
        "n",
        minimum=1,
        maximum=10,
        automatic=True,
        former=1,
    )
    shifted_start: bool = control(
        True,
        "Higher starting noise",
        "Start at m times the noise, so that the coarse structure starts from pure noise too.",
        on_page=False,
    )
    enlargement: str = control(
        "bicubic",
        "Upscale method",
        "How the correction is upscaled. nearest: as in the paper; bicubic: without the blocks' "
        "edges, which show as grain after decoding. Both give the same coarse structure.",
        "U",
        choices=("nearest", "bicubic"),
        on_page=False,
    )
    windows: str = control(
        "off",
        "Windows",
        "Evaluate the large image in overlapping windows of native size: memory stays constant, "
        "time grows with the area. Hann: blended without seams; average: as MultiDiffusion does; "
        "off: at full size. Steps after the guidance's end (η) use windows too, with nothing to "
        "hold them together. Not with ControlNet. attention: only self-attention sees windows, all "
        "else the whole image once.",
        choices=("off", "Hann", "average", "attention"),
    )
    overlap: float = control(
        0.5,
        "Window overlap",
        "The least share of a window's side that overlaps the next window. More takes longer.",
        minimum=0,
        maximum=0.9,
        step=0.05,
    )
    passes: str = control(
        "automatic",
        "Guided passes",
        "The passes that are guided. automatic: every pass clearly above the native size; both: "
        "the first pass and Hires. fix.",
        choices=PASSES,
        webui_only=True,
    )
    controlnet: bool = control(
        True,
        "ControlNet at native size",
        "Use ControlNet's units in the native-size evaluation too. Off: the coarse structure "
        "follows the prompt alone.",
        webui_only=True,
    )
    frames: int = control(
        0,
        "Frames to a native frame",
        "For clips: how many frames share one frame of the native evaluation, which then sees a "
        "lower frame rate. 0: so that it has the motion module's native number; 1: guidance in "
        "space alone.",
        "m_t",
        minimum=1,
        maximum=64,
        automatic=True,
        clips=True,
        since=1,
    )

    def decided(self, steps: int, start: float = 1.0) -> UpsampleGuidance:
        """These settings for one pass, with eta and cadence chosen where they are automatic.

        steps: of the whole schedule. start: the share of the training timesteps at which the pass
        begins; 1 is noise.
        """
        if self.eta and self.cadence:
            return self
        few, many = steps < FEW_STEPS, steps >= MANY_STEPS
        return replace(
            self,
            eta=self.eta or (1.0 if few or start <= EARLY_START else EARLY_END),
            cadence=self.cadence or (1 if few else 3 if many else 2),
        )

    @property
    def evaluates_windows(self) -> bool:
        """Whether the whole model sees windows, and not its self-attention alone."""
        return self.windows in ("Hann", "average")


@dataclass(frozen=True)
class AttentiveGuidance(Declared):
    """PFSA: mix a little parameter-free self-attention of the latent into the latent."""

    prefix = "pfsa"

    enabled: bool = control(
        False, "Enable", "Mix self-attention of the latent into the latent after each step."
    )
    gamma: float = control(
        0.004,
        "Strength",
        "The share of self-attention that is mixed in, at its largest.",
        "γ",
        minimum=0,
        maximum=1,
        step=0.001,
    )
    beta: float = control(
        3.0,
        "Decay",
        "How fast the strength falls over the steps. Higher is faster.",
        "β",
        minimum=0,
        maximum=20,
        step=0.5,
    )
    eta1: float = control(
        0.06,
        "Delay",
        "The share of the sampling steps without mixing, counted from the first step.",
        "η₁",
        minimum=0,
        maximum=1,
        step=0.01,
    )
    lambda_: float = control(
        0.0,
        "Temperature",
        "Divides the similarities before the softmax. 0: the square root of the number of "
        "channels.",
        "λ",
        minimum=0.01,
        maximum=100,
        step=0.1,
        automatic=True,
    )
    space: str = control(
        "VE",
        "Latent scale",
        "The scale at which the latent attends to itself. VE: as sampled, the reference; VP: at "
        "unit variance, where attention spreads wider in early steps.",
        choices=("VE", "VP"),
    )
    passes: str = control(
        "automatic",
        "Passes with mixing",
        "The passes with mixing. automatic: the first pass and img2img; both: the first pass and "
        "Hires. fix.",
        choices=PASSES,
        webui_only=True,
    )


@dataclass(frozen=True)
class ProgressiveRefinement(Declared):
    """AP-LDM's stages and Self-Cascade's pivot: upsample, renoise part of the way, denoise."""

    prefix = "refine"

    enabled: bool = control(
        False, "Enable", "Upscale the finished image and denoise it again, in stages."
    )
    factor: float = control(
        2.0,
        "Upscale by",
        "The final image's sides relative to the first image's.",
        minimum=1,
        maximum=16,
        step=0.25,
    )
    width: int = control(
        0,
        "Resize width to",
        "The final width in pixels, instead of the factor. 0: from the height, at the first "
        "image's aspect ratio, or from the factor.",
        minimum=64,
        maximum=16384,
        step=8,
        automatic=True,
    )
    height: int = control(
        0,
        "Resize height to",
        "The final height in pixels, instead of the factor. 0: from the width, at the first "
        "image's aspect ratio, or from the factor.",
        minimum=64,
        maximum=16384,
        step=8,
        automatic=True,
    )
    method: str = control(
        "AP-LDM",
        "Method",
        "AP-LDM: one stage for each denoising strength, areas evenly spaced. Pivot "
        "(Self-Cascade): up to 4 times the area in each stage, each from timestep K.",
        choices=("AP-LDM", "Pivot"),
    )
    eta2: tuple[float, ...] = control(
        (0.2,),
        "Denoising strengths",
        "For AP-LDM: the denoising strength of each stage, one number per stage. 0.2 for twice "
        "the sides; 0.1, 0.2 for four times.",
        "η₂",
    )
    pivot: int = control(
        700,
        "Pivot timestep",
        "For Pivot: the training timestep (of 1000) to which each stage is renoised.",
        "K",
        minimum=1,
        maximum=999,
    )
    enlargement: str = control(
        "automatic",
        "Upscale in",
        "pixel: decode, upscale, encode (AP-LDM). latent: upscale the latent itself (Pivot). "
        "automatic: as in the method's paper.",
        choices=("automatic", "pixel", "latent"),
    )
    guided: bool = control(
        True, "Guide the stages", "Use Upsample Guidance in the stages too, if it is enabled."
    )
    colour_match: bool = control(
        False,
        "Match colours",
        "Give each stage's latent the channel means and deviations of the first image's latent.",
    )
    tile: int = control(
        0,
        "VAE tile size",
        "Tile side in pixels for decoding and encoding large images; saves memory. 0: no tiles.",
        minimum=128,
        maximum=4096,
        step=64,
        automatic=True,
    )
    keep_stages: bool = control(
        False, "Keep every stage", "Keep the first image and every stage's image too."
    )
    upsampler: str = control(
        NOTHING,
        "Feature upsampler",
        "A trained file that carries the smaller image's features into the larger one "
        "(Self-Cascade, tuned). It acts in the stages near the scale it was trained for.",
        "Φ",
        listed=True,
    )
    steps: int = control(
        0,
        "Steps of the stages",
        "Each stage takes its share of so many steps. Fewer are faster. 0: of as many as the first "
        "image has.",
        minimum=1,
        maximum=150,
        automatic=True,
        since=2,
    )

    def steps_of_stages(self, steps: int) -> int:
        """Of the stages' whole schedule, for a first image of `steps`."""
        return self.steps or steps


_GROUP_TYPES: dict[str, type[Declared]] = {
    "ug": UpsampleGuidance,
    "pfsa": AttentiveGuidance,
    "refine": ProgressiveRefinement,
}


@dataclass(frozen=True)
class Settings:
    """All controls of one run."""

    ug: UpsampleGuidance = UpsampleGuidance()
    pfsa: AttentiveGuidance = AttentiveGuidance()
    refine: ProgressiveRefinement = ProgressiveRefinement()

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> Settings:
        """Build from public names, `{"ug_theta": 0.8}`; strings, numbers and lists are read alike.

        Raises SettingsError for an unknown name or a value that its control does not take.
        """
        return cls().updated(values)

    def updated(self, values: Mapping[str, object]) -> Settings:
        """These settings with the controls named in `values` replaced."""
        known = {name: (group, short) for name, group, short, _, _ in _rows()}
        changes: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
        for name, value in values.items():
            if name not in known:
                raise SettingsError(f"{name}: there is no such setting{meant_hint(name, known)}")
            group, short = known[name]
            changes[group][short] = value
        groups = {group: replace(getattr(self, group), **changes[group]) for group in GROUPS}
        return Settings(**groups)

    def values(self) -> dict[str, Plain]:
        """Every control by its public name as a plain JSON value."""
        return {
            name: _plain(getattr(getattr(self, group), short))
            for name, group, short, _, _ in _rows()
        }

    def changed(self) -> dict[str, Plain]:
        """What a text must state of the controls of enabled groups."""
        return {
            name: value
            for name, value in self.stated().items()
            if getattr(self, name.split("_")[0]).enabled
        }

    def stated(self) -> dict[str, Plain]:
        """The controls that differ from their defaults, and those whose default has changed since
        an earlier version."""
        default, moved = Settings().values(), _former()
        return {
            name: value
            for name, value in self.values().items()
            if value != default[name] or name in moved
        }


@dataclass(frozen=True)
class Declaration:
    """One control as a surface sees it."""

    name: str
    group: str
    kind: type
    control: Control
    default: Plain

    @property
    def unstated(self) -> Plain:
        """Its value where an image's text does not name it: the default of when it was written."""
        return self.default if self.control.former is None else self.control.former


def declarations(*, clips: bool = False) -> tuple[Declaration, ...]:
    """All controls in the order of their positions, which are part of the API.

    clips: those of clips too, where a side makes clips. A control that is added to a group later
    is declared with `since` one above the highest, so that its position comes last.
    """
    defaults = Settings().values()
    return tuple(
        Declaration(name, group, kind, declared, defaults[name])
        for name, group, _, kind, declared in _rows()
        if clips or not declared.clips
    )


def as_kept(values: Mapping[str, Value]) -> dict[str, Value | Plain]:
    """What an image or a preset states, and the controls that it is silent on and whose default
    has changed since at the default that they had."""
    return {**_former(), **values}


def _former() -> dict[str, Plain]:
    """The former defaults of those controls that have others now, by public name."""
    return {
        name: declared.former for name, _, _, _, declared in _rows() if declared.former is not None
    }


def label_of(name: str) -> str:
    """What the page calls a control, by its public name."""
    return next(row.control.label for row in declarations(clips=True) if row.name == name)


def markdown_table() -> str:
    """The table of docs/settings.md, group by group."""
    titles = ("setting", "on the page", "symbol", "default", "range", "what it does")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in sorted(declarations(clips=True), key=lambda row: list(GROUPS).index(row.group)):
        control = row.control
        text = control.help + " WebUI only." * control.webui_only
        text += " Not on the page." * (not control.on_page)
        cells = (f"`{row.name}`", control.label, control.symbol, _shown(row.default), _range(row))
        lines.append(f"| {' | '.join(cells)} | {text} |")
    return "\n".join(lines)


def _range(row: Declaration) -> str:
    if row.control.choices:
        return ", ".join(row.control.choices)
    if row.control.listed:
        return f"a file's name, {NOTHING}"
    if row.kind is bool:
        return "on, off"
    if row.kind is tuple:
        return "numbers in (0, 1]"
    bounds = f"{row.control.minimum:.10g} to {row.control.maximum:.10g}"
    return bounds + ", or 0" if row.control.automatic else bounds


def _shown(value: Plain) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _plain(value: Any) -> Plain:
    if isinstance(value, tuple):
        return ", ".join(map(repr, value))
    plain: Plain = value
    return plain


def _rows() -> list[tuple[str, str, str, type, Control]]:
    """(public name, group, attribute, type, control) of all, in the order of their positions."""
    rows = [
        (name, group, short, kind, declared)
        for group, cls in _GROUP_TYPES.items()
        for name, kind, declared, short in cls.rows()
    ]
    return sorted(rows, key=lambda row: row[4].since)
