"""Checkpoints as other tools save them hold the same networks, whatever their names are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from model_checks import refusal
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import LatentModel

State = dict[str, Tensor]
Change = Callable[[State, LatentModel], State]

UNET, VAE = "model.diffusion_model.", "first_stage_model."


@pytest.fixture
def written(loaded: dict[str, LatentModel], tmp_path: Path) -> Callable[[str, Change], Path]:
    """Writes a family's tiny model as one file, changed by a function of its tensors."""

    def write(family: str, change: Change) -> Path:
        model = loaded[family]
        file = tiny_models.write_ldm(tmp_path / "tiny.safetensors", model)
        state = change(load_file(file), model)
        save_file({key: value.clone().contiguous() for key, value in state.items()}, file)
        return file

    return write


def tensors(model: LatentModel) -> dict[str, Tensor]:
    parts = [model.unet, model.vae, *(encoder.model for encoder in model.encoders)]
    return {f"{i}.{k}": v for i, part in enumerate(parts) for k, v in part.state_dict().items()}


def assert_same(file: Path, model: LatentModel) -> None:
    found = load_model(file)
    assert found.family == model.family and found.prediction == model.prediction
    ours, theirs = tensors(found), tensors(model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def renamed(*changes: tuple[str, str]) -> Change:
    def change(state: State, _: LatentModel) -> State:
        for old, new in changes:
            state = {
                new + key[len(old) :] if key.startswith(old) else key: value
                for key, value in state.items()
            }
        return state

    return change


def with_extra(state: State, _: LatentModel) -> State:
    """Everything that tools leave in a file and no network needs."""
    clip = next(k for k in state if k.endswith("token_embedding.weight"))
    root = clip[: clip.index("text_model.")] if "text_model." in clip else "cond_stage_model."
    names = {f"{root}text_projection.weight": (64, 64), f"{root}logit_scale": ()}
    names |= {f"{root}text_model.embeddings.position_ids": (1, 16), f"{UNET}unknown.weight": (3,)}
    names |= {"model_ema.diffusion_modelinput_blocks00weight": (2,), "model_ema.decay": ()}
    names |= {"loss.logvar": (), f"{VAE}loss.discriminator.main.0.weight": (4, 3, 4, 4)}
    names |= {"optimizer_states.0.state.0.exp_avg": (5,), "betas": (1000,), "global_step": ()}
    names |= {f"{VAE}model_ema.decay": (), "lora_te_x.lora_down.weight": (1, 2)}
    names |= {"control_model.input_blocks.0.0.weight": (32, 4, 3, 3), "denoiser.sigmas": (1000,)}
    return state | {name: torch.zeros(shape) for name, shape in names.items()}


def attention(*names: str, square: bool = False) -> Change:
    """The VAE's attention under other names for q, k, v, proj_out and norm; square: not 1x1."""

    def change(state: State, _: LatentModel) -> State:
        new = {}
        for key, value in state.items():
            for old, name in zip(("q", "k", "v", "proj_out", "norm"), names, strict=True):
                key = key.replace(f"mid.attn_1.{old}.", f"mid.attn_1.{name}.")
            wide = "mid.attn_1" in key and value.dim() == 4 and square
            new[key] = value[..., 0, 0] if wide else value
        return new

    return change


def in_diffusers_names(prefix: str, part: str, to: str) -> Change:
    """A part under the names of its own module, behind the prefix `to`."""

    def change(state: State, model: LatentModel) -> State:
        own = {"unet": model.unet, "vae": model.vae}[part].state_dict()
        rest = {key: value for key, value in state.items() if not key.startswith(prefix)}
        return rest | {to + key: value for key, value in own.items()}

    return change


def second_encoder_in(prefix: str) -> Change:
    """The last text encoder in transformers' names."""

    def change(state: State, model: LatentModel) -> State:
        old = ("cond_stage_model.", "conditioner.embedders.1.")
        rest = {key: value for key, value in state.items() if not key.startswith(old)}
        own = model.encoders[-1].model.state_dict()
        return rest | {prefix + key: value for key, value in own.items()}

    return change


def with_another_encoder(prefix: str) -> Change:
    """Other weights of the first text encoder behind one more prefix, as merging tools leave it."""

    def change(state: State, model: LatentModel) -> State:
        own = model.encoders[0].model.state_dict()
        return state | {prefix + key: torch.randn_like(value) for key, value in own.items()}

    return change


def everything_in(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


CLIP = "cond_stage_model.transformer."
XL = "conditioner.embedders."
LAYOUTS: dict[str, tuple[str, Change]] = {
    "extra tensors": ("sd1", with_extra),
    "extra tensors of SD2": ("sd2", with_extra),
    "extra tensors of SDXL": ("sdxl", with_extra),
    "linear attention": ("sd1", attention("q", "k", "v", "proj_out", "norm", square=True)),
    "newer attention": ("sd1", attention("to_q", "to_k", "to_v", "to_out.0", "group_norm")),
    "older attention": (
        "sd1",
        attention("query", "key", "value", "proj_attn", "group_norm", square=True),
    ),
    "diffusers' VAE": ("sd2", in_diffusers_names(VAE, "vae", VAE)),
    "a VAE named vae": ("sdxl", in_diffusers_names(VAE, "vae", "vae.")),
    "diffusers' U-Net": ("sd2", in_diffusers_names(UNET, "unet", UNET)),
    "a U-Net named unet": ("sdxl", in_diffusers_names(UNET, "unet", "unet.")),
    "a shorter U-Net prefix": ("sd1", renamed((UNET, "diffusion_model."))),
    "no U-Net prefix": ("sd1", renamed((UNET, ""))),
    "CLIP without text_model": ("sd1", renamed((f"{CLIP}text_model.", CLIP))),
    "CLIP named text_encoder": ("sd1", renamed((CLIP, "text_encoder."))),
    "CLIP named clip_l": ("sd1", renamed((CLIP, "text_encoders.clip_l.transformer."))),
    "SD2's CLIP in transformers' names": (
        "sd2",
        second_encoder_in("cond_stage_model.model.transformer."),
    ),
    "SDXL's CLIP without text_model": (
        "sdxl",
        renamed((f"{XL}0.transformer.text_model.", f"{XL}0.transformer.")),
    ),
    "SDXL's second in transformers' names": ("sdxl", second_encoder_in(f"{XL}1.model.")),
    "SDXL's named text_encoder": (
        "sdxl",
        lambda state, model: second_encoder_in("text_encoder_2.")(
            renamed((f"{XL}0.transformer.", "text_encoder."))(state, model), model
        ),
    ),
    "SDXL's named clip_g": (
        "sdxl",
        renamed((f"{XL}0.", "te.clip_l."), (f"{XL}1.model.", "te.clip_g.")),
    ),
    "another encoder left in SD1": ("sd1", with_another_encoder(f"{XL}1.model.")),
    "another encoder left in SD2": ("sd2", with_another_encoder(f"{XL}0.transformer.")),
    "another encoder left in SDXL": ("sdxl", with_another_encoder(CLIP)),
    "SDXL's of other names": (
        "sdxl",
        renamed((f"{XL}0.transformer.", "z."), (f"{XL}1.model.", "a.")),
    ),
    "a trainer's prefix": ("sd1", lambda state, _: everything_in(state, "state_dict.")),
    "a parallel trainer's prefix": ("sdxl", lambda state, _: everything_in(state, "module.")),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_networks_are_the_same(layout: str, written, loaded) -> None:
    family, change = LAYOUTS[layout]
    assert_same(written(family, change), loaded[family])


def test_what_is_left_out_is_a_debug_line(written, caplog: pytest.LogCaptureFixture) -> None:
    file = written("sd1", with_extra)
    with caplog.at_level(logging.DEBUG, logger="hires_guidance"):
        load_model(file)
    assert (
        "tiny.safetensors: left out 15 tensors, among them betas, cond_stage_model." in caplog.text
    )
    assert not [line for line in caplog.records if line.levelno > logging.DEBUG]


def test_a_vae_without_quant_convs_is_one_in_which_they_change_nothing(written, loaded) -> None:
    model = loaded["sd1"]
    width = {"quant_conv": 8, "post_quant_conv": 4}

    def identity(state: State, _: LatentModel) -> State:
        for name, channels in width.items():
            state[f"{VAE}{name}.weight"] = torch.eye(channels)[..., None, None]
            state[f"{VAE}{name}.bias"] = torch.zeros(channels)
        return state

    def without(state: State, _: LatentModel) -> State:
        return {key: value for key, value in state.items() if "quant_conv" not in key}

    latent, image = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 16, 16)
    there, gone = (load_model(written("sd1", change)) for change in (identity, without))
    torch.testing.assert_close(there.decode(latent), gone.decode(latent))
    torch.testing.assert_close(there.encode(image), gone.encode(image))
    assert not torch.equal(gone.decode(latent), model.decode(latent))


def test_a_vae_beside_the_file_is_taken(written, loaded, caplog) -> None:
    def without_vae(state: State, _: LatentModel) -> State:
        return {key: value for key, value in state.items() if not key.startswith(VAE)}

    file = written("sd1", without_vae)
    assert "has no VAE (first_stage_model); give a whole checkpoint, or put tiny.vae." in refusal(
        file
    )
    own = loaded["sd1"].vae.state_dict()
    other = {key: torch.randn(value.shape) for key, value in own.items()}
    save_file(other, file.with_suffix(".vae.safetensors"))
    for change in (without_vae, with_extra):  # as the WebUI does, also where the file has its own
        with caplog.at_level(logging.INFO, logger="hires_guidance"):
            found = load_model(written("sd1", change)).vae.state_dict()
        assert all(torch.equal(found[key], other[key]) for key in other)
    assert "tiny.safetensors: its VAE is that of tiny.vae.safetensors" in caplog.text
    caplog.clear()
    file.with_suffix(".vae.pt").write_bytes(b"\x80\x02")
    load_model(file)
    assert caplog.messages == []
    file.with_suffix(".vae.safetensors").unlink()
    assert_same(written("sd1", with_extra), loaded["sd1"])
    assert "tiny.vae.pt, which the WebUI would take, is pickled and not read" in caplog.text


def test_scaled_weights_of_8_bits_are_multiplied(written, loaded) -> None:
    key = f"{UNET}middle_block.0.in_layers.2.weight"

    def scaled(state: State, _: LatentModel) -> State:
        state[key] = (state[key] * 100).to(torch.float8_e4m3fn)
        return state | {
            f"{UNET}scaled_fp8": torch.zeros(2),
            key.replace("weight", "scale_weight"): torch.tensor(0.01),
        }

    found = load_model(written("sd1", scaled)).unet.mid_block.resnets[0].conv1.weight
    wanted = loaded["sd1"].unet.mid_block.resnets[0].conv1.weight
    torch.testing.assert_close(found, wanted, rtol=0.07, atol=1e-3)


def test_a_scale_of_each_row_multiplies_rows(written, loaded) -> None:
    key = f"{UNET}middle_block.1.transformer_blocks.0.attn1.to_q.weight"

    def scaled(state: State, _: LatentModel) -> State:
        rows, columns = state[key].shape
        assert rows == columns  # so that along columns it would fit, too
        scale = torch.arange(1.0, rows + 1)
        weight = {key: state[key] / scale[:, None]}
        return state | weight | {key.replace("weight", "weight_scale"): scale}

    def weight(model: LatentModel) -> torch.Tensor:
        return model.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight

    found = weight(load_model(written("sd1", scaled)))
    torch.testing.assert_close(found, weight(loaded["sd1"]))


@pytest.mark.parametrize(
    ("family", "gone", "message"),
    [
        ("sd1", f"{UNET}out.0.weight", f"the U-Net lacks {UNET}out.0.weight; give a whole"),
        ("sd1", f"{UNET}time_embed.", f"the U-Net lacks {UNET}time_embed.0.weight, "),
        ("sd1", f"{VAE}decoder.norm_out.bias", f"the VAE lacks {VAE}decoder.norm_out.bias;"),
        ("sd1", f"{VAE}encoder.mid.attn_1.q", f"the VAE lacks {VAE}encoder.mid.attn_1.q.weight, "),
        (
            "sd1",
            f"{CLIP}text_model.final_layer_norm.bias",
            f"the text encoder lacks {CLIP}text_model.final_layer_norm.bias; give a whole",
        ),
        (
            "sd2",
            "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias",
            "lacks cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias",
        ),
        ("sdxl", f"{XL}1.model.text_projection", f"lacks {XL}1.model.text_projection; give"),
        ("sdxl", f"{XL}0.", "has only one of SDXL's two text encoders"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(family: str, gone: str, message: str, written) -> None:
    def without(state: State, _: LatentModel) -> State:
        return {key: value for key, value in state.items() if not key.startswith(gone)}

    assert message in refusal(written(family, without))


def test_a_deeper_network_than_its_yaml_is_not_cut_off_silently(written) -> None:
    def deeper(state: State, _: LatentModel) -> State:
        block = f"{UNET}middle_block.1.transformer_blocks."
        inner = {k: v for k, v in state.items() if k.startswith(f"{block}0.")}
        return state | {k.replace(f"{block}0.", f"{block}1."): v for k, v in inner.items()}

    message = refusal(written("sd1", deeper))
    assert "the U-Net does not fit its configuration (there is no place for model.diff" in message


@pytest.mark.parametrize(
    "name",
    [
        f"{UNET}out.2.weight",
        f"{UNET}middle_block.0.in_layers.2.weight",
        f"{VAE}decoder.conv_in.weight",
        f"{CLIP}text_model.embeddings.token_embedding.weight",
        f"{CLIP}text_model.encoder.layers.0.mlp.fc1.bias",
    ],
)
def test_tensors_of_another_shape_are_named(name: str, written) -> None:
    for shape in ((), (0,), (3, 3, 3)):
        message = refusal(written("sd1", lambda state, _: state | {name: torch.zeros(shape)}))  # noqa: B023
        assert "does not fit its configuration" in message and f"{name}: expected" in message


def test_quantized_tensors_are_named(written) -> None:
    def quantized(state: State, _: LatentModel) -> State:
        key = f"{UNET}out.2.weight"
        return state | {key: state[key].to(torch.uint8)}

    assert "model.diffusion_model.out.2.weight is quantized to torch.uint8" in refusal(
        written("sd1", quantized)
    )
