"""Runs inside a real ComfyUI's Python, by test_comfyui_models.py: HOST ROOT EXCHANGE [CHECK ...].

As comfyui_checks.py, for other models than the bundled one, of random weights and few blocks in the
host's own classes, and for what other nodes patch.
"""

from __future__ import annotations

from comfyui_host import (
    LARGE,
    NEGATIVE,
    POSITIVE,
    REDUCTION,
    SIGMAS,
    SMALL,
    UNET,
    WEIGHTS,
    check,
    guided,
    host_model,
    host_vae,
    main,
    messages,
    node,
    noise_of,
    run,
)
from comfyui_networks import SD1, SD2, SD3, WAN, XL, flux, random_model, sd2_weights

# isort: split
import comfy.controlnet
import comfy.model_detection
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.t2i_adapter.adapter
import nodes
import torch

from lib_hires.resample import Reduction

TIMES = torch.tensor([0.95, 0.7, 0.3, 0.0])
HALF = Reduction.between((32, 32), (16, 16))  # of a latent that a transformer sees as 16x16 patches


def conditioning(channels, pooled=0, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, 77, channels, generator=generator)
    if pooled:
        more["pooled_output"] = torch.randn(1, pooled, generator=generator)
    return [[text, more]]


def noise_like(channels, *size, seed=3):
    return torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(seed))


def sampled(model, sigmas, noise, positive, negative, latent=None, name="euler", **options):
    latent = torch.zeros_like(noise) if latent is None else latent
    sampler = comfy.samplers.sampler_object(name)
    options = {"disable_pbar": True, "seed": 1, **options}
    parts = sampler, sigmas, positive, negative, latent
    return comfy.sample.sample_custom(model, noise, 3.0, *parts, **options)


def off_native(model, noise, positive, negative, *, small=None, flow=False, small_options=None,
               **options):  # fmt: skip
    """How far D of the guided trajectory's end is from the native run's end; relative.

    small: the native run's positive and negative, where they are others. options: of `sampled`,
    small_options those that differ in the native run.
    """
    reduction = HALF if noise.shape[-1] == 32 else REDUCTION
    gain, sigmas = reduction.noise_gain, TIMES if flow else SIGMAS
    low = gain * sigmas / (1 - sigmas + gain * sigmas) if flow else gain * sigmas
    native_side = 128 if noise.shape[-1] == 32 else 256
    guided_one = guided(model, native=native_side)
    end = sampled(guided_one, sigmas, noise, positive, negative, **options)
    small_noise = reduction.reduce(noise) / gain
    small = small or (positive, negative)
    native = sampled(model, low, small_noise, *small, **{**options, **(small_options or {})})
    plain = sampled(model, sigmas, noise, positive, negative, **options)
    scale = native.abs().max()
    assert torch.isfinite(end).all() and scale > 1e-3
    assert (reduction.reduce(plain) - native).abs().max() / scale > 1e-3, "nothing is guided"
    return float((reduction.reduce(end) - native).abs().max() / scale)


@check
def sdxl():
    """With the sizes that the host takes from the latent, and with those of a user's node."""
    model, noise = random_model("SDXL", XL), noise_of((32, 32))

    def pair(of=1.0):
        sizes = {"width": 256 * of, "height": 256 * of, "crop_w": 0, "crop_h": 32 * of}
        sizes |= {"target_width": 512 * of, "target_height": 256 * of}
        return [conditioning(64, 1280, seed, **(sizes if of else {})) for seed in (1, 2)]

    before = sampled(model, SIGMAS, noise, *pair())
    assert not torch.equal(before, sampled(model, SIGMAS, noise, *pair(0.5))), "sizes do nothing"
    off = guided(model, theta=0.0, native=128)
    return {
        "latent's sizes": off_native(model, noise, *pair(0)),
        "user's sizes": off_native(model, noise, *pair(), small=pair(0.5)),
        "theta 0": float(not torch.equal(sampled(off, SIGMAS, noise, *pair()), before)),
    }


@check
def sd2():
    """Its network with fewer channels, predicting what the host finds in the published weights."""
    noise, seen = noise_of((32, 32)), {}
    conds = [conditioning(1024, seed=seed) for seed in (1, 2)]
    for predicts in ("v", "eps"):
        model = random_model("SD20", SD2, sd2_weights(predicts))
        plain = sampled(model, SIGMAS, noise, *conds)
        off = sampled(guided(model, theta=0.0, native=128), SIGMAS, noise, *conds)
        seen[predicts] = off_native(model, noise, *conds)
        seen[f"{predicts} at theta 0"] = float(not torch.equal(off, plain))
    return seen


@check
def sd2_as_it_is_found():
    """What the host makes of weights of the published shapes: kind, prediction, native side."""
    from lib_hires.comfy.model import native_side

    seen = {}
    for predicts in ("v", "eps"):
        weights = sd2_weights(predicts)
        config = comfy.model_detection.model_config_from_unet(dict(weights), "")
        model = random_model("SD20", SD2, weights).model
        assert config.unet_config["context_dim"] == model.model_config.unet_config["context_dim"]
        kind = config.model_type(weights, "").name
        seen[predicts] = [type(config).__name__, kind, native_side(model)]
    return seen


@check
def t2i_adapter():
    """Stable Diffusion 1's levels, which adapters are made for, with fewer channels."""
    net = comfy.t2i_adapter.adapter.Adapter(
        cin=3 * 64,
        channels=[32, 64, 128, 128],
        nums_rb=2,
        ksize=1,
        sk=True,
        use_conv=False,
        xl=False,
    )
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    cpu = torch.device("cpu")
    control = comfy.controlnet.T2IAdapter(net, 3, 8, "bicubic", device=cpu)
    hint = torch.rand(1, 256, 256, 3, generator=generator)
    model, noise = random_model("SD15", SD1), noise_of((32, 32))
    positive, negative = (conditioning(64, seed=seed) for seed in (1, 2))
    with_it = run(
        nodes.ControlNetApply, conditioning=positive, control_net=control, image=hint, strength=1.0
    )[0]
    there, without = (
        sampled(model, SIGMAS, noise, conds, negative) for conds in (with_it, positive)
    )
    assert (there - without).abs().max() > 1e-3, "the adapter does nothing"
    return {"T2I": off_native(model, noise, with_it, negative)}


@check
def transformers():
    seen = {}
    for kind, config, width in (("SD3", SD3, 2048), ("Flux", flux(), 768)):
        model = random_model(kind, config)
        guidance = {"guidance": 3.5} if kind == "Flux" else {}
        conds = [conditioning(64, width, seed, **guidance) for seed in (1, 2)]
        noise = noise_like(16, 32, 32)
        seen[kind] = off_native(model, noise, *conds, flow=True)
        off = sampled(guided(model, theta=0.0, native=128), TIMES, noise, *conds)
        seen[f"{kind} at theta 0"] = float(
            not torch.equal(off, sampled(model, TIMES, noise, *conds))
        )
    return seen


@check
def video():
    """A video's latent has five axes."""
    model, noise = random_model("WAN21_T2V", WAN), noise_like(16, 2, 16, 16)
    conds = [conditioning(4096, seed=seed) for seed in (1, 2)]
    plain = sampled(model, TIMES, noise, *conds)
    with messages() as logged:
        same = torch.equal(plain, sampled(guided(model, native=64), TIMES, noise, *conds))
    return {"untouched": same, "finite": bool(torch.isfinite(plain).all()), "log": logged}


def inpainting_model():
    """The bundled network with five channels more beside the latent, as inpainting models have."""
    first = f"{UNET}input_blocks.0.0.weight"
    weight = WEIGHTS[first]
    more = torch.randn(len(weight), 5, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    return host_model(weights={**WEIGHTS, first: torch.cat([weight, more], dim=1)})


@check
def inpainting():
    """A model with channels for it, and VAE Encode (for Inpainting) or a noise mask with any.

    The mask's edges lie on the native latent's grid, so that what is right is known.
    """
    picture = noise_like(4, *LARGE, seed=8)
    mask = torch.zeros(1, 1, *LARGE)
    mask[..., 16:48, 8:40] = 1
    small_picture, small_mask = REDUCTION.reduce(picture), REDUCTION.reduce(mask)

    def given(latent, mask):
        extra = {"concat_latent_image": latent, "concat_mask": mask}
        return [[[text, {**cond, **extra}] for text, cond in side] for side in (POSITIVE, NEGATIVE)]

    noise = noise_of(LARGE)
    pairs = given(picture, mask), given(small_picture, small_mask)
    masked = {"latent": picture, "noise_mask": mask}
    small_masked = {"latent": small_picture, "noise_mask": small_mask}
    plain = off_native(
        host_model(), noise, POSITIVE, NEGATIVE, small_options=small_masked, **masked
    )
    return {
        "model": off_native(inpainting_model(), noise, *pairs[0], small=pairs[1]),
        "noise mask": plain,
        "both": off_native(
            inpainting_model(), noise, *pairs[0], small=pairs[1], small_options=small_masked,
            **masked,
        ),
    }  # fmt: skip


@check
def out_of_memory():
    """The host decodes in tiles where the whole does not fit; in sampling its own error leaves."""
    error = comfy.model_management.OOM_EXCEPTION
    model, vae = host_model(), host_vae()
    latent = {"samples": noise_of(SMALL)}
    whole = vae.first_stage_model.decode

    def small_only(z, **options):
        if z.shape[-1] * z.shape[-2] > 64 * 64:  # the host's tiles have as many positions
            raise error("of the test")
        return whole(z, **options)

    common = {"model": guided(model), "positive": POSITIVE, "negative": NEGATIVE, "latent": latent}
    common |= {"steps": 2, "eta2": "0.5", "factor": 3.0, "scheduler": "normal"}
    common |= {"sampler_name": "euler"}
    vae.first_stage_model.decode = small_only
    _, images = node("HiResProgressiveRefinement", vae=vae, **common)
    seen = {"tiled": list(images[-1].shape)}
    vae.first_stage_model.decode = whole

    def none(*args, **options):
        raise error("of the test")

    forward, model.model.diffusion_model.forward = model.model.diffusion_model.forward, none
    try:
        node("HiResProgressiveRefinement", vae=vae, **common)
    except error as raised:
        seen["raised"] = str(raised)
    model.model.diffusion_model.forward = forward
    _, images = node("HiResProgressiveRefinement", vae=vae, **common)
    seen["after"] = list(images[-1].shape)
    return seen


main()
