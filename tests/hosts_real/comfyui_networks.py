"""Networks of few blocks and random weights in a real ComfyUI's own classes.

The shapes are what the host's loader would find in a checkpoint.
"""

from dataclasses import fields

import comfy.ldm.flux.model
import comfy.model_patcher
import comfy.supported_models
import torch

XL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32,
    "num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [0, 1],
    "transformer_depth_middle": 1, "transformer_depth_output": [0, 0, 1, 1], "context_dim": 64,
    "num_heads": -1, "num_head_channels": 32, "use_spatial_transformer": True, "legacy": False,
    "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 2816,
    "use_temporal_attention": False,
}  # fmt: skip
SD1 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32,
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "context_dim": 64,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 9 + [0] * 3, "use_spatial_transformer": True,
    "use_linear_in_transformer": False, "legacy": False, "adm_in_channels": None,
    "use_temporal_attention": False,
}  # fmt: skip
SD3 = {
    "in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 1, "input_size": None,
    "adm_in_channels": 2048, "num_patches": 256, "pos_embed_max_size": 16,
    "pos_embed_scaling_factor": None, "x_block_self_attn_layers": [],
    "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 64},
    },
}  # fmt: skip
FLUX = {
    "image_model": "flux", "in_channels": 16, "patch_size": 2, "out_channels": 16,
    "vec_in_dim": 768, "context_in_dim": 64, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1,
    "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000,
    "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 128, "out_dim": 16, "num_heads": 1,
    "ffn_dim": 128, "num_layers": 1, "patch_size": (1, 2, 2), "freq_dim": 256,
    "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6, "in_dim": 16,
}  # fmt: skip


def flux():
    """Flux's shape as far as this host knows it."""
    known = {field.name for field in fields(comfy.ldm.flux.model.FluxParams)} | {"image_model"}
    return {key: value for key, value in FLUX.items() if key in known}


def random_model(kind, unet_config):
    """A model of one of the host's kinds, its weights random and the same in every call."""
    config = getattr(comfy.supported_models, kind)(unet_config)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu")
    generator = torch.Generator().manual_seed(0)
    for weight in model.diffusion_model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    for name, weight in model.diffusion_model.named_buffers():
        if name == "pos_embed":
            weight.copy_(torch.randn(weight.shape, generator=generator))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
