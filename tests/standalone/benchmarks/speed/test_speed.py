"""The speed benchmark in small: what it counts, and that its bound is one."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from lib_hires.settings import Settings
from lib_hires.standalone.benchmarks.memory import peak_memory
from lib_hires.standalone.benchmarks.processes import in_fresh_process
from lib_hires.standalone.benchmarks.speed import _peak_of_mixing, speed
from lib_hires.standalone.benchmarks.speed.real_size import random_model, real_size_table, rows_of
from lib_hires.standalone.benchmarks.speed.timing import PartTimes, Timed, bound, ratio, time_run
from lib_hires.standalone.cli import main
from lib_hires.standalone.models.latent import LatentModel


def test_every_call_of_the_model_is_timed_by_its_size(tiny_model: LatentModel) -> None:
    hooks = len(tiny_model.unet._forward_hooks)
    settings = Settings.from_values({"ug": True, "ug_eta": 1, "ug_cadence": 1})
    guided = time_run(tiny_model, settings, (32, 32), steps=3)
    parts, side = guided.parts, 32 // tiny_model.factor
    assert len(parts.of("unet", (side, side))) == len(parts.of("unet", (side // 2, side // 2))) == 3
    assert (len(parts.of("decode")), len(parts.of("encode")), len(parts.of("text"))) == (1, 0, 2)
    assert 0 < parts.total < guided.seconds
    assert len(tiny_model.unet._forward_hooks) == hooks


def test_the_bound_counts_calls_at_their_median_cost() -> None:
    def timed(seconds: float, **calls: list[float]) -> Timed:
        return Timed(seconds, PartTimes({(name, (8, 8), 2): took for name, took in calls.items()}))

    plain = [timed(5.0, unet=[1.0, 1.0], decode=[2.0]), timed(9.0, unet=[1.0, 9.0], decode=[2.0])]
    guided = [timed(6.0, unet=[1.0, 1.0, 1.0], decode=[2.0])] * 2
    assert bound(guided, plain) == pytest.approx(5 / 7)
    assert ratio(guided, plain) == pytest.approx((6 / 5 + 6 / 9) / 2)


@pytest.mark.slow
def test_the_report_has_a_row_for_every_case(tiny_model: LatentModel, tmp_path: Path) -> None:
    output = speed(tmp_path, tiny_model, scales=(2,), steps=3, repeats=1, areas=(1, 4))
    rows = {row["name"].strip(): row for row in json.loads((tmp_path / "report.json").read_text())}
    guided, refined = rows["UG, 2x"], rows["refinement 0.2, 2x"]
    assert guided["settings"] == {"ug": True, "ug_eta": 1, "ug_cadence": 1}
    assert refined["goal"] == 0.6
    assert all(row["ratio"] > 0 and row["bound"] > 0 for row in (guided, refined))
    for name in ("plain", "UG", "refinement 0.2"):
        assert 0 < rows[f"beside the model, {name}, 2x"]["ratio"] < 1
    for method in ("AP-LDM", "Pivot"):
        added = rows[f"feature upsampler, the stage to 2x, {method}"]
        assert (added["goal"], added["ratio"] > 0, added["bound"] > 1) == (1.1, True, True)
    assert rows["one evaluation whole, 4.00 times the area"]["bound"] == 4
    assert rows["one evaluation in 9 windows, 4.00 times the area"]["bound"] == 9
    assert rows["decode in tiles, largest difference"]["ratio"] >= 0
    assert (tmp_path / "growth.png").is_file()
    assert rows["SD 1.5 and SDXL, 2048x2048 and 4096x4096"]["failed"].startswith("skipped: no CUDA")
    threads = torch.get_num_threads()
    assert output.splitlines()[0] == f"3 steps, median of 1, {threads} threads, torch.float32"
    assert guided["made_with"]["threads"] == threads


def test_networks_of_real_size_have_the_published_number_of_weights() -> None:
    for family, weights in (("sd1", 859_520_964), ("sdxl", 2_567_463_684)):
        model = random_model(family, torch.device("meta"), torch.bfloat16)
        assert sum(each.numel() for each in model.unet.parameters()) == weights
        assert sum(each.numel() for each in model.vae.parameters()) == 83_653_863
        assert {each.dtype for each in model.unet.parameters()} == {torch.bfloat16}
        assert model.native == {"sd1": (512, 512), "sdxl": (1024, 1024)}[family]
        cond = model.encode_prompts(["x"], [""])
        assert cond.cond.shape == (1, 77, model.unet.config.cross_attention_dim)
        assert (cond.pooled_cond is None) == (family == "sd1")
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.slow
def test_every_way_to_a_large_image_is_timed_and_measured(tiny_model: LatentModel) -> None:
    rows = list(rows_of(tiny_model, 64, steps=3))
    ways = [row["name"].rpartition(", ")[2] for row in rows]
    assert ways[:2] == ["plain", "UG"]
    assert rows[0]["ratio"] == 1
    for row in rows:
        parts = row["unet"] + row["encode"] + row["decode"] + row["rest"]
        assert parts == pytest.approx(1)
        assert min(row["unet"], row["decode"], row["rest"]) > 0
        assert (row["encode"] > 0) == ("refine" in row["settings"])
        assert row["bound"] > 0
    table = list(real_size_table([row | {"card": "a card", "dtype": "float16"} for row in rows]))
    assert table[0] == "a card, float16, each run once"
    assert len(table) == len(rows) + 2


def test_what_does_not_fit_is_reported_and_the_rest_goes_on(tiny_model: LatentModel) -> None:
    def full(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[-1] > 16 // tiny_model.factor:
            raise torch.OutOfMemoryError("no room")

    with tiny_model.unet.register_forward_pre_hook(full):
        rows = list(rows_of(tiny_model, 64, steps=3))
    assert [row.get("failed") for row in rows] == [*["no room"] * 4, None]
    assert "ratio" not in rows[-1]
    assert list(real_size_table(rows))[1].endswith(" no room")


def test_a_tile_of_the_caller_goes_before_the_settings(tiny_model: LatentModel) -> None:
    calls: list[None] = []
    with tiny_model.vae.decoder.register_forward_hook(lambda *_: calls.append(None)):
        whole = time_run(tiny_model, Settings(), (64, 64), 2, tile=0)
        assert len(calls) == 1
        tiled = time_run(tiny_model, Settings(), (64, 64), 2, tile=16)
    assert len(calls) > 2
    assert len(whole.parts.of("decode")) == len(tiled.parts.of("decode")) == 1


def test_a_device_that_is_no_card_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "speed", "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "--device: expected a CUDA device, got 'cpu'" in capsys.readouterr().err


@pytest.mark.parametrize("sides", ["2048, x", "1024", "2050", "8256", ","])
def test_sides_that_cannot_be_generated_are_refused(
    sides: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "speed", "--out", str(tmp_path), "--sides", sides]) == 2
    assert "--sides: expected multiples of 64 from 1280 to 8192" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peak of memory")
def test_mixing_takes_less_than_all_products_of_two_positions() -> None:
    # A system that is short of memory may take other pages of the process away meanwhile: the
    # largest of three is right. Mixing alone may fit in memory that the process holds before.
    device, products = torch.device("cpu"), 64**4
    whole = partial(peak_memory, device, partial(torch.ones, products))
    of_products = max(in_fresh_process(whole) for _ in range(3))
    of_mixing = max(in_fresh_process(_peak_of_mixing, (1, 4, 64, 64), device) for _ in range(3))
    assert of_mixing < of_products / 2 and of_products > 0.9 * 4 * products
