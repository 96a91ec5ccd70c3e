"""PNG info has what was done: a technique that was left out is not in it, but in its note."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
PFSA = {"pfsa": True, "pfsa_gamma": 0.1}
REFINE = {"refine": True, "refine_eta2": "0.4"}
STATED = {"HiRes ug", "HiRes ug eta", "HiRes ug cadence"}
MASKED = {"init_image": torch.rand(3, 128, 128), "image_mask": object()}


@pytest.mark.parametrize(
    ("settings", "request_", "left"),
    [
        (UG | REFINE, MASKED, STATED),
        (REFINE | {"refine_width": 64, "refine_height": 64}, {}, set()),
        (UG | PFSA, {"sampler_name": "DPM fast"}, STATED),
        (UG, {"width": 64, "height": 64}, set()),
        (UG | {"ug_passes": "img2img"} | PFSA, {}, {"HiRes pfsa", "HiRes pfsa gamma"}),
        (UG | {"ug_eta": 0.5} | PFSA, {}, None),
    ],
)
def test_what_was_left_out_is_in_the_note_alone(host, settings, request_, left):
    made = host.generate(settings, **request_)
    parameters = set(made.parameters)
    if left is None:
        assert parameters == STATED | {"HiRes pfsa", "HiRes pfsa gamma"}
        return
    assert parameters == left | {"HiRes note"}
    assert len(made.messages) == 1
    assert "HiRes note" in made.infotexts[0]


def test_a_unet_made_for_certain_sizes_leaves_the_rest(host):
    from modules import sd_unet

    sd_unet.current_unet = SimpleNamespace(option=SimpleNamespace(label="[TRT] model"))
    made = host.generate(UG | REFINE | PFSA)
    sd_unet.current_unet = None
    assert set(made.parameters) == {"HiRes pfsa", "HiRes pfsa gamma", "HiRes note"}


def test_a_plots_next_cell_has_its_own(host):
    """The cells share one dict of parameters."""
    import copy

    from modules.processing import StableDiffusionProcessingTxt2Img

    p = StableDiffusionProcessingTxt2Img()
    small, large = copy.copy(p), copy.copy(p)
    small.width = small.height = 64
    assert "HiRes ug" not in host.generate(UG, p=small).parameters
    assert set(host.generate(UG, p=large).parameters) == STATED


@pytest.fixture
def extension(tmp_path, monkeypatch):
    """A function of an extension `loractl` that divides by the steps of the run minus 2."""
    folder = tmp_path / "extensions" / "loractl"
    folder.mkdir(parents=True)
    (folder / "loractl_weights.py").write_text("def weight(steps):\n    return 1 / (steps - 2)\n")
    monkeypatch.syspath_prepend(str(folder))
    import loractl_weights

    yield loractl_weights.weight
    del sys.modules["loractl_weights"]


def test_a_stage_that_fails_in_another_extension_names_it_and_the_remedy(host, extension):
    from modules import shared

    model = shared.loaded.sd_model
    plain = model.apply_model

    def apply_model(x, t, cond):
        if x.shape[-1] == 32:
            extension(2)
        return plain(x, t, cond)

    model.apply_model = apply_model
    made = host.generate(REFINE)
    assert made.images[0].shape[-1] == 128
    (message,) = made.messages
    assert "stage 1 failed (ZeroDivisionError" in message
    assert 'The error came from the extension "loractl"' in message
    assert 'turn it off, or raise "Denoising strengths"' in message
    assert set(made.parameters) == {"HiRes note"}


def test_guidance_that_fails_in_another_extension_names_it(host, extension):
    from modules import shared

    model = shared.loaded.sd_model
    plain = model.apply_model

    def apply_model(x, t, cond):
        if x.shape[-1] == 8:
            extension(2)
        return plain(x, t, cond)

    model.apply_model = apply_model
    made = host.generate(UG)
    assert 'because it failed in the extension "loractl" (ZeroDivisionError' in made.messages[0]
    assert set(made.parameters) == {"HiRes note"}


def test_a_stage_outside_tiled_diffusion_is_a_message(host, monkeypatch):
    from modules import sd_samplers

    class MultiDiffusion:
        """Puts itself around a new sampler's inner denoiser; other sizes pass."""

        def __init__(self, inner):
            self.inner, self.plain = inner, inner.forward
            inner.forward = self.kdiff_forward

        def kdiff_forward(self, x, t, cond):
            return self.plain(x, t, cond=cond)

    create = sd_samplers.create_sampler

    def hijacked(name, model):
        sampler = create(name, model)
        MultiDiffusion(sampler.model_wrap_cfg.inner_model)
        return sampler

    monkeypatch.setattr(sd_samplers, "create_sampler", hijacked)
    assert host.generate(UG).messages == []
    (message,) = host.generate(REFINE).messages
    assert "Tiled Diffusion tiles the images of the size that was asked for" in message


def failing_in_a_stage(evaluation: int) -> list[torch.Tensor]:
    """The host's model fails in one of the stages' evaluations, from 1; gives the list of them."""
    from modules import shared

    model = shared.loaded.sd_model
    plain, stages = model.apply_model, []

    def apply_model(x, t, cond):
        if x.shape[-1] == 32:
            stages.append(x)
            if len(stages) == evaluation:
                raise RuntimeError("broken")
        return plain(x, t, cond)

    model.apply_model = apply_model
    return stages


def test_what_failed_in_the_first_batch_is_not_said_of_the_second(host):
    failing_in_a_stage(1)
    first, second = host.generate(REFINE, n_iter=2).infotexts
    assert "HiRes refine" not in first
    assert "stage 1 failed" in first
    assert "HiRes refine: True" in second
    assert "HiRes note" not in second


def test_what_acted_in_the_first_batch_is_not_said_of_the_second(host):
    stages = failing_in_a_stage(0)
    host.generate(REFINE)
    evaluations = len(stages)
    assert evaluations > 0
    failing_in_a_stage(evaluations + 1)
    first, second = host.generate(REFINE, n_iter=2).infotexts
    assert "HiRes refine: True" in first
    assert "HiRes note" not in first
    assert "HiRes refine: True" not in second
    assert "stage 1 failed" in second


def test_what_is_about_the_whole_run_is_said_of_every_batch(host):
    made = host.generate(UG | PFSA, n_iter=2, width=64, height=64)
    for infotext in made.infotexts:
        assert "HiRes ug" not in infotext
        assert "had nothing to do" in infotext
        assert "HiRes pfsa: True" in infotext
