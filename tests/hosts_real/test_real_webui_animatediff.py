"""Clips of sd-webui-animatediff in the real AUTOMATIC1111 WebUI, with a motion module at random.

8 frames of 128x128, which the motion module sees together, with a native size of 64: in latents 16
and 8 high. Rows of an evaluation: cond's and uncond's.
"""

from __future__ import annotations

import base64
import io
import urllib.error

import pytest
import torch
import torch.nn.functional as F
from compatibility import shows
from images_of_hosts import encoded

pytestmark = [pytest.mark.host, shows("clips of sd-webui-animatediff", model="SD 1.5")]

UG = {"ug": True, "ug_eta": 1, "ug_cadence": 1}  # at every step to the end
EXACT = UG | {"ug_shifted_start": False, "ug_edge": 0}
REFINE = {"refine": True, "refine_factor": 1.5, "refine_eta2": "0.5"}
OPTIONS = {"hires_guidance_native_size": 64, "sd_model_checkpoint": "clips"}
RECORD, TRACE = {"fault": ("record", 0)}, {"fault": ("trace", 0)}
LONG = {"video_length": 24, "batch_size": 24}  # above the modules' native 16
CFG = 5  # the requests' scale


@pytest.fixture
def clip(host):
    """A function that makes a clip, or an image where `clips` is off: the frames, as images."""
    if "animatediff" not in host.scripts():
        pytest.skip("HIRES_ANIMATEDIFF names no folder of sd-webui-animatediff")

    def make(settings=None, *, clips=True, of=None, **request):
        values = {"model": "tiny.safetensors", "enable": clips, "video_length": 8, "fps": 8}
        values |= {"batch_size": 8, "format": ["PNG"]} | (of or {})
        small = {"width": 128, "height": 128, "steps": 2, "do_not_save_grid": True}
        scripts = {"AnimateDiff": [values]} | request.pop("more_scripts", {})
        options = OPTIONS | request.pop("options", {})
        return host.generate(settings, more_scripts=scripts, options=options, **(small | request))

    return make


def test_what_is_off_changes_nothing(host, clip):
    plain, guided, before = clip(clips=False), clip(UG, clips=False), host.state()
    made = clip(UG)
    assert clip(clips=False).pixels == plain.pixels
    assert clip(UG, clips=False).pixels == guided.pixels
    assert host.state() == before
    assert len(plain.pixels) == 1 and len(made.pixels) == 8


@pytest.mark.parametrize("sampler", ["Euler", "DDIM", "DPM++ SDE"])
def test_whole_contexts_in_every_call(host, clip, sampler):
    """theta 0 is the plain clip; guided, every evaluation has all frames of both branches."""
    plain, before = clip(sampler_name=sampler), host.state()
    assert len(set(plain.pixels)) == 8
    assert clip(UG | {"ug_theta": 0}, sampler_name=sampler).pixels == plain.pixels
    made = clip(UG, sampler_name=sampler, **RECORD)
    assert "note" not in made.info and "HiRes ug: True" in made.info
    assert not set(made.pixels) & set(plain.pixels)
    rows = host.rows()
    assert rows == [(16, 16), (16, 8)] * (len(rows) // 2)
    assert clip(UG, sampler_name=sampler).pixels == made.pixels
    assert clip(sampler_name=sampler).pixels == plain.pixels
    assert host.state() == before


@pytest.mark.parametrize(
    ("frames", "side", "scales"),
    [(8, 128, (1, 2, 2)), (8, 64, (2, 1, 1)), (8, 128, (2, 2, 2))],
    ids=["space", "time", "both"],
)
def test_d_of_the_clip_walks_the_native_clips_way(host, clip, frames, side, scales):
    """By hand: Euler's steps of D[x_T] along sigma times D's gain on the noise, each with the
    prediction that the host's model gave there, on the schedule that AnimateDiff sets."""
    long = {"video_length": frames, "batch_size": frames}
    settings = EXACT | {"ug_frames": scales[0]}
    made = clip(settings, of=long, width=side, height=side, steps=3, **TRACE)
    assert "note" not in made.info and len(made.pixels) == frames
    calls = host.traced()
    steps = list(zip(calls[::2], calls[1::2], strict=True))
    few, gain = frames // scales[0], (scales[0] * scales[1] * scales[2]) ** -0.5
    assert [len(call["x"]) for call in calls] == [2 * frames, 2 * few] * 3
    state, least = None, _sigma(torch.tensor(0.0))
    for large, small in steps:
        sigma, received = (_sigma(call["t"][0]) for call in (large, small))
        low = gain * sigma
        assert received == pytest.approx(max(low, least), rel=1e-4)
        whole = (large["x"] * (sigma**2 + 1) ** 0.5)[:frames]
        reduced = F.avg_pool3d(whole.transpose(0, 1)[None], scales)[0].transpose(0, 1)
        got = (small["x"] * (low**2 + 1) ** 0.5)[:few]
        if state is not None:  # a native sampler's own, from the step before
            x, slope, before = state
            torch.testing.assert_close(reduced, x + slope * (low - before), atol=2e-4, rtol=2e-4)
        if low > least:  # in the last step the model knows no smaller sigma
            torch.testing.assert_close(got, reduced, atol=2e-4, rtol=2e-4)
        cond, uncond = small["prediction"].chunk(2)
        v = uncond + CFG * (cond - uncond)  # as the model predicts
        denoised = got / (low**2 + 1) - v * low / (low**2 + 1) ** 0.5
        state = got, (got - denoised) / low, low


def _sigma(t):
    """The noise level of a timestep on the schedule of AnimateDiff's modules for SD 1.5."""
    products = (1 - torch.linspace(0.00085, 0.012, 1000)).cumprod(0)
    logs = ((1 - products) / products).log() / 2
    below = int(t.floor().clamp(0, 998))
    return float(torch.lerp(logs[below], logs[below + 1], t - below).exp())


def test_a_long_context_is_guided_in_time_too(host, clip):
    """To the 16 frames that motion modules were trained with; in space alone where asked."""
    small = {"of": LONG, "steps": 1} | RECORD
    assert "note" not in clip(UG, **small).info
    assert host.rows() == [(48, 16), (32, 8)]
    assert "note" not in clip(UG | {"ug_frames": 1}, **small).info
    assert host.rows() == [(48, 16), (48, 8)]


@pytest.mark.parametrize("cadence", [1, 2])
def test_sliding_contexts(host, clip, cadence):
    """12 frames in contexts of 8: every call is a whole one, held predictions are its frames'."""
    of = {"video_length": 12}
    plain, made = clip(of=of), clip(UG | {"ug_cadence": cadence}, of=of, **RECORD)
    assert "note" not in made.info and len(made.pixels) == 12
    assert {rows for rows, _ in host.rows()} == {16}
    large, small = (sum(side == one for _, side in host.rows()) for one in (16, 8))
    assert large > 2 and (small == large if cadence == 1 else 0 < small < large)
    assert not set(made.pixels) & set(plain.pixels)
    asked = clip(UG | {"ug_frames": 2}, of=of)
    assert "context batch size is 8 and its clip has 12 frames" in asked.info


def test_refinement_in_stages(host, clip):
    plain, before = clip(), host.state()
    alone = clip(REFINE, **RECORD)
    assert "note" not in alone.info
    assert alone.sizes == [(192, 192)] * 8 and len(set(alone.pixels)) == 8
    assert set(host.rows()) == {(16, 16), (16, 24)}
    both = clip(UG | REFINE | {"refine_eta2": "0.4, 0.7"}, **RECORD)
    assert "note" not in both.info and both.sizes == alone.sizes
    assert host.rows()[-2:] == [(16, 24), (16, 8)]
    assert clip(UG | REFINE | {"refine_eta2": "0.4, 0.7"}).pixels == both.pixels
    pivot = clip(REFINE | UG | {"refine_method": "Pivot", "ug_frames": 2}, **RECORD)
    assert "note" not in pivot.info and pivot.sizes == alone.sizes
    assert host.rows()[-2:] == [(16, 24), (8, 8)]
    assert clip().pixels == plain.pixels
    assert host.state() == before


@pytest.mark.parametrize("what", ["interrupt", "raise"])
def test_the_last_finished_stage_is_the_clip(clip, what):
    """2 steps of the first pass and 1 of each stage."""
    two = REFINE | {"refine_eta2": "0.5, 0.5"}
    made = clip(two, fault=(what, 4))
    assert "after stage 1 of 2" in made.info
    assert len(set(made.sizes)) == 1 and len(made.pixels) == 8
    assert clip(two, fault=(what, 3)).pixels == clip().pixels


def test_a_native_evaluation_that_fails_leaves_a_clip_and_a_message(host, clip):
    plain, before = clip(), host.state()
    made = clip(UG | {"ug_frames": 2}, fault=("raise small", 2))
    assert "without Upsample Guidance" in made.info and len(made.pixels) == 8
    assert clip().pixels == plain.pixels and host.state() == before


def test_the_extensions_own_outputs_and_infotext(clip):
    from PIL import Image

    of = {"format": ["GIF", "Frame"], "fps": 8}
    plain, made = clip(of=of), clip(UG | REFINE, of=of)
    for clips, side in ((plain, 128), (made, 192)):
        _, *frames = clips.images
        assert len(frames) == 8 and {frame.size for frame in frames} == {(side, side)}
        with Image.open(io.BytesIO(base64.b64decode(clips.encoded[0]))) as file:
            assert file.format == "GIF" and file.n_frames == 8
            assert file.info["duration"] in (120, 130)
    own = [info.split('AnimateDiff: "')[1].split('"')[0] for info in (plain.info, made.info)]
    assert own[0] == own[1] and "video_length: 8" in own[0]
    kept = clip(REFINE | {"refine_keep_stages": True}, of=of)
    assert "AnimateDiff makes one clip of all images" in kept.info
    assert len(kept.images) == 9 and "keep stages" not in kept.info


def test_hires_fix_and_img2img(host, clip):
    hires = {
        "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6,
        "hr_second_pass_steps": 2,
    }  # fmt: skip
    made = clip(UG, **hires, **RECORD)
    assert "note" not in made.info and made.sizes == [(192, 192)] * 8
    assert {(16, 24), (16, 8)} <= set(host.rows())
    start = encoded(made.images[0].resize((128, 128)))
    request = {"kind": "img2img", "init_images": [start], "denoising_strength": 0.7, "n_iter": 2}
    plain, guided = clip(**request), clip(UG, **request, **RECORD)
    assert "note" not in guided.info and len(guided.pixels) == len(plain.pixels) == 16
    assert set(host.rows()) == {(16, 16), (16, 8)}
    assert not set(guided.pixels) & set(plain.pixels)


def test_where_another_samples_the_clip_is_the_plain_one(clip):
    of = {"freeinit_enable": True}
    plain, made = clip(of=of), clip(UG | REFINE, of=of)
    assert "another extension samples for the WebUI" in made.info
    assert "HiRes ug" not in made.info
    assert made.pixels == plain.pixels


def test_windows(host, clip):
    whole = clip(UG)
    made = clip(UG | {"ug_windows": "Hann"})
    assert "at full size, because AnimateDiff's clips are evaluated whole" in made.info
    assert made.pixels == whole.pixels
    attention = clip(UG | {"ug_windows": "attention"}, **RECORD)
    assert "note" not in attention.info and set(host.rows()) == {(16, 16), (16, 8)}
    assert attention.pixels != whole.pixels


def test_after_a_failure_the_next_clip_is_as_ever(host, clip):
    plain, whole, before = clip(), clip(UG | REFINE), host.state()
    with pytest.raises(urllib.error.HTTPError):
        clip(UG, fault=("raise", 3))  # the second step's large one
    assert clip().pixels == plain.pixels
    assert clip(UG | REFINE).pixels == whole.pixels
    assert host.state() == before
