"""What a run in the stand-in host is reported to have done, beside what it was to do."""

from __future__ import annotations

import copy
import pickle

import pytest

from lib_hires.settings import Settings

UG = {"ug": True, "ug_eta": 0.6}
REFINE = {"refine": True, "refine_eta2": "0.4, 0.4"}
SAMPLERS = ["Euler", "Euler a", "Heun", "DPM2", "LMS", "DPM++ 2M", "DPM++ 2S a", "DDIM", "UniPC"]
TWICE = ["Heun", "DPM2", "DPM++ 2S a"]
RUN = {"width": 128, "height": 128, "steps": 5, "sampler_name": "Euler"}


def record_of(host, settings, **request):
    """The record of a run, and the finished run."""
    from modules import processing

    from lib_hires.webui.run_state import HostRun

    kind = "StableDiffusionProcessing" + ("Img2Img" if "init_image" in request else "Txt2Img")
    p = getattr(processing, kind)(**(RUN | request))
    made = host.generate(settings, p=p)
    return HostRun.of(p).record, made


def lines(made):
    """The lines of the record under the image."""
    return [line for line in made.comments.splitlines() if line not in made.messages]


def without_seconds(line):
    return line.rpartition(", ")[0]


@pytest.mark.parametrize("batch_cond_uncond", [True, False])
@pytest.mark.parametrize("cadence", [1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_happened_is_what_was_planned(host, sampler, cadence, batch_cond_uncond):
    from modules import shared

    from lib_hires.webui.page.planning import page_plan

    shared.opts.batch_cond_uncond, shared.opts.uni_pc_order = batch_cond_uncond, 2
    settings = UG | REFINE | {"pfsa": True, "pfsa_eta1": 0.2, "ug_cadence": cadence}
    page = {"width": 128, "height": 128, "steps": 5, "sampling": sampler, "scheduler": "Karras"}
    plan = page_plan(
        Settings.from_values(settings), page | {"hr-checkbox": False}, shared.loaded.sd_model
    )
    record, made = record_of(host, settings, sampler_name=sampler)
    assert made.messages == []
    assert [part.steps for part in record.passes] == [part.steps for part in plan.passes]
    for done, planned in zip(record.passes, plan.passes, strict=True):
        for name in ("size", "guided_steps", "mixed_steps"):
            assert getattr(done, name) == getattr(planned, name), (name, done)
        # Where the window ends between a step's two evaluations, the plan counts both.
        ends_inside = planned.evaluations > 2 * planned.steps and cadence == 1 and sampler in TWICE
        unasked = planned.evaluations - done.evaluations
        assert unasked == planned.native_evaluations - done.native_evaluations
        assert unasked == 0 or (ends_inside and unasked == 1)
    assert all(part.finished and part.seconds > 0 for part in record.passes)


@pytest.mark.parametrize("batch_cond_uncond", [True, False])
@pytest.mark.parametrize(
    "late", [{"refiner_at": 16}, {"prompt": f"a [red:{'circle and ' * 6}:16]"}], ids=str
)
def test_guidance_that_has_ended_does_not_begin_again(host, late, batch_cond_uncond):
    """Where a refiner or a longer prompt makes other calls of the model: the pass is the same."""
    from modules import shared

    shared.opts.batch_cond_uncond = batch_cond_uncond
    counts = []
    for more in ({}, late):
        record, made = record_of(host, {"ug": True}, steps=20, **more)
        assert made.messages == []
        counts.append((record.passes[0].guided_steps, record.passes[0].steps))
    assert counts[0] == counts[1] and 10 < counts[0][0] < 16 and counts[0][1] == 20


def test_the_line_is_under_the_image_and_not_in_its_text(host):
    settings = {"ug": True, "ug_eta": 1, "ug_cadence": 1, "refine": True, "refine_eta2": "0.4"}
    record, made = record_of(host, settings, n_iter=3, batch_size=2)
    summary, first, stage = lines(made)
    assert summary == f"HiRes Guidance ran: {record.summary()}"
    assert summary.startswith("HiRes Guidance ran: 21 of 21 steps guided; first pass ")
    assert without_seconds(first) == (
        "· first pass 128x128 in 3 batches: 15 steps, 15 guided, 30 model evaluations "
        "(15 at the native size)"
    )
    assert without_seconds(stage).startswith("· stage 1 256x256 in 3 batches: 6 steps, 6 guided")
    for text in made.infotexts:
        assert "guided," not in text and "ran" not in text


def test_hires_fix_and_img2img_are_named(host):
    import torch

    _, made = record_of(host, UG, enable_hr=True)
    assert [line.split(":")[0] for line in lines(made)[1:]] == [
        "· first pass 128x128",
        "· Hires. fix 256x256",
    ]
    _, made = record_of(host, UG, init_image=torch.zeros(3, 128, 128), denoising_strength=0.5)
    assert lines(made)[1].startswith("· img2img 128x128: 3 steps, ")


@pytest.mark.parametrize("way", ["interrupted", "skipped"])
def test_a_stopped_run_says_how_far_it_came(host, way):
    from modules import shared

    def stop_at(call):
        calls, model = [], shared.loaded.sd_model
        plain = model.apply_model

        def apply_model(*args, **kwargs):
            calls.append(1)
            if len(calls) == call:
                setattr(shared.state, way, True)
            return plain(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "apply_model", apply_model)
            return record_of(host, REFINE)

    record, made = stop_at(3)
    (first,) = record.passes
    assert (first.steps, first.finished) == (3, False)
    assert lines(made)[0].endswith("; stopped in first pass")
    record, made = stop_at(6)
    first, stage = record.passes
    assert (first.steps, first.finished) == (5, True)
    assert (stage.steps, stage.finished) == (1, False)
    assert lines(made)[0].endswith("; stopped in stage 1")
    assert lines(made)[2].endswith(" s, stopped before its end")


def test_without_us_nothing_is_said(host):
    for settings in (None, {"ug_theta": 0.5}, {"ug": True, "ug_theta": 9}):
        assert lines(host.generate(settings)) == []


def test_the_cells_of_a_grid_have_records_of_their_own(host):
    from modules import processing

    from lib_hires.webui.run_state import STATE

    p = processing.StableDiffusionProcessingTxt2Img(**RUN)
    cells = [copy.copy(p) for _ in range(2)]
    first, second = (host.generate(UG, p=cell) for cell in cells)
    assert len(lines(first)) == len(lines(second)) == 2
    assert STATE not in vars(p)
    assert p.comments == {}
    state = vars(cells[0])[STATE]
    assert state.record is not vars(cells[1])[STATE].record
    assert pickle.loads(pickle.dumps(state)).record.lines() == state.record.lines()
