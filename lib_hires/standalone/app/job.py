"""One run in a thread of its own, reported as events, which can be stopped between two steps."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from lib_hires.resample import Reduction
from lib_hires.run.record import RunRecord
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import FinishedStage, Run
from lib_hires.standalone.pipeline.outputs import free_paths, save_stage, to_pil, what_happened

log = logging.getLogger("hires_guidance")

PREVIEW_SIDE = 32  # of the latent that is decoded for a preview, at most
PREVIEW_SHARE = 0.1  # of the time that may go into previews


@dataclass(frozen=True)
class Step:
    """A step is done, the first of a stage being number 1."""

    stage: int
    stages: int
    step: int
    steps: int
    preview: Image.Image | None  # of the batch's first image, where there is a new one


@dataclass(frozen=True)
class Saved:
    """A stage is finished and its images are written."""

    stage: int
    stages: int
    paths: tuple[Path, ...]
    image: Image.Image  # the batch's first; of clips, the first one's first frame
    seconds: float  # since the run began
    record: RunRecord  # of what happened until now


@dataclass(frozen=True)
class Ended:
    """Before its time: what was saved until now is the result."""

    message: str
    record: RunRecord


class Stopped(Exception):
    """The user has stopped the run."""


class Job:
    """A run that writes its images into `folder` as each stage finishes.

    stop: when set, the run ends after the step that is being done; the last finished stage is kept.
    """

    def __init__(self, run: Run, folder: Path, stop: threading.Event) -> None:
        self._run, self._folder, self._stop = run, folder, stop
        self._events: queue.SimpleQueue[Step | Saved | Ended | None] = queue.SimpleQueue()
        self._preview = _Preview(run.model)
        self._stage = 0  # the one that is being made

    def events(self) -> Iterator[Step | Saved | Ended]:
        """Run, and report it; closing this iterator stops the run."""
        thread = threading.Thread(target=self._generate, daemon=True)
        thread.start()
        try:
            yield from iter(self._events.get, None)
        finally:
            self._stop.set()
            thread.join()

    def _generate(self) -> None:
        try:
            paths: dict[int, Path] = {}
            for finished in self._run.generate(self._after_step):
                paths = paths or free_paths(self._run, self._folder)
                save_stage(self._run, finished, paths)
                self._events.put(self._saved(finished, tuple(paths.values())))
                self._stage = finished.stage + 1
        except Stopped:
            self._events.put(self._ended(f"stopped in {self._stage_name()}"))
        except Exception as error:
            self._events.put(self._ended(self._message(error)))
        finally:
            self._events.put(None)

    def _after_step(self, stage: int, step: int, steps: int, denoised: Tensor) -> None:
        if self._stop.is_set():
            raise Stopped
        preview = self._preview.of(denoised)
        self._events.put(Step(stage, len(self._run.stages), step + 1, steps, preview))

    def _saved(self, finished: FinishedStage, paths: tuple[Path, ...]) -> Saved:
        first = to_pil(_first(finished.images)[0])
        record = self._run.record
        return Saved(finished.stage, finished.stages, paths, first, finished.seconds, record)

    def _ended(self, message: str) -> Ended:
        return Ended(message, self._run.record)

    def _message(self, error: Exception) -> str:
        try:
            return what_happened(error, self._run, self._stage)
        except Exception:
            log.exception("the run failed")
            return f"{self._stage_name()} failed ({type(error).__name__}: {error})"

    def _stage_name(self) -> str:
        return f"stage {self._stage}" if self._stage else "the first image"


def _first(batch: Tensor) -> Tensor:
    """The first of a batch (b, c, h, w), or the first frame of clips (b, c, f, h, w)."""
    return batch[:1] if batch.ndim == 4 else batch[:1, :, 0]


class _Preview:
    """Small images of what is being made, as often as their cost allows."""

    def __init__(self, model: LatentModel) -> None:
        self._model = model
        self._next = 0.0

    def of(self, denoised: Tensor) -> Image.Image | None:
        """An image of the first latent of (b, c, h, w), shrunk; None where it is not yet time.

        Of clips, (b, c, f, h, w), it is the first frame.
        """
        started = time.perf_counter()
        if started < self._next:
            return None
        first = _first(denoised)
        large = first.shape[-2], first.shape[-1]
        scale = max(1.0, max(large) / PREVIEW_SIDE)
        small = max(1, round(large[0] / scale)), max(1, round(large[1] / scale))
        latent = Reduction.between(large, small).to(denoised.device).reduce(first)
        image = to_pil(self._model.decode(latent)[0])
        cost = time.perf_counter() - started
        self._next = started + cost / PREVIEW_SHARE
        return image
