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


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, stated to be native at half its size: a quarter of the work."""
    from lib_hires.standalone.bundled import MODEL

    folder = tmp_path_factory.mktemp("models") / "small"
    folder.mkdir()
    for path in (MODEL, MODEL.with_name("hires-demo-clip")):
        (folder / path.name).symlink_to(path)
    stated = MODEL.with_suffix(".yaml").read_text()
    (folder / "hires-demo.yaml").write_text(stated.replace("image_size: 32", "image_size: 16"))
    return folder / MODEL.name


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
