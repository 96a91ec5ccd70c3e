"""v prediction, zero terminal SNR and own schedules, as files and folders mark them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import yaml
from model_checks import call, copy, edit_json, edit_yaml, noise, refusal
from safetensors.torch import load_file, save_file

from lib_hires.standalone.models import Overrides, load_model
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.models.schedule import scaled_linear

V, ZERO = "v_pred", "ztsnr"


@pytest.fixture
def marked(loaded: dict[str, LatentModel], tmp_path: Path):
    """Writes the tiny SD1 with marks as tensors or metadata; `params` change its yaml."""

    def write(*names: str, metadata: dict[str, str] | None = None, **params: Any) -> Path:
        file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", loaded["sd1"])
        state = load_file(file) | {name: torch.zeros(0) for name in names}
        save_file(state, file, metadata)
        config = yaml.safe_load(file.with_suffix(".yaml").read_text())
        del config["model"]["params"]["parameterization"]
        file.with_suffix(".yaml").write_text(yaml.safe_dump(config))
        edit_yaml(file, **params)
        return file

    return write


def facts(path: Path, **overrides: Any) -> tuple[str, int]:
    model = load_model(path, overrides=Overrides(**overrides))
    return model.prediction, round(float(model.denoiser().sigma_max))


@pytest.mark.parametrize(
    ("names", "metadata", "expected"),
    [
        ((), {}, ("eps", 15)),
        ((V,), {}, ("v", 15)),
        ((ZERO,), {}, ("eps", 4096)),
        ((V, ZERO), {}, ("v", 4096)),
        ((f"model.{V}", f"model.{ZERO}"), {}, ("v", 4096)),
        ((), {"v_pred": "", "ztsnr": "True"}, ("v", 4096)),
        ((), {"v_pred": "false", "ztsnr": "False"}, ("eps", 15)),
        ((), {"modelspec.prediction_type": "v"}, ("v", 15)),
        ((), {"modelspec.predict_key": "epsilon"}, ("eps", 15)),
        ((), {"modelspec.architecture": "stable-diffusion-v2-768-v"}, ("v", 15)),
        ((), {"modelspec.architecture": "stable-diffusion-v1"}, ("eps", 15)),
        ((), {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, ("v", 4096)),
    ],
)
def test_marks_are_honoured(names, metadata, expected, marked) -> None:
    assert facts(marked(*names, metadata=metadata)) == expected


def test_a_yaml_that_contradicts_a_mark_is_warned_of(
    marked, caplog: pytest.LogCaptureFixture
) -> None:
    file = marked(V, ZERO, parameterization="eps")
    assert facts(file) == ("v", 4096)
    assert "marked as predicting v, and sampled so, though its yaml states epsilon" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="hires_guidance"):
        assert facts(file, prediction="eps", zero_snr=False) == ("eps", 15)
        assert facts(marked(parameterization="v", zero_snr=True)) == ("v", 4096)
    assert caplog.text == ""
    # Metadata of epsilon, which merging tools copy, does not go before a yaml.
    metadata = {"modelspec.prediction_type": "epsilon"}
    assert facts(marked(metadata=metadata, parameterization="v")) == ("v", 15)


def test_overrides_go_before_files_and_folders(marked, folders: dict[str, Path]) -> None:
    for path in (marked(), folders["sd1"]):
        assert facts(path) == ("eps", 15)
        assert facts(path, prediction="v", zero_snr=True) == ("v", 4096)
    assert facts(folders["sd2"], prediction="eps") == ("eps", 15)
    assert load_model(marked(), overrides=Overrides(zero_snr=True)).overrides.values() == {
        "zero_snr": True
    }


@pytest.mark.parametrize("zero", [False, True])
def test_file_and_folder_of_the_same_weights_are_sampled_alike(
    zero: bool, marked, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy(folders["sd1"], tmp_path / "folder")
    edit_json(
        folder / "scheduler" / "scheduler_config.json",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=zero,
    )
    models = load_model(folder), load_model(marked(V, *[ZERO] * zero))
    assert torch.equal(models[0].alphas_cumprod, models[1].alphas_cumprod)
    x, sigma = noise(2, 4, 8, 8, scale=9), torch.tensor([12.0, 1.0])
    assert torch.equal(*(call(model, x, sigma) for model in models))
    assert torch.equal(*(model.decode(x) for model in models))
    assert torch.equal(*(model.encode(noise(1, 3, 16, 16)) for model in models))


def test_zero_snr_is_the_papers_algorithm(marked) -> None:
    """Against diffusers' own rescaling, up to float32's rounding of the last steps."""
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
    )  # fmt: skip
    ours = load_model(marked(ZERO)).alphas_cumprod
    torch.testing.assert_close(
        ours, theirs.alphas_cumprod.clamp(min=2.0**-24), rtol=1e-3, atol=1e-6
    )


def test_a_files_own_schedule_is_sampled(marked) -> None:
    own = scaled_linear(0.0001, 0.02)

    def with_own(values: torch.Tensor) -> LatentModel:
        file = marked()
        save_file(load_file(file) | {"alphas_cumprod": values}, file)
        return load_model(file)

    assert torch.equal(with_own(own.float()).alphas_cumprod, own.float().clamp(min=2.0**-24))
    stated = load_model(marked()).alphas_cumprod
    for same in (scaled_linear().float(), scaled_linear().half(), scaled_linear().bfloat16()):
        assert torch.equal(with_own(same).alphas_cumprod, stated)
    for broken in (torch.zeros(1000), own.flip(0), torch.zeros(0), own.float() * torch.nan):
        assert torch.equal(with_own(broken).alphas_cumprod, stated)


@pytest.mark.parametrize("mark", ["edm_mean", "edm_vpred.sigma_max"])
def test_edm_is_refused(mark: str, marked) -> None:
    assert "a model of EDM's kind is not supported" in refusal(marked(mark))
