"""The command `hires generate`: what the options mean, and then the run or the batch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_hires.detail import NO_DETAIL, Detail
from lib_hires.presets import PURPOSES, PresetError, preset_for
from lib_hires.settings import GROUPS, Plain, Settings, SettingsError, as_kept, declarations
from lib_hires.standalone import bundled
from lib_hires.standalone.cli.options import (
    DTYPES,
    PREDICTIONS,
    add_loras,
    add_option,
    add_overrides,
    add_request_options,
    complain,
    say,
    warn_slow,
    write_error,
)
from lib_hires.standalone.pipeline.request import Request, fitted, weighted_file

if TYPE_CHECKING:
    from lib_hires.standalone.models.latent import LatentModel, Lora
    from lib_hires.standalone.pipeline.generate import Run
    from lib_hires.standalone.pipeline.lines import Line


def add_generate(commands: Any) -> None:
    """Add the command to those of `hires`."""
    parser = commands.add_parser("generate", help="make images from a prompt")
    parser.set_defaults(command=lambda options: run(resolve(options)))
    parser.add_argument("prompt", nargs="?", default=argparse.SUPPRESS, help="what to show")
    parser.add_argument("--model", type=Path, help="safetensors file or diffusers folder")
    text = "make clips with this motion module: a safetensors file or a diffusers folder (default "
    text += "with --frames and without --model: the bundled one)"
    parser.add_argument("--motion", type=Path, help=text)
    add_loras(parser)
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder (pictures)")
    parser.add_argument("--from", dest="source", type=Path, help="repeat this image")
    text = f"settings for a purpose, which other options change: {'; '.join(PURPOSES)}"
    parser.add_argument("--preset", metavar="PURPOSE", help=text)
    text = "a prompt a line, or a .csv table with columns as the options; goes on where it stopped"
    parser.add_argument("--prompts", metavar="FILE", type=Path, help=text)
    text = "a technique that is measured and no setting yet, such as sharper=0.1; again for others"
    parser.add_argument("--detail", metavar="NAME=VALUE", action="append", default=[], help=text)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="(default: float32, or that of --from)")
    add_overrides(parser)
    image = parser.add_argument_group("Image")
    add_request_options(image, [name for name, *_ in Request.rows() if name != "prompt"])
    groups = {group: parser.add_argument_group(title) for group, title in GROUPS.items()}
    for row in declarations(clips=True):
        if not row.control.webui_only:
            add_option(groups[row.group], row.name, row.kind, row.control, row.default)


@dataclass(frozen=True)
class Job:
    """What a command line wants, once for all; what the model decides is still open."""

    request: Request
    settings: Settings
    named: frozenset[str]  # settings that the options themselves give
    purpose: str | None  # of a preset
    out: Path
    model: Path | None  # None is the bundled one
    device: str
    dtype: str
    overrides: Mapping[str, str | bool]  # of the model's prediction and schedule
    motion: Path | None = None  # module, for clips
    loras: tuple[tuple[Path, float], ...] = ()  # files and their weights
    prompts: Path | None = None  # for many images
    source: Source | None = None  # the image that is repeated
    detail: Detail = NO_DETAIL


@dataclass(frozen=True)
class Source:
    """An image that is repeated."""

    path: Path
    model: str  # the name of the model that made it
    loras: tuple[Lora, ...]  # that it was made with
    only: int | None  # its place in its batch, where that batch is repeated


def resolve(options: argparse.Namespace) -> Job:
    """Decide preset, --from, batch and dtype. Reads the image of --from and nothing else.

    Raises SettingsError for options that cannot stand together, or have no sense.
    """
    given = vars(options)
    about = _about(options)
    base = as_kept(about["settings"]) if about else {}
    if options.preset is not None:
        base = _preset_values(options.preset)
    named = {row.name: given[row.name] for row in declarations(clips=True) if row.name in given}
    settings = Settings.from_values(base).updated(named)
    if "refine_upsampler" in named:
        from lib_hires.standalone.pipeline.upsamplers import find_upsampler

        find_upsampler(settings.refine.upsampler)  # raises also where no stage would use it
    wanted = {name: given[name] for name, *_ in Request.rows() if name in given}
    if options.prompts and "prompt" in wanted:
        raise SettingsError("--prompts: expected neither a prompt nor --from beside it")
    if not options.prompts and not about and "prompt" not in wanted:
        raise SettingsError("prompt: expected one, or an image to repeat with --from")
    request = Request.from_values(about.get("request", {}) | wanted)
    motion = _motion(options, about, request)
    if motion is None and not options.prompts:
        _check_no_clip(wanted)
    return Job(
        request=request,
        settings=settings,
        named=frozenset(named),
        purpose=options.preset,
        out=options.out,
        model=options.model,
        device=options.device,
        dtype=_dtype(options, about),
        overrides=_overrides(options, about),
        motion=motion,
        loras=_loras(options, about),
        prompts=options.prompts,
        source=_source(options, about, request, wanted) if about else None,
        detail=_detail(options, about),
    )


def _motion(options: argparse.Namespace, about: Mapping[str, Any], request: Request) -> Path | None:
    """The file that is named; for clips of the bundled model its own."""
    if options.motion is not None:
        return Path(options.motion)
    own, stated = bundled.MOTION, about.get("motion")
    clip = not stated and request.frames > 1 and not options.prompts  # whose lines decide
    if options.model is None and (stated == own.stem or clip):
        return own
    if stated:
        raise SettingsError(f"--from: made with {stated}; name its file with --motion")
    return None


def _check_no_clip(wanted: Mapping[str, Any]) -> None:
    """Raises SettingsError where an image is asked for with what is for clips alone."""
    for name, _, control, _ in Request.rows():
        if control.clips and name in wanted and name != "frames":  # which the run refuses
            option = name.replace("_", "-")
            raise SettingsError(f"--{option}: is for clips; give --frames or --motion too")


def _detail(options: argparse.Namespace, about: Mapping[str, Any]) -> Detail:
    """That of the image of --from, changed by the options."""
    if options.prompts and options.detail:
        raise SettingsError("--detail: expected no --prompts beside it")
    named = {}
    for text in options.detail:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--detail: expected NAME=VALUE, got {text!r}")
        named[name] = value
    stated = about.get("detail", {})
    if not isinstance(stated, dict):
        raise SettingsError("--from: detail: expected names and values")
    return Detail.from_values(stated | named)


def _about(options: argparse.Namespace) -> dict[str, Any]:
    """What the image of --from states; empty where there is none."""
    if not options.source:
        return {}
    if options.prompts:
        raise SettingsError("--prompts: expected neither a prompt nor --from beside it")
    if options.preset is not None:
        raise SettingsError("--preset: expected no --from beside it")
    from lib_hires.standalone.pipeline.outputs import read_run

    return read_run(options.source)


def _preset_values(purpose: str) -> Mapping[str, Plain]:
    try:
        return preset_for(purpose).values
    except PresetError as error:
        raise SettingsError(f"--preset: {error}") from None


def _dtype(options: argparse.Namespace, about: Mapping[str, Any]) -> str:
    dtype = options.dtype or about.get("dtype", "float32")
    if dtype not in DTYPES:
        raise SettingsError(f"--from: expected a dtype of {', '.join(DTYPES)}, got {dtype!r}")
    return str(dtype)


def _overrides(options: argparse.Namespace, about: Mapping[str, Any]) -> dict[str, str | bool]:
    given = {"prediction": options.prediction, "zero_snr": options.zero_snr}
    known = {"prediction": PREDICTIONS, "zero_snr": (True, False)}
    found = {name: about.get(name) if value is None else value for name, value in given.items()}
    for name, value in found.items():
        if value is not None and value not in known[name]:
            raise SettingsError(f"--from: {name}: expected one of {known[name]}, got {value!r}")
    return {name: value for name, value in found.items() if value is not None}


def _loras(options: argparse.Namespace, about: Mapping[str, Any]) -> tuple[tuple[Path, float], ...]:
    """The files that are named, at their weights or those that the image of --from states."""
    left = _stated_loras(about)
    if left and not options.lora:
        made = ", ".join(f"{lora.name}:{lora.weight:g}" for lora in left)
        raise SettingsError(f"--from: made with LoRA {made}; name each file with --lora")
    named = []
    for file, weight in map(weighted_file, options.lora):
        stated = next((lora for lora in left if lora.name == file.stem), None)
        if stated:
            left.remove(stated)  # another file of this name is the next one's
        if weight is None:
            weight = stated.weight if stated else 1.0
        named.append((file, weight))
    return tuple(named)


def _stated_loras(about: Mapping[str, Any]) -> list[Lora]:
    if not about.get("loras"):
        return []
    from lib_hires.standalone.pipeline.outputs import stated_loras

    return stated_loras(about)


def _source(
    options: argparse.Namespace,
    about: Mapping[str, Any],
    request: Request,
    wanted: Mapping[str, object],
) -> Source:
    """An image of a batch is repeated within its batch, for to the bit it depends on it."""
    only = None if {"seed", "batch"} & set(wanted) else about.get("image", 0)
    if only is not None and only not in range(request.batch):
        raise SettingsError(f"--from: {options.source} states that it is image {only} of its batch")
    return Source(options.source, about["model"], tuple(_stated_loras(about)), only)


def _warn_of_loras(job: Job, stated: tuple[Lora, ...], model: LatentModel) -> None:
    """Warn of those that the image was made with and that are not named, or are other files."""
    named = {file.stem for file, _ in job.loras}
    known: dict[str, set[str]] = {}
    for lora in stated:
        known.setdefault(lora.name, set()).add(lora.sha256)
    for name in known.keys() - named:
        complain(f"{name}: left out, but the image was made with it; name its file with --lora")
    for lora in model.loras:
        if lora.sha256 not in known.get(lora.name, {lora.sha256}):
            complain(f"{lora.name}: another file than the image was made with")


def run(job: Job) -> int:
    """Make the images of a job; returns the exit code."""
    from lib_hires.standalone.pipeline.outputs import writable_folder

    writable_folder(job.out)
    warn_slow(job.dtype, job.device)
    if job.prompts:
        return _generate_many(job, job.prompts)
    model = _loaded(job, job.device)
    if job.source and job.source.model != model.name and job.model is None:
        raise SettingsError(f"--from: made with {job.source.model}; name its file with --model")
    if job.source:
        _warn_of_loras(job, job.source.loras, model)
    sizes = model.native, model.multiple
    request, settings = fitted(job.purpose, *sizes, job.request, job.settings, job.named)

    from lib_hires.standalone.pipeline.generate import Run

    return _save_stages(Run(model, request, settings, detail=job.detail), job)


def _loaded(job: Job, device: str) -> LatentModel:
    import torch

    from lib_hires.standalone.models import Overrides, load_model
    from lib_hires.standalone.models.lora import find_file, with_loras

    for file, _ in job.loras:
        find_file(file)
    overrides = Overrides(**job.overrides)  # type: ignore[arg-type]
    dtype = getattr(torch, job.dtype)
    model = load_model(job.model, device=device, dtype=dtype, overrides=overrides)
    if job.motion is not None:
        from lib_hires.standalone.models.motion import with_motion

        model = with_motion(model, job.motion)
    return with_loras(model, job.loras)


def _generate_many(job: Job, prompts: Path) -> int:
    """accelerate's launcher starts several of these; each makes its share of the lines."""
    from lib_hires.standalone.pipeline.batch import generate_lines, processes, read_lines

    state = processes(job.device)
    once = complain if state.is_main_process else lambda _: None
    lines, bad = read_lines(prompts, job.request, job.settings, once)
    shared = job.device == "cuda" == state.device.type  # a card for each process
    failed = 0
    for some, share in _by_motion(job, lines):
        model = _loaded(some, str(state.device) if shared else job.device)
        sizes = model.native, model.multiple
        fitting = [line.fitted(job.purpose, *sizes, job.named) for line in share]
        failed += generate_lines(fitting, state, model, job.out, say, complain)
    return 2 if bad or failed else 0


def _by_motion(job: Job, lines: list[Line]) -> list[tuple[Job, list[Line]]]:
    """The lines by the motion module that makes them: where none is named, clips of the bundled
    model have its own."""
    if job.motion is not None or job.model is not None:
        return [(job, lines)]
    images = [line for line in lines if line.request.frames <= 1]
    clips = [line for line in lines if line.request.frames > 1]
    shares = [(job, images), (replace(job, motion=bundled.MOTION), clips)]
    return [(some, share) for some, share in shares if share]


def _save_stages(run: Run, job: Job) -> int:
    """Write the images as each stage finishes, the later over the earlier, so none is lost."""
    from tqdm import tqdm

    from lib_hires.standalone.pipeline.outputs import free_paths, save_stage, what_happened

    only = job.source.only if job.source else None
    paths: dict[int, Path] = {}
    write_error(run.planned().summary())
    finished = -1
    try:
        with tqdm(total=sum(run.steps), unit="step", leave=False) as bar:
            for stage in run.generate(on_step=lambda *_: bar.update()):
                paths = paths or free_paths(run, job.out, only)
                save_stage(run, stage, paths)
                finished = stage.stage
    except (KeyboardInterrupt, RuntimeError, FloatingPointError, OSError) as error:
        _report_record(run)
        message = what_happened(error, run, finished + 1)
        if finished >= 0:
            message += f"; stage {finished} is kept:\n{_names(paths)}"
        return complain(message, 130 if isinstance(error, KeyboardInterrupt) else 2)
    _report_record(run)
    say(_names(paths))
    return 0


def _names(paths: Mapping[int, Path]) -> str:
    return "\n".join(map(str, paths.values()))


def _report_record(run: Run) -> None:
    if summary := run.record.summary():
        write_error(f"Ran: {summary}.")
