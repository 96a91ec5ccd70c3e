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

from lib_hires.feature_upsampler import FeatureUpsampler, default_layers
from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.benchmarks.techniques import FIT_FOR_UPSAMPLERS
from lib_hires.standalone.cli import main
from lib_hires.standalone.models.latent import LatentModel
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.png import read_about
from lib_hires.standalone.pipeline.request import Request
from lib_hires.standalone.training import upsampler as module
from lib_hires.standalone.training.upsampler import info_for, train_upsampler, weights_hash
from lib_hires.standalone.training.upsampler_config import UpsamplerTraining
from lib_hires.standalone.training.upsampler_data import ImageFolder, drawn
from lib_hires.upsampler_file import NamedUpsampler, read_upsampler, write_upsampler

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


def trained_for(model: LatentModel, scale: float = 2.0) -> NamedUpsampler:
    """An upsampler for the tiny model whose weights are all random."""
    torch.manual_seed(1)
    weights = FeatureUpsampler(info_for(model, UpsamplerTraining(scale=scale), "0" * 64))
    weights.requires_grad_(False)
    for weight in weights.parameters():
        weight.copy_(torch.randn(weight.shape))
    return NamedUpsampler("mine", "0123456789", weights)


# --- training -------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_leaves_file_record_and_plot(train, tiny_folder, folder):
    result = train("long", steps=20, batch=8, samples=1, validate_every=20)
    (_, before), (_, after) = result["validation"]
    assert after < before
    assert len(result["loss"]) == 20
    folder = folder / "long"
    upsampler, _ = read_upsampler(folder / "tiny.safetensors")
    info = upsampler.info
    assert (info.family, info.base, info.steps, info.scale) == ("sd1", "tiny", 20, 2.0)
    assert info.base_hash == weights_hash(tiny_folder)
    with Image.open(folder / "tiny.png") as plot:
        assert plot.width > 500
    names = sorted(path.name for path in (folder / "samples").iterdir())
    assert names == ["0000000.png", "0000020.png"]
    with Image.open(folder / "samples" / names[1]) as sheet:
        pixels = np.asarray(sheet).astype(int)
    assert pixels.shape == (64, 32, 3)
    assert (pixels[:32] != pixels[32:]).any()
    with Image.open(folder / "samples" / names[0]) as sheet:
        untrained = np.asarray(sheet).astype(int)
    assert (untrained[:32] == untrained[32:]).all()


@pytest.mark.parametrize(
    "options",
    [{"accumulation": 4}, {"checkpointing": True}],
    ids=["parts", "checkpointing"],
)
def test_parts_and_checkpointing_change_nothing_but_rounding(train, plain, options) -> None:
    assert_same(plain, train(next(iter(options)), **options), rounded=True)


def test_a_cache_is_filled_once_and_changes_nothing(train, plain, tmp_path, monkeypatch) -> None:
    assert_same(plain, train("filling", tmp_path), rounded=True)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert any("latents" in path.name for path in kept)
    assert any("caption" in path.name for path in kept)
    monkeypatch.setattr(LatentModel, "encode", None)
    assert_same(plain, train("filled", tmp_path), rounded=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == kept


def test_a_resumed_training_is_the_one_without_a_stop(train, plain, monkeypatch) -> None:
    steps = []
    step = module._Training._step

    def interrupted(self: Any, part: int) -> float:
        if len(steps) == 4:  # one step after the checkpoint
            raise KeyboardInterrupt
        steps.append(1)
        return step(self, part)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module._Training, "_step", interrupted)
        train("stopped")
    assert_same(plain, train("stopped"))


def test_two_processes_train_as_one(plain, tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """With accelerate's launcher and gradients averaged by torch's own process group."""
    out = tmp_path / "two" / "tiny.safetensors"
    files = {"model": tiny_folder, "data": data, "out": out, "work": out.parent}
    said = in_two_processes("train-upsampler", **TINY, **files)
    assert said.count("6 steps") == 1
    two = record(out)
    assert (plain["processes"], two["processes"]) == (1, 2)
    assert_same(plain, two, rounded=True)


def test_mixed_precision_trains(train, plain) -> None:
    mixed = train("mixed", mixed_precision="bf16")
    for (_, loss), (_, exact) in zip(mixed["validation"], plain["validation"], strict=True):
        assert loss != exact
        assert loss == pytest.approx(exact, rel=0.02)


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
    ("options", "sentence"),
    [
        ({"batch": 5, "accumulation": 2}, "batch: expected a multiple of 2"),
        ({"layers": "0,9"}, "layers: expected some of 0 to 3, got '0,9'"),
        ({"layers": "first"}, "layers: expected some of 0 to 3, got 'first'"),
        ({"layers": "2,1"}, "layers: expected rising whole numbers"),
        ({"steps": 0}, "steps: expected a whole number from 1"),
        ({"scale": 3}, "scale: expected a number from 1.15 to 2, got 3"),
    ],
)
def test_bad_options_are_refused(train, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        train("bad", **options)
    assert str(refused.value).startswith(sentence)


def test_another_models_data_must_be_given(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--data: expected a folder of captioned images"):
        train_upsampler(
            tmp_path / "a.safetensors", config=UpsamplerTraining(**TINY), model_path=tiny_folder
        )


def test_a_checkpoint_of_another_upsampler_or_damaged_is_refused(train, plain, folder) -> None:
    with pytest.raises(SettingsError, match="of another upsampler; give another --work"):
        train("plain", width=4)
    (folder / "damaged").mkdir()
    (folder / "damaged" / "checkpoint.safetensors").write_bytes(b"damaged")
    with pytest.raises(SettingsError, match="damaged, remove it to begin anew"):
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
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(SettingsError, match=r"c.png is not an image that can be read"):
        ImageFolder(tmp_path, (32, 32))


def test_images_are_cropped_around_the_middle_and_reduced(tmp_path: Path) -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(" a red house\n")
    folder = ImageFolder(tmp_path, (32, 32))
    large, small = folder.pair(0, (40, 40), (20, 20))
    assert (large.size, small.size) == ((40, 40), (20, 20))
    assert np.asarray(large).min() > 250 and np.asarray(small).min() > 250
    assert folder.caption(0) == "a red house"


def test_a_changed_caption_makes_the_cache_another(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "copy")
    folder = ImageFolder(tmp_path / "copy", (32, 32))
    before = folder.identity()
    assert folder.identity() == before
    (tmp_path / "copy" / "3.txt").write_text("a blue car\n")
    assert folder.identity() != before


# --- in runs --------------------------------------------------------------------------------------

REFINED = {"refine": True, "refine_eta2": "0.5"}


def images(
    model: LatentModel, upsampler: NamedUpsampler | None, batch: int = 1, **settings: Any
) -> tuple[torch.Tensor, Any]:
    request = Request(prompt="a red house", steps=4, seed=5, batch=batch)
    run = Run(model, request, Settings.from_values(REFINED | settings), upsampler)
    *_, last = run.paint()
    return last.images, last


def hooks(unet: Any) -> int:
    return sum(len(part._forward_pre_hooks) for part in unet.modules())


@pytest.mark.parametrize("settings", [{}, {"ug": True}, {"refine_method": "Pivot"}], ids=str)
def test_untrained_it_changes_no_bit_of_a_image(tiny_model: LatentModel, settings) -> None:
    info = info_for(tiny_model, UpsamplerTraining(), "0" * 64)
    untrained = NamedUpsampler("untrained", "0", FeatureUpsampler(info).requires_grad_(False))
    plain, _ = images(tiny_model, None, **settings)
    assert torch.equal(images(tiny_model, untrained, **settings)[0], plain)
    assert not torch.equal(images(tiny_model, trained_for(tiny_model), **settings)[0], plain)


def test_it_costs_one_call_a_stage_and_leaves_no_hook(tiny_model: LatentModel) -> None:
    _, plain = images(tiny_model, None, ug=True)
    _, with_it = images(tiny_model, trained_for(tiny_model), ug=True)
    assert with_it.model_evaluations == plain.model_evaluations + 1
    assert with_it.native_evaluations == plain.native_evaluations
    assert hooks(tiny_model.unet) == 0


def test_an_image_of_a_batch_is_the_image_alone(tiny_model: LatentModel) -> None:
    upsampler = trained_for(tiny_model)
    batch, _ = images(tiny_model, upsampler, batch=2, ug=True)
    alone, _ = images(tiny_model, upsampler, ug=True)
    torch.testing.assert_close(batch[:1], alone, rtol=0, atol=1e-4)


def test_it_serves_the_stages_that_fit_and_no_other(tiny_model: LatentModel) -> None:
    upsampler = trained_for(tiny_model)
    _, plain = images(tiny_model, None, refine_factor=4, refine_method="Pivot")
    _, both = images(tiny_model, upsampler, refine_factor=4, refine_method="Pivot")
    assert both.model_evaluations == plain.model_evaluations + 2
    with pytest.raises(SettingsError, match=r"trained for stages of 2 times .* none from 16x16 to"):
        images(tiny_model, upsampler, refine_factor=4)
    _, unrefined = images(tiny_model, None, refine=False)
    assert images(tiny_model, upsampler, refine=False)[1].model_evaluations == (
        unrefined.model_evaluations
    )


def test_techniques_with_an_upsampler_have_stages_that_fit(tiny_model: LatentModel) -> None:
    upsampler = trained_for(tiny_model)
    for scale, techniques in FIT_FOR_UPSAMPLERS.items():
        for technique in techniques:
            request = technique.request(Request(prompt="a red house"), scale, tiny_model)
            Run(tiny_model, request, technique.settings_at(scale), upsampler)


def test_an_upsampler_of_another_model_is_refused(tiny_model: LatentModel) -> None:
    config = UpsamplerTraining(layers=",".join(map(str, default_layers(tiny_model.unet))))
    info = info_for(tiny_model, config, "0" * 64)
    other = FeatureUpsampler(type(info)(**(vars(info) | {"family": "sdxl"})))
    sentence = r"refine_upsampler: other was trained on tiny \(sdxl, features of"
    with pytest.raises(SettingsError, match=sentence):
        images(tiny_model, NamedUpsampler("other", "0", other))


def test_images_keep_its_name_and_hash_and_repeat(
    tiny_model: LatentModel, tiny_folder: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    file = tmp_path / "mine.safetensors"
    weights = trained_for(tiny_model).weights
    write_upsampler(file, weights, weights.info)

    def hires(*options: str | Path) -> tuple[int, str, str]:
        common = ["generate", "--model", tiny_folder, "--out", tmp_path / "out", "--steps", "4"]
        code = main([str(word) for word in (*common, *options)])
        captured = capsys.readouterr()
        return code, captured.out.strip(), captured.err

    refined = ("a red house", "--refine", "--refine-eta2", "0.5")
    code, first, _ = hires(*refined, "--refine-upsampler", file)
    assert code == 0
    short_hash = read_upsampler(file)[1]
    assert read_about(Path(first))["settings"]["refine_upsampler"] == f"mine [{short_hash}]"
    _, plain, _ = hires(*refined)
    monkeypatch.chdir(tmp_path)
    code, again, _ = hires("--from", first)
    assert code == 0
    pixels = [np.asarray(Image.open(path)) for path in (first, again, plain)]
    assert np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(pixels[0], pixels[2])

    write_upsampler(file, FeatureUpsampler(weights.info), weights.info)
    code, out, said = hires("--from", first)
    assert (code, out) == (2, "")
    assert f"mine [{short_hash}] is no longer here; mine is another file now" in said
    assert hires("--from", first, "--no-refine")[0] == 0
    assert hires("--from", first, "--refine-upsampler", file)[0] == 0
    code, _, said = hires(*refined, "--refine-upsampler", tmp_path / "nowhere.safetensors")
    assert (code, "nowhere.safetensors: could not be read (No such" in said) == (2, True)
