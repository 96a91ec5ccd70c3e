"""What tests of models share: calls, changed files and expected refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import LatentModel, ModelError


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def call(model: LatentModel, x: torch.Tensor, sigma: torch.Tensor, **extra: Any) -> torch.Tensor:
    embedded = model.encode_prompts(["a red house"] * len(x), [""] * len(x))
    return model.denoiser()(x, sigma, context=embedded.cond, pooled=embedded.pooled_cond, **extra)


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def assert_close(a: torch.Tensor | None, b: torch.Tensor | None, tolerance: float) -> None:
    assert (a is None) == (b is None)
    assert a is None or b is None or (a - b).abs().max() < tolerance


def edit_yaml(file: Path, **params: Any) -> None:
    config = yaml.safe_load(file.with_suffix(".yaml").read_text())
    config["model"]["params"] |= params
    file.with_suffix(".yaml").write_text(yaml.safe_dump(config))


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert options or path.name.split(".")[0] in message
    return message
