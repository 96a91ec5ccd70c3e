"""The models that the page offers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from lib_hires.run.schedules import Model
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import AS_STATED, LatentModel, Overrides
from lib_hires.standalone.pipeline.generate import plan_model

BUNDLED = "bundled"


class Models:
    """The models that the page offers by name, one of them loaded at a time."""

    def __init__(
        self,
        paths: Sequence[Path],
        device: str,
        dtype: torch.dtype,
        overrides: Overrides = AS_STATED,
    ) -> None:
        """overrides: of every model that was given; the bundled one is as its files state."""
        self._paths: dict[str, Path | None] = {BUNDLED: None}
        self._paths |= {str(path): path for path in paths}
        self._device, self._dtype, self._overrides = device, dtype, overrides
        self._loaded: tuple[str, LatentModel] | None = None
        self._known: dict[str, Model] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Those given first, the bundled one last."""
        return [*list(self._paths)[1:], BUNDLED]

    def get(self, name: str) -> LatentModel:
        """Load a model, or give the one that is loaded. Raises ModelError."""
        with self._lock:
            if self._loaded is None or self._loaded[0] != name:
                self._loaded = None  # first make room
                path = self._paths[name]
                model = load_model(
                    path,
                    device=self._device,
                    dtype=self._dtype,
                    overrides=AS_STATED if path is None else self._overrides,
                )
                self._loaded = name, model
                self._known[name] = plan_model(model)
            return self._loaded[1]

    def known(self, name: str) -> Model | None:
        """What a plan must know of a model; None for one that was never loaded."""
        return self._known.get(name)
