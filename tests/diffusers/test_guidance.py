"""Upsample Guidance on pipelines of every family."""

from __future__ import annotations

from typing import get_type_hints

import pytest
import tiny_pipelines as tiny
import torch

from lib_hires import SettingsError
from lib_hires.diffusers import apply_hires_guidance, remove_hires_guidance

FAMILIES = {
    "sd1, eps": lambda: tiny.unet_pipeline("sd1", "eps"),
    "sd2, v": lambda: tiny.unet_pipeline("sd2", "v"),
    "sd1, sample": lambda: tiny.unet_pipeline("sd1", "sample"),
    "sdxl, eps": lambda: tiny.unet_pipeline("sdxl", "eps"),
    "sd3": tiny.sd3_pipeline,
    "flux": tiny.flux_pipeline,
    "animatediff": tiny.animatediff_pipeline,
}
NATIVE = {"flux": {"native": 16}}  # the others' models say it
CALL = {"animatediff": {"num_frames": 2}}


@pytest.mark.parametrize("family", FAMILIES)
def test_theta_0_and_removal_leave_every_bit_and_theta_1_does_not(family: str) -> None:
    pipe, call, native = FAMILIES[family](), CALL.get(family, {}), NATIVE.get(family, {})
    plain = tiny.latents(pipe, **call)
    apply_hires_guidance(pipe, ug=True, ug_theta=0, **native)
    assert torch.equal(tiny.latents(pipe, **call), plain)
    apply_hires_guidance(pipe, ug=True, **native)
    assert not torch.allclose(tiny.latents(pipe, **call), plain, atol=1e-2)
    remove_hires_guidance(pipe)
    assert torch.equal(tiny.latents(pipe, **call), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_it_is_left(family: str) -> None:
    pipe = FAMILIES[family]()
    module = getattr(pipe, "unet", None) or pipe.transformer
    before = dict(vars(pipe)), dict(vars(module))
    apply_hires_guidance(pipe, ug=True, pfsa=True, **NATIVE.get(family, {}))
    assert dict(vars(module)) != before[1]
    remove_hires_guidance(pipe)
    remove_hires_guidance(pipe)
    assert (dict(vars(pipe)), dict(vars(module))) == before


@pytest.mark.parametrize("side", [8.0, [8, 8], (8.0, 8.0)])
def test_a_native_size_is_read_as_tools_write_it(side: object) -> None:
    pipe = tiny.unet_pipeline()
    apply_hires_guidance(pipe, ug=True)
    guided = tiny.latents(pipe)
    pipe.unet.register_to_config(sample_size=side)
    apply_hires_guidance(pipe, ug=True)
    assert torch.equal(tiny.latents(pipe), guided)


def test_an_unknown_setting_is_refused_with_its_message() -> None:
    pipe = tiny.unet_pipeline()
    with pytest.raises(SettingsError, match="ug_thetta: there is no such setting; did you mean"):
        apply_hires_guidance(pipe, ug=True, ug_thetta=0.5)
    with pytest.raises(SettingsError, match="ug_theta: expected a number from 0 to 2"):
        apply_hires_guidance(pipe, ug_theta=3)
    with pytest.raises(SettingsError, match="native: FluxPipeline does not say"):
        flux = tiny.flux_pipeline()
        del flux.default_sample_size
        apply_hires_guidance(flux, ug=True)


def test_a_native_size_is_left_as_it_is() -> None:
    pipe = tiny.unet_pipeline()
    plain = tiny.latents(pipe, side=16)
    apply_hires_guidance(pipe, ug=True)
    assert torch.equal(tiny.latents(pipe, side=16), plain)


@pytest.mark.parametrize("order", ["offload first", "guidance first"])
def test_hooks_of_cpu_offload_stay_and_work(order: str) -> None:
    """accelerate's hook, with the CPU as its device."""
    from accelerate.hooks import CpuOffload, add_hook_to_module

    pipe = tiny.unet_pipeline()
    plain = tiny.latents(pipe)
    apply_hires_guidance(pipe, ug=True)
    guided = tiny.latents(pipe)
    remove_hires_guidance(pipe)
    steps = [
        lambda: add_hook_to_module(pipe.unet, CpuOffload("cpu")),
        lambda: apply_hires_guidance(pipe, ug=True),
    ]
    for step in steps if order == "offload first" else steps[::-1]:
        step()
    assert torch.equal(tiny.latents(pipe), guided)
    remove_hires_guidance(pipe)
    assert hasattr(pipe.unet, "_hf_hook")
    assert not hasattr(pipe.unet, "_diffusers_hook")
    assert pipe.unet.forward.func.__module__ == "accelerate.hooks"
    assert torch.equal(tiny.latents(pipe), plain)


def test_a_model_in_half_precision_stays_so() -> None:
    pipe = tiny.unet_pipeline().to(torch.bfloat16)
    apply_hires_guidance(pipe, ug=True)
    call = {name: value.bfloat16() for name, value in tiny.prompt(pipe).items()}
    assert tiny.latents(pipe, **call).dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["sd1, eps", "flux"])
def test_a_forgotten_callback_is_told_of_once(family: str, caplog) -> None:
    pipe = FAMILIES[family]()
    hires = apply_hires_guidance(pipe, pfsa=True, **NATIVE.get(family, {}))
    for _ in range(2):
        tiny.latents(pipe, callback_on_step_end=hires.on_step_end)
    assert "callback_on_step_end" not in caplog.text
    for _ in range(2):
        tiny.latents(pipe)
    assert caplog.text.count("Attentive Guidance does nothing: give the pipeline callback") == 1
    apply_hires_guidance(pipe, ug=True, **NATIVE.get(family, {}))
    tiny.latents(pipe)
    assert caplog.text.count("Attentive Guidance") == 1


def test_the_public_names_are_these() -> None:
    import lib_hires.diffusers as side

    names = ["HiresGuidance", "RefinedStage", "apply_hires_guidance", "refine"]
    assert side.__all__ == [*names, "remove_hires_guidance"]
    for name in side.__all__:
        value = getattr(side, name)
        assert value.__doc__
        assert get_type_hints(
            getattr(value, "__init__", value) if isinstance(value, type) else value
        )
