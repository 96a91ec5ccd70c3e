"""Runs inside a real ComfyUI's Python, by test_comfyui_others.py: HOST ROOT EXCHANGE [CHECK ...].

As comfyui_checks.py, beside what other nodes patch and with the host's other samplers.
"""

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
    main,
    node,
    noise_of,
    off_native,
    run,
    sample,
)

# isort: split
import comfy.cldm.cldm
import comfy.controlnet
import comfy.ldm.modules.attention
import comfy.lora
import comfy.model_detection
import comfy.ops
import comfy.samplers
import comfy.sd
import nodes
import torch
from comfy_extras import (
    nodes_custom_sampler,
    nodes_freelunch,
    nodes_hypertile,
    nodes_model_downscale,
    nodes_pag,
)


@check
def exact_with_controlnet():
    config = comfy.model_detection.detect_unet_config(WEIGHTS, UNET)
    config = {**config, "hint_channels": 3, "num_heads": 3, "num_head_channels": -1}
    config.pop("out_channels", None)
    config.pop("transformer_depth_output", None)
    net = comfy.cldm.cldm.ControlNet(
        **config, dtype=torch.float32, operations=comfy.ops.disable_weight_init, device="cpu"
    )
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    control = comfy.controlnet.ControlNet(net, load_device=torch.device("cpu"))
    hint = torch.rand(1, 256, 256, 3, generator=generator)
    positive = run(
        nodes.ControlNetApply,
        conditioning=POSITIVE,
        control_net=control,
        image=hint,
        strength=1.0,
    )[0]
    model, noise = host_model(), noise_of(LARGE)
    with_it, without = (
        sample(guided(model), SIGMAS, noise, positive=p) for p in (positive, POSITIVE)
    )
    assert (with_it - without).abs().max() > 1e-3, "the ControlNet does nothing"
    return {"ControlNet": off_native(model, positive=positive)}


@check
def exact_with_patches():
    pag = nodes_pag.PerturbedAttentionGuidance
    model = host_model()
    return {
        "FreeU": off_native(
            run(nodes_freelunch.FreeU_V2, model=model, b1=1.3, b2=1.4, s1=0.9, s2=0.2)[0]
        ),
        "PAG": off_native(run(pag, model=model, scale=2.0)[0]),
        "LoRA": off_native(with_lora(model)),
        "a function in the slot": off_native(with_other_function(model)),
    }


def with_other_function(model):
    """As nodes that take the one slot for a function of their own instead of calc_cond_batch."""

    def warmer(args):
        parts = (args[name] for name in ("model", "conds", "input", "sigma", "model_options"))
        return [1.05 * part for part in comfy.samplers.calc_cond_batch(*parts)]

    made = model.clone()
    made.set_model_sampler_calc_cond_batch_function(warmer)
    return made


def with_lora(model):
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    lora, generator = {}, torch.Generator().manual_seed(0)
    for name, key in keys.items():
        weight = WEIGHTS.get(UNET + key.removeprefix("diffusion_model."))
        if name.startswith("lora_unet") and weight is not None and weight.ndim == 2:
            for end, shape in (("up", (weight.shape[0], 2)), ("down", (2, weight.shape[1]))):
                lora[f"{name}.lora_{end}.weight"] = torch.randn(shape, generator=generator) * 0.1
    assert lora
    return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]


def with_image_tokens(model, masked=False):
    """As IP-Adapter does: each cross-attention also reads tokens of an image, in cond alone.

    masked: and in a part of the picture alone, whose size it reads from the latent's.
    """
    made, generator = model.clone(), torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 4, 128, generator=generator)
    weights: dict[int, list[torch.Tensor]] = {}

    def attention(q, k, v, options):
        attend = comfy.ldm.modules.attention.optimized_attention
        heads, width = options["n_heads"], q.shape[-1]
        out = attend(q, k, v, heads)
        if width not in weights:
            random = [torch.randn(128, width, generator=generator) for _ in range(2)]
            weights[width] = [weight / 128**0.5 for weight in random]
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
        there = sample(patched, SIGMAS, noise)
        without = sample(model, SIGMAS, noise)
        assert (there - without).abs().max() > 1e-3, "image tokens do nothing"
        seen[name] = off_native(patched)
    return seen


@check
def exact_with_other_sizes_of_features():
    """Deep Shrink and HyperTile, which act at the size of each evaluation."""
    model, noise = host_model(), noise_of(SMALL)
    shrink = run(
        nodes_model_downscale.PatchModelAddDownscale,
        model=model,
        block_number=2,
        downscale_factor=2.0,
        start_percent=0.0,
        end_percent=0.35,
        downscale_after_skip=True,
        downscale_method="bicubic",
        upscale_method="bicubic",
    )[0]
    tiles = run(
        nodes_hypertile.HyperTile,
        model=model,
        tile_size=64,
        swap_size=1,
        max_depth=2,
        scale_depth=False,
    )[0]
    seen, plain = {}, sample(model, SIGMAS, noise)
    for name, patched in (("Deep Shrink", shrink), ("HyperTile", tiles)):
        assert (sample(patched, SIGMAS, noise) - plain).abs().max() > 1e-3, f"{name} does nothing"
        seen[name] = off_native(patched)
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
    by_itself, by_node = (sample(guided(model), levels, noise) for levels in (sigmas, shifted))
    return {"ratio": float(shifted[0] / sigmas[0]), "same": torch.equal(by_itself, by_node)}


@check
def parts_of_the_steps():
    """How far two parts are from one run, relative: with KSampler (Advanced), whose first part is
    stretched by itself; with the schedule as it is; and by the nodes that stretch it and split it.
    """
    model, latent = host_model(), {"samples": torch.zeros(1, 4, *LARGE)}
    common = {"noise_seed": 1, "cfg": 3.0, "positive": POSITIVE, "negative": NEGATIVE}

    def steps(patched, begin, end, latent, leave="disable"):
        return run(
            nodes.KSamplerAdvanced,
            **common,
            model=patched,
            add_noise="disable" if begin else "enable",
            steps=4,
            sampler_name="euler",
            scheduler="normal",
            latent_image=latent,
            start_at_step=begin,
            end_at_step=end,
            return_with_leftover_noise=leave,
        )[0]

    seen = {}
    for name, settings in (("stretched", {}), ("as it is", {"shifted_start": False})):
        patched = guided(model, **settings)
        one = steps(patched, 0, 4, latent)["samples"]
        two = steps(patched, 2, 4, steps(patched, 0, 2, latent, "enable"))["samples"]
        seen[name] = float((two - one).abs().max() / one.abs().max())

    sigmas = run(
        nodes_custom_sampler.BasicScheduler, model=model, scheduler="normal", steps=4, denoise=1.0
    )[0]
    sigmas = node("HiResShiftedSigmas", model=model, sigmas=sigmas, latent=latent, native=256)[0]
    made = latent
    sampler = comfy.samplers.sampler_object("euler")
    for part in run(nodes_custom_sampler.SplitSigmas, sigmas=sigmas, step=2):
        made = run(
            nodes_custom_sampler.SamplerCustom,
            **common,
            model=guided(model),
            add_noise=made is latent,
            sampler=sampler,
            sigmas=part,
            latent_image=made,
        )[0]
    one = steps(guided(model), 0, 4, latent)["samples"]
    seen["split"] = float((made["samples"] - one).abs().max() / one.abs().max())
    return seen


main()
