"""Progressive Refinement in whole generations in the fake host."""

from __future__ import annotations

import pytest
import torch
from runs import fail_at, leftovers, raise_failure, same, sizes

UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
REFINE = {"refine": True, "refine_eta2": "0.4"}


SAMPLERS = ["Euler", "Euler a", "Heun", "DPM2", "LMS", "DPM++ 2M", "DPM++ 2S a", "DDIM", "UniPC"]


@pytest.mark.parametrize("sampler", [*SAMPLERS, "DPM fast"])
@pytest.mark.parametrize("eta2", ["0.1", "0.4", "1", "0.2, 0.6"])
def test_refinement_makes_the_size_asked_for(host, sampler, eta2):
    made = host.generate(
        UG | REFINE | {"refine_eta2": eta2}, sampler_name=sampler, width=64, height=64
    )
    assert sizes(made) == {(128, 128)}
    assert made.messages == []
    assert leftovers() == 0


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "DDIM"])
@pytest.mark.parametrize("method", ["AP-LDM", "Pivot"])
@pytest.mark.parametrize("tile", [0, 128])
def test_methods_and_tiles(host, sampler, method, tile):
    settings = REFINE | {"refine_method": method, "refine_tile": tile, "refine_colour_match": True}
    assert sizes(host.generate(settings, sampler_name=sampler)) == {(256, 256)}


def test_a_stage_samples_the_tail_of_the_schedule(host):
    """Strength 0.4 of 5 steps is 2; the guided stage evaluates twice at each."""
    from modules import shared

    evaluated = shared.loaded.sd_model.evaluated
    host.generate(UG | REFINE, width=64, height=64)
    stage = [size for size, _ in evaluated[5:]]
    assert stage == [(16, 16), (8, 8)] * 2
    unguided = UG | REFINE | {"refine_guided": False}
    for sampler, first in (("DDIM", 4), ("UniPC", 5)):
        shared.opts.uni_pc_order = 2
        host.generate(unguided, width=64, height=64, sampler_name=sampler)
        assert [size for size, _ in evaluated[first:]] == [(16, 16)] * 2


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_stages_take_their_share_of_their_own_steps(host, sampler):
    """Strength 0.4 of 10 steps is 4; of the run's own 5 it is what it was."""
    from modules import shared

    evaluated = shared.loaded.sd_model.evaluated
    run = {"width": 64, "height": 64, "sampler_name": sampler}
    own = host.generate(REFINE, **run)
    evaluated.clear()
    same(host.generate(REFINE | {"refine_steps": 5}, **run), own)
    few = sum(size == (16, 16) for size, _ in evaluated)
    evaluated.clear()
    host.generate(REFINE | {"refine_steps": 10}, **run)
    assert (few, sum(size == (16, 16) for size, _ in evaluated)) == (2, 4)


def test_stages_are_counted_and_named(host):
    from modules import shared

    names = set()

    def look():
        names.add((shared.state.textinfo, shared.state.job_count))

    repair = fail_at(host, 6, look)
    host.generate(REFINE | {"refine_eta2": "0.4, 0.4"}, n_iter=2)
    repair()
    assert names == {("HiRes Guidance: stage 1 of 2, 208x208", 6)}
    assert shared.state.job_no == shared.state.job_count
    assert shared.state.textinfo is None


def test_an_inpainted_image_is_not_refined_with_a_message(host):
    made = host.generate(REFINE, init_image=torch.rand(3, 128, 128), image_mask=object())
    assert sizes(made) == {(128, 128)}
    assert "was not refined" in made.messages[0]


@pytest.mark.parametrize("kind", ["edit", "depth"])
def test_a_model_that_sees_the_first_image_is_not_refined_with_a_message(kind):
    """Its stages would lack that image, at the size of their own."""
    from host import Host
    from modules.toy_model import ToyModel

    class LatentDepth2ImageDiffusion(ToyModel):
        pass

    class Edit(ToyModel):
        cond_stage_key = "edit"

    host = Host(model=Edit if kind == "edit" else LatentDepth2ImageDiffusion)
    made = host.generate(REFINE, init_image=torch.rand(3, 128, 128))
    assert sizes(made) == {(128, 128)}
    assert "was not refined, because this model receives the first image" in made.messages[0]


def test_approximate_vaes_are_stated_as_the_host_states_them(host):
    """It does so only where it decodes and encodes itself."""
    from modules import shared

    keys = {"VAE Encoder", "VAE Decoder"}
    assert not keys & set(host.generate(REFINE).parameters)
    shared.opts.sd_vae_encode_method = shared.opts.sd_vae_decode_method = "TAESD"
    made = host.generate(REFINE)
    assert made.messages == []
    assert {name: made.parameters.get(name) for name in keys} == dict.fromkeys(keys, "TAESD")
    latent = host.generate(REFINE | {"refine_enlargement": "latent"}).parameters
    assert keys & set(latent) == {"VAE Decoder"}


def test_stages_take_no_refiner(host, monkeypatch):
    """Where Hires. fix leaves it to the first pass, the stages go on from the main model's image;
    in others it is loaded by then."""
    from modules.sd_samplers_common import CFGDenoiser

    taken, plain = [], CFGDenoiser.update_inner_model
    monkeypatch.setattr(
        CFGDenoiser, "update_inner_model", lambda self: (taken.append(self), plain(self))
    )
    made = host.generate(REFINE, refiner_at=1)
    assert made.messages == [] and len(taken) == 1


def test_after_hires_fix_edits_are_timed_by_its_steps(host):
    """As the host times them: from the first pass's end on."""

    def images(prompt):
        return host.generate(REFINE, prompt=prompt, enable_hr=True)

    assert not same(images("a [red:blue:8] circle"), images("a red circle"))
    assert same(images("a [red:blue:20] circle"), images("a red circle"))


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

    beyond, cut = (Host(model=kind).generate(REFINE, enable_hr=hires) for kind in (Beyond, Cut))
    assert beyond.messages == []
    assert same(beyond, cut)


KEEP = REFINE | {"refine_eta2": "0.4, 0.4", "refine_keep_stages": True}


def test_every_stage_is_kept_saved_and_shown(host):
    from modules import images

    plain, without = host.generate(n_iter=2), host.generate(KEEP | {"refine_keep_stages": False})
    made = host.generate(KEEP, n_iter=2)
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
    assert len(host.generate(REFINE).images) == 1


def test_kept_stages_are_described_and_named_as_their_result(host):
    """With the extra networks' tags, and what another extension lists for all images."""
    from modules import images
    from modules.processing import StableDiffusionProcessingTxt2Img

    prompt = "a circle <lora:round:0.5>"
    p = StableDiffusionProcessingTxt2Img(prompt=prompt, batch_size=2, n_iter=2)
    p.extra_generation_params["Mood"] = ["first", "second", "third", "fourth"]
    made = host.generate(REFINE | {"refine_keep_stages": True}, p=p)
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
    assert len(host.generate(KEEP, enable_hr=True).images) == 3
    assert images.saved == []
    shared.opts.samples_save = True


def test_a_stage_that_fails_leaves_the_kept_ones_and_shows_none_twice(host):
    from modules import images

    repair = fail_at(host, 8, raise_failure)  # in the second stage
    made = host.generate(KEEP)
    repair()
    assert "after stage 1 of 2" in made.messages[0]
    assert made.images[0].shape[-1] == 208
    assert [image.size for image in made.images[1:]] == [(128, 128)]
    assert [suffix for _, suffix, *_ in images.saved] == ["-stage-0", "-stage-1"]


def test_a_image_that_cannot_be_kept_does_not_end_the_refinement(host):
    from modules import images

    def full(image, *args, suffix="", **kwargs):
        if suffix == "-stage-0":
            raise OSError("no space left")
        return plain_save(image, *args, suffix=suffix, **kwargs)

    plain_save, refined = images.save_image, host.generate(KEEP)
    images.saved.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "save_image", full)
        made = host.generate(KEEP)
    assert torch.equal(made.images[0], refined.images[0])
    assert [image.size for image in made.images[1:]] == [(208, 208)]
    assert [suffix for _, suffix, *_ in images.saved] == ["-stage-1"]
    assert made.messages == [
        "HiRes Guidance: the image after the first pass was not kept (OSError: no space left)."
    ]
    assert "was not kept" in made.infotexts[0]


def test_a_host_without_the_option_for_edited_prompts_makes_the_same_stages(host, monkeypatch):
    """Forge Neo of August 2026 has dropped it, and the argument that it went to."""
    from modules import prompt_parser, shared

    made = host.generate(UG | REFINE)
    for name in ("get_learned_conditioning", "get_multicond_learned_conditioning"):
        older = getattr(prompt_parser, name)
        monkeypatch.setattr(
            prompt_parser, name, lambda model, prompts, steps, of=older: of(model, prompts, steps)
        )
    monkeypatch.delattr(shared.opts, "use_old_scheduling")
    newer = host.generate(UG | REFINE)
    assert newer.messages == []
    assert same(newer, made)
