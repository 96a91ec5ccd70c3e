"""Runs of a tiny random model: what guidance must not change, what it costs, what it leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_hires.resample import bicubic
from lib_hires.settings import Settings, SettingsError
from lib_hires.sizes import Size
from lib_hires.standalone import bundled
from lib_hires.standalone.models import Overrides, load_model
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import FinishedStage, Generation, Run
from lib_hires.standalone.pipeline.request import SAMPLERS, Request


def stages(model: LatentModel, request: dict[str, Any], **settings: Any) -> list[FinishedStage]:
    wanted = {"prompt": "a red house", "steps": 4} | request
    return list(Run(model, Request(**wanted), Settings.from_values(settings)).generate())


def image(model: LatentModel, request: dict[str, Any], **settings: Any) -> torch.Tensor:
    return stages(model, request, **settings)[-1].images


LARGE = {"width": 32, "height": 32}
TO_THE_END = {"ug": True, "ug_eta": 1}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_settings_that_do_nothing_change_no_bit(tiny_model: LatentModel, sampler: str) -> None:
    request = LARGE | {"sampler": sampler, "steps": 3}
    plain = image(tiny_model, request)
    assert torch.equal(plain, image(tiny_model, request, ug=True, ug_theta=0))
    assert torch.equal(plain, image(tiny_model, request, pfsa=True, pfsa_gamma=0))
    assert not torch.equal(plain, image(tiny_model, request, ug=True))
    assert not torch.equal(plain, image(tiny_model, request, pfsa=True, pfsa_gamma=0.5))


def test_without_stages_refinement_changes_no_bit(tiny_model: LatentModel) -> None:
    first, _ = stages(tiny_model, {}, refine=True)
    assert torch.equal(first.images, image(tiny_model, {}))


def test_an_image_is_upsampled_before_it_is_clamped(
    tiny_model: LatentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def upsample(image: torch.Tensor, size: Size) -> torch.Tensor:
        seen.append(image)
        return bicubic(image, size)

    monkeypatch.setattr("lib_hires.refinement.bicubic", upsample)
    first, _ = stages(tiny_model, {}, refine=True)
    assert seen[0].abs().max() > 1
    assert torch.equal(first.images, seen[0].clamp(-1, 1))


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DPM++ SDE", "DPM++ 2M SDE"])
def test_an_image_of_a_batch_is_the_image_alone(tiny_model: LatentModel, sampler: str) -> None:
    settings = {"ug": True, "refine": True, "refine_eta2": "0.5"}
    request = {"sampler": sampler, "seed": 5}
    batch = image(tiny_model, request | {"batch": 3}, **settings)
    alone = image(tiny_model, request | {"seed": 7}, **settings)
    torch.testing.assert_close(batch[2:], alone, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "settings"),
    [
        ("Euler", {"ug": True, "ug_eta": 0.6, "ug_edge": 0}),
        ("DPM++ 2M", {"ug": True, "ug_eta": 0.8, "ug_edge": 2, "ug_cadence": 3}),
        ("Heun", {"ug": True, "refine": True, "refine_factor": 4, "refine_eta2": "0.2, 0.4"}),
        ("Euler", {"pfsa": True, "refine": True, "refine_method": "Pivot", "refine_pivot": 500}),
        ("DPM++ 2M", {"ug": True, "refine": True, "refine_eta2": "0.5", "refine_steps": 4}),
    ],
    ids=str,
)
def test_the_plan_counts_what_is_made(
    tiny_model: LatentModel, sampler: str, settings: dict[str, Any]
) -> None:
    values = {"prompt": "x", "steps": 7, "sampler": sampler} | LARGE
    run = Run(tiny_model, Request(**values), Settings.from_values(settings))
    plan, made = run.planned(), list(run.generate())
    assert [part.steps for part in plan.passes] == run.steps
    assert plan.evaluations == made[-1].model_evaluations
    assert sum(part.native_evaluations for part in plan.passes) == made[-1].native_evaluations


@pytest.mark.parametrize(
    ("settings", "all_calls", "small_calls"),
    [
        ({}, 6, 0),
        ({**TO_THE_END, "ug_cadence": 1}, 12, 6),
        ({**TO_THE_END, "ug_cadence": 2}, 9, 3),
        ({**TO_THE_END, "ug_cadence": 3}, 8, 2),
        ({"ug": True, "ug_theta": 0}, 6, 0),
    ],
)
def test_model_evaluations(
    tiny_model: LatentModel, settings: dict[str, Any], all_calls: int, small_calls: int
) -> None:
    (done,) = stages(tiny_model, LARGE | {"steps": 6, "sampler": "Euler"}, **settings)
    assert (done.model_evaluations, done.native_evaluations) == (all_calls, small_calls)


def test_the_small_call_runs_at_the_native_size(tiny_model: LatentModel) -> None:
    seen = set()
    hook = tiny_model.unet.register_forward_pre_hook(
        lambda _, args, kwargs: seen.add(tuple((args or (kwargs["sample"],))[0].shape[-2:])),
        with_kwargs=True,
    )
    with hook:
        stages(tiny_model, LARGE, ug=True)
    assert seen == {(16, 16), (8, 8)}


def test_stages_have_the_planned_sizes_and_ug_only_above_native(tiny_model: LatentModel) -> None:
    settings = {"ug": True, "refine": True, "refine_eta2": "0.2, 0.4", "refine_factor": 4}
    done = stages(tiny_model, {"steps": 10}, **settings, ug_cadence=1)
    assert [tuple(stage.images.shape[-2:]) for stage in done] == [(16, 16), (48, 48), (64, 64)]
    assert [stage.native_evaluations for stage in done] == [0, 2, 6]
    assert [stage.model_evaluations for stage in done] == [10, 14, 22]
    unguided = stages(tiny_model, {"steps": 10}, **settings, refine_guided=False)
    assert [stage.native_evaluations for stage in unguided] == [0, 0, 0]


def test_a_stage_of_its_own_steps_is_that_of_a_run_of_so_many(
    tiny_model: LatentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"ug": True, "refine": True, "refine_eta2": "0.5"}
    first, own = stages(tiny_model, {"steps": 8}, **settings, refine_steps=4)
    monkeypatch.setattr(Generation, "first_image", lambda _: first.latent)
    of_the_run = stages(tiny_model, {"steps": 4}, **settings)[-1]
    assert torch.equal(own.images, of_the_run.images)
    assert not torch.equal(own.images, stages(tiny_model, {"steps": 8}, **settings)[-1].images)


def test_pfsa_acts_on_the_first_image_only(
    tiny_model: LatentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_pfsa = stages(tiny_model, {}, refine=True, pfsa=True, pfsa_gamma=0.5)
    assert not torch.equal(with_pfsa[0].images, image(tiny_model, {}))
    monkeypatch.setattr(Generation, "first_image", lambda _: with_pfsa[0].latent)
    plain = stages(tiny_model, {}, refine=True)
    assert torch.equal(plain[1].images, with_pfsa[1].images)


def test_an_error_leaves_no_trace(tiny_model: LatentModel) -> None:
    settings = {"ug": True, "pfsa": True, "refine": True}
    before = image(tiny_model, LARGE, **settings)

    def stop(stage: int, step: int, *_: object) -> None:
        if (stage, step) == (0, 2):
            raise RuntimeError("stopped")

    run = Run(
        tiny_model,
        Request(prompt="a red house", steps=4, **LARGE),
        Settings.from_values(settings),
    )
    with pytest.raises(RuntimeError, match="stopped"):
        list(run.generate(on_step=stop))
    assert torch.equal(before, image(tiny_model, LARGE, **settings))


def test_a_measurement_gives_its_own_sizes_schedule_and_clock(tiny_model: LatentModel) -> None:
    settings = Settings.from_values({"refine": True, "refine_eta2": "0.3, 0.3", "pfsa": True})
    request = Request(prompt="a red house", steps=4)
    calls: list[tuple[str, tuple[int, ...]]] = []

    def wrap(name: str, function: Any) -> Any:
        return lambda x: calls.append((name, tuple(x.shape[-2:]))) or function(x)

    def gamma(done: int, steps: int, pfsa: Any) -> float:
        assert steps == 4 and pfsa is settings.pfsa
        return 0.5 if done == 2 else 0.0

    options: dict[str, Any] = {"stage_sizes": [(20, 20), (28, 28)], "gamma": gamma, "wrap": wrap}
    run = Run(tiny_model, request, settings, **options)
    done = list(run.generate())
    assert [tuple(stage.images.shape[-2:]) for stage in done] == [(16, 16), (20, 20), (28, 28)]
    assert calls == [
        ("decode", (8, 8)), ("encode", (20, 20)), ("decode", (10, 10)),
        ("encode", (28, 28)), ("decode", (14, 14)),
    ]  # fmt: skip
    assert run.record.passes[0].mixed_steps == 1
    with pytest.raises(ValueError, match="zip"):
        Run(tiny_model, request, settings, stage_sizes=[(20, 20)])


def test_pivot_starts_at_its_timestep(tiny_model: LatentModel) -> None:
    run = Run(
        tiny_model,
        Request(steps=20, schedule="Uniform"),
        Settings.from_values({"refine": True, "refine_method": "Pivot"}),
    )
    assert run.steps == [20, 15]  # 700 of 1000, and the step that ends the schedule
    (stage,) = run.stages
    assert (stage.enlargement, stage.timestep) == ("latent", 700)


@pytest.mark.slow
def test_tiles_give_an_image_of_the_same_size(tiny_model: LatentModel) -> None:
    request = {"width": 160, "height": 144, "steps": 1}
    tiled = image(tiny_model, request, refine_tile=128)
    assert tiled.shape == (1, 3, 144, 160)
    assert not torch.equal(tiled, image(tiny_model, request))
    assert torch.isfinite(tiled).all()


def test_refuses_ug_where_there_is_nothing_to_guide(tiny_model: LatentModel) -> None:
    with pytest.raises(SettingsError, match="not clearly above the model's native 16x16"):
        Run(tiny_model, Request(), Settings.from_values({"ug": True}))


def test_a_scale_that_leaves_nothing_to_guide_is_named(tiny_model: LatentModel) -> None:
    with pytest.raises(
        SettingsError, match="^ug_scale: at a scale of 1 the native evaluation is about as"
    ):
        Run(tiny_model, Request(**LARGE), Settings.from_values({"ug": True, "ug_scale": 1}))


def test_a_schedule_of_pure_noise_is_guided_at_matched_levels(tiny_folder: Path) -> None:
    """Zero terminal SNR: sigma_max 4096, from which the shifted start goes twice as high."""
    model = load_model(tiny_folder, overrides=Overrides(prediction="v", zero_snr=True))
    levels: list[tuple[int, float]] = []

    def before(_: Any, args: Any) -> None:
        levels.append((args[0].shape[-1], float(args[1].flatten()[0])))

    settings = Settings.from_values({**TO_THE_END, "ug_cadence": 1})
    run = Run(model, Request(prompt="x", steps=6, **LARGE), settings)
    with model.unet.register_forward_pre_hook(before):
        (made,) = run.generate()
    assert torch.isfinite(made.images).all() and torch.isfinite(made.latent).all()
    large = [level for side, level in levels if side == 16]
    native = [level for side, level in levels if side == 8]
    assert (len(large), len(native)) == (6, 6)
    assert large[0] == native[0] == 999
    # D halves the noise: the native evaluation is at half of sigma, a lower timestep.
    sigma = model.denoiser().t_to_sigma
    for one, other in zip(large[1:], native[1:], strict=True):
        ratio = float(sigma(torch.tensor(one)) / sigma(torch.tensor(other)))
        assert ratio == pytest.approx(2, rel=0.02) or one == other == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler": "Eular"}, "sampler: expected one of Euler, Euler a"),
        ({"steps": 0}, "steps: expected a whole number from 1 to 1000, got 0"),
        ({"steps": "x"}, "steps: expected a whole number from 1 to 1000, got 'x'"),
        ({"cfg": float("nan")}, "cfg: expected a number"),
        ({"colour": 1}, "colour: there is no such setting"),
    ],
)
def test_refuses_bad_requests(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Request.from_values(values)


def test_sizes_are_rounded_to_what_the_model_takes(tiny_model: LatentModel) -> None:
    assert image(tiny_model, {"width": 33, "height": 23, "steps": 1}).shape[-2:] == (24, 32)


def test_a_request_leaves_the_cfg_scale_to_the_model(tiny_model: LatentModel) -> None:
    model = replace(tiny_model, cfg=3)
    assert Run(model, Request(), Settings()).about()["request"]["cfg"] == 3
    assert Run(model, Request(cfg=7), Settings()).about()["request"]["cfg"] == 7
    few = {"prompt": "x", "steps": 2}
    assert torch.equal(image(model, few), image(tiny_model, {**few, "cfg": 3}))


@pytest.mark.skipif(not bundled.MODEL.is_file(), reason="the bundled model is not there")
def test_the_bundled_model_has_a_cfg_scale_of_its_own(tiny_model: LatentModel) -> None:
    assert (load_model().cfg, tiny_model.cfg) == (3, 5)
