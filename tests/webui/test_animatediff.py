"""Clips that sd-webui-animatediff makes: guided and refined with whole contexts in every call."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from animatediff_extension import AnimateDiff
from controlnet_extension import ControlNetScript
from host import Host
from runs import fail_at, leftovers, raise_failure, same

from lib_hires.webui import animatediff
from lib_hires.webui.hosts import a1111

UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
REFINE = {"refine": True, "refine_eta2": "0.4"}
EVERYTHING = UG | REFINE | {"ug_frames": 2, "pfsa": True, "pfsa_gamma": 0.1}
NOT_BUILT_FOR = "the clip was made without it, because "


@pytest.fixture
def clip(host, monkeypatch):
    """A function that makes a clip: settings, the extension's parameters, and the request's."""

    def make(settings=None, of=None, **request):
        with monkeypatch.context() as patch:
            extension = AnimateDiff(patch, **(of or {}))
            frames = max(extension.params.video_length, extension.params.batch_size)
            made = host.generate(settings, **({"batch_size": frames} | request))
            made.contexts, made.params = extension.contexts, vars(extension.params)
        return made

    return make


def evaluated():
    """(latent height, rows) of each evaluation of the last run."""
    from modules import shared

    return [(size[0], rows) for size, rows in shared.loaded.sd_model.evaluated]


@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DDIM", "UniPC"])
def test_a_clip_is_guided_with_all_its_frames(host, clip, sampler):
    plain = clip(sampler_name=sampler)
    assert same(plain, clip(UG | {"ug_theta": 0}, sampler_name=sampler))
    made = clip(UG, sampler_name=sampler)
    sizes = evaluated()
    assert sizes == [(16, 16), (8, 16)] * (len(sizes) // 2)
    assert not made.messages and not same(plain, made)
    assert made.contexts == [list(range(8))] * len(sizes)
    assert same(plain, clip(sampler_name=sampler)) and leftovers() == 0


@pytest.mark.parametrize("settings", [UG, UG | {"ug_cadence": 2}, REFINE, EVERYTHING])
@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M"])
def test_a_clip_of_a_silent_module_is_so_many_images(host, clip, settings, sampler):
    """Guided from within the inner denoiser's `forward`, as images are, and from outside of it."""
    settings = settings | {"ug_frames": 1}
    images = host.generate(settings, batch_size=8, sampler_name=sampler)
    made = clip(settings, {"mixes": 0.0}, sampler_name=sampler)
    assert len(made.images) == 8 and not made.messages
    for one, other in zip(made.images, images.images, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cadence", [1, 2])
def test_sliding_contexts(host, clip, cadence):
    """They move with the steps: what is held between is each frame's own."""
    settings, of = UG | {"ug_cadence": cadence}, {"video_length": 12, "mixes": 0.0}
    images = host.generate(settings, batch_size=12)
    made = clip(settings, of)
    assert {len(context) for context in made.contexts} == {8}
    assert len({context[0] for context in made.contexts}) > 3
    for one, other in zip(made.images, images.images, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    asked = clip(settings | {"ug_frames": 2}, of)
    assert "context batch size is 8 and its clip has 12 frames" in asked.messages[0]
    assert same(asked, made)


@pytest.mark.parametrize("side", [64, 128])
def test_guidance_in_time(clip, side):
    """4 native frames for 8; the extension's parameters are as they were."""
    made = clip(UG | {"ug_frames": 2}, width=side, height=side)
    assert evaluated() == [(side // 8, 16), (8, 8)] * 5
    assert not made.messages and not same(made, clip(width=side, height=side))
    assert made.parameters["HiRes ug frames"] == 2
    assert made.params["video_length"] == made.params["batch_size"] == 8
    assert {len(context) for context in made.contexts} == {8, 4}


@pytest.mark.parametrize(("hotshot", "native"), [(False, 16), (True, 8)])
def test_the_native_frames_are_the_motion_modules(clip, hotshot, native):
    long = {"video_length": 20, "batch_size": 20, "hotshot": hotshot}
    clip(UG, long)
    assert evaluated() == [(16, 40), (8, 2 * native)] * 5
    clip(UG | {"ug_frames": 1}, long)
    assert evaluated() == [(16, 40), (8, 40)] * 5


def test_a_second_batch_on_the_same_sampler(host, clip):
    """The extension hooks a sampler once; what it has put there stays."""
    start = host.generate().images[0]
    request = {"init_image": start, "n_iter": 2, "steps": 4}
    plain, made = clip(**request), clip(UG, **request)
    assert len(made.images) == len(plain.images) == 16
    assert len(plain.contexts) == 8 and len(made.contexts) == 16
    assert not made.messages and not same(plain, made)


@pytest.mark.parametrize(("call", "left"), [(2, 5), (4, 3)])
def test_a_native_evaluation_that_fails(host, clip, call, left):
    """The clip is made, without guidance from there on; parameters and model are as before. Only at
    the start, where guidance has changed the model's input, is the frames' evaluation repeated."""
    undo = fail_at(host, call, raise_failure)
    made = clip(UG | {"ug_frames": 2})
    undo()
    assert "without Upsample Guidance" in made.messages[0] and len(made.images) == 8
    assert evaluated()[call - 1 :] == [(16, 16)] * left
    assert made.params["video_length"] == made.params["batch_size"] == 8 and leftovers() == 0


def test_windows_and_what_is_made_for_images(clip):
    whole, made = clip(UG), clip(UG | {"ug_windows": "Hann"})
    assert "at full size, because AnimateDiff's clips are evaluated whole" in made.messages[0]
    assert same(whole, made)
    kept = clip(REFINE | {"refine_keep_stages": True})
    assert "the stages before the last were not kept" in kept.messages[0]
    assert len(kept.images) == 8 and "HiRes refine keep stages" not in kept.parameters


def _unknown(extension, patch):
    del extension.params.video_length


def _of_a_run_inside(extension, patch):
    extension.params.video_length = extension.params.batch_size = 4


def _restored(extension, patch):
    extension.state.mm_injected, extension.params.batch_size = False, 8


def _other_host(extension, patch):
    patch.setattr(a1111, "guides_clips", lambda sd_model: False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_unknown, animatediff.OF_ANOTHER_RUN),
        (_of_a_run_inside, animatediff.OF_ANOTHER_RUN),
        (_restored, animatediff.OF_ANOTHER_RUN),
        (
            _other_host,
            "AnimateDiff's clips are guided and refined in the AUTOMATIC1111 WebUI alone",
        ),
    ],
)
@pytest.mark.parametrize("settings", [EVERYTHING, UG, REFINE])
def test_where_it_cannot_work_the_clip_is_the_plain_one(
    host, monkeypatch, change, reason, settings
):
    plain = host.generate(batch_size=8)
    extension = AnimateDiff(monkeypatch, mixes=0.0)
    monkeypatch.setattr(sys.modules["modules.script_callbacks"], "cfg_denoiser", [])
    change(extension, monkeypatch)
    made = host.generate(settings, batch_size=8)
    assert same(plain, made) and leftovers() == 0
    assert made.parameters.keys() == {"HiRes note"}
    assert made.messages == [f"HiRes Guidance: {NOT_BUILT_FOR}{reason}."]
    assert not host.generate(batch_size=8).messages


@pytest.mark.parametrize("settings", [EVERYTHING, UG, REFINE])
def test_with_controlnet_the_clip_is_the_plain_one(monkeypatch, settings):
    host = Host(ControlNetScript)
    hint = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with monkeypatch.context() as patch:
        AnimateDiff(patch)
        plain, made = (host.generate(each, batch_size=8, hint=hint) for each in (None, settings))
        guided, alone = (host.generate(each, batch_size=8) for each in (settings, None))
    reason = "ControlNet's units do not know the frames of AnimateDiff's native evaluations"
    assert made.messages == [f"HiRes Guidance: {NOT_BUILT_FOR}{reason}."]
    assert same(plain, made) and leftovers() == 0
    assert not guided.messages and not same(guided, alone)


@pytest.mark.parametrize("params", [None, SimpleNamespace(enable=False), SimpleNamespace()])
def test_an_extension_that_is_off_changes_nothing(host, monkeypatch, params):
    guided = host.generate(UG)
    extension = AnimateDiff(monkeypatch)
    extension.params.enable = False
    extension.state.ad_params = params
    again = host.generate(UG)
    assert same(guided, again) and not again.messages
