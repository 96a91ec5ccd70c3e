"""Counted operations: what was counted by hand, and sums that hold."""

from __future__ import annotations

import pytest

from lib_hires.standalone.benchmarks.flops import (
    FAMILIES,
    Counted,
    Work,
    _networks,
    counted,
    flops_rows,
    flops_table,
    ways,
)


@pytest.mark.parametrize(("side", "tflop"), [(512, 1.61), (1024, 9.35), (2048, 84.4)])
def test_an_evaluation_of_sd_15_costs_what_was_counted_by_hand(side: int, tflop: float) -> None:
    assert Counted("sd1").evaluation((side, side)) == pytest.approx(tflop, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "tflop"), [(1024, 13.5), (2048, 71.8), (4096, 576)])
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


def test_nothing_costs_nothing() -> None:
    assert counted(lambda: None) == 0
    assert Work((), ()).tflop(Counted("sd1")) == 0


@pytest.mark.slow
def test_the_report_has_every_row_and_the_goals() -> None:
    rows = list(flops_rows())
    assert {row["side"] for row in rows if row["model"] == "SDXL"} == {1024, 2048, 4096}
    goals = {(row["name"], row["side"]): row["goal"] for row in rows if "goal" in row}
    assert goals == {
        ("ug_cadence_1", 2048): {"ratio_to_plain": 1.06},
        ("preset_2x_ug_refine", 2048): {"ratio_to_plain": 0.5},
        ("preset_4x_ug_refine", 4096): {"tflop": 2100.0},
    }
    assert len("\n".join(flops_table(rows)).splitlines()) > len(rows)
