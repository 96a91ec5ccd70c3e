"""Upsample Guidance in whole generations in the fake host."""

from __future__ import annotations

import pytest
import torch
from runs import leftovers, same

UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
PFSA = {"pfsa": True, "pfsa_gamma": 0.1}
REFINE = {"refine": True, "refine_eta2": "0.4"}


SAMPLERS = ["Euler", "Euler a", "Heun", "DPM2", "LMS", "DPM++ 2M", "DPM++ 2S a", "DDIM", "UniPC"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_without_weight_nothing_changes_and_with_it_something_does(host, sampler):
    plain = host.generate(sampler_name=sampler)
    nothing = UG | PFSA | {"ug_theta": 0, "pfsa_gamma": 0}
    assert same(plain, host.generate(nothing, sampler_name=sampler))
    for settings in (UG, PFSA):
        made = host.generate(settings, sampler_name=sampler)
        assert not same(plain, made)
        assert torch.isfinite(made.images[0]).all()
        assert made.messages == []
    assert same(plain, host.generate(sampler_name=sampler))
    assert leftovers() == 0


def test_the_native_evaluation_has_the_native_size(host):
    from modules import shared

    host.generate(UG)
    assert shared.loaded.sd_model.evaluated == [((16, 16), 2), ((8, 8), 2)] * 5
    host.generate(UG, width=192)
    assert {size for size, _ in shared.loaded.sd_model.evaluated} == {(16, 24), (8, 10)}


@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DPM++ 2M", "LMS"])
def test_the_coarse_image_is_the_native_samplers(host, sampler):
    """theta = 1, eta = 1: D of the guided trajectory is the native one on half the sigmas.

    Both stay inside the sigmas that the model knows, so that nothing is clamped.
    """
    from modules import processing, rng, sd_samplers

    from lib_hires.standalone.models.k_diffusion import import_k_diffusion

    D = torch.nn.functional.avg_pool2d
    sigmas = import_k_diffusion().sampling.get_sigmas_karras(5, 0.1, 10)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    given = {}

    def run(settings, noise, sigmas, side):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rng.ImageRNG, "next", lambda _: noise)
            patch.setattr(sd_samplers.KDiffusionSampler, "get_sigmas", lambda *_: sigmas)
            patch.setattr(
                processing, "decode_latent_batch", lambda _, z, **k: given.setdefault(side, z) * 0
            )
            host.generate(settings, sampler_name=sampler, width=side, height=side)

    run(UG | {"ug_shifted_start": False}, noise, sigmas, 128)
    run({}, 2 * D(noise, 2), sigmas / 2, 64)
    assert torch.allclose(D(given[128], 2), given[64], atol=1e-4)


def test_the_shifted_start_stretches_the_first_pass_only(host):
    from modules import sd_samplers

    starts = []

    class Watching(sd_samplers.KDiffusionSampler):
        def _run(self, p, x, sigmas, received, steps):
            starts.append((float(sigmas[0]), round(float(x.std()))))
            return super()._run(p, x, sigmas, received, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sd_samplers, "KDiffusionSampler", Watching)
        host.generate()
        host.generate(UG, enable_hr=True)
    (plain, _), (first, deviation), (second, _) = starts
    assert first == pytest.approx(2 * plain)
    assert deviation == pytest.approx(2 * plain, rel=0.1)
    assert second < plain


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": "red AND a blue circle"},
        {"prompt": "a circle and " * 6},
        {"prompt": "a [red:blue:3] circle"},
        {"batch_size": 2, "n_iter": 2},
        {"refiner_at": 2},
        {"enable_hr": True},
        {"width": 136, "height": 200},
    ],
    ids=str,
)
@pytest.mark.parametrize("apart", [False, True])
def test_combinations(host, request_, apart):
    from modules import shared

    settings = UG | PFSA | REFINE | {"ug_cadence": 2}
    shared.opts.batch_cond_uncond = not apart
    plain = host.generate(**request_)
    made = host.generate(settings, **request_)
    assert made.messages == []
    assert not same(plain, made)
    assert same(made, host.generate(settings, **request_))
    assert same(plain, host.generate(**request_))
    assert leftovers() == 0


def test_calls_apart_are_the_stacked_call(host):
    from modules import shared

    settings = UG | {"ug_cadence": 3}
    stacked = host.generate(settings).images[0]
    shared.opts.batch_cond_uncond = False
    assert torch.allclose(host.generate(settings).images[0], stacked, atol=1e-4)


def test_a_batch_gives_each_image_the_one_it_gives_alone(host):
    settings = UG | PFSA | REFINE
    batch = host.generate(settings, batch_size=2, n_iter=2, sampler_name="Euler a")
    for k, image in enumerate(batch.images):
        alone = host.generate(settings, seed=1 + k, sampler_name="Euler a").images[0]
        assert torch.allclose(image, alone, atol=1e-4)


def test_img2img_keeps_one_sampler_for_all_batches(host):
    request = {"init_image": torch.rand(3, 128, 128), "n_iter": 3}
    host.generate(UG | PFSA | REFINE, **request)
    from modules.processing import StableDiffusionProcessingImg2Img

    p = StableDiffusionProcessingImg2Img(**request)
    host.generate(UG | PFSA, p=p, init_image=None)
    assert not {"sample", "sample_img2img", "get_sigmas", "callback_state"} & set(vars(p.sampler))
    assert not p.sampler.model_wrap_cfg._forward_pre_hooks
    assert "forward" not in vars(p.sampler.model_wrap)


def test_at_the_native_size_nothing_happens_with_a_message(host):
    plain, made = host.generate(width=64, height=64), host.generate(UG, width=64, height=64)
    assert same(plain, made)
    assert "not clearly above the model's native 64x64" in made.messages[0]


def test_a_scale_that_leaves_nothing_to_guide_is_named(host):
    made = host.generate(UG | {"ug_scale": 1})
    assert same(host.generate(), made)
    assert "because at a scale of 1 the native evaluation is about as large" in made.messages[0]
    assert "not clearly above" not in made.messages[0]


def test_upscaling_an_image_of_the_gallery_is_a_second_pass_alone(host):
    """The WebUI's button below the gallery: Hires. fix without its first pass."""
    image = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(1))
    request = {"enable_hr": True, "firstpass_image": image}

    def generate(settings=None):
        torch.manual_seed(0)  # the host encodes with torch's own generator
        return host.generate(settings, **request)

    plain, made = generate(), generate(UG)
    assert made.messages == [] and not same(plain, made)
    first = generate(UG | {"ug_passes": "first pass"})
    assert same(plain, first)
    assert 'the run has no pass that is "first pass"' in first.messages[0]


def test_the_native_size_can_be_set(host):
    from modules import shared

    shared.opts.hires_guidance_native_size = 128
    assert same(host.generate(), host.generate(UG))


@pytest.mark.parametrize("size", ["abc", 7, -64, [1], float("nan")])
def test_what_is_no_native_size_is_left_out_with_a_message(host, size):
    """As a request's override_settings may hold it; the page builds its controls with it too."""
    from modules import shared

    wanted = host.generate(UG)
    shared.opts.hires_guidance_native_size = size
    made = host.generate(UG)
    assert same(made, wanted) and "HiRes native size" not in made.infotexts[0]
    (message,) = made.messages
    assert f"at least 8, got {size!r}" in message
    shared.opts.hires_guidance_native_size = "512"
    assert same(host.generate(UG), host.generate())


def test_image_conditioning_shrinks_along(host):
    """The toy asserts that it gets it in the latent's own size. Masks stay hard."""
    from modules.processing import StableDiffusionProcessing

    from lib_hires.webui.hosts.conditioning import SizeEmbeddings, shrink_cond

    def conditioning(p, x, width=None, height=None):
        return torch.rand(len(x), 5, *x.shape[-2:], generator=torch.Generator().manual_seed(0))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StableDiffusionProcessing, "txt2img_image_conditioning", conditioning)
        assert host.generate(UG | REFINE | {"ug_cadence": 2}).messages == []
    mask = (torch.rand(2, 1, 16, 24) > 0.5).float()
    part = torch.cat([mask, torch.rand(2, 4, 16, 24)], 1)
    kept = torch.rand(2, 4, 8, 8)
    cond = {"cond": {"c_concat": [part, kept], "c_crossattn": [None]}, "more": 1}
    shrunk = shrink_cond(cond, (8, 12), large=(16, 24), sizes=SizeEmbeddings.of(None))
    assert shrunk["more"] == 1
    assert shrunk["cond"]["c_concat"][1] is kept
    assert set(shrunk["cond"]["c_concat"][0][:, 0].unique().tolist()) <= {0.0, 1.0}
    assert torch.allclose(
        shrunk["cond"]["c_concat"][0][:, 1:], torch.nn.functional.avg_pool2d(part[:, 1:], 2)
    )


def test_image_conditioning_is_reduced_as_the_latent_is():
    """At no whole scale has every device area means of its own."""
    from lib_hires.resample import Reduction
    from lib_hires.webui.hosts.conditioning import shrunk

    part = torch.rand(2, 4, 16, 24).half()
    expected = Reduction.between((16, 24), (10, 14)).reduce(part)
    assert torch.equal(shrunk(part, (16, 24), (10, 14)), expected.half())


def test_a_unet_made_for_certain_sizes_is_left_alone_with_a_message(host):
    from types import SimpleNamespace

    from modules import sd_unet

    plain = host.generate()
    option = SimpleNamespace(label="[TRT] model")
    sd_unet.current_unet = SimpleNamespace(option=option)
    made = host.generate(UG | REFINE)
    assert same(plain, made)
    assert len(made.messages) == 1
    assert 'the SD Unet "[TRT] model" is made for certain sizes' in made.messages[0]
    mixed = host.generate(UG | PFSA)
    sd_unet.current_unet = None
    assert same(mixed, host.generate(PFSA))


PASSES = {
    "automatic": ("text", "hires", "image"),
    "first pass": ("text",),
    "Hires. fix": ("hires",),
    "both": ("text", "hires"),
    "img2img": ("image",),
}


@pytest.mark.parametrize("choice", PASSES)
def test_upsample_guidance_acts_in_the_passes_chosen(host, choice):
    from modules import shared

    def guided(**request):
        made = host.generate(UG | {"ug_passes": choice}, **request)
        evaluated = shared.loaded.sd_model.evaluated
        sizes = [size for size, _ in evaluated]
        large = [size for size in sizes if size != (8, 8)]
        found = {size for at, size in enumerate(sizes[:-1]) if sizes[at + 1] == (8, 8)}
        return made, {size for size in large if size in found}

    made, found = guided(enable_hr=True)
    expected = {"text": {(16, 16)}, "hires": {(32, 32)}}
    wanted = [expected[kind] for kind in PASSES[choice] if kind in expected]
    assert found == set().union(*wanted)
    assert (made.messages == []) == bool(wanted)
    made, found = guided(init_image=torch.rand(3, 128, 128))
    assert found == ({(16, 16)} if "image" in PASSES[choice] else set())
    if not found:
        assert f'no pass that is "{choice}"' in made.messages[0]


@pytest.mark.parametrize("choice", PASSES)
def test_attentive_guidance_acts_in_the_passes_chosen(host, choice):
    settings = PFSA | {"pfsa_passes": choice}
    chosen = {"automatic": ("text", "image")}.get(choice, PASSES[choice])
    plain, mixed = host.generate(), host.generate(settings)
    assert same(plain, mixed) == ("text" not in chosen)
    request = {"init_image": torch.rand(3, 128, 128)}
    torch.manual_seed(0)
    plain = host.generate(**request)
    torch.manual_seed(0)
    assert same(plain, host.generate(settings, **request)) == ("image" not in chosen)
    both = host.generate(settings, enable_hr=True)
    assert same(both, host.generate(enable_hr=True)) == (not {"text", "hires"} & set(chosen))
    if "hires" in chosen:
        first = host.generate(settings | {"pfsa_passes": "first pass"}, enable_hr=True)
        assert not same(both, first)


def test_a_sampler_without_steps_is_not_mixed_with_a_message(host):
    plain, made = (
        host.generate(sampler_name="DPM fast"),
        host.generate(PFSA, sampler_name="DPM fast"),
    )
    assert same(plain, made)
    assert "DPM fast has no fixed steps" in made.messages[0]
