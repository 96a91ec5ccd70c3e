"""The motion module's training: the image model stays, the module learns, and comes into a file."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone import bundled
from lib_hires.standalone.cli import main
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.motion import with_adapter, with_motion
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.request import Request
from lib_hires.standalone.training import motion
from lib_hires.standalone.training.motion import MotionConfig, encode_clips, loss, train

CONFIG = MotionConfig(clips=3, frames=4, batch=2, minutes=0.005, warmup_steps=2, decay_share=0.1)


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    work, out = (tmp_path_factory.mktemp(name) for name in ("work", "out"))
    return train(work, out, tiny_model, CONFIG), work


def checkpoint(work):
    (path,) = work.glob("motion-*.pt")
    return torch.load(path, weights_only=True)


def clip(model, frames=4):
    (stage,) = Run(model, Request("red", steps=3, frames=frames), Settings()).generate()
    return stage.images


def test_a_module_that_has_learned_nothing_makes_so_many_images(tiny_model):
    model = with_adapter(tiny_model, motion.new_adapter(tiny_model), "new", 4, ours=False)
    (image,) = Run(tiny_model, Request("red", steps=3), Settings()).generate()
    torch.testing.assert_close(clip(model)[:, :, 0], image.images, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_the_file_is_the_module_that_was_trained(trained, tiny_model):
    path, work = trained
    model = with_motion(tiny_model, path)
    assert (model.motion.frames, model.motion.most) == (4, 32)
    state = checkpoint(work)
    learned = state["modules"]["ema_motion"]
    own = dict(model.unet.named_parameters())
    for name, value in learned.items():
        if "pos_embed" not in name:
            module, _, rest = name.partition(".")
            weight = own[f"{module.replace('-', '.')}.{rest}"]
            torch.testing.assert_close(weight, value.half().float())
    moved = [value.any() for name, value in learned.items() if name.endswith("proj_out.weight")]
    assert all(moved) and len(moved) == 5, "two down, one in the middle, two up"
    assert not [name for name in own if "up_blocks" in name and "motion_modules.1." in name]
    full = with_adapter(tiny_model, motion.new_adapter(tiny_model), "full", 4, ours=True)
    missing, extra = full.unet.load_state_dict(model.unet.state_dict(), strict=False)
    assert not extra and all("motion_modules.1." in name for name in missing)
    assert torch.equal(clip(full), clip(model)), "what is not in the file changes nothing"


@pytest.mark.slow
def test_the_image_model_is_frozen(trained, tiny_model, tiny_folder):
    fresh = load_model(tiny_folder).unet.state_dict()
    for name, weight in tiny_model.unet.state_dict().items():
        assert torch.equal(weight, fresh[name]), name
    path, _ = trained
    moving = with_motion(tiny_model, path).unet.state_dict()
    shared = {name for name in fresh if name in moving}
    assert len(shared) == len(fresh)
    assert all(torch.equal(moving[name], fresh[name]) for name in shared)


@pytest.mark.slow
def test_the_record_and_the_samples(trained, tiny_model):
    path, work = trained
    record = json.loads((path.parent / "motion-training.json").read_text())
    assert (path.parent / "motion-loss.png").stat().st_size > 1000
    assert record["clips"] == 3 and record["steps"] >= 1 and record["model"] == tiny_model.name
    assert list((work / "samples").glob("motion-*.webp"))
    assert clip(with_motion(tiny_model, path), frames=8).isfinite().all()


@pytest.mark.slow
def test_training_goes_on_where_it_stopped(trained, tiny_model):
    path, work = trained
    before = checkpoint(work)["progress"]
    weights = load_file(path)
    train(work, path.parent, tiny_model, replace(CONFIG, minutes=0.0))
    again = load_file(path)
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())
    longer = before["seconds"] / 60 + 0.001
    train(work, path.parent, tiny_model, replace(CONFIG, minutes=longer))
    assert checkpoint(work)["progress"]["step"] > before["step"]


@pytest.mark.slow
def test_the_module_learns_what_only_neighbouring_frames_can_tell(tiny_model):
    """Clips whose frames are all alike: the noise of one is known from the others."""
    torch.manual_seed(0)
    model = with_adapter(tiny_model, motion.new_adapter(tiny_model), "new", 4, ours=True)
    modules = motion.trained_modules(model.unet).values()
    weights = [weight.requires_grad_(True) for module in modules for weight in module.parameters()]
    x0 = torch.randn(1, 4, 1, 8, 8).expand(2, -1, 6, -1, -1)
    context = motion.Contexts(model)(["red", "red"])
    optimizer = torch.optim.Adam(weights, 3e-3)
    losses = []
    for _ in range(40):
        losses.append(loss(model, x0, context))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    first, last = (torch.stack(some).mean().item() for some in (losses[:8], losses[-8:]))
    assert last < 0.8 * first


def test_most_of_what_is_learned_lies_where_places_are_decided():
    torch.manual_seed(0)
    times = torch.cat([motion.noisy_times(2) for _ in range(2000)]).float() / 1000
    shares = torch.tensor([(times > edge).float().mean() for edge in (0.3, 0.7, 0.9)])
    torch.testing.assert_close(shares, torch.tensor([0.91, 0.51, 0.19]), atol=0.02, rtol=0)
    assert times.max() < 1 and (motion.noisy_times(2) > 707).sum() == 1, "one of two in each half"


def test_clips_depend_on_the_seed_alone_and_are_drawn_once(tiny_model, tmp_path):
    one = encode_clips(tmp_path / "one", tiny_model, replace(CONFIG, clips=2))
    again = encode_clips(tmp_path / "two", tiny_model, replace(CONFIG, clips=2))
    assert torch.equal(one._latents, again._latents) and one._captions == again._captions
    assert one._latents.shape == (2, 4, 4, 8, 8)
    assert not torch.equal(one._latents[0, 0], one._latents[0, 3]), "it moves"
    (file,) = (tmp_path / "one").iterdir()
    before = file.stat().st_mtime_ns
    encode_clips(tmp_path / "one", tiny_model, replace(CONFIG, clips=2))
    assert file.stat().st_mtime_ns == before


def test_a_file_of_clips_that_was_shorter_is_drawn_anew(tiny_model, tmp_path):
    two = encode_clips(tmp_path, tiny_model, replace(CONFIG, clips=2))
    three = encode_clips(tmp_path, tiny_model, replace(CONFIG, clips=3))
    assert (len(two), len(three)) == (2, 3) and torch.equal(two._latents, three._latents[:2])
    assert len(encode_clips(tmp_path, tiny_model, replace(CONFIG, clips=1))) == 1


@pytest.mark.slow
def test_another_model_begins_anew(trained, tiny_model, tmp_path):
    """With clips of its own: the latents are of the model's VAE."""
    work = shutil.copytree(trained[1], tmp_path / "work")
    before = {file: file.read_bytes() for file in work.glob("*.pt")}
    other = replace(tiny_model, unet=copy.deepcopy(tiny_model.unet))
    next(other.unet.parameters()).data += 0.1
    train(work, tmp_path, other, CONFIG)
    assert len(list(work.glob("clips-*"))) == len(list(work.glob("*.pt"))) == 2
    assert all(file.read_bytes() == data for file, data in before.items())


@pytest.mark.parametrize("own", [True, False])
def test_the_command_trains_it_for_the_model_in_its_folder(own, tmp_path, monkeypatch, capsys):
    ran = []

    def record(work, out, model, config):
        ran.append((work, out, float(model.unet.conv_out.bias[0]), config))
        return out / "motion.safetensors"

    monkeypatch.setattr(motion, "train", record)
    out, work = tmp_path / "out", tmp_path / "work"
    bias = float(load_model().unet.conv_out.bias[0])
    if own:
        out.mkdir()
        for beside in (".yaml", "-clip"):
            other = bundled.MODEL.with_name(bundled.MODEL.stem + beside)
            (shutil.copytree if other.is_dir() else shutil.copy)(other, out / other.name)
        state, name = load_file(bundled.MODEL), "model.diffusion_model.out.2.bias"
        with safe_open(bundled.MODEL, "pt") as file:
            metadata = file.metadata()
        changed = torch.full_like(state[name], 7)
        save_file({**state, name: changed}, out / bundled.MODEL.name, metadata)
    options = ["--stages", "motion", "--motion-minutes", "3", "--motion-clips", "5"]
    assert main(["train-demo", "--out", str(out), "--work", str(work), *options]) == 0
    assert ran == [(work, out, 7 if own else bias, MotionConfig(minutes=3, clips=5))]
    assert capsys.readouterr().out.strip() == str(out / "motion.safetensors")


def test_no_clips_are_refused():
    with pytest.raises(SettingsError, match="--motion-clips: expected at least 1, got 0"):
        MotionConfig(clips=0)


def test_the_file_for_the_bundled_model_stays_below_3_mb(tmp_path):
    model = load_model()
    adapter = motion.new_adapter(model)
    path = tmp_path / "motion.safetensors"
    motion.write_motion(path, adapter, 16, list(motion.trained_modules(adapter)))
    assert path.stat().st_size < 3e6
