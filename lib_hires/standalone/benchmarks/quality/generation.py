"""The quality benchmark's images: each is generated once, into a file of its own.

Several processes work side by side. Called again with the same folder they generate what is
missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from multiprocessing import parent_process
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lib_hires.files import sha256_of
from lib_hires.settings import Settings, SettingsError
from lib_hires.sizes import Size
from lib_hires.standalone import bundled
from lib_hires.standalone.benchmarks.memory import peak_memory
from lib_hires.standalone.benchmarks.processes import fresh_processes, in_fresh_process
from lib_hires.standalone.benchmarks.reports import claim_folders
from lib_hires.standalone.benchmarks.techniques import Technique, make
from lib_hires.standalone.models import load_model, usable
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.outputs import read_about, save
from lib_hires.standalone.pipeline.request import Request
from lib_hires.standalone.world.scenes import Scene, random_scene


@dataclass(frozen=True)
class Subject:
    """The model that is measured, and its prompts; can be sent to other processes."""

    model: Path | None = None  # None: the bundled one
    prompts: tuple[str, ...] = ()  # cycled over the seeds; none: captions of the bundled world
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    sampling: Request = field(default_factory=Request)  # but for prompt, size and seed

    def load(self) -> LatentModel:
        return load_model(self.model, device=self.device, dtype=self.dtype)

    def request(self, seed: int) -> Request:
        """The request of a seed, whatever the technique."""
        cycled = self.prompts and self.prompts[seed % len(self.prompts)]
        return replace(self.sampling, prompt=cycled or scene_of(seed).caption, seed=seed)

    def note(self) -> dict[str, Any]:
        """What distinguishes its images from those of another."""
        note = {
            "dtype": str(self.dtype),
            "version": version("hires-guidance"),
            "model": sha256_of(_files(self.model))[:16],
        }
        if self.prompts:
            note["prompts"] = list(self.prompts)
        if self.device != "cpu":
            note["device"] = self.device
        return note


def scene_of(seed: int) -> Scene:
    """The scene of the bundled model's world that this seed stands for."""
    return random_scene(np.random.default_rng(seed))


def _files(model: Path | None) -> list[Path]:
    """All that a model is made of."""
    if model is None:
        return [bundled.MODEL]
    if model.is_dir():
        return sorted(path for path in model.rglob("*") if path.is_file())
    return [path for path in (model, model.with_suffix(".yaml")) if path.is_file()]


@dataclass(frozen=True)
class Sample:
    """One image that is to be generated."""

    technique: Technique
    scale: int
    seed: int

    def path(self, out: Path) -> Path:
        return out / "pictures" / f"{self.scale}x-{self.technique.name}" / f"{self.seed}.png"


def check(subject: Subject, plan: Sequence[Sample]) -> tuple[Subject, Size]:
    """The subject with the CFG scale that it leaves to its model, and the model's native (height,
    width), after checking that it can generate all of these.

    It is loaded on the CPU, so that the processes that generate have the device alone. Raises
    ModelError, also for a device that is not there, and SettingsError with the technique's name.
    """
    usable(subject.device)
    model = replace(subject, device="cpu").load()
    for sample in plan:
        technique, scale = sample.technique, sample.scale
        request = technique.request(subject.request(sample.seed), scale, model)
        try:
            detail = technique.detail_at(scale)
            Run(model, request, technique.settings_at(scale), detail=detail)
        except SettingsError as error:
            raise SettingsError(f"--techniques: {technique.name} at {scale}x: {error}") from None
    return replace(subject, sampling=subject.sampling.scaled(model.cfg)), model.native


def claim(out: Path, subject: Subject, plan: Sequence[Sample]) -> None:
    """Note in each technique's folder how its images are made.

    Raises SettingsError, before anything is written, where one holds images made otherwise, or
    two would share one.
    """
    note = subject.note()
    notes = {}
    for sample in plan:
        technique = sample.technique
        made = {
            "settings": technique.settings_at(sample.scale).values(),
            "request": technique.sampled(subject.sampling).values(),
            **note,
        }
        if detail := technique.detail_at(sample.scale).changed():
            if "upscaler" in detail:
                detail["upscaler"] = _file_hash(detail["upscaler"])
            made["detail"] = detail
        path = sample.path(out).with_name("made.json")
        if path in notes:
            raise SettingsError(f"--techniques: {technique.name} is there twice")
        notes[path] = made
    claim_folders(
        notes, "images of another model, other prompts or other settings", _as_written_now
    )


def _file_hash(path: str) -> str:
    try:
        return sha256_of([Path(path)])
    except OSError as error:
        raise SettingsError(f"upscaler: {path} cannot be read ({error.strerror})") from error


def _as_written_now(made: dict[str, Any]) -> dict[str, Any]:
    """A note of an earlier version, with the controls that came since at their defaults."""
    return made | {"settings": Settings.from_values(made["settings"]).values()}


def generate_missing(out: Path, subject: Subject, samples: Sequence[Sample], workers: int) -> None:
    """Generate what has no file yet, in `workers` processes that share this one's threads."""
    missing = [sample for sample in samples if not sample.path(out).exists()]
    if not missing:
        return
    Random(0).shuffle(missing)  # so that every process makes images of every technique
    workers = min(workers, len(missing))
    threads = max(1, torch.get_num_threads() // workers)
    # Small images gain more from a process a core than from a core more a process.
    with (
        ProcessPoolExecutor(workers, mp_context=fresh_processes()) as pool,
        tqdm(total=len(missing), desc="generating", unit="image") as bar,
    ):
        shares = [missing[number::workers] for number in range(workers)]
        jobs = [pool.submit(generate, out, subject, share, threads) for share in shares]
        while wait(jobs, timeout=1).not_done:
            bar.n = sum(sample.path(out).exists() for sample in missing)
            bar.refresh()
        for job in jobs:
            job.result()


def generate(out: Path, subject: Subject, samples: Sequence[Sample], threads: int) -> None:
    """Generate the images one after another; to be called in a process of its own."""
    torch.set_num_threads(threads)
    model = subject.load()
    benchmark = parent_process()
    for sample in samples:
        if benchmark is not None and not benchmark.is_alive():
            os._exit(1)  # it was ended; this process would wait for it for ever
        made = make(sample.technique, model, subject.request(sample.seed), sample.scale)
        took = {"seconds": made.seconds, "model_evaluations": made.model_evaluations}
        save(made.images[0], sample.path(out), made.about | took)


def costs(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """What each image took: seconds and model evaluations."""
    for path in paths:
        about = read_about(path)
        yield {name: about.get(name) for name in ("seconds", "model_evaluations")}


def measure_memory(out: Path, subject: Subject, plan: Sequence[Sample]) -> None:
    """Generate one more image of each technique, in a fresh process, and note its peak memory.

    Where that was noted before it stays.
    """
    missing = [sample for sample in plan if not _memory_note(out, sample).exists()]
    for sample in tqdm(missing, desc="memory", unit="technique", leave=False):
        peak = in_fresh_process(_peak_of, subject, sample)
        _memory_note(out, sample).write_text(json.dumps({"peak_memory": peak}) + "\n")


def _peak_of(subject: Subject, sample: Sample) -> int | None:
    """Bytes beyond those of the loaded model; to be called in a process of its own."""
    model, request = subject.load(), subject.request(sample.seed)
    return peak_memory(model.device, lambda: make(sample.technique, model, request, sample.scale))


def memory_of(out: Path, sample: Sample) -> int | None:
    """The bytes that `measure_memory` has noted; None where the system does not report it."""
    noted: int | None = json.loads(_memory_note(out, sample).read_text())["peak_memory"]
    return noted


def _memory_note(out: Path, sample: Sample) -> Path:
    return sample.path(out).with_name("memory.json")
