"""Whole generations in the stand-in host."""

from __future__ import annotations

import copy
from contextlib import nullcontext, suppress

import pytest
import torch

UG = {"ug": True}
PFSA = {"pfsa": True, "pfsa_gamma": 0.1}
REFINE = {"refine": True, "refine_eta2": "0.4"}
SAMPLERS = ["Euler", "Euler a", "Heun", "DPM2", "LMS", "DPM++ 2M", "DPM++ 2S a", "DDIM", "UniPC"]


def same(one, other) -> bool:
    return len(one.images) == len(other.images) and all(
        a.shape == b.shape and torch.equal(a, b)
        for a, b in zip(one.images, other.images, strict=True)
    )


def sizes(result) -> set[tuple[int, int]]:
    return {tuple(image.shape[-2:]) for image in result.images}


def leftovers() -> int:
    """What hangs on the model, which outlives every run."""
    from modules import shared

    parts = list(shared.loaded.sd_model.modules())
    own = sum("forward" in vars(part) or "apply_model" in vars(part) for part in parts)
    return own + sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in parts)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_without_weight_nothing_changes_and_with_it_something_does(host, sampler):
    plain = host.paint(sampler_name=sampler)
    nothing = UG | PFSA | {"ug_theta": 0, "pfsa_gamma": 0}
    assert same(plain, host.paint(nothing, sampler_name=sampler))
    for settings in (UG, PFSA):
        made = host.paint(settings, sampler_name=sampler)
        assert not same(plain, made)
        assert torch.isfinite(made.images[0]).all()
        assert made.said == []
    assert same(plain, host.paint(sampler_name=sampler))
    assert leftovers() == 0


def test_the_small_image_is_asked_about_at_the_native_size(host):
    from modules import shared

    host.paint(UG)
    assert shared.loaded.sd_model.asked == [((16, 16), 2), ((8, 8), 2)] * 5
    host.paint(UG, width=192)
    assert {size for size, _ in shared.loaded.sd_model.asked} == {(16, 24), (8, 10)}


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
            host.paint(settings, sampler_name=sampler, width=side, height=side)

    run(UG | {"ug_shifted_start": False}, noise, sigmas, 128)
    run({}, 2 * D(noise, 2), sigmas / 2, 64)
    assert torch.allclose(D(given[128], 2), given[64], atol=1e-4)


def test_the_shifted_start_stretches_the_first_pass_only(host):
    from modules import sd_samplers

    starts = []

    class Watching(sd_samplers.KDiffusionSampler):
        def _run(self, p, x, sigmas, told, steps):
            starts.append((float(sigmas[0]), round(float(x.std()))))
            return super()._run(p, x, sigmas, told, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sd_samplers, "KDiffusionSampler", Watching)
        host.paint()
        host.paint(UG, enable_hr=True)
    (plain, _), (first, deviation), (second, _) = starts
    assert first == pytest.approx(2 * plain)
    assert deviation == pytest.approx(2 * plain, rel=0.1)
    assert second < plain


@pytest.mark.parametrize("sampler", [*SAMPLERS, "DPM fast"])
@pytest.mark.parametrize("eta2", ["0.1", "0.4", "1", "0.2, 0.6"])
def test_refinement_makes_the_size_asked_for(host, sampler, eta2):
    made = host.paint(
        UG | REFINE | {"refine_eta2": eta2}, sampler_name=sampler, width=64, height=64
    )
    assert sizes(made) == {(128, 128)}
    assert made.said == []
    assert leftovers() == 0


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "DDIM"])
@pytest.mark.parametrize("method", ["AP-LDM", "Pivot"])
@pytest.mark.parametrize("tile", [0, 128])
def test_methods_and_tiles(host, sampler, method, tile):
    settings = REFINE | {"refine_method": method, "refine_tile": tile, "refine_colour_match": True}
    assert sizes(host.paint(settings, sampler_name=sampler)) == {(256, 256)}


def test_a_stage_samples_the_tail_of_the_schedule(host):
    """Strength 0.4 of 5 steps is 2; the guided stage asks twice at each."""
    from modules import shared

    asked = shared.loaded.sd_model.asked
    host.paint(UG | REFINE, width=64, height=64)
    stage = [size for size, _ in asked[5:]]
    assert stage == [(16, 16), (8, 8)] * 2
    unguided = UG | REFINE | {"refine_guided": False}
    for sampler, first in (("DDIM", 4), ("UniPC", 5)):
        shared.opts.uni_pc_order = 2
        host.paint(unguided, width=64, height=64, sampler_name=sampler)
        assert [size for size, _ in asked[first:]] == [(16, 16)] * 2


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
    plain = host.paint(**request_)
    made = host.paint(settings, **request_)
    assert made.said == []
    assert not same(plain, made)
    assert same(made, host.paint(settings, **request_))
    assert same(plain, host.paint(**request_))
    assert leftovers() == 0


def test_calls_apart_are_the_stacked_call(host):
    from modules import shared

    settings = UG | {"ug_cadence": 3}
    stacked = host.paint(settings).images[0]
    shared.opts.batch_cond_uncond = False
    assert torch.allclose(host.paint(settings).images[0], stacked, atol=1e-4)


def test_a_batch_gives_each_image_the_one_it_gives_alone(host):
    settings = UG | PFSA | REFINE
    batch = host.paint(settings, batch_size=2, n_iter=2, sampler_name="Euler a")
    for k, image in enumerate(batch.images):
        alone = host.paint(settings, seed=1 + k, sampler_name="Euler a").images[0]
        assert torch.allclose(image, alone, atol=1e-4)


def test_img2img_keeps_one_sampler_for_all_batches(host):
    request = {"init_image": torch.rand(3, 128, 128), "n_iter": 3}
    host.paint(UG | PFSA | REFINE, **request)
    from modules.processing import StableDiffusionProcessingImg2Img

    p = StableDiffusionProcessingImg2Img(**request)
    host.paint(UG | PFSA, p=p, init_image=None)
    assert not {"sample", "sample_img2img", "get_sigmas", "callback_state"} & set(vars(p.sampler))
    assert not p.sampler.model_wrap_cfg._forward_pre_hooks
    assert "forward" not in vars(p.sampler.model_wrap)


class Failure(RuntimeError):
    pass


def fail_at(host, call, what):
    """Make the model's `call`-th evaluation go wrong; returns what puts it right again."""
    from modules import shared

    model = shared.loaded.sd_model
    plain, count = model.apply_model, [0]

    def apply_model(*args, **kwargs):
        count[0] += 1
        if count[0] == call:
            what()
        return plain(*args, **kwargs)

    model.apply_model = apply_model
    return lambda: vars(model).pop("apply_model")


def raise_failure():
    raise Failure("as asked")


@pytest.mark.parametrize("call", range(1, 15))
def test_after_a_failure_anywhere_the_next_image_is_as_ever(host, call):
    settings = UG | PFSA | REFINE
    plain, guided = host.paint(), host.paint(settings)
    repair = fail_at(host, call, raise_failure)
    try:
        made = host.paint(settings)
        assert made.said, "the failure was hidden"
    except Failure:
        pass
    repair()
    assert leftovers() == 0
    assert same(plain, host.paint())
    assert same(guided, host.paint(settings))


@pytest.mark.parametrize("way", ["raise", "interrupt", "skip"])
def test_the_last_finished_stage_survives(host, way):
    from modules import shared

    def stop():
        if way == "raise":
            raise_failure()
        setattr(shared.state, {"interrupt": "interrupted", "skip": "skipped"}[way], True)

    two = REFINE | {"refine_eta2": "0.4, 0.4"}
    first = host.paint()
    repair = fail_at(host, 6, stop)  # the first of the first stage's two
    stopped = host.paint(two)
    repair()
    assert same(first, stopped)
    assert "after the first pass" in stopped.said[0]
    repair = fail_at(host, 8, stop)
    stopped = host.paint(two)
    repair()
    assert 128 < stopped.images[0].shape[-1] < 256
    assert "after stage 1 of 2" in stopped.said[0]
    assert same(first, host.paint())


def test_a_failing_small_call_leaves_the_image_and_says_so(host):
    repair = fail_at(host, 4, raise_failure)
    made = host.paint(UG)
    repair()
    assert "without Upsample Guidance" in made.said[0]
    assert torch.isfinite(made.images[0]).all()


def test_a_mix_that_fails_leaves_the_image_and_says_so(host, monkeypatch):
    plain, mixed = host.paint(), host.paint(PFSA)
    with monkeypatch.context() as patch:
        patch.setattr("lib_hires.attentive_guidance.pfsa", lambda *_: raise_failure())
        made = host.paint(PFSA)
    assert same(plain, made)
    assert len(made.said) == 1
    assert "without Attentive Guidance, because it failed (Failure: as asked)." in made.said[0]
    assert same(mixed, host.paint(PFSA))


def raise_out_of_memory():
    raise RuntimeError("MPS backend out of memory")


def test_a_stage_without_memory_names_what_to_lower(host):
    repair = fail_at(host, 6, raise_out_of_memory)
    made = host.paint(REFINE)
    repair()
    assert 'Set "Decode in tiles of" to 512' in made.said[0]


def test_stages_are_counted_and_named(host):
    from modules import shared

    names = set()

    def look():
        names.add((shared.state.textinfo, shared.state.job_count))

    repair = fail_at(host, 6, look)
    host.paint(REFINE | {"refine_eta2": "0.4, 0.4"}, n_iter=2)
    repair()
    assert names == {("HiRes Guidance: stage 1 of 2, 208x208", 6)}
    assert shared.state.job_no == shared.state.job_count
    assert shared.state.textinfo is None


def test_at_the_native_size_nothing_happens_and_says_so(host):
    plain, made = host.paint(width=64, height=64), host.paint(UG, width=64, height=64)
    assert same(plain, made)
    assert "not clearly above the model's native 64x64" in made.said[0]


def test_the_native_size_can_be_set(host):
    from modules import shared

    shared.opts.hires_guidance_native_size = 128
    assert same(host.paint(), host.paint(UG))


def test_a_sampler_without_steps_is_not_mixed_and_says_so(host):
    plain, made = host.paint(sampler_name="DPM fast"), host.paint(PFSA, sampler_name="DPM fast")
    assert same(plain, made)
    assert "DPM fast has no fixed steps" in made.said[0]


def test_an_inpainted_image_is_not_refined_and_says_so(host):
    made = host.paint(REFINE, init_image=torch.rand(3, 128, 128), image_mask=object())
    assert sizes(made) == {(128, 128)}
    assert "was not refined" in made.said[0]


def test_image_conditioning_shrinks_along(host):
    """The toy asserts that it gets it in the latent's own size. Masks stay hard."""
    from modules.processing import StableDiffusionProcessing

    from lib_hires.webui.hosts.conditioning import SizeEmbeddings, shrink_cond

    def conditioning(p, x, width=None, height=None):
        return torch.rand(len(x), 5, *x.shape[-2:], generator=torch.Generator().manual_seed(0))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StableDiffusionProcessing, "txt2img_image_conditioning", conditioning)
        assert host.paint(UG | REFINE | {"ug_cadence": 2}).said == []
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
                self.inner.append(self.host.paint({"ug": True}, **request))

    settings = UG | PFSA | REFINE
    alone = Host().paint(settings, batch_size=2)
    host = Host(Nesting)
    Nesting.host = host
    assert same(alone, host.paint(settings, batch_size=2))
    assert scripts.errors == []
    assert len(Nesting.inner) == 2
    assert leftovers() == 0


def test_nothing_unpicklable_is_put_on_the_run(host):
    import pickle

    from modules.processing import StableDiffusionProcessingTxt2Img

    p = StableDiffusionProcessingTxt2Img(enable_hr=True)
    host.paint(UG | PFSA | REFINE, p=p)
    ours = {k: v for k, v in vars(copy.copy(p)).items() if k not in ("scripts", "sampler", "rng")}
    pickle.dumps(ours)


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
        made = host.paint(UG | {"ug_passes": choice}, **request)
        asked = shared.loaded.sd_model.asked
        sizes = [size for size, _ in asked]
        large = [size for size in sizes if size != (8, 8)]
        found = {size for at, size in enumerate(sizes[:-1]) if sizes[at + 1] == (8, 8)}
        return made, {size for size in large if size in found}

    made, found = guided(enable_hr=True)
    expected = {"text": {(16, 16)}, "hires": {(32, 32)}}
    wanted = [expected[kind] for kind in PASSES[choice] if kind in expected]
    assert found == set().union(*wanted)
    assert (made.said == []) == bool(wanted)
    made, found = guided(init_image=torch.rand(3, 128, 128))
    assert found == ({(16, 16)} if "image" in PASSES[choice] else set())
    if not found:
        assert f'no pass that is "{choice}"' in made.said[0]


@pytest.mark.parametrize("choice", PASSES)
def test_attentive_guidance_acts_in_the_passes_chosen(host, choice):
    settings = PFSA | {"pfsa_passes": choice}
    chosen = {"automatic": ("text", "image")}.get(choice, PASSES[choice])
    plain, mixed = host.paint(), host.paint(settings)
    assert same(plain, mixed) == ("text" not in chosen)
    request = {"init_image": torch.rand(3, 128, 128)}
    torch.manual_seed(0)
    plain = host.paint(**request)
    torch.manual_seed(0)
    assert same(plain, host.paint(settings, **request)) == ("image" not in chosen)
    both = host.paint(settings, enable_hr=True)
    assert same(both, host.paint(enable_hr=True)) == (not {"text", "hires"} & set(chosen))
    if "hires" in chosen:
        first = host.paint(settings | {"pfsa_passes": "first pass"}, enable_hr=True)
        assert not same(both, first)


KEEP = REFINE | {"refine_eta2": "0.4, 0.4", "refine_keep_stages": True}


def test_every_stage_is_kept_saved_and_shown(host):
    from modules import images

    plain, without = host.paint(n_iter=2), host.paint(KEEP | {"refine_keep_stages": False})
    made = host.paint(KEEP, n_iter=2)
    final, kept = made.images[:2], made.images[2:]
    assert torch.equal(final[0], without.images[0])
    assert [image.size for image in kept] == [(128, 128), (208, 208)] * 2
    first = torch.frombuffer(bytearray(kept[0].tobytes()), dtype=torch.uint8)
    expected = (plain.images[0] * 255).permute(1, 2, 0).flatten()
    assert (first.float() - expected).abs().max() <= 1
    assert len(made.infotexts) == len(made.images)
    stages = [text.split("HiRes stage: ")[1] for text in made.infotexts[2:]]
    assert stages == ["0 of 2", "1 of 2"] * 2
    assert all("HiRes stage" not in text for text in made.infotexts[:2])
    assert "HiRes stage" not in made.parameters
    assert [(size, suffix) for size, suffix, *_ in images.saved] == [
        ((128, 128), "-stage-0"), ((208, 208), "-stage-1")
    ] * 2  # fmt: skip
    assert kept[1].info["parameters"] == images.saved[1][2] == made.infotexts[3]
    assert len(host.paint(REFINE).images) == 1


def test_kept_stages_are_told_and_named_as_their_result(host):
    """With the extra networks' tags, and what another extension lists for all images."""
    from modules import images
    from modules.processing import StableDiffusionProcessingTxt2Img

    prompt = "a circle <lora:round:0.5>"
    p = StableDiffusionProcessingTxt2Img(prompt=prompt, batch_size=2, n_iter=2)
    p.extra_generation_params["Mood"] = ["first", "second", "third", "fourth"]
    made = host.paint(REFINE | {"refine_keep_stages": True}, p=p)
    assert len(made.images) == 8
    for result, kept in zip(made.infotexts[:4], made.infotexts[4:], strict=True):
        assert kept.split(", ")[0] == result.split(", ")[0]  # prompts and seed
        assert kept.startswith(f"{prompt}\nNegative prompt: blue\nSeed: ")
    moods = [text.split("Mood: ")[1].split(",")[0] for text in made.infotexts]
    assert moods[4:] == ["first", "second", "third", "fourth"]
    named = [(seed, prompt, place) for *_, seed, prompt, place in images.saved]
    assert named == [(seed, prompt, (seed - 1) % 2) for seed in (1, 2, 3, 4)]


def test_kept_stages_follow_the_hosts_options_and_leave_scripts_their_images(host):
    from modules import images, shared

    shared.opts.samples_save = False
    assert len(host.paint(KEEP, enable_hr=True).images) == 3
    assert images.saved == []
    shared.opts.samples_save = True


def test_a_stage_that_fails_leaves_the_kept_ones_and_shows_none_twice(host):
    from modules import images

    repair = fail_at(host, 8, raise_failure)  # in the second stage
    made = host.paint(KEEP)
    repair()
    assert "after stage 1 of 2" in made.said[0]
    assert made.images[0].shape[-1] == 208
    assert [image.size for image in made.images[1:]] == [(128, 128)]
    assert [suffix for _, suffix, *_ in images.saved] == ["-stage-0", "-stage-1"]


def test_a_image_that_cannot_be_kept_does_not_end_the_refinement(host):
    from modules import images

    def full(image, *args, suffix="", **kwargs):
        if suffix == "-stage-0":
            raise OSError("no space left")
        return plain_save(image, *args, suffix=suffix, **kwargs)

    plain_save, refined = images.save_image, host.paint(KEEP)
    images.saved.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "save_image", full)
        made = host.paint(KEEP)
    assert torch.equal(made.images[0], refined.images[0])
    assert [image.size for image in made.images[1:]] == [(208, 208)]
    assert [suffix for _, suffix, *_ in images.saved] == ["-stage-1"]
    assert made.said == [
        "HiRes Guidance: the image after the first pass was not kept (OSError: no space left)."
    ]
    assert "was not kept" in made.infotexts[0]


@pytest.fixture
def sdxl():
    from host import Host
    from modules import scripts, shared
    from modules.toy_model import ToySDXL

    host = Host(model=ToySDXL)
    shared.opts.hires_guidance_native_size = 64
    yield host
    assert scripts.errors == []


def test_sdxl_is_told_the_size_it_is_asked_about(sdxl):
    """The vector that the host makes for a size, in the small question and in every stage."""
    from modules import shared

    model = shared.loaded.sd_model

    def expected(width, height):
        return model.encode_prompt("blue", (height, width))["vector"]

    model.told.clear()
    assert sdxl.paint(UG | REFINE, width=192).said == []
    sizes = {size: told for (size, _), told in zip(model.asked, model.told, strict=True)}
    assert set(sizes) == {(16, 24), (32, 48), (8, 10)}
    for (height, width), told in sizes.items():
        assert torch.equal(told, expected(width * 8, height * 8))
    plain = sdxl.paint()
    assert same(plain, sdxl.paint(UG | {"ug_theta": 0}))


@pytest.mark.parametrize("batch_cond_uncond", [True, False])
def test_sdxls_sizes_are_embedded_once_a_sampling(sdxl, batch_cond_uncond):
    """The original and the target size of the small image, whatever the number of steps."""
    from modules import shared

    shared.opts.batch_cond_uncond = batch_cond_uncond
    embedded = []
    for embedder in shared.loaded.sd_model.embedders():
        embedder.register_forward_hook(lambda embedder, *_: embedded.append(embedder.input_key))
    sdxl.paint()
    by_the_host = len(embedded)
    embedded.clear()
    assert sdxl.paint(UG, steps=7).said == []
    assert embedded[by_the_host:] == ["target_size_as_tuple", "original_size_as_tuple"]


@pytest.mark.parametrize("kind", ["ToyModel", "ToySDXL"])
def test_images_are_encoded_to_the_posteriors_mode(kind):
    from host import Host
    from modules import toy_model

    from lib_hires.webui.refining.vae import HostVae

    Host(model=getattr(toy_model, kind))
    from modules import shared

    model = shared.loaded.sd_model
    latent = torch.randn(2, 4, 8, 8) * 0.3
    images = torch.nn.functional.interpolate(
        model.decode_first_stage(latent)[..., ::8, ::8], scale_factor=8
    )
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    encoded = HostVae(model, 0, print).encode(images)
    assert torch.equal(before, torch.random.get_rng_state())
    posterior = model.first_stage_model.encode(images)
    assert torch.allclose(encoded, model.scale_factor * posterior._mean, atol=1e-6)
    assert leftovers() == 0


@pytest.mark.parametrize("hires", [False, True], ids=["first pass", "Hires. fix"])
def test_a_host_that_cuts_decoded_images_to_their_range_refines_them_as_one_that_does_not(hires):
    """Forge and its kin do. After the first pass the whole image is enlarged, as AP-LDM does;
    after Hires. fix the host has kept the cut one alone."""
    from host import Host
    from modules.toy_model import ToyModel

    class Beyond(ToyModel):
        def __init__(self):
            super().__init__()
            self.first_stage_model.decoder.gain = 2

    class Cut(Beyond):
        def decode_first_stage(self, z):
            return super().decode_first_stage(z).clamp(-1, 1)

    beyond, cut = (Host(model=kind).paint(REFINE, enable_hr=hires) for kind in (Beyond, Cut))
    assert beyond.said == []
    assert same(beyond, cut)


def test_what_a_host_decodes_in_tiles_is_taken_as_it_gives_it(host):
    from modules import shared

    from lib_hires.webui.refining.vae import HostVae

    class InTiles:
        def __init__(self, model):
            self.first_stage_model = model.first_stage_model
            self.scale_factor = model.scale_factor

        def decode_first_stage(self, z):
            halves = [
                shared.loaded.sd_model.decode_first_stage(part) for part in z.chunk(2, dim=-1)
            ]
            return torch.cat(halves, dim=-1)

    latent, model = torch.randn(1, 4, 8, 8), InTiles(shared.loaded.sd_model)
    assert torch.equal(HostVae(model, 0, print).decode(latent), model.decode_first_stage(latent))


HINT = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def controlled():
    """A host with a ControlNet; `networks` are those of the runs since."""
    from controlnet_extension import ControlNetScript
    from host import Host
    from modules import scripts

    host = Host(ControlNetScript)
    host.networks = host.runners[0].scripts[-1].networks
    yield host
    assert scripts.errors == []


def test_controlnet_acts_at_every_size(controlled):
    settings = UG | REFINE
    plain, guided = controlled.paint(), controlled.paint(settings)
    unit = controlled.paint(hint=HINT)
    both = controlled.paint(settings, hint=HINT)
    assert both.said == []
    assert not same(both, guided)
    assert not same(unit, plain)
    seen = controlled.networks[-1].seen
    assert {size for size, _, _ in seen} == {(8, 8), (16, 16), (32, 32)}
    assert all(acted and marked for _, acted, marked in seen)
    assert same(both, controlled.paint(settings, hint=HINT))
    assert same(unit, controlled.paint(hint=HINT))
    assert same(guided, controlled.paint(settings))
    assert same(plain, controlled.paint())
    assert leftovers() == 0


def test_controlnet_can_be_left_out_of_the_small_question(controlled):
    both = controlled.paint(UG, hint=HINT)
    without = controlled.paint(UG | {"ug_controlnet": False}, hint=HINT)
    assert without.said == []
    assert not same(both, without)
    seen = controlled.networks[-1].seen
    assert {(size, acted) for size, acted, _ in seen} == {((16, 16), True), ((8, 8), False)}
    assert all(marked for _, _, marked in seen)


@pytest.mark.parametrize("side", ["both", "first", "second"])
def test_controlnet_keeps_to_its_side_of_hires_fix(controlled, side):
    """128 and 256 with small questions at 64, nearer to the first, and a stage at 320."""
    settings = UG | REFINE | {"refine_factor": 1.25}
    made = controlled.paint(settings, hint=HINT, side=side, enable_hr=True)
    assert made.said == []
    network = controlled.networks[-1]
    first = [acted for size, acted, _ in network.seen[:10]]
    later = [acted for size, acted, _ in network.seen[10:]]
    assert all(first) == (side != "second") and any(first) == (side != "second")
    assert all(later) == (side != "first") and any(later) == (side != "first")
    assert {size for size, _, _ in network.seen} == {(8, 8), (16, 16), (32, 32), (40, 40)}


def test_controlnets_hints_are_put_back_whatever_happens(controlled):
    states, plain = [], controlled.paint()
    for call in (2, 8):
        repair = fail_at(controlled, call, raise_failure)
        with suppress(Failure):
            controlled.paint(UG | REFINE, hint=HINT)
        repair()
        unit = controlled.networks[-1].control_params[0]
        states.append(unit._hint_cond.shape[-2:])
        assert unit.hr_hint_cond is None
        assert same(plain, controlled.paint())
    assert states == [(128, 128)] * 2
    assert leftovers() == 0


def test_an_unknown_controlnet_is_left_out_with_a_sentence(controlled):
    from controlnet_extension import Unit

    plain_init = Unit.__init__

    def renamed(self, *args):
        plain_init(self, *args)
        self.another_name = vars(self).pop("used_hint_inpaint_hijack")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Unit, "__init__", renamed)
        made = controlled.paint(UG | REFINE, hint=HINT)
    assert "this version of it is not known" in made.said[0]
    assert len(made.said) == 1
    assert sizes(made) == {(256, 256)}
    seen = controlled.networks[-1].seen
    assert {size for size, acted, _ in seen if acted} == {(16, 16)}


@pytest.mark.parametrize("size", [(64, 96), (16, 24), (48, 80)])
def test_hints_are_resized_and_masks_stay_hard(size):
    from lib_hires.webui.sampling.controlnet import resized_hint

    hint = torch.cat([torch.rand(1, 3, 32, 48), (torch.rand(1, 1, 32, 48) > 0.5).float()], 1)
    resized = resized_hint(hint, size)
    assert resized.shape == (1, 4, *size)
    assert set(resized[:, 3].unique().tolist()) <= {0.0, 1.0}
    assert (resized[:, :3].mean() - hint[:, :3].mean()).abs() < 0.02
    assert torch.equal(resized_hint(hint, (32, 48)), hint)


def test_hints_are_reduced_as_latents_are():
    from lib_hires.resample import Reduction
    from lib_hires.webui.sampling.controlnet import resized_hint

    hint = torch.rand(1, 3, 32, 48).half()
    expected = Reduction.between((32, 48), (24, 40)).reduce(hint)
    assert torch.equal(resized_hint(hint, (24, 40)), expected.half())


def test_lllites_embeddings_are_made_anew_for_another_size():
    from types import SimpleNamespace

    from lib_hires.webui.sampling.controlnet import ControlNet

    part, sizes = SimpleNamespace(cond_emb=None), []

    class UNet:
        def forward(self, x):
            part.cond_emb = part.cond_emb or tuple(x.shape[-2:])
            sizes.append(part.cond_emb)

    used = "used_hint_cond", "used_hint_cond_latent", "used_hint_inpaint_hijack"
    names = {"_hint_cond": torch.rand(1, 3, 128, 128), "hr_hint_cond": None} | dict.fromkeys(used)
    unit = SimpleNamespace(**names, control_model=SimpleNamespace(modules={"attention": part}))
    unet = UNet()
    network = SimpleNamespace(model=unet, control_params=[unit])
    controlnet = ControlNet(network)
    with controlnet.fitting("text", True, True, print):
        for side in (16, 8, 16):
            with controlnet.native_scope() if side == 8 else nullcontext():
                unet.forward(torch.zeros(1, 4, side, side))
    assert sizes == [(16, 16), (8, 8), (16, 16)]


@pytest.mark.parametrize("hint", [torch.rand(1, 5, 16, 16), torch.rand(1, 1280), {"image": 1}])
def test_hints_that_are_no_images_are_left_alone(hint):
    from types import SimpleNamespace

    from lib_hires.webui.sampling.controlnet import ControlNet

    class UNet:
        def forward(self, x):
            seen.append(unit._hint_cond)

    used = "used_hint_cond", "used_hint_cond_latent", "used_hint_inpaint_hijack"
    names = {"_hint_cond": hint, "hr_hint_cond": None} | dict.fromkeys(used)
    unit, seen = SimpleNamespace(**names, control_model=None), []
    network = SimpleNamespace(model=UNet(), control_params=[unit])
    controlnet = ControlNet(network)
    with controlnet.fitting("text", True, True, print):
        network.model.forward(torch.zeros(1, 4, 16, 16))
        with controlnet.native_scope():
            network.model.forward(torch.zeros(1, 4, 8, 8))
    assert [found is hint for found in seen] == [True, True]


def test_a_unet_made_for_certain_sizes_is_left_alone_with_a_sentence(host):
    from types import SimpleNamespace

    from modules import sd_unet

    plain = host.paint()
    option = SimpleNamespace(label="[TRT] model")
    sd_unet.current_unet = SimpleNamespace(option=option)
    made = host.paint(UG | REFINE)
    assert same(plain, made)
    assert len(made.said) == 1
    assert 'the SD Unet "[TRT] model" is made for certain sizes' in made.said[0]
    mixed = host.paint(UG | PFSA)
    sd_unet.current_unet = None
    assert same(mixed, host.paint(PFSA))
