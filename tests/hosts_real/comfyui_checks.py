"""Runs inside a real ComfyUI's Python, by test_comfyui.py: HOST ROOT EXCHANGE [CHECK ...].

`image.safetensors` is written into EXCHANGE besides. The model is the bundled one in the host's own
network, because the host's loader knows the published sizes only.
"""

from pathlib import Path

from comfyui_host import (
    EXCHANGE,
    GIVEN,
    LARGE,
    NEGATIVE,
    POSITIVE,
    REDUCTION,
    ROOT,
    SETTINGS,
    SIGMAS,
    SMALL,
    check,
    guided,
    host_model,
    host_vae,
    main,
    messages,
    node,
    noise_of,
    off_native,
    run,
    sample,
)

# isort: split
import comfy.controlnet
import comfy.lora
import comfy.model_detection
import comfy.sample
import comfy.samplers
import comfy.sd
import folder_paths
import nodes
import torch
from comfy.model_base import ModelType
from safetensors.torch import save_file


@check
def same_as_standalone():
    """Writes images of a user's KSampler, guided and plain, and of each refinement."""
    model, vae = host_model(), host_vae()
    images = {}
    windows = guided(model, windows="attention")
    for name, patched, size in (
        ("guided", guided(model), LARGE),
        ("attention in windows", windows, LARGE),
        ("plain", model, SMALL),
    ):
        latent = run(
            nodes.KSampler,
            model=patched,
            seed=SETTINGS["seed"],
            steps=6,
            cfg=SETTINGS["cfg"],
            sampler_name="dpmpp_2m",
            scheduler="karras",
            positive=POSITIVE,
            negative=NEGATIVE,
            latent_image={"samples": torch.zeros(1, 4, *size)},
        )[0]
        images[name] = vae.decode(latent["samples"]).contiguous()
    images |= refined_as_standalone(vae)
    save_file(images, f"{EXCHANGE}/image.safetensors")
    return sorted(images)


def refined_as_standalone(vae):
    """The last image of each refinement that is given, from the standalone side's first latent."""
    bundled = Path(ROOT, "lib_hires/standalone/bundled/upsamplers")
    folder_paths.add_model_folder_path("hires-guidance", str(bundled))
    images = {}
    for name, settings in SETTINGS["refined"].items():
        settings = {key.removeprefix("refine_"): value for key, value in settings.items()}
        model = host_model()
        first = model.model.process_latent_out(GIVEN[f"first {name}"])
        if "upsampler" in settings:
            upsampler = settings.pop("upsampler")
            (model,) = node("HiResFeatureUpsampler", model=model, upsampler=upsampler)
        _, made = node(
            "HiResProgressiveRefinement",
            model=model,
            positive=POSITIVE,
            negative=NEGATIVE,
            vae=vae,
            latent={"samples": first},
            seed=SETTINGS["seed"],
            cfg=SETTINGS["cfg"],
            steps=6,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            **settings,
        )
        images[name] = made[-1].contiguous()
    return images


@check
def theta_0_is_the_model():
    model = host_model()
    noise = noise_of(LARGE)
    before, off = sample(model, SIGMAS, noise), sample(guided(model, theta=0.0), SIGMAS, noise)
    on = sample(guided(model), SIGMAS, noise)
    after = sample(model, SIGMAS, noise)
    return {
        "off": torch.equal(before, off),
        "on": torch.equal(before, on),
        "after": torch.equal(before, after),
        "again": torch.equal(on, sample(guided(model), SIGMAS, noise)),
    }


@check
def attention_in_windows():
    """The exact property, what is left, and the message where another node has the place."""
    model, noise = host_model(), noise_of(LARGE)
    whole = sample(guided(model), SIGMAS, noise)
    windows = sample(guided(model, windows="attention"), SIGMAS, noise)
    gain = REDUCTION.noise_gain
    native = sample(model, SIGMAS * gain, REDUCTION.reduce(noise) / gain)
    held = model.clone()
    held.set_model_attn1_replace(lambda q, k, v, extra: v, "middle", 0)
    before = sample(guided(held), SIGMAS, noise)
    with messages() as lines:
        after = sample(guided(held, windows="attention"), SIGMAS, noise)
    return {
        "off": float((REDUCTION.reduce(windows) - native).abs().max() / native.abs().max()),
        "moved": float((windows - whole).abs().max() / whole.abs().max()),
        "again whole": torch.equal(whole, sample(guided(model), SIGMAS, noise)),
        "held": torch.equal(before, after),
        "messages": list(lines),
    }


@check
def exact_by_sampler():
    model = host_model()
    return {name: off_native(model, name) for name in ("euler", "heun", "dpmpp_2m", "ddim")}


@check
def exact_by_prediction():
    """eps and v from any sigma; flow, whose sampler is Euler in t."""
    seen = {"eps": off_native(host_model(ModelType.EPS))}
    flow = host_model(ModelType.FLOW)
    noise, times = noise_of(LARGE), torch.tensor([0.95, 0.7, 0.3, 0.0])
    gain = REDUCTION.noise_gain
    small_times = gain * times / (1 - times + gain * times)
    large = sample(guided(flow), times, noise)
    native = sample(flow, small_times, REDUCTION.reduce(noise) / gain)
    seen["flow"] = float((REDUCTION.reduce(large) - native).abs().max() / native.abs().max())
    return seen


@check
def exact_with_areas_and_masks():
    """In positions and in shares; the host fades an area's border by itself at either size."""

    def in_part(size):
        mask = torch.zeros(1, *size)
        mask[:, : size[0] // 2] = 1
        area = size[0] // 2, size[1] // 2, size[0] // 4, 0
        return [
            [GIVEN["cond"], {"mask": mask, "mask_strength": 1.0}],
            [GIVEN["uncond"], {"area": area, "strength": 0.7}],
            [GIVEN["uncond"], {"area": ("percentage", 0.5, 0.25, 0.5, 0.75), "strength": 0.9}],
            [GIVEN["cond"], {"strength": 0.5}],
        ]

    model, large, small = host_model(), in_part(LARGE), in_part(SMALL)
    chosen = {"areas": (1, 2, 3), "with a mask": (0, 1, 2, 3)}
    return {
        name: off_native(model, "euler", [large[n] for n in those], [small[n] for n in those])
        for name, those in chosen.items()
    }


@check
def an_area_of_the_whole_is_none():
    """In a guided run, and in a refinement, where it is scaled from the first image's size; and a
    part of the picture is not the whole."""
    model, vae, noise = host_model(), host_vae(), noise_of(LARGE)
    common = {"negative": NEGATIVE, "vae": vae, "latent": {"samples": noise_of(SMALL)}, "steps": 2}
    common |= {"sampler_name": "euler", "scheduler": "normal", "eta2": "0.5", "factor": 1.5}

    def region(size, part=1):
        return [[GIVEN["cond"], {"area": (size[0], size[1] // part, 0, 0), "strength": 1.0}]]

    def made(positive):
        return sample(guided(model), SIGMAS, noise, positive=positive)

    def refined(positive):
        made = node("HiResProgressiveRefinement", model=model, positive=positive, **common)
        return made[0]["samples"]

    def far(other, one):
        return float((other - one).abs().max() / one.abs().max())

    one, stage = made(POSITIVE), refined(POSITIVE)
    return {
        "run": far(made(region(LARGE)), one),
        "stage": far(refined(region(SMALL)), stage),
        "part of a run": far(made(region(LARGE, 2)), one),
        "part of a stage": far(refined(region(SMALL, 2)), stage),
    }


@check
def attentive_guidance():
    """Euler's steps by hand, with PFSA mixed into the state, against the wrapped sampler."""
    from lib_hires.attentive_guidance import gamma_at, mix_into_state_
    from lib_hires.settings import AttentiveGuidance

    sampler = node(
        "HiResAttentiveGuidance", sampler=comfy.samplers.sampler_object("euler"), gamma=0.2
    )[0]
    model, noise, states = host_model(), noise_of(SMALL), []
    settings = AttentiveGuidance(enabled=True, gamma=0.2)

    def keep(step, denoised, state, total):
        states.append((state.clone(), denoised.clone()))

    comfy.sample.sample_custom(
        model,
        noise,
        3.0,
        sampler,
        SIGMAS,
        POSITIVE,
        NEGATIVE,
        torch.zeros_like(noise),
        callback=keep,
        disable_pbar=True,
        seed=1,
    )
    worst = 0.0
    for done in (1, 2):
        state, denoised = states[done - 1]
        here, then = SIGMAS[done - 1], SIGMAS[done]
        wanted = state + (state - denoised) / here * (then - here)
        unmixed = wanted.clone()
        mix_into_state_(wanted, gamma_at(done, 3, settings), settings, float(then))
        worst = max(worst, float((wanted - states[done][0]).abs().max() / wanted.abs().max()))
    try:
        node("HiResAttentiveGuidance", sampler=comfy.samplers.sampler_object("dpm_adaptive"))
    except ValueError as error:
        refused = str(error)
    return {"off": worst, "mixed": not torch.equal(wanted, unmixed), "refused": refused}


@check
def refinement():
    model, vae = host_model(), host_vae()
    first = {"samples": sample(model, SIGMAS, noise_of(SMALL))}
    seen = {}
    for name, settings in {
        "AP-LDM": {"eta2": "0.3, 0.3"},
        "Pivot": {"method": "Pivot"},
        "tiles": {"tile": 256},
    }.items():
        latent, images = node(
            "HiResProgressiveRefinement",
            model=guided(model),
            positive=POSITIVE,
            negative=NEGATIVE,
            vae=vae,
            latent=first,
            steps=4,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            **settings,
        )
        assert torch.isfinite(latent["samples"]).all()
        seen[name] = [list(image.shape) for image in images]
    return seen


main()
