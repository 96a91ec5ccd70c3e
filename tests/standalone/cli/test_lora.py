"""LoRA from the command line: in the image, in its PNG text, and back by --from."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_lora
import torch
from PIL import Image
from tiny_lora import ALPHA, RANK, random_pairs
from tiny_models import write_folder

from lib_hires.settings import Settings, SettingsError
from lib_hires.standalone.cli import _parser, main
from lib_hires.standalone.cli.generate import Job, _warn_of_loras, resolve
from lib_hires.standalone.models import load_model
from lib_hires.standalone.models.latent import Lora
from lib_hires.standalone.models.lora import with_loras
from lib_hires.standalone.pipeline.generate import Run
from lib_hires.standalone.pipeline.outputs import read_about, save
from lib_hires.standalone.pipeline.request import Request, weighted_file

GUIDED = ["red", "--steps", "2", "--width", "32", "--ug"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a model, a LoRA for it at `a`, another at `a` of `other`, and one of SDXL."""
    folder = tmp_path_factory.mktemp("lora")
    (folder / "other").mkdir()
    for family, name in (("sd1", "a.safetensors"), ("sdxl", "xl.safetensors")):
        model = load_model(write_folder(folder / family, family, "eps"))
        tiny_lora.write_lora(folder / name, random_pairs(model))
    half = random_pairs(load_model(folder / "sd1"), text=[])
    tiny_lora.write_lora(folder / "other" / "a.safetensors", half)
    return folder


def generate(folder: Path, *words: str) -> tuple[int, Path | None]:
    """The exit code, and the image that came new."""
    out = folder / "out"
    before = set(out.glob("*.png"))
    code = main(["generate", "--model", str(folder / "sd1"), "--out", str(out), *words])
    new = set(out.glob("*.png")) - before
    return code, new.pop() if new else None


def pixels(path: Path | None) -> bytes:
    assert path is not None
    with Image.open(path) as image:
        return image.tobytes()


@pytest.mark.slow
def test_an_image_with_lora_is_repeated_from_its_png(folder: Path, capsys) -> None:
    lora = folder / "a.safetensors"
    plain = pixels(generate(folder, *GUIDED)[1])
    _, first = generate(folder, *GUIDED, "--lora", f"{lora}:0.6")
    assert pixels(first) != plain
    assert first is not None
    (stated,) = read_about(first)["loras"]
    assert (stated["name"], stated["weight"], len(stated["sha256"])) == ("a", 0.6, 12)
    again = ["--from", str(first)]
    assert generate(folder, *again) == (2, None)
    assert "made with LoRA a:0.6; name each file with --lora" in capsys.readouterr().err
    assert pixels(generate(folder, *again, "--lora", str(lora))[1]) == pixels(first)
    assert "another file" not in capsys.readouterr().err
    _, other = generate(folder, *again, "--lora", str(folder / "other" / "a.safetensors"))
    assert pixels(other) != pixels(first)
    assert "a: another file than the image was made with" in capsys.readouterr().err
    _, without = generate(folder, *again, "--lora", f"{lora}:0")
    assert pixels(without) == plain and without is not None
    assert "loras" not in read_about(without)


def test_a_refused_file_makes_no_image_and_changes_none(folder: Path, capsys) -> None:
    plain = pixels(generate(folder, *GUIDED)[1])
    refused = generate(folder, *GUIDED, "--lora", str(folder / "xl.safetensors"))
    assert refused == (2, None)
    assert "made for a model with text of 128 channels; sd1 (SD1) has 64" in capsys.readouterr().err
    assert pixels(generate(folder, *GUIDED)[1]) == plain


def test_each_file_gets_the_weight_that_the_image_states(tmp_path: Path, capsys) -> None:
    """Two of one name in their order; those that are not named, or are others, are told."""
    loras = [asdict(Lora(*each)) for each in (("a", 0.5, "1"), ("a", 0.8, "2"), ("b", 0.3, "3"))]

    def job(stated: object, *words: str) -> Job:
        about = {"model": "m", "request": {}, "settings": {}, "loras": stated}
        save(Image.new("RGB", (8, 8)), tmp_path / "a.png", about)
        files = [word for each in words for word in ("--lora", each)]
        return resolve(
            _parser().parse_args(["generate", "--from", str(tmp_path / "a.png"), *files])
        )

    made = job(loras, "x/a.pt", "y/a.pt", "z/a.pt")
    assert [weight for _, weight in made.loras] == [0.5, 0.8, 1]
    model = SimpleNamespace(loras=[Lora("a", 0.5, "2"), Lora("a", 0.8, "9"), Lora("c", 1, "4")])
    assert made.source is not None
    _warn_of_loras(made, made.source.loras, model)  # type: ignore[arg-type]
    first, second = capsys.readouterr().err.splitlines()
    assert "b: left out, but the image was made with it" in first
    assert "a: another file than the image was made with" in second
    for weight in (math.nan, 10**400):
        with pytest.raises(SettingsError, match="expected each LoRA's name, weight"):
            job([loras[0] | {"weight": weight}], "a.pt")


@torch.no_grad()
def test_native_evaluations_see_the_same_weights(folder: Path) -> None:
    """As a model whose weights were changed by hand."""
    model, by_hand = (load_model(folder / "sd1") for _ in range(2))
    pairs = random_pairs(model)
    for place, (down, up) in pairs.items():
        change = torch.einsum("or,r...->o...", up.flatten(1), down)
        tiny_lora.module_of(by_hand, place).weight += 0.6 * ALPHA / RANK * change
    request = Request(prompt="red", steps=3, width=32, height=32, cfg=3)
    settings = Settings.from_values({"ug": True, "ug_eta": 1, "ug_cadence": 1})
    changed = with_loras(model, [(folder / "a.safetensors", 0.6)])
    stages = [next(Run(made, request, settings).generate()) for made in (changed, by_hand)]
    got, wanted = stages
    assert got.native_evaluations == 3
    torch.testing.assert_close(got.latent, wanted.latent, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a.safetensors", ("a.safetensors", None)),
        ("a.safetensors:0.5", ("a.safetensors", 0.5)),
        ("folder/a:-1", ("folder/a", -1.0)),
        (r"C:\a.safetensors", (r"C:\a.safetensors", None)),
        (r"C:\a.safetensors:2", (r"C:\a.safetensors", 2.0)),
    ],
)
def test_a_file_and_its_weight(text: str, wanted: tuple[str, float | None]) -> None:
    file, weight = weighted_file(text)
    assert (str(file), weight) == wanted


@pytest.mark.parametrize("text", [".", "./", "..:0.5", "x/.."])
def test_a_folder_without_a_name_of_its_own_gets_it(text: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "outer" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "outer")
    file, _ = weighted_file(text)
    assert file == Path(text.partition(":")[0]).resolve() and file.stem


@pytest.mark.parametrize("text", ["a.safetensors:much", "a.safetensors:nan", "a:"])
def test_a_weight_that_is_no_number(text: str) -> None:
    with pytest.raises(SettingsError, match="--lora: expected FILE:WEIGHT"):
        resolve(_parser().parse_args(["generate", "x", "--lora", text]))
