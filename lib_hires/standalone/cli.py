"""The command `hires`; heavy imports happen inside the commands, so that --help is instant."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_hires.settings import GROUPS, NOTHING, Control, Settings, SettingsError, declarations
from lib_hires.standalone.request import Request
from lib_hires.standalone.upsampler_training import UpsamplerTraining

if TYPE_CHECKING:
    import torch

    from lib_hires.standalone.generate import Run
    from lib_hires.standalone.quality_measures import Measurer
    from lib_hires.standalone.quality_painting import Subject
    from lib_hires.standalone.techniques import Technique

DTYPES = ("float32", "float16", "bfloat16")
SAMPLED = ("negative", "steps", "sampler", "schedule", "cfg")
"""The controls of a request that `hires benchmark quality` leaves to the user."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 done, 2 refused or failed with a sentence, 130 interrupted."""
    logging.basicConfig(format="hires: %(message)s")
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except ValueError as error:  # SettingsError and ModelError are among them
        return _complain(str(error))
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hires", description="Pictures above native size.")
    commands = parser.add_subparsers(required=True, metavar="command")
    generate = commands.add_parser("generate", help="make pictures from a prompt")
    _add_generate_options(generate)
    generate.set_defaults(command=_generate)
    app = commands.add_parser("app", help="all of it in a browser, on this machine")
    _add_app_options(app)
    app.set_defaults(command=_app)
    demo = commands.add_parser("demo", help="every technique side by side, bundled model")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder (default: demo)")
    rows = {row.name: row for row in declarations()}
    upsampler = rows["refine_upsampler"]
    _add_option(demo, upsampler.name, upsampler.kind, upsampler.control, upsampler.default)
    demo.set_defaults(command=_demo)
    train = commands.add_parser("train-demo", help="train the bundled model and its judge anew")
    train.add_argument("--out", type=Path, default=Path("trained"), help="folder of the result")
    train.add_argument(
        "--work", type=Path, default=Path("training"), help="folder of the checkpoints; resumes"
    )
    train.add_argument("--stages", default="", help="some of the stages, with commas")
    train.add_argument(
        "--start-from", type=Path, help="folder of a trained model whose weights to go on from"
    )
    train.add_argument("--model-minutes", type=float, help="how long the U-Net is trained")
    train.set_defaults(command=_train_demo)
    train_upsampler = commands.add_parser("train-upsampler", help="train a feature upsampler")
    _add_train_upsampler_options(train_upsampler)
    train_upsampler.set_defaults(command=_train_upsampler)
    benchmark = commands.add_parser("benchmark", help="measure quality, speed or memory")
    kinds = benchmark.add_subparsers(required=True, metavar="what")
    quality = kinds.add_parser("quality", help="what each technique's pictures show")
    _add_quality_options(quality)
    quality.set_defaults(command=_benchmark_quality)
    speed = kinds.add_parser("speed", help="what each technique costs, beside its bound")
    speed.add_argument(
        "--out", type=Path, default=Path("benchmark/speed"), help="folder (default: %(default)s)"
    )
    speed.add_argument("--repeats", type=int, default=3, help="of which the median is shown")
    speed.add_argument("--dtype", default="float32", choices=DTYPES)
    speed.set_defaults(command=_benchmark_speed)
    pfsa = kinds.add_parser("pfsa", help="PFSA's time and memory beside the explicit form")
    pfsa.set_defaults(command=_benchmark_pfsa)
    papers = kinds.add_parser("papers", help="AP-LDM's own code beside ours, on one SDXL model")
    _add_papers_options(papers)
    papers.set_defaults(command=_benchmark_papers)
    return parser


def _add_generate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", default=argparse.SUPPRESS, help="what to show")
    parser.add_argument("--model", type=Path, help="safetensors file or diffusers folder")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder (pictures)")
    parser.add_argument("--from", dest="source", type=Path, help="repeat this picture")
    text = "a prompt a line, or a .csv table with columns as the options; goes on where it stopped"
    parser.add_argument("--prompts", metavar="FILE", type=Path, help=text)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="(default: float32, or that of --from)")
    picture = parser.add_argument_group("Picture")
    _add_request_options(picture, [name for name, *_ in Request.rows() if name != "prompt"])
    groups = {group: parser.add_argument_group(title) for group, title in GROUPS.items()}
    for row in declarations():
        if not row.control.webui_only:
            _add_option(groups[row.group], row.name, row.kind, row.control, row.default)


def _add_train_upsampler_options(parser: argparse.ArgumentParser) -> None:
    """accelerate's launcher starts several of these; each finds its part."""
    parser.add_argument("--model", type=Path, help="(default: the bundled one)")
    parser.add_argument(
        "--data", type=Path, help="folder of large pictures, captions beside them in .txt files"
    )
    out = Path("upsampler.safetensors")
    parser.add_argument("--out", type=Path, default=out, help=f"the file (default: {out})")
    work = Path("training-upsampler")
    parser.add_argument("--work", type=Path, default=work, help="checkpoint and samples; resumes")
    parser.add_argument("--cache", type=Path, help="folder for latents and features, made once")
    training = parser.add_argument_group("Training")
    for name, kind, control, attribute in UpsamplerTraining.rows():
        _add_option(training, name, kind, control, getattr(UpsamplerTraining(), attribute))


def _add_quality_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="folder (default: benchmark/quality-2x or -4x)")
    parser.add_argument("--pictures", type=int, default=100, help="per technique (default: 100)")
    parser.add_argument("--scale", type=int, default=2, choices=(2, 4))
    parser.add_argument(
        "--techniques",
        default="",
        help="names with commas, or every (default: the best known ones)",
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "SETTING=VALUE"),
        help="one of them with other settings; repeatable",
    )
    parser.add_argument(
        "--dtype", default="auto", choices=(*DTYPES, "auto"), help="auto: the device's fastest"
    )
    parser.add_argument("--first-seed", type=int, help="for choosing settings on other seeds")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes (default: one a core, with --model one)"
    )
    sampling = parser.add_argument_group("How every picture is sampled, as few-step models want it")
    _add_request_options(sampling, SAMPLED)
    other = parser.add_argument_group("Another model than the bundled one")
    other.add_argument("--model", type=Path, help="safetensors file or diffusers folder")
    other.add_argument("--references", metavar="FOLDER", type=Path, help="of true pictures")
    other.add_argument("--prompts", metavar="FILE", type=Path, help="one a line, taken in turn")
    other.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    text = "of inception-2015-12-05.pt, for the FID (default: /tmp, where clean-fid keeps it)"
    other.add_argument("--inception", metavar="FOLDER", type=Path, help=text)
    text = "folder, or name on the Hub of one that is downloaded, for the CLIP score"
    other.add_argument("--clip", metavar="MODEL", help=f"{text} (default: ViT-L/14 of OpenAI)")


def _add_papers_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ap-ldm", type=Path, required=True, help="folder of the authors' code")
    parser.add_argument("--model", type=Path, required=True, help="SDXL as a diffusers folder")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark/papers"), help="folder (default: %(default)s)"
    )
    parser.add_argument("--cases", default="", help="some of 2x, 4x and tiles, with commas")
    parser.add_argument("--steps", type=int, default=50, help="(default: 50, as published)")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median is shown")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)


def _add_request_options(group: Any, names: Sequence[str]) -> None:
    for name, kind, control, attribute in Request.rows():
        if name in names:
            _add_option(group, name, kind, control, getattr(Request(), attribute))


def _add_option(group: Any, name: str, kind: type, control: Control, default: object) -> None:
    """One control as an option; absent where it is not given, so that --from shows through."""
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        action = argparse.BooleanOptionalAction
        text = f"{control.help} (default: {'on' if default else 'off'})"
        group.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
        return
    choices = f" {', '.join(control.choices)}." if control.choices else ""
    text = f"{control.help}{choices} (default: {default})".replace("%", "%%")
    group.add_argument(flag, metavar="VALUE", default=argparse.SUPPRESS, help=text)


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
    from lib_hires.standalone.png import writable_folder

    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError:
        message = "app: gradio is missing; install it with pip install -e '.[app]'"
        raise SettingsError(message) from None
    from lib_hires.standalone.app import run_page

    writable_folder(options.out)
    run_page(options, say=_say)
    return 0


def _generate(options: argparse.Namespace) -> int:
    from lib_hires.standalone.png import read_run, writable_folder

    given = vars(options)
    about = read_run(options.source) if options.source else {}
    settings = Settings.from_values(about.get("settings", {})).updated(
        {row.name: given[row.name] for row in declarations() if row.name in given}
    )
    asked = {name: given[name] for name, *_ in Request.rows() if name in given}
    if options.prompts:
        return _generate_many(options, Request.from_values(asked), settings)
    if not about and "prompt" not in asked:
        raise SettingsError("prompt: expected one, or a picture to repeat with --from")
    request = Request.from_values(about.get("request", {}) | asked)
    writable_folder(options.out)

    import torch

    from lib_hires.standalone.generate import Run
    from lib_hires.standalone.models import load_model

    dtype = options.dtype or about.get("dtype", "float32")
    if dtype not in DTYPES:
        raise SettingsError(f"--from: expected a dtype of {', '.join(DTYPES)}, got {dtype!r}")
    model = load_model(options.model, device=options.device, dtype=getattr(torch, dtype))
    if about and about["model"] != model.name and options.model is None:
        raise SettingsError(f"--from: made with {about['model']}; name its file with --model")
    # A picture of a batch is repeated within its batch, for to the bit it depends on it.
    repeats_one = about and not {"seed", "batch"} & set(asked)
    only = about.get("image", 0) if repeats_one else None
    if only is not None and only not in range(request.batch):
        raise SettingsError(f"--from: {options.source} says that it is image {only} of its batch")
    return _paint_and_save(Run(model, request, settings), options.out, only)


def _generate_many(options: argparse.Namespace, request: Request, settings: Settings) -> int:
    """accelerate's launcher starts several of these; each paints its share of the lines."""
    if options.source or request.prompt:
        raise SettingsError("--prompts: expected neither a prompt nor --from beside it")
    from lib_hires.standalone.png import writable_folder

    writable_folder(options.out)
    import torch

    from lib_hires.standalone.models import load_model
    from lib_hires.standalone.prompts import paint_lines, processes, read_lines

    state = processes(options.device)
    once = _complain if state.is_main_process else lambda _: None
    lines, bad = read_lines(options.prompts, request, settings, once)
    shared = options.device == "cuda" == state.device.type  # a card for each process
    device = str(state.device) if shared else options.device
    dtype = getattr(torch, options.dtype or "float32")
    model = load_model(options.model, device=device, dtype=dtype)
    failed = paint_lines(lines, state, model, options.out, _say, _complain)
    return 2 if bad or failed else 0


def _paint_and_save(run: Run, folder: Path, only: int | None) -> int:
    """Write the pictures as each stage finishes, the later over the earlier, so none is lost.

    only: the one image of the batch to write; None for all.
    """
    from tqdm import tqdm

    from lib_hires.standalone.results import picture_paths, save_stage, what_happened

    paths = picture_paths(run, folder, only)
    names = "\n".join(map(str, paths.values()))
    sys.stderr.write(run.planned().sentence() + "\n")
    finished = -1
    try:
        with tqdm(total=sum(run.steps), unit="step", leave=False) as bar:
            for painted in run.paint(on_step=lambda *_: bar.update()):
                save_stage(run, painted, paths)
                finished = painted.stage
    except (KeyboardInterrupt, RuntimeError, FloatingPointError, OSError) as error:
        _say_what_ran(run)
        message = what_happened(error, run, finished + 1)
        if finished >= 0:
            message += f"; stage {finished} is kept:\n{names}"
        return _complain(message, 130 if isinstance(error, KeyboardInterrupt) else 2)
    _say_what_ran(run)
    _say(names)
    return 0


def _say_what_ran(run: Run) -> None:
    if summary := run.record.summary():
        sys.stderr.write(f"Ran: {summary}.\n")


def _demo(options: argparse.Namespace) -> int:
    from lib_hires.standalone.png import writable_folder

    writable_folder(options.out)
    from lib_hires.standalone.demo import demo

    _say(demo(options.out, upsampler=getattr(options, "refine_upsampler", NOTHING)))
    return 0


def _train_demo(options: argparse.Namespace) -> int:
    from lib_hires.standalone.png import writable_folder

    writable_folder(options.out)
    writable_folder(options.work)
    from lib_hires.standalone import train_judge
    from lib_hires.standalone.train_demo import STAGES, TrainingConfig, start_from, train

    if options.start_from:
        start_from(options.start_from, options.work)
    stages = _names(options.stages) or [*STAGES, "judge"]
    minutes = {} if options.model_minutes is None else {"model_minutes": options.model_minutes}
    train(
        options.out,
        stages=[stage for stage in stages if stage != "judge"],
        config=TrainingConfig(**minutes),
        work=options.work,
    )
    if "judge" in stages:
        train_judge.train(options.out)
    return 0


def _train_upsampler(options: argparse.Namespace) -> int:
    from lib_hires.standalone.png import writable_folder

    given = vars(options)
    names = [name for name, *_ in UpsamplerTraining.rows()]
    config = UpsamplerTraining(**{name: given[name] for name in names if name in given})
    writable_folder(options.work)
    writable_folder(options.out.parent)
    from lib_hires.standalone.train_upsampler import train_upsampler

    done = train_upsampler(
        options.out,
        config=config,
        model_path=options.model,
        data=options.data,
        work=options.work,
        cache=options.cache,
    )
    if done:
        _say(done)
    return 0


def _names(text: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _benchmark_quality(options: argparse.Namespace) -> int:
    _check_together(options)
    from lib_hires.standalone.png import writable_folder

    kind = f"{options.scale}x"
    if options.model:
        name = options.model.name if options.model.is_dir() else options.model.stem
        kind = f"{name}-{kind}"
    import torch

    from lib_hires.standalone.benchmark_quality import FINAL_SEEDS, quality
    from lib_hires.standalone.models import fast_dtype

    auto = options.dtype == "auto"
    dtype = fast_dtype(options.device) if auto else getattr(torch, options.dtype)
    techniques = _chosen_techniques(options)
    subject, measurer = _measured_model(options, dtype)
    _say(
        quality(
            writable_folder(options.out or Path("benchmark") / f"quality-{kind}"),
            subject,
            measurer,
            pictures=options.pictures,
            scale=options.scale,
            techniques=techniques,
            first_seed=FINAL_SEEDS if options.first_seed is None else options.first_seed,
            workers=options.workers or (1 if options.model else 0),
        )
    )
    return 0


def _check_together(options: argparse.Namespace) -> None:
    """Raises SettingsError where an option of another model lacks those it needs beside it."""
    needed = {"--model": options.model, "--references": options.references}
    needed["--prompts"] = options.prompts
    missing = [name for name, value in needed.items() if value is None]
    others = {"--inception": options.inception, "--clip": options.clip}
    given = [name for name, value in {**needed, **others}.items() if value is not None]
    if given and missing:
        raise SettingsError(f"{given[0]}: expected {' and '.join(missing)} beside it")


def _chosen_techniques(options: argparse.Namespace) -> tuple[Technique, ...]:
    from lib_hires.standalone.techniques import STANDARD, chosen, varied

    names = _names(options.techniques)
    variants = tuple(varied(words, options.scale) for words in options.variant)
    named = chosen(names, options.scale) if names else () if variants else STANDARD
    techniques = (*named, *variants)
    if options.model and names == ["every"]:  # the bundled upsampler fits the bundled model alone
        return tuple(each for each in techniques if "refine_upsampler" not in each.settings)
    return techniques


def _measured_model(options: argparse.Namespace, dtype: torch.dtype) -> tuple[Subject, Measurer]:
    """Whose pictures `hires benchmark quality` measures, and who looks at them."""
    from lib_hires.standalone.quality_painting import Subject

    sampling = Request.from_values(
        {name: value for name, value in vars(options).items() if name in SAMPLED}
    )
    if options.model is None:
        from lib_hires.standalone.quality_judged import Judged

        return Subject(device=options.device, dtype=dtype, sampling=sampling), Judged()
    from lib_hires.standalone.quality_references import Referenced, read_prompts

    prompts = read_prompts(options.prompts)
    subject = Subject(options.model, prompts, options.device, dtype, sampling)
    chosen = {"inception": options.inception, "clip": options.clip}
    given = {name: value for name, value in chosen.items() if value is not None}
    measurer = Referenced(options.references, subject, **given)
    for note in measurer.notes:
        _complain(note)
    return subject, measurer


def _benchmark_speed(options: argparse.Namespace) -> int:
    from lib_hires.standalone.png import writable_folder

    writable_folder(options.out)
    import torch

    from lib_hires.standalone.benchmark_speed import speed
    from lib_hires.standalone.models import load_model

    model = load_model(None, dtype=getattr(torch, options.dtype))
    _say(speed(options.out, model, repeats=options.repeats))
    return 0


def _benchmark_pfsa(options: argparse.Namespace) -> int:
    from lib_hires.standalone.benchmark_pfsa import pfsa_cost

    _say(pfsa_cost())
    return 0


def _benchmark_papers(options: argparse.Namespace) -> int:
    from lib_hires.standalone.png import writable_folder

    out = writable_folder(options.out)
    from lib_hires.standalone.benchmark_papers import Job, chosen, papers

    jobs = [
        Job(case, options.model, options.steps, options.device, options.dtype)
        for case in chosen(_names(options.cases))
    ]
    papers(out, options.ap_ldm, jobs, repeats=options.repeats, say=_say)
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _complain(sentence: str, code: int = 2) -> int:
    sys.stderr.write(f"hires: {sentence}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
