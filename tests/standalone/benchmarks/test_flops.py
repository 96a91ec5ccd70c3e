"""Counted operations: what was counted by hand, and sums that hold."""

from __future__ import annotations

import pytest

from lib_hires.standalone.benchmarks import flops
from lib_hires.standalone.benchmarks.flops import (
    FAMILIES,
    Counted,
    Work,
    _networks,
    counted,
    towards_goals,
    ways,
)


@pytest.mark.parametrize(("side", "tflop"), [(512, 1.61), (1024, 9.35), (2048, 84.4)])
def test_an_evaluation_of_sd_15_costs_what_was_counted_by_hand(side: int, tflop: float) -> None:
    assert Counted("sd1").evaluation((side, side)) == pytest.approx(tflop, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "tflop"), [(512, 1.61), (1024, 6.4), (2048, 25.6)])
def test_attention_in_windows_costs_as_much_as_the_area(side: int, tflop: float) -> None:
    assert Counted("sd1", 512).evaluation((side, side)) == pytest.approx(tflop, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("decode", [True, False])
def test_tiles_cost_at_most_a_quarter_more_than_the_whole(
    decode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_tiles = flops._vae.__wrapped__((4096, 4096), decode)
    monkeypatch.setattr(flops, "WHOLE", 4096)
    assert in_tiles < 1.25 * flops._vae.__wrapped__((4096, 4096), decode)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "tflop"), [(1024, 13.5), (2048, 71.8)])
def test_an_evaluation_of_sdxl_costs_what_was_counted_by_hand(side: int, tflop: float) -> None:
    assert Counted("sdxl").evaluation((side, side)) == pytest.approx(tflop, rel=0.005)


def test_decode_and_encode_cost_what_was_counted_by_hand() -> None:
    networks = Counted("sd1")
    assert networks.decode((1024, 1024)) == pytest.approx(10.5, rel=0.01)
    assert networks.encode((1024, 1024)) == pytest.approx(4.9, rel=0.01)


def test_both_families_have_the_same_vae() -> None:
    layers = [
        [(name, tuple(weight.shape)) for name, weight in _networks(family)[1].named_parameters()]
        for family, *_ in FAMILIES
    ]
    assert layers[0] == layers[1]


def test_ways_add_up_their_evaluations_decodes_and_encodes() -> None:
    networks, cost = Counted("sd1"), {}
    for way in ways("sd1", 512, 1024):
        cost[way.name] = way.work.tflop(networks)
    large, small = networks.evaluation((1024, 1024)), networks.evaluation((512, 512))
    decode = networks.decode((1024, 1024))
    assert cost["plain_20"] == pytest.approx(20 * large + decode)
    assert cost["ug_cadence_1"] == pytest.approx(20 * (large + small) + decode)
    assert cost["ug_cadence_2"] == pytest.approx(20 * large + 10 * small + decode)
    assert cost["frecas_published"] == pytest.approx(
        40 * small + 10 * large + decode + networks.decode((512, 512))
        + networks.encode((1024, 1024))
    )  # fmt: skip


def test_unfinished_stages_are_counted_as_they_run() -> None:
    """20 steps of which the last 6 are made at 2x: 14 before them."""
    ways = {way.name: way.work for way in towards_goals("sd1", 512, 1024)}
    work = ways["refinement 2x, 0.3, cadence 2, unfinished"]
    assert list(work.evaluations) == [((512, 512), 14), ((1024, 1024), 6), ((512, 512), 3)]
    work = ways["refinement 2x, 0.3, cadence 2"]
    counts: dict[tuple[int, int], int] = {}
    for size, count in work.evaluations:
        counts[size] = counts.get(size, 0) + count
    assert counts == {(512, 512): 20 + 3, (1024, 1024): 6}


def test_nothing_costs_nothing() -> None:
    assert counted(lambda: None) == 0
    assert Work((), ()).tflop(Counted("sd1")) == 0


def test_the_goals_stand_beside_their_ways() -> None:
    goals = {
        (way.name, side): way.goal
        for side in (2048, 4096)
        for way in ways("sdxl", 1024, side)
        if way.goal
    }
    assert goals == {
        ("preset_2x_ug", 2048): {"ratio_to_plain": 1.06},
        ("preset_2x_ug_refine", 2048): {"ratio_to_plain": 0.5},
        ("preset_4x_ug_refine", 4096): {"tflop": 2100.0},
    }


@pytest.mark.slow
def test_the_presets_keep_their_goals_at_twice_the_side() -> None:
    whole, windowed = Counted("sdxl"), Counted("sdxl", 1024)
    tflop = {
        way.name: way.work.tflop(windowed if way.work.windows else whole)
        for way in ways("sdxl", 1024, 2048)
        if way.goal or way.name == "plain_20"
    }
    assert tflop["preset_2x_ug"] <= 1.06 * tflop["plain_20"]
    assert tflop["preset_2x_ug_refine"] <= 0.5 * tflop["plain_20"]


def test_sizes_between_are_those_that_the_networks_take() -> None:
    """SD 1.5 halves its latent three times, SDXL twice."""
    for family, native, side in (("sd1", 512, 832), ("sdxl", 1024, 1632)):
        preset = next(
            way.work
            for way in ways(family, native, 2 * native)
            if way.name == "preset_2x_ug_refine"
        )
        assert list(preset.decodes) == [(native,) * 2, (side,) * 2, (2 * native,) * 2]


@pytest.mark.slow
def test_rows_compare_with_plain_sampling_and_ap_ldm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "FAMILIES", (("sd1", "SD 1.5", 512, (1024,)),))
    rows = {(row["name"], row["side"]): row for row in flops.flops_rows()}
    plain, ap_ldm = rows["plain_20", 1024], rows["ap_ldm_published", 1024]
    assert plain["ratio_to_plain"] == ap_ldm["ratio_to_ap_ldm"] == 1
    assert ap_ldm["ratio_to_plain"] == pytest.approx(ap_ldm["tflop"] / plain["tflop"])
    text = "\n".join(flops.flops_table(list(rows.values())))
    assert all(name in text for name, _ in rows)
