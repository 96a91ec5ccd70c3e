"""A tiny random model, the real path through the loader included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models

from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import LatentModel


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder, SD1 layout, native 16x16 pixels, VAE factor 2."""
    return tiny_models.write_folder(tmp_path_factory.mktemp("models") / "tiny", "sd1", "eps")


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> LatentModel:
    return load_model(tiny_folder)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work folder of `hires train-demo` that has the bundled model and one empty scene."""
    from lib_hires.standalone.bundled import FOLDER
    from lib_hires.standalone.training.bundled import start_from

    folder = tmp_path / "work"
    start_from(FOLDER, folder)
    scene = np.zeros((1, 4, 32, 32), np.float16)
    np.savez(folder / "latents" / "0000.npz", latents=scene, captions=np.array([["a", "a"]]))
    return folder
