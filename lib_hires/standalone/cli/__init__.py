"""The command `hires`; heavy imports happen inside the commands, so that --help is instant."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from lib_hires.presets import PURPOSES, PresetError, preset_for
from lib_hires.settings import GROUPS, NOTHING, Plain, Settings, SettingsError, declarations
from lib_hires.standalone.cli.benchmark import add_benchmarks
from lib_hires.standalone.cli.options import (
    DTYPES,
    add_option,
    add_request_options,
    complain,
    names_in,
    say,
)
from lib_hires.standalone.pipeline.request import Request, fitted
from lib_hires.standalone.training.upsampler_config import UpsamplerTraining

if TYPE_CHECKING:
    from lib_hires.standalone.pipeline.generate import Run

BUNDLED_STAGES = ("vae", "latents", "decoder", "model", "export", "judge")
STUDENT_STAGES = ("few-steps", "turbo")
"""The stages of `hires train-demo`: what makes the bundled model, and what is made of it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 done, 2 refused or failed with a sentence, 130 interrupted."""
    logging.basicConfig(format="hires: %(message)s")
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except ValueError as error:  # SettingsError and ModelError are among them
        return complain(str(error))
    except KeyboardInterrupt:
        return complain("interrupted", 130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hires", description="Images above native size.")
    commands = parser.add_subparsers(required=True, metavar="command")
    generate = commands.add_parser("generate", help="make images from a prompt")
    _add_generate_options(generate)
    generate.set_defaults(command=_generate)
    app = commands.add_parser("app", help="all of it in a browser, on this machine")
    _add_app_options(app)
    app.set_defaults(command=_app)
    demo = commands.add_parser("demo", help="every technique side by side, bundled model")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder (default: demo)")
    rows = {row.name: row for row in declarations()}
    upsampler = rows["refine_upsampler"]
    add_option(demo, upsampler.name, upsampler.kind, upsampler.control, upsampler.default)
    demo.set_defaults(command=_demo)
    train = commands.add_parser("train-demo", help="train the bundled model and its judge anew")
    train.add_argument("--out", type=Path, default=Path("trained"), help="folder of the result")
    train.add_argument(
        "--work", type=Path, default=Path("training"), help="folder of the checkpoints; resumes"
    )
    text = f"some of {', '.join(BUNDLED_STAGES + STUDENT_STAGES)}, with commas"
    text += f" (default: {', '.join(BUNDLED_STAGES)})"
    train.add_argument("--stages", default="", help=text)
    train.add_argument(
        "--start-from", type=Path, help="folder of a trained model whose weights to go on from"
    )
    train.add_argument("--model-minutes", type=float, help="how long the U-Net is trained")
    train.add_argument(
        "--few-steps-minutes", type=float, help="how long a model of few steps is distilled"
    )
    train.add_argument(
        "--turbo-minutes", type=float, help="how long that model is trained against a critic"
    )
    train.set_defaults(command=_train_demo)
    train_upsampler = commands.add_parser("train-upsampler", help="train a feature upsampler")
    _add_train_upsampler_options(train_upsampler)
    train_upsampler.set_defaults(command=_train_upsampler)
    add_benchmarks(commands)
    return parser


def _add_generate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", default=argparse.SUPPRESS, help="what to show")
    parser.add_argument("--model", type=Path, help="safetensors file or diffusers folder")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder (pictures)")
    parser.add_argument("--from", dest="source", type=Path, help="repeat this image")
    text = f"settings for a purpose, which other options change: {'; '.join(PURPOSES)}"
    parser.add_argument("--preset", metavar="PURPOSE", help=text)
    text = "a prompt a line, or a .csv table with columns as the options; goes on where it stopped"
    parser.add_argument("--prompts", metavar="FILE", type=Path, help=text)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="(default: float32, or that of --from)")
    image = parser.add_argument_group("Image")
    add_request_options(image, [name for name, *_ in Request.rows() if name != "prompt"])
    groups = {group: parser.add_argument_group(title) for group, title in GROUPS.items()}
    for row in declarations():
        if not row.control.webui_only:
            add_option(groups[row.group], row.name, row.kind, row.control, row.default)


def _add_train_upsampler_options(parser: argparse.ArgumentParser) -> None:
    """accelerate's launcher starts several of these; each finds its part."""
    parser.add_argument("--model", type=Path, help="(default: the bundled one)")
    parser.add_argument(
        "--data", type=Path, help="folder of large images, captions beside them in .txt files"
    )
    out = Path("upsampler.safetensors")
    parser.add_argument("--out", type=Path, default=out, help=f"the file (default: {out})")
    work = Path("training-upsampler")
    parser.add_argument("--work", type=Path, default=work, help="checkpoint and samples; resumes")
    parser.add_argument("--cache", type=Path, help="folder for latents and features, made once")
    training = parser.add_argument_group("Training")
    for name, kind, control, attribute in UpsamplerTraining.rows():
        add_option(training, name, kind, control, getattr(UpsamplerTraining(), attribute))


def _add_app_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, action="append", default=[], help="offer this one too; repeatable"
    )
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder (pictures)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860)")
    parser.add_argument(
        "--listen", metavar="ADDRESS", default="127.0.0.1", help="(default: this machine alone)"
    )
    parser.add_argument("--user", help="who may come in; needed with another --listen")
    parser.add_argument("--password", help="with which")


def _app(options: argparse.Namespace) -> int:
    from lib_hires.standalone.pipeline.png import writable_folder

    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError:
        message = "app: gradio is missing; install it with pip install -e '.[app]'"
        raise SettingsError(message) from None
    from lib_hires.standalone.app.page import run_page

    writable_folder(options.out)
    run_page(options, say=say)
    return 0


def _generate(options: argparse.Namespace) -> int:
    from lib_hires.standalone.pipeline.png import read_run, writable_folder

    given = vars(options)
    about = read_run(options.source) if options.source else {}
    base = about.get("settings", {})
    if options.preset is not None:
        if about:
            raise SettingsError("--preset: expected no --from beside it")
        base = _preset_values(options.preset)
    named = {row.name: given[row.name] for row in declarations() if row.name in given}
    settings = Settings.from_values(base).updated(named)
    if "refine_upsampler" in named:
        from lib_hires.standalone.pipeline.upsamplers import find_upsampler

        find_upsampler(settings.refine.upsampler)  # raises also where no stage would use it
    asked = {name: given[name] for name, *_ in Request.rows() if name in given}
    if options.prompts:
        return _generate_many(options, Request.from_values(asked), settings, named.keys())
    if not about and "prompt" not in asked:
        raise SettingsError("prompt: expected one, or an image to repeat with --from")
    request = Request.from_values(about.get("request", {}) | asked)
    writable_folder(options.out)

    import torch

    from lib_hires.standalone.models import load_model
    from lib_hires.standalone.pipeline.generate import Run

    dtype = options.dtype or about.get("dtype", "float32")
    if dtype not in DTYPES:
        raise SettingsError(f"--from: expected a dtype of {', '.join(DTYPES)}, got {dtype!r}")
    model = load_model(options.model, device=options.device, dtype=getattr(torch, dtype))
    if about and about["model"] != model.name and options.model is None:
        raise SettingsError(f"--from: made with {about['model']}; name its file with --model")
    # An image of a batch is repeated within its batch, for to the bit it depends on it.
    repeats_one = about and not {"seed", "batch"} & set(asked)
    only = about.get("image", 0) if repeats_one else None
    if only is not None and only not in range(request.batch):
        raise SettingsError(f"--from: {options.source} says that it is image {only} of its batch")
    sizes = model.native, model.multiple
    request, settings = fitted(options.preset, *sizes, request, settings, named)
    return _paint_and_save(Run(model, request, settings), options.out, only)


def _preset_values(purpose: str) -> Mapping[str, Plain]:
    try:
        return preset_for(purpose).values
    except PresetError as error:
        raise SettingsError(f"--preset: {error}") from None


def _generate_many(
    options: argparse.Namespace, request: Request, settings: Settings, named: Set[str]
) -> int:
    """accelerate's launcher starts several of these; each paints its share of the lines.

    named: the settings that the options give for all lines.
    """
    if options.source or request.prompt:
        raise SettingsError("--prompts: expected neither a prompt nor --from beside it")
    from lib_hires.standalone.pipeline.png import writable_folder

    writable_folder(options.out)
    import torch

    from lib_hires.standalone.models import load_model
    from lib_hires.standalone.pipeline.batch import paint_lines, processes, read_lines

    state = processes(options.device)
    once = complain if state.is_main_process else lambda _: None
    lines, bad = read_lines(options.prompts, request, settings, once)
    shared = options.device == "cuda" == state.device.type  # a card for each process
    device = str(state.device) if shared else options.device
    dtype = getattr(torch, options.dtype or "float32")
    model = load_model(options.model, device=device, dtype=dtype)
    lines = [line.fitted(options.preset, model.native, model.multiple, named) for line in lines]
    failed = paint_lines(lines, state, model, options.out, say, complain)
    return 2 if bad or failed else 0


def _paint_and_save(run: Run, folder: Path, only: int | None) -> int:
    """Write the images as each stage finishes, the later over the earlier, so none is lost.

    only: the one image of the batch to write; None for all.
    """
    from tqdm import tqdm

    from lib_hires.standalone.pipeline.results import free_paths, save_stage, what_happened

    paths: dict[int, Path] = {}
    sys.stderr.write(run.planned().summary() + "\n")
    finished = -1
    try:
        with tqdm(total=sum(run.steps), unit="step", leave=False) as bar:
            for painted in run.paint(on_step=lambda *_: bar.update()):
                paths = paths or free_paths(run, folder, only)
                save_stage(run, painted, paths)
                finished = painted.stage
    except (KeyboardInterrupt, RuntimeError, FloatingPointError, OSError) as error:
        _say_what_ran(run)
        message = what_happened(error, run, finished + 1)
        if finished >= 0:
            message += f"; stage {finished} is kept:\n{_names(paths)}"
        return complain(message, 130 if isinstance(error, KeyboardInterrupt) else 2)
    _say_what_ran(run)
    say(_names(paths))
    return 0


def _names(paths: Mapping[int, Path]) -> str:
    return "\n".join(map(str, paths.values()))


def _say_what_ran(run: Run) -> None:
    if summary := run.record.summary():
        sys.stderr.write(f"Ran: {summary}.\n")


def _demo(options: argparse.Namespace) -> int:
    from lib_hires.standalone.pipeline.png import writable_folder

    writable_folder(options.out)
    from lib_hires.standalone.benchmarks.demo import demo

    say(demo(options.out, upsampler=getattr(options, "refine_upsampler", NOTHING)))
    return 0


def _train_demo(options: argparse.Namespace) -> int:
    from lib_hires.standalone.pipeline.png import writable_folder

    stages = names_in(options.stages) or BUNDLED_STAGES
    known = BUNDLED_STAGES + STUDENT_STAGES
    for stage in stages:
        if stage not in known:
            raise SettingsError(f"--stages: expected some of {', '.join(known)}, got {stage!r}")
    writable_folder(options.out)
    writable_folder(options.work)
    from lib_hires.standalone.training import few_steps as train_few_steps
    from lib_hires.standalone.training import judge as train_judge
    from lib_hires.standalone.training import turbo as train_turbo
    from lib_hires.standalone.training.bundled import STAGES, TrainingConfig, start_from, train

    if options.start_from:
        start_from(options.start_from, options.work)
    own = [stage for stage in stages if stage in STAGES]
    config = TrainingConfig(**_minutes(model_minutes=options.model_minutes))
    train(options.out, stages=own, config=config, work=options.work)
    if "judge" in stages:
        train_judge.train(options.out)
    if "few-steps" in stages:
        few_steps = train_few_steps.FewStepsConfig(**_minutes(minutes=options.few_steps_minutes))
        train_few_steps.train(options.work, options.out, few_steps)
    if "turbo" in stages:
        turbo = train_turbo.TurboConfig(**_minutes(minutes=options.turbo_minutes))
        train_turbo.train(options.work, options.out, turbo)
    return 0


def _minutes(**given: float | None) -> dict[str, float]:
    """What was given of them."""
    return {name: minutes for name, minutes in given.items() if minutes is not None}


def _train_upsampler(options: argparse.Namespace) -> int:
    from lib_hires.standalone.pipeline.png import writable_folder

    given = vars(options)
    names = [name for name, *_ in UpsamplerTraining.rows()]
    config = UpsamplerTraining(**{name: given[name] for name in names if name in given})
    writable_folder(options.work)
    writable_folder(options.out.parent)
    from lib_hires.standalone.training.upsampler import train_upsampler

    done = train_upsampler(
        options.out,
        config=config,
        model_path=options.model,
        data=options.data,
        work=options.work,
        cache=options.cache,
    )
    if done:
        say(done)
    return 0
