"""Tiny random pipelines of every family, prompts given as embeddings. Native 8x8 latents."""

from __future__ import annotations

from typing import Any

import diffusers as d
import tiny_models
import torch

TABLE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "sample": "sample"}


def euler(prediction: str = "eps", **config: Any) -> Any:
    named = {"prediction_type": PREDICTIONS[prediction], **TABLE, **config}
    return d.EulerDiscreteScheduler(**named)


def unet_pipeline(family: str = "sd1", prediction: str = "eps", channels: int = 4) -> Any:
    """SD 1.5, SD 2, SDXL; of 9 channels: inpainting."""
    torch.manual_seed(0)
    unet = tiny_models.make_unet(family)
    if channels != 4:
        unet = d.UNet2DConditionModel.from_config(unet.config, in_channels=channels)
    parts = {"vae": tiny_models.make_vae(family), "unet": unet, "scheduler": euler(prediction)}
    parts |= {"text_encoder": None, "tokenizer": None}
    if family == "sdxl":
        parts |= {"text_encoder_2": None, "tokenizer_2": None}
        return quiet(d.StableDiffusionXLPipeline(**parts, add_watermarker=False))
    cls = d.StableDiffusionInpaintPipeline if channels == 9 else d.StableDiffusionPipeline
    parts |= {"safety_checker": None, "feature_extractor": None}
    return quiet(cls(**parts, requires_safety_checker=False))


def sd3_pipeline() -> Any:
    torch.manual_seed(0)
    transformer = d.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=48,
    )
    parts = dict.fromkeys(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in NUMBERS)
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=3.0)
    vae = tiny_models.make_vae("sd1")
    vae.register_to_config(shift_factor=0.0)
    return quiet(
        d.StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler, vae=vae, **parts)
    )


NUMBERS = ("", "_2", "_3")


def flux_pipeline() -> Any:
    torch.manual_seed(0)
    transformer = d.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    vae = tiny_models.make_vae("sd1")
    vae.register_to_config(shift_factor=0.0)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = d.FlowMatchEulerDiscreteScheduler()
    return quiet(d.FluxPipeline(transformer=transformer, scheduler=scheduler, vae=vae, **parts))


def animatediff_pipeline() -> Any:
    torch.manual_seed(0)
    unet = tiny_models.make_unet("sd1")
    adapter = d.MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
        use_motion_mid_block=False,
    )
    parts = {"vae": tiny_models.make_vae("sd1"), "text_encoder": None, "tokenizer": None}
    scheduler = euler()
    return quiet(
        d.AnimateDiffPipeline(unet=unet, motion_adapter=adapter, scheduler=scheduler, **parts)
    )


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompt(pipe: Any, seed: int = 1) -> dict[str, Any]:
    """Random embeddings of a prompt, and of a negative one where the pipeline takes it."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    name = type(pipe).__name__
    if "Flux" in name:
        return {"prompt_embeds": random(1, 6, 32), "pooled_prompt_embeds": random(1, 32)}
    pooled, width = 0, 64
    if "XL" in name:
        pooled, width = 64, 128
    elif "Diffusion3" in name:
        pooled, width = 32, 32
    given = {key: random(1, 6, width) for key in ("prompt_embeds", "negative_prompt_embeds")}
    if pooled:
        given |= {key.replace("prompt", "pooled_prompt"): random(1, pooled) for key in given}
        if "XL" in name:
            given["negative_pooled_prompt_embeds"] = given.pop("negative_pooled_prompt_embeds")
    return given


def latents(pipe: Any, side: int = 32, steps: int = 4, **call: Any) -> torch.Tensor:
    """The pipeline's last latents for a side in pixels (the factor is 2, the native side 16)."""
    call = {"height": side, "width": side, "num_inference_steps": steps, **prompt(pipe), **call}
    generator = torch.Generator().manual_seed(3)
    out = pipe(**call, generator=generator, output_type="latent", return_dict=False)[0]
    assert torch.isfinite(out).all()
    return out
