"""The commands `hires train-demo` and `hires train-upsampler`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_hires.settings import SettingsError
from lib_hires.standalone.cli.options import add_option, names_in, say
from lib_hires.standalone.training.upsampler_config import UpsamplerTraining

if TYPE_CHECKING:
    from lib_hires.standalone.training.motion import MotionConfig
    from lib_hires.standalone.training.vae import VaeConfig

BUNDLED_STAGES = ("crops", "vae", "latents", "model", "export", "judge")
STUDENT_STAGES = ("few-steps", "turbo", "motion")
"""The stages of `hires train-demo`: what makes the bundled model, and what is made of it."""


def add_trainings(commands: Any) -> None:
    """Add the commands to those of `hires`."""
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
    train.add_argument(
        "--vae",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="how the VAE is trained, by the names of VaeConfig, as steps=24000",
    )
    train.add_argument("--model-minutes", type=float, help="how long the U-Net is trained")
    train.add_argument(
        "--few-steps-minutes", type=float, help="how long a model of few steps is distilled"
    )
    train.add_argument(
        "--turbo-minutes", type=float, help="how long that model is trained against a critic"
    )
    train.add_argument("--motion-minutes", type=float, help="how long a motion module is trained")
    train.add_argument("--motion-clips", type=int, help="how many clips are drawn for it (2000)")
    train.set_defaults(command=_train_demo)
    train_upsampler = commands.add_parser("train-upsampler", help="train a feature upsampler")
    _add_train_upsampler_options(train_upsampler)
    train_upsampler.set_defaults(command=_train_upsampler)


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


def _train_demo(options: argparse.Namespace) -> int:
    from lib_hires.standalone.pipeline.outputs import writable_folder

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
    from lib_hires.standalone.training.motion import MotionConfig

    given = _minutes(minutes=options.motion_minutes, clips=options.motion_clips)
    motion = MotionConfig(**given)
    if options.start_from:
        start_from(options.start_from, options.work)
    own = [stage for stage in stages if stage in STAGES]
    config = TrainingConfig(**_minutes(model_minutes=options.model_minutes))
    vae = _vae_config(options.vae)
    train(options.out, stages=own, config=config, vae=vae, work=options.work)
    if "judge" in stages:
        train_judge.train(options.out)
    if "few-steps" in stages:
        few_steps = train_few_steps.FewStepsConfig(**_minutes(minutes=options.few_steps_minutes))
        train_few_steps.train(options.work, options.out, few_steps)
    if "turbo" in stages:
        turbo = train_turbo.TurboConfig(**_minutes(minutes=options.turbo_minutes))
        train_turbo.train(options.work, options.out, turbo)
    if "motion" in stages:
        _train_motion(options, motion)
    return 0


def _vae_config(words: Sequence[str]) -> VaeConfig:
    """A VaeConfig with what was given as NAME=VALUE. Raises SettingsError."""
    from lib_hires.standalone.training.vae import VaeConfig

    values: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in asdict(VaeConfig()):
            raise SettingsError(f"--vae: expected a name of VaeConfig, got {name!r}")
        kind = type(getattr(VaeConfig(), name))
        try:
            values[name] = kind(value)
        except ValueError:
            raise SettingsError(f"--vae {name}: expected {kind.__name__}, got {value!r}") from None
    return VaeConfig(**values)


def _train_motion(options: argparse.Namespace, config: MotionConfig) -> None:
    """For the model that lies in --out, where one was trained there; else for the bundled one."""
    from lib_hires.standalone.models import load_model
    from lib_hires.standalone.training.motion import train
    from lib_hires.standalone.world.model import NAME

    own = options.out / f"{NAME}.safetensors"
    model = load_model(own if own.exists() else None)
    say(str(train(options.work, options.out, model, config)))


def _minutes(**given: float | None) -> dict[str, Any]:
    """What was given of them."""
    return {name: minutes for name, minutes in given.items() if minutes is not None}


def _train_upsampler(options: argparse.Namespace) -> int:
    from lib_hires.standalone.pipeline.outputs import writable_folder

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
