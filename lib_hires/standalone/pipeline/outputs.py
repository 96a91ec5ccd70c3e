"""Images on disk, each with the settings that repeat it, and what a run reports at its end."""

from __future__ import annotations

import html
import json
import math
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from lib_hires.devices import is_out_of_memory
from lib_hires.files import whole_file
from lib_hires.run.record import RunRecord
from lib_hires.settings import SettingsError
from lib_hires.standalone.models.latent import Lora
from lib_hires.standalone.pipeline import clip_files
from lib_hires.standalone.pipeline.request import OWN

if TYPE_CHECKING:
    from lib_hires.standalone.pipeline.generate import FinishedStage, Run

KEY = "hires-guidance"


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] to an 8-bit RGB image."""
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()))


def save(image: Image.Image, path: Path, about: dict[str, Any]) -> None:
    """Write a PNG with `about` as JSON in its text, replacing an older file only when complete."""
    text = PngImagePlugin.PngInfo()
    text.add_text(KEY, json.dumps(about))
    with whole_file(path) as partial:
        image.save(partial, format="PNG", pnginfo=text)


def save_clip(frames: Tensor, path: Path, about: dict[str, Any], fps: float) -> None:
    """Write frames (3, f, H, W) in [-1, 1] in the format of the path's suffix, with `about`."""
    images = [to_pil(frame) for frame in frames.unbind(1)]
    clip_files.save_clip(images, path, json.dumps({KEY: about}), fps)


def _read_clip_about(path: Path) -> dict[str, Any]:
    """What `save_clip` wrote. Raises KeyError or ValueError where it is no such file."""
    about = json.loads(clip_files.read_text(path))[KEY]
    if not isinstance(about, dict):
        raise ValueError("no settings")
    return about


def read_about(path: Path) -> dict[str, Any]:
    """What `save` or `save_clip` wrote.

    Raises SettingsError where there is no such file or nothing in it. In a PNG the text may lie
    anywhere that PNG allows, as other programs move it; pixels are decoded only to find it behind
    them, and without Pillow's limit for those.
    """
    others = ""
    try:
        if path.suffix.lower() in clip_files.SUFFIXES:
            return _read_clip_about(path)
        with PngImagePlugin.PngImageFile(path) as image:
            if KEY not in image.info:
                image.load()
            if image.info.keys() & {"parameters", "prompt"}:
                others = ", but a WebUI's or ComfyUI's, which are not read here"
            about = json.loads(image.info[KEY])
            if isinstance(about, dict):
                return about
    except SettingsError:  # MP4 cannot be read here
        raise
    except FileNotFoundError:
        raise SettingsError(f"--from: there is no file {path}") from None
    except SyntaxError:  # as Pillow reports that it is none
        raise SettingsError(f"--from: {path} is not a PNG image, or a damaged one") from None
    except (KeyError, OSError, TypeError, ValueError, RecursionError, MemoryError, EOFError):
        pass
    raise SettingsError(f"--from: {path} holds no settings of ours{others}")


def read_run(path: Path) -> dict[str, Any]:
    """What `save` wrote of a `Run`. Raises SettingsError also where it is not all there.

    The request's and the settings' values are left to those who build them. A clip that does not
    state its noise is of a version that knew one only.
    """
    about = read_about(path)
    whole = (
        isinstance(about.get("model"), str)
        and isinstance(about.get("request"), dict)
        and isinstance(about.get("settings"), dict)
    )
    if not whole:
        raise SettingsError(f"--from: {path} does not state how it was made")
    if about.get("motion"):
        about["request"] = {"clip_noise": OWN} | about["request"]
    return about


def stated_loras(about: Mapping[str, Any]) -> list[Lora]:
    """Those that an image was made with. Raises SettingsError."""
    try:
        loras = [
            Lora(str(each["name"]), float(each["weight"]), str(each["sha256"]))
            for each in about.get("loras") or []
        ]
        if not all(math.isfinite(lora.weight) for lora in loras):
            raise ValueError
        return loras
    except (KeyError, OverflowError, TypeError, ValueError):
        message = "--from: expected each LoRA's name, weight and sha256"
        raise SettingsError(message) from None


def writable_folder(path: Path) -> Path:
    """Make the folder, or raise SettingsError where nothing can be written into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # one of this process alone
            pass
    except OSError as error:
        raise SettingsError(f"--out: cannot write into {path}: {error.strerror}") from None
    return path


def next_number(folder: Path) -> int:
    """One more than the largest number with which a name like 00007-1.png in the folder starts."""
    suffixes = ".png", *clip_files.SUFFIXES
    files = (file for suffix in suffixes for file in folder.glob(f"*{suffix}"))
    starts = (re.match(r"([0-9]{5,12})-", file.name) for file in files)
    return max((int(start[1]) for start in starts if start), default=0) + 1


# --- the images of a run --------------------------------------------------------------------------


def suffix(run: Run) -> str:
    """Of the file of an image or of a clip."""
    return f".{run.request.clip_format}" if run.frames > 1 else ".png"


def free_paths(run: Run, folder: Path, only: int | None = None) -> dict[int, Path]:
    """New files for a run's images by their place in the batch; only: the one to write.

    They are there from now on, empty, so that no other process writes its images into them.
    """
    number = next_number(folder)
    paths: dict[int, Path] = {}
    try:
        for image in range(run.request.batch) if only is None else [only]:
            while image not in paths:
                path = folder / f"{number:05d}-{run.request.seeds[image]}{suffix(run)}"
                with suppress(FileExistsError):
                    path.touch(exist_ok=False)
                    paths[image] = path
                number += 1
    except BaseException:
        _remove_empty(paths)
        raise
    return paths


def save_stage(run: Run, finished: FinishedStage, paths: Mapping[int, Path]) -> None:
    """One PNG per image of the batch, each with what repeats it; over an earlier stage's.

    Where every stage is to be kept, those before the last get a file of their own beside it. No
    empty file stays behind an error.
    """
    try:
        _save_stage(run, finished, paths)
    finally:
        _remove_empty(paths)


def _remove_empty(paths: Mapping[int, Path]) -> None:
    for path in paths.values():
        if path.is_file() and not path.stat().st_size:
            path.unlink()


def _save_stage(run: Run, finished: FinishedStage, paths: Mapping[int, Path]) -> None:
    kept = run.settings.refine.keep_stages and finished.stage < finished.stages
    for image, path in paths.items():
        about = run.about() | {"stage": finished.stage, "stages": finished.stages, "image": image}
        _save_one(run, finished.images[image], path, about)
        if kept:
            own = path.with_name(f"{path.stem}-stage-{finished.stage}{path.suffix}")
            _save_one(run, finished.images[image], own, about)


def _save_one(run: Run, image: Tensor, path: Path, about: dict[str, Any]) -> None:
    """An image (3, H, W) or a clip (3, f, H, W), whose frames are written too where asked."""
    if image.ndim == 3:
        save(to_pil(image), path, about)
        return
    if run.request.keep_frames:
        for number, frame in enumerate(image.unbind(1), start=1):
            save(to_pil(frame), path.with_name(f"{path.stem}-frame-{number:04d}.png"), about)
    save_clip(image, path, about, run.fps)


def what_happened(error: BaseException, run: Run, stage: int) -> str:
    """A message for an error in `stage`; one that means nothing to a user is raised again."""
    height, width = run.stages[stage - 1].size if stage else run.first
    where = f"stage {stage} ({width}x{height})"
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted in {where}"
    if isinstance(error, OSError):
        return f"could not write the image of {where}: {error.strerror}"
    if isinstance(error, FloatingPointError):
        return f"{error}: {_remedy(run)}"
    if is_out_of_memory(error):
        lower = "lower --refine-factor or set --refine-tile" if stage else "lower --width, --height"
        frames = f", --frames (all {run.frames} are evaluated together)" if run.frames > 1 else ""
        return f"out of memory in {where}: {lower}, or lower --batch{frames}"
    raise error


def _remedy(run: Run) -> str:
    """What helps where values are not numbers."""
    if name := run.model.broken_weight():
        return f"the model's weights are damaged ({name}); download it again"
    if run.model.dtype != torch.float32:
        return "try --dtype float32"
    loras = " or the weights of --lora" if run.model.loras else ""
    return f"lower --cfg{loras}, or try another --sampler"


def folded(record: RunRecord) -> str:
    """What happened, as HTML: a line that opens; nothing where no pass began."""
    if not record.passes:
        return ""
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in record.lines())
    summary = f"<summary>{html.escape(record.summary())}</summary>"
    return f'<details class="hires-guidance-record">{summary}<ul>{lines}</ul></details>'
