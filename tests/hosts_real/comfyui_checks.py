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
    UNET,
    WEIGHTS,
    check,
    guided,
    host_model,
    host_vae,
    interpolate_timesteps,
    main,
    node,
    noise_of,
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


def off_native(model, name="euler", positive=POSITIVE, small_positive=None, sigmas=SIGMAS):
    """How far D of the guided trajectory's end is from the native run's end; relative."""
    noise = noise_of(LARGE)
    large = sample(guided(model), sigmas, noise, name, positive)
    gain = REDUCTION.noise_gain
    native = sample(
        model, sigmas * gain, REDUCTION.reduce(noise) / gain, name, small_positive or positive
    )
    plain = sample(model, sigmas, noise, name, positive)
    scale = native.abs().max()
    assert (REDUCTION.reduce(plain) - native).abs().max() / scale > 1e-2, "nothing is guided"
    return float((REDUCTION.reduce(large) - native).abs().max() / scale)


@check
def same_as_standalone():
    """Writes two images: of the host as it is, which rounds noise levels to whole training
    timesteps, and without that rounding, as the standalone side evaluates. The noise is scaled to
    what the standalone side starts from."""
    model, vae, sigmas = host_model(), host_vae(), GIVEN["sigmas"]
    first = float(sigmas[0]) / REDUCTION.noise_gain
    noise = GIVEN["noise"] * first / (1 + first**2) ** 0.5
    images = {}
    for name in ("rounded", "image"):
        latent = sample(guided(model), sigmas, noise, "dpmpp_2m", cfg=SETTINGS["cfg"])
        images[name] = vae.decode(latent).contiguous()
        interpolate_timesteps(model)
    images |= refined_as_standalone(vae)
    save_file(images, f"{EXCHANGE}/image.safetensors")
    return list(latent.shape)


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
    def in_part(size):
        mask = torch.zeros(1, *size)
        mask[:, : size[0] // 2] = 1
        area = size[0] // 2, size[1] // 2, size[0] // 4, 0
        return [
            [GIVEN["cond"], {"mask": mask, "mask_strength": 1.0}],
            [GIVEN["uncond"], {"area": area, "strength": 0.7}],
            [GIVEN["cond"], {"strength": 0.5}],
        ]

    # The host fades an area's border over 8 positions whatever the size, so a mask alone is exact.
    large, small = in_part(LARGE), in_part(SMALL)
    masks = off_native(host_model(), positive=large[::2], small_positive=small[::2])
    areas = sample(guided(host_model()), SIGMAS, noise_of(LARGE), positive=large)
    return {"masks": masks, "areas": bool(torch.isfinite(areas).all())}


@check
def exact_with_controlnet():
    import comfy.cldm.cldm
    import comfy.ops

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
    return off_native(model, positive=positive)


@check
def exact_with_patches():
    from comfy_extras import nodes_freelunch, nodes_pag

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


@check
def runs_with_other_nodes():
    """Deep Shrink and HyperTile, which do other things at other sizes; a part of the steps."""
    from comfy_extras import nodes_hypertile, nodes_model_downscale

    model, noise = host_model(), noise_of(LARGE)
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
        tile_size=256,
        swap_size=1,
        max_depth=0,
        scale_depth=False,
    )[0]
    seen = {}
    for name, patched in (("Deep Shrink", shrink), ("HyperTile", tiles)):
        result = sample(guided(patched), SIGMAS, noise)
        seen[name] = bool(torch.isfinite(result).all())
    latent = {"samples": torch.zeros(1, 4, *LARGE)}
    common = {"noise_seed": 1, "steps": 4, "cfg": 3.0, "sampler_name": "euler"}
    common |= {"scheduler": "normal", "positive": POSITIVE, "negative": NEGATIVE}
    common |= {"model": guided(model)}
    whole, begun = (
        run(
            nodes.KSamplerAdvanced,
            **common,
            add_noise="enable",
            latent_image=latent,
            start_at_step=0,
            end_at_step=end,
            return_with_leftover_noise=left,
        )[0]
        for end, left in ((4, "disable"), (2, "enable"))
    )
    ended = run(
        nodes.KSamplerAdvanced,
        **common,
        add_noise="disable",
        latent_image=begun,
        start_at_step=2,
        end_at_step=4,
        return_with_leftover_noise="disable",
    )[0]
    seen["KSampler Advanced"] = bool(torch.isfinite(ended["samples"]).all())
    seen["first step"] = float((whole["samples"] - ended["samples"]).abs().max())
    return seen


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
