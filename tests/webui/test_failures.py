"""After a failure anywhere the image survives, and the next one is as ever."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from runs import Failure, fail_at, leftovers, raise_failure, same

from lib_hires.webui.refining import vae

UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
PFSA = {"pfsa": True, "pfsa_gamma": 0.1}
REFINE = {"refine": True, "refine_eta2": "0.4"}


@pytest.mark.parametrize("call", range(1, 15))
def test_after_a_failure_anywhere_the_next_image_is_as_ever(host, call):
    settings = UG | PFSA | REFINE
    plain, guided = host.generate(), host.generate(settings)
    repair = fail_at(host, call, raise_failure)
    try:
        made = host.generate(settings)
        assert made.messages, "the failure was hidden"
    except Failure:
        pass
    repair()
    assert leftovers() == 0
    assert same(plain, host.generate())
    assert same(guided, host.generate(settings))


@pytest.mark.parametrize("way", ["raise", "interrupt", "skip"])
def test_the_last_finished_stage_survives(host, way):
    from modules import shared

    def stop():
        if way == "raise":
            raise_failure()
        setattr(shared.state, {"interrupt": "interrupted", "skip": "skipped"}[way], True)

    two = REFINE | {"refine_eta2": "0.4, 0.4"}
    first = host.generate()
    repair = fail_at(host, 6, stop)  # the first of the first stage's two
    stopped = host.generate(two)
    repair()
    assert same(first, stopped)
    assert "after the first pass" in stopped.messages[0]
    repair = fail_at(host, 8, stop)
    stopped = host.generate(two)
    repair()
    assert 128 < stopped.images[0].shape[-1] < 256
    assert "after stage 1 of 2" in stopped.messages[0]
    assert same(first, host.generate())


def test_a_failing_native_evaluation_leaves_the_image_and_a_message(host):
    repair = fail_at(host, 4, raise_failure)
    made = host.generate(UG)
    repair()
    assert "without Upsample Guidance" in made.messages[0]
    assert torch.isfinite(made.images[0]).all()


def test_a_mix_that_fails_leaves_the_image_with_a_message(host, monkeypatch):
    plain, mixed = host.generate(), host.generate(PFSA)
    with monkeypatch.context() as patch:
        patch.setattr("lib_hires.attentive_guidance.pfsa", lambda *_: raise_failure())
        made = host.generate(PFSA)
    assert same(plain, made)
    assert len(made.messages) == 1
    assert "without Attentive Guidance, because it failed (Failure: as asked)." in made.messages[0]
    assert same(mixed, host.generate(PFSA))


@pytest.mark.parametrize(
    ("place", "settings", "left_out"),
    [
        ("sampling.guidance.guiding", UG | PFSA, "Upsample Guidance and Attentive Guidance"),
        ("sampling.guidance.mixing", UG | PFSA, "Upsample Guidance and Attentive Guidance"),
        ("lifecycle.prepare_stages", UG | PFSA | REFINE, "HiRes Guidance"),
        ("lifecycle._warn_if_idle", UG | PFSA | REFINE, "HiRes Guidance"),
        ("lifecycle.Once", UG | PFSA | REFINE, "HiRes Guidance"),
    ],
)
def test_what_cannot_be_set_up_leaves_the_plain_image_and_a_message(
    host, monkeypatch, place, settings, left_out
):
    plain, guided = host.generate(), host.generate(settings)
    with monkeypatch.context() as patch:
        patch.setattr(f"lib_hires.webui.{place}", lambda *_: raise_failure())
        made = host.generate(settings)
    assert same(plain, made)
    (message,) = made.messages
    assert f"without {left_out}, because it failed (Failure: as asked)." in message
    assert set(made.parameters) == {"HiRes note"}
    assert leftovers() == 0
    assert same(guided, host.generate(settings))


def test_a_second_pass_that_cannot_be_guided_keeps_the_png_info_of_the_first(host, monkeypatch):
    from lib_hires.webui import lifecycle

    guided, once, calls = host.generate(UG, enable_hr=True), lifecycle.Once, []

    def fail_at_the_second(*given):
        calls.append(given)
        return once(*given) if len(calls) == 1 else raise_failure()

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "Once", fail_at_the_second)
        made = host.generate(UG, enable_hr=True)
    assert len(calls) == 2
    assert "without HiRes Guidance, because it failed" in made.messages[0]
    assert {"HiRes note", *guided.parameters} == set(made.parameters)
    assert same(guided, host.generate(UG, enable_hr=True))


def raise_out_of_memory():
    raise RuntimeError("MPS backend out of memory")


def test_a_stage_without_memory_names_what_to_lower(host):
    repair = fail_at(host, 6, raise_out_of_memory)
    made = host.generate(REFINE)
    repair()
    assert 'Set "VAE tile size" to 512' in made.messages[0]


def test_a_last_decode_that_fails_leaves_the_image_before(host, monkeypatch):
    first, refined = host.generate(), host.generate(REFINE)
    decode = vae.decode_latent_batch

    def decode_small(model, batch, **options):
        if batch.shape[-1] > 16:
            raise_out_of_memory()
        return decode(model, batch, **options)

    with monkeypatch.context() as patch:
        patch.setattr(vae, "decode_latent_batch", decode_small)
        made = host.generate(REFINE)
    assert same(first, made)
    assert "refinement stage 1 failed" in made.messages[0]
    assert 'Set "VAE tile size" to 512' in made.messages[0]
    assert not same(first, refined)
    assert same(refined, host.generate(REFINE))


def test_a_vae_whose_latent_is_not_numbers_is_named(host, monkeypatch):
    first, encode = host.generate(), vae.HostVae.encode
    with monkeypatch.context() as patch:
        patch.setattr(vae.HostVae, "encode", lambda *given: encode(*given) / 0)
        made = host.generate(REFINE)
    assert same(first, made)
    assert "the VAE gave values that are not numbers" in made.messages[0]
    assert "--no-half-vae" in made.messages[0]


def test_a_generation_inside_another_changes_neither():
    from host import Host
    from modules import scripts

    class Nesting(scripts.Script):
        """As face detailers do: a whole generation for each finished image."""

        host, inner = None, []

        def title(self):
            return "Nesting"

        def show(self, is_img2img):
            return scripts.AlwaysVisible

        def ui(self, is_img2img):
            return []

        def postprocess_image(self, p, pp):
            if self.host and not hasattr(p, "nested"):
                request = {"init_image": torch.rand(3, 96, 96), "width": 96, "height": 96}
                request |= {"nested": True, "seed": 9}
                self.inner.append(self.host.generate({"ug": True}, **request))

    settings = UG | PFSA | REFINE
    alone = Host().generate(settings, batch_size=2)
    host = Host(Nesting)
    Nesting.host = host
    assert same(alone, host.generate(settings, batch_size=2))
    assert scripts.errors == []
    assert len(Nesting.inner) == 2
    assert leftovers() == 0


def test_nothing_unpicklable_is_put_on_the_run(host):
    from modules.processing import StableDiffusionProcessingTxt2Img

    p = StableDiffusionProcessingTxt2Img(enable_hr=True)
    host.generate(UG | PFSA | REFINE, p=p)
    ours = {k: v for k, v in vars(copy.copy(p)).items() if k not in ("scripts", "sampler", "rng")}
    pickle.dumps(ours)
