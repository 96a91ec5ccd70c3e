"""Motion modules: every layout gives the same module, and images stay what they were."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import write_folder
from tiny_motion import make_adapter, original_layout, write_adapter, write_original

from lib_hires.standalone.models import ModelError, Overrides, load_model, schedule
from lib_hires.standalone.models.motion import set_context, with_motion
from lib_hires.standalone.models.motion.files import KINDS, Kind, read_motion


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    return load_model(write_folder(tmp_path_factory.mktemp("image"), "sd1", "eps"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("motion") / "tiny")


def predict(model, x):
    cond = model.encode_prompts(["red"] * len(x), [""] * len(x))
    with torch.no_grad():
        return model.predict(x, torch.full((len(x),), 500.0), context=cond.cond)


def test_a_silent_module_leaves_each_frame_the_image_models(image_model, tmp_path):
    adapter = make_adapter()
    for name, weight in adapter.named_parameters():
        if "proj_out" in name:
            torch.nn.init.zeros_(weight)
    adapter.save_pretrained(tmp_path)
    model = with_motion(image_model, tmp_path)
    clips = noise(2, 4, 3, 8, 8)
    got = predict(model, clips)
    for frame in range(3):
        torch.testing.assert_close(
            got[:, :, frame], predict(image_model, clips[:, :, frame]), atol=1e-5, rtol=1e-5
        )


def test_a_folders_name_is_the_modules(image_model, folder, tmp_path, monkeypatch):
    own = shutil.copytree(folder, tmp_path / "v1.5")
    monkeypatch.chdir(own)
    names = [with_motion(image_model, path).motion.name for path in (own, Path())]
    assert names == ["v1.5", "v1.5"]


def test_the_module_sees_all_frames_together(image_model, folder):
    model = with_motion(image_model, folder)
    assert model.motion.frames == 4 and model.motion.most == 32
    clips = noise(1, 4, 4, 8, 8)
    other = clips.clone()
    other[:, :, 3] += 1
    change = (predict(model, other) - predict(model, clips)).abs().amax((0, 1, 3, 4))
    assert (change > 1e-3).all(), "a change of the last frame reaches the first"


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families(family, folder, tmp_path):
    image = load_model(write_folder(tmp_path, family, "v" if family == "sd2" else "eps"))
    model = with_motion(image, folder)
    cond = model.encode_prompts(["red"], [""])
    denoise = model.denoiser()
    with torch.no_grad():
        got = denoise(
            noise(1, 4, 3, 8, 8), torch.ones(1), context=cond.cond, pooled=cond.pooled_cond
        )
    assert got.shape == (1, 4, 3, 8, 8) and got.isfinite().all()


WIDTHS = {4: (32, 32, 64, 64), 3: (32, 64, 64)}


@pytest.mark.parametrize(
    ("key", "known"), KINDS.items(), ids=[kind.name for kind in KINDS.values()]
)
@pytest.mark.parametrize("half", [False, True])
def test_each_known_layout(key, known, half, tmp_path):
    blocks, mid, positions = key
    adapter = make_adapter(WIDTHS[blocks], 2, mid, positions or 64)
    hotshot = known.name == "HotShot-XL"
    state = original_layout(adapter, hotshot=hotshot, stated=positions is not None)
    if half:
        state = {name: value.half() for name, value in state.items()}
    save_file(state, tmp_path / "module.safetensors")
    read, kind, ours, _ = read_motion(tmp_path / "module.safetensors")
    assert kind == known and not ours
    assert read.config.motion_max_seq_length == (positions or 64)
    assert read.config.use_motion_mid_block == mid
    wanted = adapter.state_dict()
    assert set(read.state_dict()) == set(wanted)
    for name, value in read.state_dict().items():
        expected = wanted[name].half().float() if half else wanted[name]
        if "pos_embed" not in name:
            assert torch.equal(value, expected), name


def test_a_file_and_a_folder_of_the_same_weights_predict_alike(image_model, folder, tmp_path):
    file = write_original(tmp_path / "m.safetensors", make_adapter())
    clips = noise(1, 4, 4, 8, 8)
    one, two = (with_motion(image_model, path) for path in (file, folder))
    assert torch.equal(predict(one, clips), predict(two, clips))
    assert one.motion.name == "m" and one.motion.frames == 16
    assert (one.motion.ours, two.motion.ours) == (False, True), "ours states its native frames"


def test_prefixes_and_other_tensors_do_not_matter(image_model, folder, tmp_path):
    state = {f"module.{key}": value for key, value in original_layout(make_adapter()).items()}
    save_file(state | {"conv_in.weight": torch.zeros(2)}, tmp_path / "m.safetensors")
    model = with_motion(image_model, tmp_path / "m.safetensors")
    clips = noise(1, 4, 4, 8, 8)
    assert torch.equal(predict(model, clips), predict(with_motion(image_model, folder), clips))


BETAS = {  # first and last, and whether their roots rise evenly, as the modules' authors state them
    "AnimateDiff v1": (0.00085, 0.012, False),
    "AnimateDiff v2": (0.00085, 0.012, False),
    "AnimateDiff v3": (0.00085, 0.012, False),
    "AnimateLCM": (0.00085, 0.012, False),
    "AnimateDiff SDXL beta": (0.00085, 0.02, True),
    "HotShot-XL": (0.00085, 0.012, True),
}


@pytest.mark.parametrize(("key", "kind"), KINDS.items(), ids=[kind.name for kind in KINDS.values()])
@pytest.mark.parametrize("folder_of", [False, True], ids=["file", "folder"])
def test_a_published_module_has_its_own_noise_schedule(key, kind, folder_of, image_model, tmp_path):
    from diffusers import UNet2DConditionModel

    blocks, mid, positions = key
    sides = {"down_block_types": ["DownBlock2D"] * blocks, "up_block_types": ["UpBlock2D"] * blocks}
    shape = {"block_out_channels": [32] * blocks, "layers_per_block": 1, **sides}
    unet = UNet2DConditionModel.from_config({**image_model.unet.config, **shape})
    image = replace(image_model, unet=unet)
    adapter = make_adapter((32,) * blocks, 1, mid, positions or 64)
    if folder_of:
        path = tmp_path / "module"
        adapter.save_pretrained(path)
    else:
        named = {"hotshot": kind.name == "HotShot-XL", "stated": positions is not None}
        path = write_original(tmp_path / "module.safetensors", adapter, **named)
    first, last, roots = BETAS[kind.name]
    power = 0.5 if roots else 1
    betas = np.linspace(first**power, last**power, 1000) ** (1 / power)
    sigmas = torch.from_numpy(np.sqrt(1 / np.cumprod(1 - betas) - 1)).float()
    denoiser = with_motion(image, path).denoiser()
    torch.testing.assert_close(denoiser.sigmas, sigmas, atol=0, rtol=1e-4)
    t = torch.full((1,), 500.0)
    torch.testing.assert_close(denoiser.t_to_sigma(t), sigmas[500:501], atol=0, rtol=1e-4)


def test_a_model_that_ends_in_pure_noise_still_does(tmp_path, monkeypatch):
    overrides = Overrides(zero_snr=True)
    image = load_model(write_folder(tmp_path / "image", "sd1", "v"), overrides=overrides)
    adapter = make_adapter((32, 64), 1)
    path = write_original(tmp_path / "module.safetensors", adapter)
    kind = Kind("another", 16, schedule.linear)
    monkeypatch.setitem(KINDS, (2, False, 32), kind)
    model = with_motion(image, path)
    wanted = schedule.zero_snr(schedule.linear()).float()
    torch.testing.assert_close(model.alphas_cumprod[:-1], wanted[:-1])
    assert model.denoiser().sigma_max == image.denoiser().sigma_max > 1000


def test_a_module_of_ours_has_the_image_models_noise_schedule(image_model, folder):
    assert torch.equal(with_motion(image_model, folder).alphas_cumprod, image_model.alphas_cumprod)


def test_contexts_are_windows_of_the_temporal_attention(image_model, folder):
    """Within a window frames reach each other, further apart they do not."""
    model = with_motion(image_model, folder)
    clips = noise(1, 4, 12, 8, 8)
    whole = predict(model, clips)
    set_context(model.unet, 4, 12)
    assert not torch.allclose(predict(model, clips), whole, atol=1e-3)
    (block,) = model.unet.down_blocks[0].motion_modules[0].transformer_blocks
    values = noise(3, 12, 32)
    other = values.clone()
    other[:, 0] = noise(3, 32, seed=1)
    with torch.no_grad():
        change = (block(other) - block(values)).abs().amax((0, 2))
    assert (change[:4] > 1e-3).all() and (change[4:] == 0).all()

    set_context(model.unet, 4, 3)  # fewer frames than the context: one window
    short = predict(model, clips[:, :, :3])
    set_context(model.unet, None, 12)
    assert torch.equal(predict(model, clips), whole), "without it nothing is left of it"
    torch.testing.assert_close(short, predict(model, clips[:, :, :3]), atol=1e-5, rtol=1e-5)


def refused(image_model, path):
    with pytest.raises(ModelError) as caught:
        with_motion(image_model, path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_what_is_refused_by_name(image_model, tmp_path):
    assert "no such motion module" in refused(image_model, tmp_path / "none.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert "not a motion module" in refused(image_model, tmp_path / "other.safetensors")
    (tmp_path / "pickle.ckpt").write_bytes(b"PK\x03\x04")
    assert "pickled checkpoints can run code" in refused(image_model, tmp_path / "pickle.ckpt")
    pixels = replace(image_model, family="pixel")
    assert "is a model of pixels" in refused(pixels, write_adapter(tmp_path / "good"))
    wide = write_original(tmp_path / "wide.safetensors", make_adapter((32, 64, 64), 2))
    assert "(32, 64, 64)" in refused(image_model, wide)
    state = original_layout(make_adapter())
    del state[next(name for name in state if "proj_out" in name)]
    save_file(state, tmp_path / "part.safetensors")
    message = refused(image_model, tmp_path / "part.safetensors")
    assert "lacks down_blocks.0.motion_modules.0.proj_out" in message
    state = original_layout(make_adapter(layers=2))
    state = {name: value for name, value in state.items() if "0.motion_modules.0." not in name}
    save_file(state, tmp_path / "first.safetensors")
    message = refused(image_model, tmp_path / "first.safetensors")
    assert "lacks down_blocks.0.motion_modules.0" in message
    (tmp_path / "page.safetensors").write_text("<html>")
    assert "a web page, not a model" in refused(image_model, tmp_path / "page.safetensors")
    assert "expected a MotionAdapter" in refused(image_model, _folder_of_another_kind(tmp_path))
    assert "number of layers" in refused(image_model, write_adapter(tmp_path / "layers", layers=2))


def _folder_of_another_kind(tmp_path):
    folder = tmp_path / "unet"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    return folder


def attended(block, x):
    """What the block's two attentions make of a window."""
    for norm, attention in ((block.norm1, block.attn1), (block.norm2, block.attn2)):
        x = x + attention(block.pos_embed(norm(x)))
    return x


@pytest.mark.parametrize("frames", range(12, 19))
def test_frames_are_the_mean_of_their_windows(image_model, folder, frames):
    """Whatever the number of frames: windows of 12, 3 apart, and one that ends with the clip."""
    model = with_motion(image_model, folder)
    set_context(model.unet, 12, frames)
    (block,) = model.unet.down_blocks[0].motion_modules[0].transformer_blocks
    values = noise(3, frames, 32)
    weights = torch.tensor([1.0, 2, 3, 4, 5, 6, 6, 5, 4, 3, 2, 1])[:, None]
    total, count = torch.zeros(3, frames, 32), torch.zeros(frames, 1)
    with torch.no_grad():
        for start in {*range(0, frames - 11, 3), frames - 12}:
            window = slice(start, start + 12)
            total[:, window] += attended(block, values[:, window]) * weights
            count[window] += weights
        mean = total / count
        wanted = mean + block.ff(block.norm3(mean))
        torch.testing.assert_close(block(values), wanted, atol=1e-5, rtol=1e-5)
