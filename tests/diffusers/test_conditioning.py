"""What the native evaluation receives beside the latent."""

from __future__ import annotations

from contextlib import contextmanager

import diffusers
import tiny_pipelines as tiny
import torch

from lib_hires.diffusers import apply_hires_guidance

HINT = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@contextmanager
def inputs_of(module, name):
    """(latent's shape, the argument's value) of each forward of a module's first layer's owner."""
    seen = []
    forward = module.forward

    def recorded(*args, **kwargs):
        seen.append((tuple(args[0].shape if args else kwargs["sample"].shape), kwargs.get(name)))
        return forward(*args, **kwargs)

    module.forward = recorded
    try:
        yield seen
    finally:
        del module.forward


def test_sdxl_receives_the_native_size() -> None:
    pipe = tiny.unet_pipeline("sdxl")
    with inputs_of(pipe.unet, "added_cond_kwargs") as seen:
        apply_hires_guidance(pipe, ug=True)
        tiny.latents(pipe, steps=2)
    sizes = {shape[-1]: added["time_ids"][0].tolist() for shape, added in seen}
    assert sizes == {16: [32, 32, 0, 0, 32, 32], 8: [16, 16, 0, 0, 16, 16]}


def test_inpaintings_channels_shrink_along() -> None:
    pipe = tiny.unet_pipeline(channels=9)
    image, mask = HINT, (HINT[:, :1] > 0.5).float()
    call = {"image": image, "mask_image": mask, "strength": 1.0}
    plain = tiny.latents(pipe, **call)
    seen = []
    first = pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with first:
        apply_hires_guidance(pipe, ug=True)
        guided = tiny.latents(pipe, **call)
    assert {tuple(x.shape) for x in seen} == {(2, 9, 16, 16), (2, 9, 8, 8)}
    masks = [x[:, 4] for x in seen if x.shape[-1] == 8]
    assert masks and all(set(mask.unique().tolist()) == {0.0, 1.0} for mask in masks)
    assert not torch.allclose(guided, plain, atol=1e-2)


def test_controlnets_residuals_shrink_along() -> None:
    pipe = tiny.unet_pipeline()
    control = diffusers.ControlNetModel.from_unet(
        pipe.unet, conditioning_embedding_out_channels=(16, 32)
    )
    parts = {**pipe.components, "controlnet": control, "safety_checker": None}
    pipe = tiny.quiet(
        diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    )
    with inputs_of(pipe.unet, "mid_block_additional_residual") as seen:
        apply_hires_guidance(pipe, ug=True)
        tiny.latents(pipe, steps=2, image=HINT)
    assert {(shape[-1], tuple(middle.shape[-2:])) for shape, middle in seen} == {
        (16, (8, 8)),
        (8, (4, 4)),
    }
