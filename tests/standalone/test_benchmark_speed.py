"""The speed benchmark in small: what it counts, and that its bound is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lib_hires.settings import Settings
from lib_hires.standalone.benchmark_speed import (
    PartTimes,
    Timed,
    _bound,
    _ratio,
    speed,
    time_run,
)
from lib_hires.standalone.latent_model import LatentModel


def test_every_call_of_the_model_is_timed_by_its_size(tiny_model: LatentModel) -> None:
    hooks = len(tiny_model.unet._forward_hooks)
    guided = time_run(tiny_model, Settings.from_values({"ug": True}), (32, 32), steps=3)
    parts, side = guided.parts, 32 // tiny_model.factor
    assert len(parts.of("unet", (side, side))) == len(parts.of("unet", (side // 2, side // 2))) == 3
    assert (len(parts.of("decode")), len(parts.of("encode")), len(parts.of("text"))) == (1, 0, 2)
    assert 0 < parts.total < guided.seconds
    assert len(tiny_model.unet._forward_hooks) == hooks


def test_the_bound_counts_calls_at_their_median_cost() -> None:
    def timed(seconds: float, **calls: list[float]) -> Timed:
        return Timed(seconds, PartTimes({(name, (8, 8)): took for name, took in calls.items()}))

    plain = [timed(5.0, unet=[1.0, 1.0], decode=[2.0]), timed(9.0, unet=[1.0, 9.0], decode=[2.0])]
    guided = [timed(6.0, unet=[1.0, 1.0, 1.0], decode=[2.0])] * 2
    assert _bound(guided, plain) == pytest.approx(5 / 7)
    assert _ratio(guided, plain) == pytest.approx((6 / 5 + 6 / 9) / 2)


def test_the_report_has_a_row_for_every_case(tiny_model: LatentModel, tmp_path: Path) -> None:
    said = speed(tmp_path, tiny_model, scales=(2,), steps=3, repeats=1, areas=(1, 4))
    rows = {row["name"].strip(): row for row in json.loads((tmp_path / "report.json").read_text())}
    guided, refined = rows["UG, 2x"], rows["refinement 0.2, 2x"]
    assert guided["settings"] == {"ug": True}
    assert refined["goal"] == 0.6
    assert all(row["ratio"] > 0 and row["bound"] > 0 for row in (guided, refined))
    for method in ("AP-LDM", "Pivot"):
        added = rows[f"feature upsampler, the stage to 2x, {method}"]
        assert (added["goal"], added["ratio"] > 0, added["bound"] > 1) == (1.1, True, True)
    assert rows["one evaluation whole, 4.00 times the area"]["bound"] == 4
    assert rows["one evaluation in 9 windows, 4.00 times the area"]["bound"] == 9
    assert rows["decode in tiles, largest difference"]["ratio"] >= 0
    assert (tmp_path / "growth.png").is_file()
    assert said.splitlines()[0] == f"3 steps, median of 1, {torch.get_num_threads()} threads, " + (
        "torch.float32"
    )
