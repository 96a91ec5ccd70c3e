"""The command `hires benchmark` and its kinds."""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_hires.settings import SettingsError
from lib_hires.standalone import bundled
from lib_hires.standalone.cli.options import (
    DTYPES,
    add_request_options,
    complain,
    names_in,
    say,
    warn_slow,
    write_error,
)
from lib_hires.standalone.pipeline.request import Request

if TYPE_CHECKING:
    import torch

    from lib_hires.standalone.benchmarks.quality.generation import Subject
    from lib_hires.standalone.benchmarks.quality.measures import Measurer
    from lib_hires.standalone.benchmarks.techniques import Technique

SAMPLED = ("negative", "steps", "sampler", "schedule", "cfg")
"""The controls of a request that `hires benchmark quality` leaves to the user."""

REFERENCED = ("references", "prompts", "inception", "clip")
"""Its options that are about true images of any kind, to judge another model by."""


def add_benchmarks(commands: Any) -> None:
    """Add the command to those of `hires`."""
    benchmark = commands.add_parser("benchmark", help="measure quality, speed or memory")
    kinds = benchmark.add_subparsers(required=True, metavar="what")
    quality = kinds.add_parser("quality", help="what each technique's images show")
    _add_quality_options(quality)
    quality.set_defaults(command=_benchmark_quality)
    speed = kinds.add_parser("speed", help="what each technique costs, beside its bound")
    speed.add_argument(
        "--out", type=Path, default=Path("benchmark/speed"), help="folder (default: %(default)s)"
    )
    speed.add_argument("--repeats", type=int, default=3, help="of which the median is shown")
    speed.add_argument("--dtype", default="float32", choices=DTYPES)
    text = "the CUDA device for networks of SD 1.5's and SDXL's size (default: cuda, if any)"
    speed.add_argument("--device", help=text)
    text = "of the images on it in pixels, with commas (default: 2048, 4096)"
    speed.add_argument("--sides", default="2048, 4096", help=text)
    speed.set_defaults(command=_benchmark_speed)
    flops = kinds.add_parser("flops", help="operations of every technique on SD 1.5 and SDXL")
    flops.add_argument(
        "--out", type=Path, default=Path("benchmark/flops"), help="folder (default: %(default)s)"
    )
    flops.set_defaults(command=_benchmark_flops)
    pfsa = kinds.add_parser("pfsa", help="PFSA's time and memory beside the explicit form")
    pfsa.set_defaults(command=_benchmark_pfsa)
    video = kinds.add_parser("video", help="clips of each technique, beside true ones")
    _add_video_options(video)
    video.set_defaults(command=_benchmark_video)
    papers = kinds.add_parser("papers", help="AP-LDM's own code beside ours, on one SDXL model")
    _add_papers_options(papers)
    papers.set_defaults(command=_benchmark_papers)


def _add_quality_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="folder (default: benchmark/quality-2x or -4x)")
    parser.add_argument(
        "--images",
        "--pictures",
        dest="images",
        type=int,
        default=100,
        help="per technique (default: 100)",
    )
    text = "of the bundled world, which distances are taken from (default: 400)"
    parser.add_argument("--true-images", type=int, metavar="N", help=text)
    parser.add_argument("--scale", type=int, default=2, choices=(2, 4))
    parser.add_argument(
        "--techniques",
        default="",
        help="names with commas, or every (default: the best known ones, or --variant alone)",
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "SETTING=VALUE"),
        help="one of them with other settings, or with names of --detail; repeatable",
    )
    text = "a model's file that enlarges images: a row of it alone, and one of refinement from it"
    parser.add_argument("--upscaler", action="append", default=[], metavar="FILE", help=text)
    parser.add_argument(
        "--dtype", default="auto", choices=(*DTYPES, "auto"), help="auto: the device's fastest"
    )
    parser.add_argument("--first-seed", type=int, help="for choosing settings on other seeds")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes (default: one a core, with --references one)",
    )
    sampling = parser.add_argument_group("How every image is sampled, as few-step models want it")
    add_request_options(sampling, SAMPLED)
    other = parser.add_argument_group("Another model than the bundled one")
    other.add_argument("--model", type=Path, help="safetensors file or diffusers folder")
    text = "judge as the bundled model's: for one made of it (train-demo's few-steps, turbo)"
    other.add_argument("--scenes", action="store_true", help=text)
    other.add_argument("--references", metavar="FOLDER", type=Path, help="of true images")
    other.add_argument("--prompts", metavar="FILE", type=Path, help="one a line, taken in turn")
    other.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    text = "of inception-2015-12-05.pt, for the FID (default: /tmp, where clean-fid keeps it)"
    other.add_argument("--inception", metavar="FOLDER", type=Path, help=text)
    text = "folder, or name on the Hub of one that is downloaded, for the CLIP score"
    other.add_argument("--clip", metavar="MODEL", help=f"{text} (default: ViT-L/14 of OpenAI)")


def _add_video_options(parser: argparse.ArgumentParser) -> None:
    text = "motion module for the model (default: the bundled one)"
    parser.add_argument("--motion", type=Path, default=bundled.MOTION, help=text)
    parser.add_argument("--model", type=Path, help="another one that shows the bundled world")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark/video"), help="folder (default: %(default)s)"
    )
    text = "some of the rows by their folders' names, as UG-2x-1t, with commas (default: all)"
    parser.add_argument("--cases", default="", help=text)
    parser.add_argument("--clips", type=int, default=32, help="per technique (default: 32)")
    parser.add_argument("--steps", type=int, default=20, help="(default: 20)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")


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


def _benchmark_quality(options: argparse.Namespace) -> int:
    _check_together(options)
    sampling = Request(**{name: value for name, value in vars(options).items() if name in SAMPLED})
    from lib_hires.standalone.pipeline.outputs import writable_folder

    kind = f"{options.scale}x"
    if options.model:
        name = options.model.name if options.model.is_dir() else options.model.stem
        kind = f"{name}-{kind}"
    import torch

    from lib_hires.standalone.benchmarks.quality import FINAL_SEEDS, quality
    from lib_hires.standalone.models import fast_dtype, usable

    usable(options.device)
    auto = options.dtype == "auto"
    if not auto:
        warn_slow(options.dtype, options.device)
    dtype = fast_dtype(options.device) if auto else getattr(torch, options.dtype)
    techniques = _chosen_techniques(options, sampling)
    subject, measurer = _measured_model(options, dtype, sampling)
    say(
        quality(
            writable_folder(options.out or Path("benchmark") / f"quality-{kind}"),
            subject,
            measurer,
            images=options.images,
            scale=options.scale,
            techniques=techniques,
            first_seed=FINAL_SEEDS if options.first_seed is None else options.first_seed,
            workers=options.workers or (1 if options.references else 0),
        )
    )
    return 0


def _check_together(options: argparse.Namespace) -> None:
    """Raises SettingsError where an option of another model lacks those it needs beside it, or
    stands beside --scenes, which judges otherwise."""
    values = ((name, getattr(options, name)) for name in ("scenes", "model", *REFERENCED))
    given = [name for name, value in values if value not in (None, False)]
    needed = ["model"] if options.scenes else ["model", "references", "prompts"]
    missing = [f"--{name}" for name in needed if name not in given]
    if given and missing:
        raise SettingsError(f"--{given[0]}: expected {' and '.join(missing)} beside it")
    if options.true_images is not None and options.true_images < 2:
        raise SettingsError(f"--true-images: expected at least 2, got {options.true_images}")
    if options.true_images is not None and "references" in given:
        raise SettingsError("--true-images: expected no --references beside it")
    for name in REFERENCED:
        if options.scenes and name in given:
            raise SettingsError(f"--{name}: expected no --scenes beside it")


def _chosen_techniques(options: argparse.Namespace, sampling: Request) -> tuple[Technique, ...]:
    from lib_hires.standalone.benchmarks.techniques import (
        STANDARD,
        chosen,
        varied,
        with_upscaler,
    )

    names = names_in(options.techniques)
    variants = tuple(varied(words, options.scale) for words in options.variant)
    named = chosen(names, options.scale, sampling) if names else () if variants else STANDARD
    if options.model and names == ["every"]:  # the bundled upsampler fits the bundled model alone
        named = tuple(each for each in named if "refine_upsampler" not in each.settings)
    upscaled = chain.from_iterable(map(with_upscaler, options.upscaler))
    return (*named, *variants, *upscaled)


def _measured_model(
    options: argparse.Namespace, dtype: torch.dtype, sampling: Request
) -> tuple[Subject, Measurer]:
    """Whose images `hires benchmark quality` measures, and who looks at them."""
    from lib_hires.standalone.benchmarks.quality.generation import Subject

    if options.model is None or options.scenes:
        from lib_hires.standalone.benchmarks.quality.judged import TRUE_IMAGES, Judged

        subject = Subject(options.model, device=options.device, dtype=dtype, sampling=sampling)
        return subject, Judged(options.true_images or TRUE_IMAGES)
    from lib_hires.standalone.benchmarks.quality.references import Referenced, read_prompts

    prompts = read_prompts(options.prompts)
    subject = Subject(options.model, prompts, options.device, dtype, sampling)
    chosen = {"inception": options.inception, "clip": options.clip}
    given = {name: value for name, value in chosen.items() if value is not None}
    measurer = Referenced(options.references, subject, **given)
    for note in measurer.notes:
        complain(note)
    return subject, measurer


def _benchmark_speed(options: argparse.Namespace) -> int:
    from lib_hires.standalone.pipeline.outputs import writable_folder

    sides = _sides(options.sides)
    warn_slow(options.dtype, "cpu")
    writable_folder(options.out)
    import torch

    from lib_hires.standalone.benchmarks.speed import speed
    from lib_hires.standalone.models import load_model, usable

    device = options.device or ("cuda" if torch.cuda.is_available() else None)
    card = usable(device) if device else None
    if card and card.type != "cuda":
        raise SettingsError(f"--device: expected a CUDA device, got {options.device!r}")
    model = load_model(None, dtype=getattr(torch, options.dtype))
    say(speed(options.out, model, repeats=options.repeats, card=card, sides=sides))
    return 0


def _sides(text: str) -> list[int]:
    """Raises SettingsError for what is not above both native sizes, or too far."""
    words = names_in(text)
    fitting = (word.isdecimal() and int(word) in range(1280, 8192 + 1, 64) for word in words)
    if not words or not all(fitting):
        raise SettingsError(
            f"--sides: expected multiples of 64 from 1280 to 8192, with commas, got {text!r}"
        )
    return [int(word) for word in words]


def _benchmark_flops(options: argparse.Namespace) -> int:
    from lib_hires.standalone.pipeline.outputs import writable_folder

    out = writable_folder(options.out)
    import torch

    from lib_hires.standalone.benchmarks.flops import flops_rows, flops_table
    from lib_hires.standalone.benchmarks.reports import write_report

    rows = list(flops_rows())
    write_report(out / "report.json", rows, dtype=torch.float32, device="meta")
    say("\n".join(flops_table(rows)))
    say(f"\n{out / 'report.json'}")
    return 0


def _benchmark_pfsa(options: argparse.Namespace) -> int:
    from lib_hires.standalone.benchmarks.speed.pfsa import pfsa_cost

    say(pfsa_cost())
    return 0


def _benchmark_video(options: argparse.Namespace) -> int:
    from lib_hires.standalone.pipeline.outputs import writable_folder

    out = writable_folder(options.out)
    warn_slow(options.dtype, "cpu")
    import torch

    from lib_hires.standalone.benchmarks.video import chosen, known_cases, video
    from lib_hires.standalone.models import load_model
    from lib_hires.standalone.models.motion import with_motion

    known, missing = known_cases()
    cases = chosen(known, names_in(options.cases))
    if missing:
        write_error(missing)
    image = load_model(options.model, dtype=getattr(torch, options.dtype))
    model = with_motion(image, options.motion)
    say(video(out, model, clips=options.clips, steps=options.steps, cases=cases))
    return 0


def _benchmark_papers(options: argparse.Namespace) -> int:
    from lib_hires.standalone.pipeline.outputs import writable_folder

    out = writable_folder(options.out)
    warn_slow(options.dtype, options.device)
    from lib_hires.standalone.benchmarks.papers import Job, chosen, papers

    jobs = [
        Job(case, options.model, options.steps, options.device, options.dtype)
        for case in chosen(names_in(options.cases))
    ]
    papers(out, options.ap_ldm, jobs, repeats=options.repeats, write=say)
    return 0
