"""diffusers folders as tools and users leave them."""

from __future__ import annotations

import codecs
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_checks import copy, edit_json, noise, refusal
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import LatentModel

State = dict[str, Tensor]
WEIGHTS = "diffusion_pytorch_model"
FILES = {
    "unet": f"{WEIGHTS}.safetensors",
    "vae": f"{WEIGHTS}.safetensors",
    "text_encoder": "model.safetensors",
}
NAMES = {
    "unet": "conv_in.weight",
    "vae": "decoder.conv_in.weight",
    "text_encoder": "text_model.final_layer_norm.weight",
}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    return copy(folders["sd1"], tmp_path / "model")


def assert_same(folder: Path, model: LatentModel) -> None:
    found = load_model(folder)
    ours, theirs = found.unet.state_dict(), model.unet.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    prompts = ["a red house", ""]
    assert torch.equal(
        found.encode_prompts(prompts, prompts).cond, model.encode_prompts(prompts, prompts).cond
    )


def change(folder: Path, part: str, function: Callable[[State], State]) -> None:
    file = folder / part / FILES[part]
    state = function(load_file(file))
    copies = {key: value.clone().contiguous() for key, value in state.items()}
    save_file(copies, file, {"format": "pt"})


@pytest.mark.parametrize("part", FILES)
def test_missing_weights_are_named_and_not_random(part: str, folder: Path) -> None:
    """transformers fills them with random numbers and goes on."""
    name = NAMES[part]
    change(folder, part, lambda state: {k: v for k, v in state.items() if k != name})
    assert f"{part}: its weights lack {name}; download it again" in refusal(folder)


@pytest.mark.parametrize("part", FILES)
def test_weights_under_other_names_are_not_random(part: str, folder: Path) -> None:
    change(folder, part, lambda state: {f"x.{key}": value for key, value in state.items()})
    assert "its weights lack" in refusal(folder) and " more; download" in refusal(folder)


@pytest.mark.parametrize("part", FILES)
def test_extra_weights_are_left_out(part: str, folder: Path, loaded) -> None:
    change(folder, part, lambda state: state | {"logit_scale": torch.zeros(())})
    assert_same(folder, loaded["sd1"])


def test_more_blocks_than_the_configuration_has_are_named(folder: Path) -> None:
    def deeper(state: State) -> State:
        more = {k.replace("layers.1.", "layers.2."): v for k, v in state.items()}
        return state | more

    change(folder, "text_encoder", deeper)
    message = refusal(folder)
    assert "its config.json has no place for text_model.encoder.layers.2.layer_norm1" in message


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", f"{WEIGHTS}.fp16.safetensors"),
        ("unet", f"{WEIGHTS}.bf16.safetensors"),
        ("vae", f"{WEIGHTS}.non_ema.safetensors"),
        ("text_encoder", "model.fp16.safetensors"),
    ],
)
def test_the_only_variant_is_taken(part: str, name: str, folder: Path, loaded) -> None:
    (folder / part / FILES[part]).rename(folder / part / name)
    assert_same(folder, loaded["sd1"])


def test_plain_weights_go_before_variants(folder: Path, loaded) -> None:
    other = {key: torch.randn(v.shape) for key, v in loaded["sd1"].unet.state_dict().items()}
    for variant in ("fp16", "non_ema"):
        save_file(other, folder / "unet" / f"{WEIGHTS}.{variant}.safetensors", {"format": "pt"})
    assert_same(folder, loaded["sd1"])


def test_weights_in_shards_are_put_together(folder: Path, loaded) -> None:
    file = folder / "unet" / FILES["unet"]
    state, where = load_file(file), {}
    for number, keys in enumerate((sorted(state)[::2], sorted(state)[1::2]), start=1):
        name = f"{WEIGHTS}-0000{number}-of-00002.safetensors"
        save_file({key: state[key] for key in keys}, file.with_name(name), {"format": "pt"})
        where |= dict.fromkeys(keys, name)
    file.unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
    assert_same(folder, loaded["sd1"])
    file.with_name(f"{WEIGHTS}-00002-of-00002.safetensors").unlink()
    assert "unet: could not be read" in refusal(folder)


def test_weights_of_another_name_are_named(folder: Path) -> None:
    (folder / "unet" / FILES["unet"]).rename(folder / "unet" / "model.safetensors")
    message = refusal(folder)
    assert f"expected weights named {WEIGHTS}.safetensors, got model.safetensors" in message


@pytest.mark.parametrize(
    "file", ["unet/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"]
)
def test_a_byte_order_mark_is_named(file: str, folder: Path) -> None:
    path = folder / file
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert f"{path}: begins with a byte order mark" in refusal(folder)


def test_a_tokenizer_in_one_file_gives_the_same_tokens(folder: Path, loaded) -> None:
    """As newer versions of transformers write it."""
    from transformers import CLIPTokenizerFast

    CLIPTokenizerFast.from_pretrained(folder / "tokenizer").save_pretrained(folder / "tokenizer")
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink(missing_ok=True)
    prompts = ["a red house", "", "RED  red, red", "r" * 40]
    found = load_model(folder).encoders[0]
    assert torch.equal(found.tokens(prompts), loaded["sd1"].encoders[0].tokens(prompts))


def test_a_first_encoder_with_a_projection_is_loaded(folder: Path, loaded) -> None:
    kind = ["transformers", "CLIPTextModelWithProjection"]
    edit_json(folder / "model_index.json", text_encoder=kind)
    change(folder, "text_encoder", lambda s: s | {"text_projection.weight": torch.eye(64)})
    assert_same(folder, loaded["sd1"])


@pytest.mark.parametrize(
    ("part", "kind", "message"),
    [
        ("vae", ["diffusers", "ConsistencyDecoderVAE"], "with ConsistencyDecoderVAE as its vae is"),
        ("unet", ["diffusers", "UNet3DConditionModel"], "with UNet3DConditionModel as its unet is"),
        ("text_encoder", [None, None], "with nothing as its text_encoder is not supported"),
        ("text_encoder_2", ["transformers", "T5EncoderModel"], "as its text_encoder_2 is not"),
    ],
)
def test_a_part_of_another_kind_is_named(part, kind, message, folder: Path) -> None:
    edit_json(folder / "model_index.json", **{part: kind})
    assert message in refusal(folder)


def test_a_folder_of_the_hubs_cache_points_to_the_snapshot(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(folder, snapshot)
    message = refusal(tmp_path / "models--a--b")
    assert (
        f"has no model_index.json; this is a folder of the hub's cache; give {snapshot}" in message
    )


def test_a_path_that_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    assert "cannot be read (File name too long)" in refusal(tmp_path / ("x" * 300))


def test_a_scaling_factor_in_quotes_is_a_number(folder: Path, loaded) -> None:
    edit_json(folder / "vae" / "config.json", scaling_factor="0.18215")
    latent = noise(1, 4, 8, 8)
    assert torch.equal(load_model(folder).decode(latent), loaded["sd1"].decode(latent))
