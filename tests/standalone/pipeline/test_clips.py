"""Clips from prompt to file, on a tiny model with a tiny motion module of 4 native frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_models import write_folder
from tiny_motion import write_adapter

from lib_hires.detail import Detail
from lib_hires.noise import draw, generators, turned
from lib_hires.presets import PURPOSES, preset_for
from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.cli import main
from lib_hires.standalone.models import load_model, motion
from lib_hires.standalone.models.k_diffusion import import_k_diffusion
from lib_hires.standalone.models.motion import with_motion
from lib_hires.standalone.pipeline.batch import generate_lines, processes
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.lines import Line
from lib_hires.standalone.pipeline.outputs import (
    free_paths,
    read_run,
    save_stage,
    what_happened,
)
from lib_hires.standalone.pipeline.request import Request, fitted
from lib_hires.standalone.training.motion import new_adapter

PLAIN = {"ug": True, "ug_eta": 1, "ug_cadence": 1, "ug_shifted_start": False}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return write_folder(folder / "image", "sd1", "eps"), write_adapter(folder / "motion")


@pytest.fixture(scope="module")
def model(files):
    return with_motion(load_model(files[0]), files[1])


def request(**values):
    return Request(**{"prompt": "red", "steps": 4, "seed": 3, "sampler": "Euler"} | values)


def clip(model, settings=None, **values):
    (stage,) = Run(model, request(**values), Settings.from_values(settings or {})).generate()
    return stage


@pytest.mark.slow
@pytest.mark.parametrize("scales", [(2, 1, 1), (1, 2, 2), (2, 2, 2)], ids=["time", "space", "both"])
@pytest.mark.parametrize(
    ("sampler", "clip_noise"),
    [
        ("Euler", "own"),
        ("Euler", "turning"),
        ("Heun", "own"),
        ("DPM++ 2M", "own"),
        ("DPM++ 2M", "turning"),
    ],
)
def test_d_of_a_run_is_the_native_run(model, scales, sampler, clip_noise):
    """The whole way of the command, against k-diffusion alone with the model's own denoiser."""
    frames, side = 4 * scales[0], 16 * scales[1]
    sizes = {"frames": frames, "width": side, "height": side}
    chosen = request(sampler=sampler, cfg=3, clip_noise=clip_noise, **sizes)
    (stage,) = Run(model, chosen, Settings.from_values(PLAIN)).generate()
    gain = (scales[0] * scales[1] * scales[2]) ** -0.5
    noise = draw(generators([3], frames=frames), (4, side // 2, side // 2))
    clips = noise[None].transpose(1, 2)
    denoiser, cond = model.denoiser(), model.encode_prompts(["red"], [""])

    def guided(x, sigma):
        sigma = sigma.clamp(min=low)  # the smallest that the model knows
        both = [denoiser(x, sigma, context=context) for context in (cond.cond, cond.uncond)]
        return both[1] + 3 * (both[0] - both[1])

    sampling = import_k_diffusion().sampling
    low, high = float(denoiser.sigma_min), float(denoiser.sigma_max)
    sigmas = sampling.get_sigmas_karras(4, low, high) * gain
    names = {"Euler": "sample_euler", "Heun": "sample_heun", "DPM++ 2M": "sample_dpmpp_2m"}
    start = F.avg_pool3d(clips, scales) / gain
    if clip_noise == "turning":
        start = turned(start, 4)
    start = start * sigmas[0]
    with torch.no_grad():
        native = getattr(sampling, names[sampler])(guided, start, sigmas, disable=True)
    got = F.avg_pool3d(stage.latent, scales)
    assert stage.latent.shape == (1, 4, frames, side // 2, side // 2)
    assert (got - native).abs().max() < 1e-4 * native.abs().max()


def test_a_clip_of_a_batch_is_the_clip_made_alone(model):
    together = clip(model, batch=2, sampler="Euler a").images
    for image in range(2):
        alone = clip(model, seed=3 + image, sampler="Euler a").images
        torch.testing.assert_close(together[image], alone[0], atol=1e-4, rtol=1e-4)
    assert together.shape == (2, 3, 4, 16, 16)


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ SDE", "DPM++ 2M SDE"])
def test_noise_of_a_step_depends_on_seed_and_frame_alone(model, sampler):
    """A longer clip draws the first frames' noise alike, as a model that mixes nothing shows."""

    class Still(torch.nn.Module):
        def forward(self, x, t, context, **_):
            return (0.5 * x,)

    still = Still()
    still.config = model.unet.config
    plain = replace(model, unet=still)
    short, long = (clip(plain, frames=n, sampler=sampler, cfg=1).latent for n in (3, 5))
    torch.testing.assert_close(long[:, :, :3], short, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(long[:, :, 3], long[:, :, 4], atol=1e-2)


def test_noise_turns_by_default_for_modules_of_ours_alone(model):
    own, turning = (clip(model, clip_noise=noise).latent for noise in ("own", "turning"))
    assert torch.equal(clip(model).latent, turning) and not torch.allclose(own, turning, atol=1e-2)
    others = replace(model, motion=replace(model.motion, ours=False))
    assert torch.equal(clip(others).latent, own)


def test_a_clip_of_an_earlier_version_repeats_with_its_noise(model, tmp_path):
    """It states none; one of this version states turning noise alone, so that a batch of clips with
    own noise finds what an earlier version has made."""
    for noise, stated in (("automatic", "turning"), ("own", None)):
        run = Run(model, request(clip_noise=noise), Settings())
        assert run.about()["request"].get("clip_noise") == stated
        (stage,) = run.generate()
        paths = free_paths(run, tmp_path)
        save_stage(run, stage, paths)
        again = Run(model, Request.from_values(read_run(paths[0])["request"]), Settings())
        (repeated,) = again.generate()
        assert torch.equal(repeated.latent, stage.latent)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["AP-LDM", "Pivot"])
@pytest.mark.parametrize("guided", [False, True])
def test_stages_of_clips(model, method, guided):
    settings = Settings.from_values(
        {"refine": True, "refine_factor": 2, "refine_method": method, "ug": guided,
         "refine_eta2": "0.5", "ug_frames": 1}
    )  # fmt: skip
    run = Run(model, request(frames=5), settings)
    first, last = run.generate()
    assert first.images.shape == (1, 3, 5, 16, 16) and last.images.shape == (1, 3, 5, 32, 32)
    assert last.images.isfinite().all()
    assert (last.native_evaluations > 0) == guided
    again = list(Run(model, request(frames=5), settings).generate())[1]
    assert torch.equal(again.latent, last.latent)


@pytest.mark.parametrize(("family", "prediction"), [("sd2", "v"), ("sdxl", "eps")])
def test_clips_of_other_families(files, family, prediction, tmp_path):
    image = load_model(write_folder(tmp_path, family, prediction))
    model = with_motion(image, files[1])
    settings = Settings.from_values({**PLAIN, "refine": True, "refine_factor": 2})
    first, last = Run(model, request(frames=8, steps=2), settings).generate()
    assert first.native_evaluations == 2, "guided in time"
    assert last.images.shape == (1, 3, 8, 32, 32) and last.images.isfinite().all()


def frames_at_once(run):
    """The batches that the VAE's halves meet in a run."""
    seen = {"decoder": [], "encoder": []}
    hooks = [
        getattr(run.model.vae, half).register_forward_pre_hook(
            lambda _, inputs, half=half: seen[half].append(len(inputs[0]))
        )
        for half in seen
    ]
    list(run.generate())
    for hook in hooks:
        hook.remove()
    return seen


def test_decoding_meets_one_frame_at_a_time_where_it_fits_a_tile(model):
    seen = frames_at_once(Run(model, request(frames=3), Settings.from_values({}), tile=128))
    assert seen["decoder"] and set(seen["decoder"]) == {1}


def test_decoding_and_encoding_meet_one_frame_at_a_time_in_tiles(model):
    settings = Settings.from_values({"refine": True, "refine_factor": 2})
    seen = frames_at_once(Run(model, request(frames=3, width=32, height=32), settings, tile=16))
    assert set(seen["decoder"]) == set(seen["encoder"]) == {1}
    assert len(seen["encoder"]) > 3 * 4, "an image of 64 pixels is more than four tiles"
    assert len(seen["decoder"]) > 3 * 4, "of the stage alone"


def test_out_of_memory_names_what_helps_a_clip(model):
    settings = Settings.from_values({"refine": True, "refine_factor": 2})
    run = Run(model, request(frames=8), settings)
    error = torch.cuda.OutOfMemoryError("CUDA out of memory")
    less = "or lower --batch, --frames (all 8 are evaluated together)"
    assert what_happened(error, run, 0).endswith(f": lower --width, --height, {less}")
    stage = what_happened(error, run, 1)
    assert stage.endswith(f": lower --refine-factor or set --refine-tile, {less}")


@pytest.mark.parametrize("purpose", PURPOSES)
def test_presets_make_clips(model, purpose):
    """As images: the clip's first size and the settings are the preset's."""
    settings = Settings.from_values(preset_for(purpose).values)
    sizes = model.native, model.multiple
    wanted, settings = fitted(purpose, *sizes, request(frames=4, steps=2), settings, ())
    *_, last = Run(model, wanted, settings).generate()
    side = 16 * (4 if purpose.startswith("4x") else 2)
    assert last.images.shape == (1, 3, 4, side, side) and last.images.isfinite().all()


@pytest.mark.slow
def test_longer_clips_than_the_module_knows_have_a_context(model):
    run = Run(model, request(frames=36, steps=2), Settings.from_values(PLAIN | {"ug_frames": 2}))
    assert run.context == 4 and run.frames == 36
    (stage,) = run.generate()
    assert stage.images.shape[2] == 36 and stage.native_evaluations == 2
    assert Run(model, request(frames=8), Settings.from_values({})).context is None
    assert Run(model, request(frames=8, context=6), Settings.from_values({})).context == 6
    assert Run(model, request(frames=8, context=4), Settings.from_values({})).context == 4
    assert Run(model, request(frames=3, context=3), Settings.from_values({})).context is None


def test_the_plan_counts_frames(model):
    settings = Settings.from_values(PLAIN)
    plan = Run(model, request(frames=8, width=32, height=32), settings).planned()
    assert "first pass 32x32 of 8 frames in 4 steps" in plan.summary().lower()
    assert "4 guided at 16x16 of 4 frames" in plan.summary()
    assert plan.relative_pixels == pytest.approx(1 + 1 / 8)
    short = Run(model, request(frames=8, width=32, height=32), settings.updated({"ug_frames": 1}))
    assert "4 guided at 16x16 of 8 frames" in short.planned().summary()


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ({"frames": 1}, {}, "at least 2"),
        ({"context": 40}, {}, "positions for 32"),
        ({"frames": 8, "context": 3}, {}, "at least 4 .motion has 4 native frames., got 3"),
        ({"frames": 3, "context": 2}, {}, "at least 3 .motion has 4 native frames., got 2"),
        ({"frames": 4}, {"ug": True}, "nothing to guide"),
        ({"frames": 8}, {"ug": True, "ug_frames": 1}, "nothing to guide"),
    ],
)
def test_what_makes_no_sense(model, values, settings, message):
    with pytest.raises(SettingsError, match=message):
        Run(model, request(**values), Settings.from_values(settings))


def test_an_image_model_makes_no_clips(files):
    image = load_model(files[0])
    with pytest.raises(SettingsError, match="--motion"):
        Run(image, request(frames=4), Settings())
    assert "frames" not in Run(image, request(), Settings()).about()["request"]


@pytest.mark.slow
@pytest.mark.parametrize("windows", ["off", "attention", "Hann"])
def test_a_clip_of_a_silent_module_is_so_many_guided_images(files, windows):
    """In space, in every kind of windows; the temporal attention sees whole clips in all."""
    image = load_model(files[0])
    silent = motion.with_adapter(image, new_adapter(image), "silent", 4, ours=False)
    settings = Settings.from_values(
        {"ug": True, "ug_windows": windows, "refine": True, "refine_factor": 1.5}
    )
    sizes = {"width": 32, "height": 48, "steps": 3}
    *_, clips = Run(silent, request(frames=4, **sizes), settings).generate()
    *_, alone = Run(image, request(**sizes), settings).generate()
    torch.testing.assert_close(clips.images[:, :, 0], alone.images, atol=2e-3, rtol=2e-3)


def test_attention_in_windows_leaves_the_frames_whole(files):
    model, seen = motion.with_motion(load_model(files[0]), files[1]), []

    def note(attn, inputs, kwargs, output):
        seen.append((type(attn.processor).__name__, output.shape[1]))

    block = model.unet.down_blocks[0]
    hooks = [
        part.attn1.register_forward_hook(note, with_kwargs=True)
        for group in (block.attentions, block.motion_modules)
        for part in group[0].transformer_blocks
    ]
    settings = Settings.from_values(PLAIN | {"ug_windows": "attention"})
    list(Run(model, request(frames=16, width=32, height=32, steps=1), settings).generate())
    for hook in hooks:
        hook.remove()
    temporal = {name for name, positions in seen if positions in (16, 4)}
    assert {positions for _, positions in seen} == {256, 64, 16, 4}
    assert temporal == {"AttnProcessor2_0"} and ("InWindows", 256) in seen


def test_techniques_of_detail_are_refused_for_clips(model):
    with pytest.raises(SettingsError, match="mixing: expected none for clips"):
        Run(model, request(frames=4), Settings(), detail=Detail(mixing=True))


# --- files ----------------------------------------------------------------------------------------


def frames_of(path):
    with Image.open(path) as image:
        assert image.format == "WEBP"
        pixels = []
        for number in range(image.n_frames):
            image.seek(number)
            pixels.append(np.asarray(image.convert("RGB"), np.float32))
            duration = image.info["duration"]
    return np.stack(pixels), duration


def test_the_file_holds_the_clip_and_what_repeats_it(model, tmp_path):
    run = Run(model, request(frames=8, keep_frames=True), Settings.from_values(PLAIN))
    (stage,) = run.generate()
    paths = free_paths(run, tmp_path)
    save_stage(run, stage, paths)
    (path,) = paths.values()
    assert path.name == "00001-3.webp"
    pixels, duration = frames_of(path)
    wanted = ((stage.images[0] + 1) * 127.5).permute(1, 2, 3, 0).numpy()
    assert pixels.shape == (8, 16, 16, 3)
    grey = (pixels - wanted) @ np.array([0.299, 0.587, 0.114])  # WebP halves colours' resolution
    assert np.abs(grey).mean() < 8
    assert duration == 62, "8 frames for 4 native ones: 16 a second"
    about = read_run(path)
    assert about["request"]["frames"] == 8 and about["motion"] == "motion"
    assert about["settings"]["ug"] is True
    singles = sorted(tmp_path.glob("00001-3-frame-*.png"))
    assert len(singles) == 8
    exact = np.stack([np.asarray(Image.open(single)) for single in singles])
    assert np.abs(exact - wanted).max() <= 1


def test_a_batch_is_made_once(model, tmp_path):
    lines = [Line(1, request(), Settings()), Line(2, request(seed=4), Settings())]
    said = []
    state = processes("cpu")
    assert generate_lines(lines, state, model, tmp_path, said.append, print) == 0
    first = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(first) == 2 and all(path.suffix == ".webp" for path in first)
    generate_lines(lines, state, model, tmp_path, said.append, print)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == first


@pytest.mark.slow
def test_the_command_makes_a_clip_and_repeats_it(files, tmp_path, capsys):
    image, motion = map(str, files)
    wanted = ["--model", image, "--motion", motion, "--out", str(tmp_path)]
    options = ["--frames", "6", "--steps", "3", "--ug", "--width", "32", "--fps", "12"]
    assert main(["generate", "red", *wanted, *options]) == 0
    path = capsys.readouterr().out.strip()
    _, duration = frames_of(path)
    assert duration == 83
    assert main(["generate", "--from", path, *wanted]) == 0
    again = capsys.readouterr().out.strip()
    assert again != path
    assert np.array_equal(frames_of(path)[0], frames_of(again)[0])
    assert main(["generate", "--from", path, "--model", image]) == 2
    assert "--motion" in capsys.readouterr().err


def test_an_interrupt_keeps_the_last_finished_stage(files, tmp_path, capsys, monkeypatch):
    from lib_hires.standalone.pipeline import generate

    def interrupted(self, latent, stage, before):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate.Generation, "denoise_stage", interrupted)
    image, motion = map(str, files)
    options = ["--out", str(tmp_path), "--steps", "2", "--refine"]
    assert main(["generate", "red", "--model", image, "--motion", motion, *options]) == 130
    error = capsys.readouterr().err
    assert "interrupted in stage 1" in error and "stage 0 is kept" in error
    (path,) = tmp_path.iterdir()
    assert len(frames_of(path)[0]) == 4 and read_run(path)["stage"] == 0


def test_a_webp_that_is_none_of_ours(tmp_path):
    for name, content in {"a.webp": b"RIFF", "b.webp": None}.items():
        if content is None:
            Image.new("RGB", (4, 4)).save(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(SettingsError, match="holds no settings of ours"):
            read_run(tmp_path / name)
    with pytest.raises(SettingsError, match="no file"):
        read_run(tmp_path / "none.webp")
