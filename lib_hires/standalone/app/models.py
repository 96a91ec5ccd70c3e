"""The models that the page offers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from lib_hires.run.schedules import Model
from lib_hires.settings import SettingsError
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import AS_STATED, LatentModel, Motion, Overrides
from lib_hires.standalone.models.lora import with_loras
from lib_hires.standalone.models.motion import name_of, with_motion
from lib_hires.standalone.pipeline.generate import plan_model

BUNDLED = "bundled"


@dataclass(frozen=True)
class Known:
    """What the page knows of a model that was loaded once."""

    planned: Model
    motion: Motion | None  # of one that makes clips


class Models:
    """The models that the page offers by name, one of them loaded at a time."""

    def __init__(
        self,
        paths: Sequence[Path],
        device: str,
        dtype: torch.dtype,
        overrides: Overrides = AS_STATED,
        *,
        motions: Sequence[Path] = (),
        loras: Sequence[tuple[Path, float]] = (),
    ) -> None:
        """overrides, loras: of every model that was given; the bundled one is as its files state.

        motions: modules with each of which the models, or the bundled one where none was given, are
        offered once more. Raises SettingsError for LoRA that no model would have.
        """
        if loras and not paths:
            raise SettingsError("--lora: expected --model beside it, whose weights it changes")
        self._paths: dict[str, Path | None] = {BUNDLED: None}
        self._paths |= {str(path): path for path in paths}
        self._motions: dict[str, Path] = {}
        for motion, name in product(motions, list(self._paths)[1:] or [BUNDLED]):
            both = f"{name} with {name_of(motion)}"
            if both in self._paths:  # of another folder
                both = f"{name} with {motion}"
            self._paths[both], self._motions[both] = self._paths[name], motion
        self._device, self._dtype, self._overrides = device, dtype, overrides
        self._loras = loras
        self._loaded: tuple[str, LatentModel] | None = None
        self._known: dict[str, Known] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Those given first, the bundled one last."""
        return [*list(self._paths)[1:], BUNDLED]

    @property
    def make_clips(self) -> bool:
        """Whether one of them has a motion module."""
        return bool(self._motions)

    def get(self, name: str) -> LatentModel:
        """Load a model, or give the one that is loaded. Raises ModelError."""
        with self._lock:
            if self._loaded is None or self._loaded[0] != name:
                self._loaded = None  # first make room
                model = self._made(name)
                self._loaded = name, model
                self._known[name] = Known(plan_model(model), model.motion)
            return self._loaded[1]

    def _made(self, name: str) -> LatentModel:
        path = self._paths[name]
        model = load_model(
            path,
            device=self._device,
            dtype=self._dtype,
            overrides=AS_STATED if path is None else self._overrides,
        )
        if name in self._motions:
            model = with_motion(model, self._motions[name])
        return model if path is None else with_loras(model, self._loras)

    def known(self, name: str) -> Known | None:
        """What a plan must know of a model; None for one that was never loaded."""
        return self._known.get(name)
