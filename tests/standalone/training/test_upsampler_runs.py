"""Feature upsamplers in runs: what they change, what they cost, and where they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib_hires.feature_upsampler import FeatureUpsampler, default_layers
from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.benchmarks.techniques import FIT_FOR_UPSAMPLERS
from lib_hires.standalone.cli import main
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.outputs import read_about
from lib_hires.standalone.pipeline.request import Request
from lib_hires.standalone.training.upsampler import (
    info_for,
)
from lib_hires.standalone.training.upsampler_config import UpsamplerTraining
from lib_hires.upsampler_file import NamedUpsampler, read_upsampler, write_upsampler

REFINED = {"refine": True, "refine_eta2": "0.5"}


def trained_for(model: LatentModel, scale: float = 2.0) -> NamedUpsampler:
    """An upsampler for the tiny model whose weights are all random."""
    torch.manual_seed(1)
    weights = FeatureUpsampler(info_for(model, UpsamplerTraining(scale=scale), "0" * 64))
    weights.requires_grad_(False)
    for weight in weights.parameters():
        weight.copy_(torch.randn(weight.shape))
    return NamedUpsampler("mine", "0123456789", weights)


def images(
    model: LatentModel, upsampler: NamedUpsampler | None, batch: int = 1, **settings: Any
) -> tuple[torch.Tensor, Any]:
    request = Request(prompt="a red house", steps=4, seed=5, batch=batch)
    run = Run(model, request, Settings.from_values(REFINED | settings), upsampler)
    *_, last = run.generate()
    return last.images, last


def hooks(unet: Any) -> int:
    return sum(len(part._forward_pre_hooks) for part in unet.modules())


@pytest.mark.parametrize("settings", [{}, {"ug": True}, {"refine_method": "Pivot"}], ids=str)
def test_untrained_it_changes_no_bit_of_an_image(tiny_model: LatentModel, settings) -> None:
    info = info_for(tiny_model, UpsamplerTraining(), "0" * 64)
    untrained = NamedUpsampler("untrained", "0", FeatureUpsampler(info).requires_grad_(False))
    plain, _ = images(tiny_model, None, **settings)
    assert torch.equal(images(tiny_model, untrained, **settings)[0], plain)
    assert not torch.equal(images(tiny_model, trained_for(tiny_model), **settings)[0], plain)


def test_it_costs_one_call_a_stage_and_leaves_no_hook(tiny_model: LatentModel) -> None:
    _, plain = images(tiny_model, None, ug=True)
    _, with_it = images(tiny_model, trained_for(tiny_model), ug=True)
    assert with_it.model_evaluations == plain.model_evaluations + 1
    assert with_it.native_evaluations == plain.native_evaluations
    assert hooks(tiny_model.unet) == 0


def test_an_image_of_a_batch_is_the_image_alone(tiny_model: LatentModel) -> None:
    upsampler = trained_for(tiny_model)
    batch, _ = images(tiny_model, upsampler, batch=2, ug=True)
    alone, _ = images(tiny_model, upsampler, ug=True)
    torch.testing.assert_close(batch[:1], alone, rtol=0, atol=1e-4)


def test_it_serves_the_stages_that_fit_and_no_other(tiny_model: LatentModel) -> None:
    upsampler = trained_for(tiny_model)
    _, plain = images(tiny_model, None, refine_factor=4, refine_method="Pivot")
    _, both = images(tiny_model, upsampler, refine_factor=4, refine_method="Pivot")
    assert both.model_evaluations == plain.model_evaluations + 2
    with pytest.raises(SettingsError, match=r"trained for stages of 2 times .* none from 16x16 to"):
        images(tiny_model, upsampler, refine_factor=4)
    _, unrefined = images(tiny_model, None, refine=False)
    assert images(tiny_model, upsampler, refine=False)[1].model_evaluations == (
        unrefined.model_evaluations
    )


def test_techniques_with_an_upsampler_have_stages_that_fit(tiny_model: LatentModel) -> None:
    upsampler = trained_for(tiny_model)
    for scale, techniques in FIT_FOR_UPSAMPLERS.items():
        for technique in techniques:
            request = technique.request(Request(prompt="a red house"), scale, tiny_model)
            Run(tiny_model, request, technique.settings_at(scale), upsampler)


def test_an_upsampler_of_another_model_is_refused(tiny_model: LatentModel) -> None:
    config = UpsamplerTraining(layers=",".join(map(str, default_layers(tiny_model.unet))))
    info = info_for(tiny_model, config, "0" * 64)
    other = FeatureUpsampler(type(info)(**(vars(info) | {"family": "sdxl"})))
    message = r"refine_upsampler: other was trained on tiny \(sdxl, features of"
    with pytest.raises(SettingsError, match=message):
        images(tiny_model, NamedUpsampler("other", "0", other))


def test_images_keep_its_name_and_hash_and_repeat(
    tiny_model: LatentModel, tiny_folder: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    file = tmp_path / "mine.safetensors"
    weights = trained_for(tiny_model).weights
    write_upsampler(file, weights, weights.info)

    def hires(*options: str | Path) -> tuple[int, str, str]:
        common = ["generate", "--model", tiny_folder, "--out", tmp_path / "out", "--steps", "4"]
        code = main([str(word) for word in (*common, *options)])
        captured = capsys.readouterr()
        return code, captured.out.strip(), captured.err

    refined = ("a red house", "--refine", "--refine-eta2", "0.5")
    code, first, _ = hires(*refined, "--refine-upsampler", file)
    assert code == 0
    short_hash = read_upsampler(file)[1]
    assert read_about(Path(first))["settings"]["refine_upsampler"] == f"mine [{short_hash}]"
    _, plain, _ = hires(*refined)
    monkeypatch.chdir(tmp_path)
    code, again, _ = hires("--from", first)
    assert code == 0
    pixels = [np.asarray(Image.open(path)) for path in (first, again, plain)]
    assert np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(pixels[0], pixels[2])

    write_upsampler(file, FeatureUpsampler(weights.info), weights.info)
    code, out, output = hires("--from", first)
    assert (code, out) == (2, "")
    assert f"mine [{short_hash}] is no longer here; mine is another file now" in output
    assert hires("--from", first, "--no-refine")[0] == 0
    assert hires("--from", first, "--refine-upsampler", file)[0] == 0
    code, _, output = hires(*refined, "--refine-upsampler", tmp_path / "nowhere.safetensors")
    assert (code, "nowhere.safetensors: could not be read (No such" in output) == (2, True)
