"""Runs whose caller counts on the size it asked for: they get it, and a message."""

from __future__ import annotations

import pickle
from typing import ClassVar

import pytest
import torch
from host_scripts import Loopback, Plot, Unknown, Upscale, make_by_a_button

REFINE = {"refine": True, "refine_eta2": "0.4"}
ALL = REFINE | {"ug": True, "pfsa": True, "pfsa_gamma": 0.1}
TILES = {"init_image": torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(1))}


@pytest.fixture
def listed():
    """A host with scripts in its list."""
    from host import Host
    from modules import scripts

    yield Host(Plot, Upscale, Loopback, Unknown)
    assert scripts.errors == []


def same(one, other) -> bool:
    return len(one.images) == len(other.images) and all(map(torch.equal, one.images, other.images))


def generate(host, settings, **request):
    torch.manual_seed(0)  # img2img draws from torch's own generator
    return host.generate(settings, **request)


@pytest.mark.parametrize("script", ["Upscale", "Loopback"])
def test_a_script_of_img2img_gets_its_size(listed, script):
    request = TILES | {"script": script}
    plain = generate(listed, None, **request)
    made = generate(listed, REFINE, **request)
    assert same(made, plain)
    assert f'not refined, because the script "{script}" counts on images' in made.messages[0]
    assert [key for key in made.parameters if "refine" in key] == []
    guided = generate(listed, ALL, **request)
    assert not same(guided, plain)
    assert [image.shape for image in guided.images] == [image.shape for image in plain.images]
    assert "HiRes ug" in guided.parameters


def test_a_script_that_makes_runs_of_its_own_gets_their_size(listed):
    made = generate(listed, REFINE, script="Unknown")
    assert made.images[0].shape[-2:] == (128, 128)
    assert any('the script "Unknown" counts on' in message for message in made.messages)


def test_a_plot_shows_refined_images_and_no_kept_stages(listed):
    keep = REFINE | {"refine_keep_stages": True}
    made = generate(listed, keep, script="Plot")
    assert made.messages == []
    alone = [generate(listed, REFINE, seed=seed).images[0] for seed in (1, 2)]
    assert all(map(torch.equal, made.images, alone))
    assert len(made.images) == 2


def test_a_run_of_an_extension_gets_its_size(listed, monkeypatch):
    from modules import txt2img

    plain = generate(listed, None)
    monkeypatch.setattr(txt2img, "txt2img", make_by_a_button)
    made = generate(listed, REFINE)
    assert same(made, plain)
    assert '"host_scripts", which makes this run, counts on images' in made.messages[0]


def test_a_run_inside_another_gets_its_size():
    from host import Host
    from modules import processing, scripts

    class Detailer(scripts.Script):
        """A whole run for each finished image, whose result takes its place."""

        inner: ClassVar = []

        def title(self):
            return "Detailer"

        def show(self, is_img2img):
            return scripts.AlwaysVisible

        def ui(self, is_img2img):
            return []

        def postprocess_image(self, p, pp):
            if not hasattr(p, "nested"):
                own = processing.StableDiffusionProcessingImg2Img(
                    init_image=torch.rand(3, 96, 96), width=96, height=96, nested=True
                )
                own.scripts, own.script_args = p.scripts, p.script_args
                self.inner.append((processing.process_images(own), list(own.comments)))

    host = Host(Detailer)
    made = host.generate(REFINE)
    (inner, messages), *_ = Detailer.inner
    assert made.images[0].shape[-2:] == (256, 256)
    assert made.messages == []
    assert inner.images[0].shape[-2:] == (96, 96)
    assert "because it is made inside another run" in messages[0]
    assert scripts.errors == []


def test_a_request_through_its_text_keeps_its_stages(host):
    """The host's API puts the text "None" where the number of the script stands."""
    keep = REFINE | {"refine_keep_stages": True}
    made = host.generate(keep)
    again = host.generate(infotext=made.parameters, script="None")
    assert len(made.images) == len(again.images) == 2
    assert torch.equal(made.images[0], again.images[0])


def test_an_extension_that_samples_for_the_host_is_named_in_a_message(host):
    """As DemoFusion, which takes the place of `p.sample` and returns every size it went through."""
    from modules.processing import StableDiffusionProcessingTxt2Img

    p = StableDiffusionProcessingTxt2Img()
    p.sample = lambda c, uc: torch.zeros(1, 4, 32, 32)
    made = host.generate(ALL, p=p)
    assert made.images[0].shape[-2:] == (256, 256)
    assert "because another extension samples for the WebUI" in made.messages[0]
    assert set(made.parameters) == {"HiRes note"}


def test_an_image_of_another_size_than_asked_for_is_not_refined(host):
    from modules.processing import StableDiffusionProcessingTxt2Img

    p = StableDiffusionProcessingTxt2Img()
    plain = p.sample
    p.sample = lambda c, uc: plain(c, uc)[..., :12]
    made = host.generate(ALL, p=p)
    assert made.images[0].shape[-2:] == (128, 96)
    assert "another extension has changed its size" in made.messages[0]
    assert {key for key in made.parameters if "refine" in key} == set()
    assert "HiRes ug" in made.parameters


def test_the_state_of_a_run_can_be_pickled(host):
    from modules.processing import StableDiffusionProcessingTxt2Img

    from lib_hires.webui.run_state import HostRun

    p = StableDiffusionProcessingTxt2Img()
    host.generate(ALL, p=p)
    state = HostRun.of(p).state
    copied = pickle.loads(pickle.dumps(state))
    assert (copied.settings, copied.caller, copied.acted) == (
        state.settings, state.caller, {"ug", "pfsa", "refine"}
    )  # fmt: skip
