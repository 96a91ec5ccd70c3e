"""LoRA: every layout changes the same weights by weight · alpha / rank · up @ down."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import tiny_lora
import torch
from safetensors.torch import save_file
from tiny_lora import ALPHA, ATTENTION, MOVING, RANK, UNET, added, named, random_pairs
from tiny_models import KINDS, write_folder
from tiny_motion import write_adapter

from lib_hires.standalone.models import ModelError, load_model
from lib_hires.standalone.models.lora import with_loras
from lib_hires.standalone.models.motion import with_motion


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("lora")
    return {
        family: load_model(write_folder(folder / family, family, prediction))
        for family, prediction in KINDS
    }


def predict(model: Any, frames: int = 0) -> torch.Tensor:
    """What the U-Net predicts for the text that the text encoders give."""
    shape = (1, 4, frames, 8, 8) if frames else (1, 4, 8, 8)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    cond = model.encode_prompts(["red"], [""])
    more = {"pooled": cond.pooled_cond} if model.family == "sdxl" else {}
    with torch.no_grad():
        return model.predict(x, torch.tensor([500.0]), context=cond.cond, **more)


LAYOUTS = ["kohya", "kohya LDM", "diffusers", "diffusers, processors", "peft", "ComfyUI"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", [family for family, _ in KINDS])
def test_each_layout_adds_the_product(models, family, layout, tmp_path):
    model = models[family]
    plain, unet = predict(model), ATTENTION if "processors" in layout else UNET
    pairs = random_pairs(model, unet)
    file = tiny_lora.write_lora(tmp_path / "a.safetensors", pairs, layout)
    scale = 0.7 * (ALPHA / RANK if "kohya" in layout else 1)  # the others state no alpha
    with added(model, pairs, scale):
        wanted = predict(model)
    changed = with_loras(model, [(file, 0.7)])
    got = predict(changed)
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=2e-5)
    assert (got - plain).abs().max() > 0.05
    assert torch.equal(predict(model), plain), "the model itself is as it was"
    assert [(lora.name, lora.weight) for lora in changed.loras] == [("a", 0.7)]
    other = model.unet.get_parameter("down_blocks.1.resnets.0.conv1.weight")
    kept = changed.unet.get_parameter("down_blocks.1.resnets.0.conv1.weight")
    assert kept is other, "what is not changed costs no memory"


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_names_are_those_of_diffusers_own_conversion(models, family):
    """Of attention, where its versions agree; it needs no peft."""
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

    model = models[family]
    pairs = random_pairs(model, ATTENTION)
    layout = "kohya LDM" if family == "sdxl" else "kohya"
    convert = StableDiffusionXLLoraLoaderMixin.lora_state_dict
    state, alphas = convert(named(pairs, layout), unet_config=model.unet.config)
    wanted = named(pairs, "diffusers, processors")
    assert set(state) == set(wanted) and set(alphas.values()) == {ALPHA}
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


def test_files_add_up_and_weight_0_is_the_model_itself(models, tmp_path):
    model = models["sd1"]
    one = random_pairs(model)
    two = {key: (down + 0.1, up) for key, (down, up) in one.items()}
    files = [
        tiny_lora.write_lora(tmp_path / f"{name}.safetensors", pairs, "diffusers")
        for name, pairs in (("one", one), ("two", two))
    ]
    with added(model, one, 0.5), added(model, two, -0.25):
        wanted = predict(model)
    both = with_loras(model, [(files[0], 0.5), (files[1], -0.25)])
    torch.testing.assert_close(predict(both), wanted, atol=2e-5, rtol=2e-5)
    assert with_loras(model, []) is model and with_loras(model, [(files[0], 0)]) is model


def test_peft_s_own_files_state_their_alpha(models, tmp_path):
    model = models["sd1"]
    pairs = random_pairs(model, text=[])
    with added(model, pairs, ALPHA / RANK):
        wanted = predict(model)
    folder = tiny_lora.write_peft(tmp_path / "peft", pairs)
    torch.testing.assert_close(
        predict(with_loras(model, [(folder, 1)])), wanted, atol=2e-5, rtol=2e-5
    )
    stated = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": ALPHA, "unet.r": RANK})}
    save_file(named(pairs, "peft"), tmp_path / "b.safetensors", metadata=stated)
    file = tmp_path / "b.safetensors"
    torch.testing.assert_close(
        predict(with_loras(model, [(file, 1)])), wanted, atol=2e-5, rtol=2e-5
    )
    config = folder / "adapter_config.json"
    hashes = [with_loras(model, [(folder, 1)]).loras[0].sha256]
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 2 * ALPHA}))
    hashes.append(with_loras(model, [(folder, 1)]).loras[0].sha256)
    assert hashes[0] != hashes[1]  # another alpha is another LoRA
    config.write_text(json.dumps({"use_rslora": True}))
    with pytest.raises(ModelError, match="use_rslora is not supported"):
        with_loras(model, [(folder, 1)])
    for text, message in ((b"\xff{", "is not JSON"), (b'{"lora_alpha": true}', "got True")):
        config.write_bytes(text)
        with pytest.raises(ModelError, match=message):
            with_loras(model, [(folder, 1)])
    config.unlink()
    with pytest.raises(ModelError, match=r"adapter_config\.json beside it"):
        with_loras(model, [(folder, 1)])


def test_a_weight_whose_sum_is_infinite_is_refused(models, tmp_path):
    pairs = random_pairs(models["sd1"], ATTENTION, [])
    file = tiny_lora.write_lora(tmp_path / "a.safetensors", pairs)
    with pytest.raises(ModelError, match="not a number; lower the weights"):
        with_loras(models["sd1"], [(file, 1e39)])


def test_half_precision_is_rounded_once(models, tmp_path):
    model = models["sd1"]
    pairs = random_pairs(model)
    file = tiny_lora.write_lora(tmp_path / "a.safetensors", pairs)
    half = with_loras(in_half(model), [(file, 1)])
    name = f"{UNET[0]}.weight"
    down, up = (part.double() for part in pairs[0, UNET[0]])
    whole = model.unet.get_parameter(name).bfloat16().double() + ALPHA / RANK * up @ down
    assert torch.equal(half.unet.get_parameter(name), whole.float().bfloat16())


def in_half(model: Any) -> Any:
    return replace(model, unet=deepcopy(model.unet).bfloat16(), dtype=torch.bfloat16)


@pytest.mark.parametrize("original", [False, True])
def test_a_motion_lora_changes_the_motion_module(models, original, tmp_path):
    model = with_motion(models["sd1"], write_adapter(tmp_path / "motion"))
    pairs = random_pairs(model, [*MOVING, ATTENTION[0]] if not original else MOVING, text=[])
    state = named(pairs, "diffusers, processors")
    if original:
        state = {_animatediff(key): value for key, value in state.items()}
    save_file(state, tmp_path / "pan.safetensors")
    with added(model, pairs, 0.5):
        wanted = predict(model, frames=4)
    plain, got = (
        predict(made, frames=4)
        for made in (model, with_loras(model, [(tmp_path / "pan.safetensors", 0.5)]))
    )
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=2e-5)
    assert (got - plain).abs().max() > 0.01
    with pytest.raises(ModelError, match="name a motion module"):
        with_loras(models["sd1"], [(tmp_path / "pan.safetensors", 0.5)])


def _animatediff(key: str) -> str:
    key = key.removeprefix("unet.").replace("modules.0.", "modules.0.temporal_transformer.")
    return key.replace("attn1", "attention_blocks.0").replace("attn2", "attention_blocks.1")


@pytest.mark.parametrize(
    ("family", "message"),
    [("sd1", "made for a model with text of 64 channels; sdxl"), ("sdxl", "of 128 channels; sd1")],
)
def test_another_family_is_refused(models, family, message, tmp_path):
    file = tiny_lora.write_lora(tmp_path / "a.safetensors", random_pairs(models[family]))
    other = models["sdxl" if family == "sd1" else "sd1"]
    plain = predict(other)
    with pytest.raises(ModelError, match=message):
        with_loras(other, [(file, 1)])
    assert torch.equal(predict(other), plain)


def _left(state: dict[str, Any]) -> str:
    return next(key for key in state if key.endswith("lora_up.weight"))


def _alpha(state: dict[str, Any]) -> str:
    return next(key for key in state if key.endswith(".alpha"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(_left(s)), "lacks one of its two matrices"),
        (lambda s: s.update({"lora_unet_x.hada_w1_a": torch.ones(1)}), "a LoHa"),
        (lambda s: s.update({"lora_unet_x.dora_scale": torch.ones(1)}), "a DoRA"),
        (lambda s: s.update({"clip_l": torch.ones(1)}), "clip_l is no part of a LoRA"),
        (lambda s: s.update({_left(s): torch.ones(5, RANK)}), "is for a weight of 5x32"),
        (lambda s: [s.pop(key) for key in list(s)], "not a LoRA"),
        (lambda s: s.update({"lora_unet_x.lora_mid.weight": torch.ones(1)}), "a LoCon in CP form"),
        (lambda s: s.update({_left(s): s[_left(s)].to(torch.int8)}), "is quantized to torch.int8"),
        (lambda s: s.update({_left(s): s[_left(s)] * torch.nan}), "holds what is not a number"),
        (lambda s: s.update({_left(s): torch.ones(32, 0)}), "is no matrix, but 32x0"),
        (lambda s: s.update({_left(s): torch.tensor(1.0)}), "is no matrix, but a number"),
        (lambda s: s.update({_alpha(s): torch.ones(2)}), r"expected a number, got \[1\.0, 1\.0\]"),
        (lambda s: s.update({_alpha(s): torch.tensor(torch.inf)}), "expected a number, got inf"),
        (
            lambda s: s.update(
                {f"lora_unet_no_such.lora_{w}.weight": torch.ones(1, 1) for w in ("up", "down")}
            ),
            "which has no lora_unet_no_such",
        ),
    ],
)
def test_what_does_not_fit_is_refused(models, change, message, tmp_path):
    model = models["sd1"]
    state = named(random_pairs(model), "kohya")
    change(state)
    save_file(state, tmp_path / "a.safetensors")
    plain = predict(model)
    good = tiny_lora.write_lora(tmp_path / "good.safetensors", random_pairs(model))
    with pytest.raises(ModelError, match=message):
        with_loras(model, [(good, 1), (tmp_path / "a.safetensors", 1)])
    assert torch.equal(predict(model), plain)


def test_what_is_no_safetensors_file_is_refused(models, tmp_path):
    with pytest.raises(ModelError, match="no such LoRA"):
        with_loras(models["sd1"], [(tmp_path / "none.safetensors", 1)])
    (tmp_path / "v2_lora.ckpt").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="pickled"):
        with_loras(models["sd1"], [(tmp_path / "v2_lora.ckpt", 1)])
