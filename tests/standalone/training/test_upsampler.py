"""Training feature upsamplers on a tiny random model, and using them in runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from launched import in_two_processes
from PIL import Image
from safetensors.torch import load_file

from lib_hires.settings import SettingsError
from lib_hires.standalone.models import precision
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.training.loop import Progress
from lib_hires.standalone.training.upsampler import (
    precision_of,
    train_upsampler,
    weights_hash,
)
from lib_hires.standalone.training.upsampler.data import ImageFolder, drawn
from lib_hires.standalone.training.upsampler.steps import Steps
from lib_hires.standalone.training.upsampler_config import UpsamplerTraining
from lib_hires.upsampler_file import read_upsampler

TINY = {"steps": 6, "batch": 4, "rate": 0.02, "warmup": 2, "samples": 0, "save_every": 3}
TINY |= {"mixed_precision": "no"}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten captioned images, coloured patches."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for number in range(10):
        patches = rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(patches).resize((40, 36)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red house\n")
    return folder


Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where trainings leave their files, each in a folder of its name."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def train(tiny_folder: Path, data: Path, folder: Path) -> Train:
    """Train in `folder / name`; returns the record with the weights under "weights"."""

    def run(name: str, cache: Path | None = None, **options: Any) -> dict[str, Any]:
        out = folder / name / "tiny.safetensors"
        config = UpsamplerTraining(**(TINY | options))
        # accelerate keeps its precision for the life of a process.
        AcceleratorState._reset_state(reset_partial_state=True)
        train_upsampler(
            out, config=config, model_path=tiny_folder, data=data, work=out.parent, cache=cache
        )
        return record(out)

    return run


@pytest.fixture(scope="module")
def plain(train: Train) -> dict[str, Any]:
    """What others are compared with."""
    return train("plain")


def record(out: Path) -> dict[str, Any]:
    return json.loads(out.with_suffix(".json").read_text()) | {"weights": load_file(out)}


def assert_same(one: dict[str, Any], other: dict[str, Any], rounded: bool = False) -> None:
    """rounded: Adam divides by the gradient's size, which makes more of its rounding."""
    for name, value in one["weights"].items():
        atol = 2e-3 if rounded else 0
        torch.testing.assert_close(other["weights"][name], value, rtol=0, atol=atol)
    losses = [[loss for _, loss in run["loss"] + run["validation"]] for run in (one, other)]
    np.testing.assert_allclose(*losses, atol=1e-5 if rounded else 0)


# --- training -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_file_record_and_plot(train, tiny_folder, folder):
    result = train("long", steps=12, batch=6, samples=1, validate_every=12)
    (_, before), (_, after) = result["validation"]
    assert after < before
    assert len(result["loss"]) == 12
    folder = folder / "long"
    upsampler, _ = read_upsampler(folder / "tiny.safetensors")
    info = upsampler.info
    assert (info.family, info.base, info.steps, info.scale) == ("sd1", "tiny", 12, 2.0)
    assert info.base_hash == weights_hash(tiny_folder)
    with Image.open(folder / "tiny.png") as plot:
        assert plot.width > 500
    names = sorted(path.name for path in (folder / "samples").iterdir())
    assert names == ["0000000.png", "0000012.png"]
    with Image.open(folder / "samples" / names[1]) as sheet:
        pixels = np.asarray(sheet).astype(int)
    assert pixels.shape == (64, 32, 3)
    assert (pixels[:32] != pixels[32:]).any()
    with Image.open(folder / "samples" / names[0]) as sheet:
        untrained = np.asarray(sheet).astype(int)
    assert (untrained[:32] == untrained[32:]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"accumulation": 4}, {"checkpointing": True}],
    ids=["parts", "checkpointing"],
)
def test_parts_and_checkpointing_change_nothing_but_rounding(train, plain, options) -> None:
    assert_same(plain, train(next(iter(options)), **options), rounded=True)


@pytest.mark.slow
def test_a_cache_is_filled_once_and_changes_nothing(train, plain, tmp_path, monkeypatch) -> None:
    assert_same(plain, train("filling", tmp_path), rounded=True)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert any("latents" in path.name for path in kept)
    assert any("caption" in path.name for path in kept)
    monkeypatch.setattr(LatentModel, "encode", None)
    assert_same(plain, train("filled", tmp_path), rounded=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == kept


def test_a_resumed_training_is_the_one_without_a_stop(train, plain, monkeypatch) -> None:
    compute = Steps.compute

    def interrupted(self: Steps, progress: Progress) -> Any:
        if progress.step == 4:  # one step after the checkpoint
            raise KeyboardInterrupt
        return compute(self, progress)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Steps, "compute", interrupted)
        train("stopped")
    assert_same(plain, train("stopped"))


@pytest.mark.slow
def test_two_processes_train_as_one(plain, tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """With accelerate's launcher and gradients averaged by torch's own process group."""
    out = tmp_path / "two" / "tiny.safetensors"
    files = {"model": tiny_folder, "data": data, "out": out, "work": out.parent}
    output = in_two_processes("train-upsampler", **TINY, **files)
    assert output.count("6 steps") == 1
    two = record(out)
    assert (plain["processes"], two["processes"]) == (1, 2)
    assert_same(plain, two, rounded=True)


def test_mixed_precision_trains(train, plain) -> None:
    mixed = train("mixed", mixed_precision="bf16")
    for (_, loss), (_, exact) in zip(mixed["validation"], plain["validation"], strict=True):
        assert loss != exact
        assert loss == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(
    ("wanted", "device", "slow", "expected"),
    [
        ("auto", "cuda", True, "bf16"),
        ("auto", "cpu", False, "bf16"),
        ("auto", "cpu", True, "no"),
        ("bf16", "cpu", True, "bf16"),
        ("no", "cpu", True, "no"),
    ],
)
def test_half_precision_on_a_cpu_is_chosen_where_it_is_fast(
    wanted: str, device: str, slow: bool, expected: str, monkeypatch, caplog
) -> None:
    for limit in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(limit, raising=False)
    monkeypatch.setattr(precision, "_processor", lambda: () if slow else ("avx512_bf16",))
    assert precision_of(UpsamplerTraining(mixed_precision=wanted), device) == expected
    assert ("bfloat16 is slow here" in caplog.text) == ((wanted, device) == ("bf16", "cpu"))


def test_timesteps_are_uniform_in_1_to_k_and_steps_differ() -> None:
    config = UpsamplerTraining(batch=50, pivot=100)
    t = np.concatenate([drawn(config, step, 7).t for step in range(40)])
    assert (t.min(), t.max()) == (1, 100)
    counts = np.bincount(t, minlength=101)[1:]
    assert counts.min() > 5 and counts.max() < 40
    first, second = drawn(config, 0, 7), drawn(config, 1, 7)
    assert (first.seeds != second.seeds).all()
    assert set(first.indices) <= set(range(7))


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    config = UpsamplerTraining(steps=100, rate=1.0, warmup=10, decay=0.5)
    rates = [config.rate_at(step) for step in (0, 9, 49, 75, 99)]
    assert rates == pytest.approx([0.1, 1, 1, 0.5, 0.02])


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 5, "accumulation": 2}, "batch: expected a multiple of 2"),
        ({"layers": "0,9"}, "layers: expected some of 0 to 3, got '0,9'"),
        ({"layers": "first"}, "layers: expected some of 0 to 3, got 'first'"),
        ({"layers": "2,1"}, "layers: expected rising whole numbers"),
        ({"steps": 0}, "steps: expected a whole number from 1"),
        ({"scale": 3}, "scale: expected a number from 1.15 to 2, got 3"),
    ],
)
def test_bad_options_are_refused(train, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        train("bad", **options)
    assert str(refused.value).startswith(message)


def test_another_models_data_must_be_given(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--data: expected a folder of captioned images"):
        train_upsampler(
            tmp_path / "a.safetensors", config=UpsamplerTraining(**TINY), model_path=tiny_folder
        )


def test_a_checkpoint_of_another_upsampler_or_damaged_is_refused(train, plain, folder) -> None:
    with pytest.raises(SettingsError, match="of another upsampler; give another --work"):
        train("plain", width=4)
    (folder / "damaged").mkdir()
    (folder / "damaged" / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(SettingsError, match="damaged, remove it to begin anew"):
        train("damaged")
    (folder / "damaged" / "checkpoint.safetensors").touch()
    with pytest.raises(SettingsError, match="checkpoint.safetensors: of version 0.1"):
        train("damaged")


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path, caplog) -> None:
    with pytest.raises(SettingsError, match="--data: there is no folder"):
        ImageFolder(tmp_path / "nowhere", (32, 32))
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    with pytest.raises(SettingsError, match=r"a.png has no caption; write it into a.txt"):
        ImageFolder(tmp_path, (32, 32))
    (tmp_path / "a.txt").write_text("a red house")
    Image.new("RGB", (40, 30)).save(tmp_path / "b.jpg")
    assert len(ImageFolder(tmp_path, (32, 32))) == 1
    assert "1 smaller than 32x32, left out" in caplog.text
    with pytest.raises(SettingsError, match="has no image of at least 64x64"):
        ImageFolder(tmp_path, (64, 64))
    (tmp_path / "a.txt").write_bytes("a red h\xf6use".encode("cp1252"))
    with pytest.raises(SettingsError, match=r"--data: .*a.txt is not UTF-8 text"):
        ImageFolder(tmp_path, (32, 32))
    (tmp_path / "a.txt").write_text("a red house")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "c.jpg")
    whole = (tmp_path / "c.jpg").read_bytes()
    for content in (b"no image", whole[: len(whole) // 2]):
        (tmp_path / "c.jpg").write_bytes(content)
        with pytest.raises(SettingsError, match=r"--data: .*c.jpg is not an image that can be rea"):
            ImageFolder(tmp_path, (32, 32))


def test_images_are_cropped_around_the_middle_and_reduced(tmp_path: Path) -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text(" a red house\n")
    folder = ImageFolder(tmp_path, (32, 32))
    large, small = folder.pair(0, (40, 40), (20, 20))
    assert (large.size, small.size) == ((40, 40), (20, 20))
    assert np.asarray(large).min() > 250 and np.asarray(small).min() > 250
    assert folder.caption(0) == "a red house"


def test_a_changed_caption_makes_the_cache_another(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "copy")
    before = ImageFolder(tmp_path / "copy", (32, 32)).identity()
    assert ImageFolder(tmp_path / "copy", (32, 32)).identity() == before
    (tmp_path / "copy" / "3.txt").write_text("a blue car\n")
    assert ImageFolder(tmp_path / "copy", (32, 32)).identity() != before
