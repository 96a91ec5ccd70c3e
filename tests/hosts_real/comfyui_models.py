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
from comfyui_networks import SD1, SD3, WAN, XL, flux, random_model

# isort: split
import comfy.controlnet
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.t2i_adapter.adapter
import nodes
import torch
from comfy_extras import nodes_custom_sampler

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


def with_image_tokens(model, masked=False):
    """As IP-Adapter does: each cross-attention also reads tokens of an image, in cond alone.

    masked: and in a part of the picture alone, whose size it reads from the latent's.
    """
    made, generator = model.clone(), torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 4, 192, generator=generator)
    weights: dict[int, list[torch.Tensor]] = {}

    def attention(q, k, v, options):
        attend = comfy.ldm.modules.attention.optimized_attention
        heads, width = options["n_heads"], q.shape[-1]
        out = attend(q, k, v, heads)
        if width not in weights:
            random = [torch.randn(192, width, generator=generator) for _ in range(2)]
            weights[width] = [weight / 192**0.5 for weight in random]
        per_branch = len(q) // len(options["cond_or_uncond"])
        rows, columns = options["original_shape"][-2:]
        for place, which in enumerate(options["cond_or_uncond"]):
            if which == 1:
                continue
            part = slice(place * per_branch, (place + 1) * per_branch)
            key, value = (tokens.expand(per_branch, -1, -1) @ w for w in weights[width])
            added = attend(q[part], key, value, heads)
            if masked:
                shrink = (rows * columns / q.shape[1]) ** 0.5
                rows_here, columns_here = round(rows / shrink), round(columns / shrink)
                left = torch.zeros(rows_here, columns_here)
                left[:, : columns_here // 2] = 1
                added = added * left.view(1, -1, 1)
            out[part] += added
        return out

    for name, id in (("input", 12), ("output", 12)):
        for block in range(id):
            for depth in range(2):
                made.set_model_attn2_replace(attention, name, block, depth)
    made.set_model_attn2_replace(attention, "middle", 0, 0)
    return made


@check
def image_tokens():
    model, noise = host_model(), noise_of(LARGE)
    seen = {}
    for name, masked in (("whole", False), ("masked", True)):
        patched = with_image_tokens(model, masked)
        there = sampled(patched, SIGMAS, noise, POSITIVE, NEGATIVE)
        without = sampled(model, SIGMAS, noise, POSITIVE, NEGATIVE)
        assert (there - without).abs().max() > 1e-3, "image tokens do nothing"
        seen[name] = off_native(patched, noise, POSITIVE, NEGATIVE)
    return seen


class Noise:
    """The host's NOISE of a given tensor."""

    seed = 1

    def __init__(self, tensor):
        self.tensor = tensor

    def generate_noise(self, latent):
        return self.tensor


def custom(model, guider, sigmas, noise, name):
    """SamplerCustomAdvanced."""
    return run(
        nodes_custom_sampler.SamplerCustomAdvanced,
        noise=Noise(noise),
        guider=guider(model),
        sampler=comfy.samplers.sampler_object(name),
        sigmas=sigmas,
        latent_image={"samples": torch.zeros_like(noise)},
    )[0]["samples"]


@check
def custom_samplers():
    """Other guiders and samplers through the host's nodes, and the node for the schedule."""

    def basic(model):
        return run(nodes_custom_sampler.BasicGuider, model=model, conditioning=POSITIVE)[0]

    def dual(model):
        return run(
            nodes_custom_sampler.DualCFGGuider,
            model=model,
            cond1=POSITIVE,
            cond2=NEGATIVE,
            negative=NEGATIVE,
            cfg_conds=3.0,
            cfg_cond2_negative=2.0,
            style="regular",
        )[0]

    model, noise, seen = host_model(), noise_of(LARGE), {}
    gain = REDUCTION.noise_gain
    for guider in (basic, dual):
        for name in ("euler", "dpmpp_2m", "uni_pc", "gradient_estimation"):
            end = custom(guided(model), guider, SIGMAS, noise, name)
            native = custom(model, guider, SIGMAS * gain, REDUCTION.reduce(noise) / gain, name)
            far = (REDUCTION.reduce(end) - native).abs().max() / native.abs().max()
            seen[f"{guider.__name__} {name}"] = float(far)
    return seen


@check
def higher_start():
    """The node's schedule is the one that guidance takes by itself; noise is the sampler's own."""
    model = host_model()
    sigmas = run(
        nodes_custom_sampler.KarrasScheduler,
        steps=4, sigma_max=float(model.model.model_sampling.sigma_max), sigma_min=0.03, rho=7.0,
    )[0]  # fmt: skip
    latent = {"samples": torch.zeros(1, 4, *LARGE)}
    shifted = node("HiResShiftedSigmas", model=model, sigmas=sigmas, latent=latent, native=256)[0]
    noise = noise_of(LARGE)
    by_itself, by_node = (
        sampled(guided(model), levels, noise, POSITIVE, NEGATIVE) for levels in (sigmas, shifted)
    )
    return {"ratio": float(shifted[0] / sigmas[0]), "same": torch.equal(by_itself, by_node)}


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
