"""The quality benchmark in small: the bundled model, and any other with references and prompts."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lib_hires.settings import SettingsError
from lib_hires.standalone.benchmarks.quality import quality
from lib_hires.standalone.benchmarks.quality.calibration import ROWS
from lib_hires.standalone.benchmarks.quality.generation import Subject, costs
from lib_hires.standalone.benchmarks.quality.judged import Judged
from lib_hires.standalone.benchmarks.quality.measures import Look, Names, row
from lib_hires.standalone.benchmarks.quality.references import (
    INCEPTION_FILE,
    Referenced,
    WeightsMissing,
    load_clip,
    load_inception,
)
from lib_hires.standalone.benchmarks.techniques import UG
from lib_hires.standalone.bundled import MODEL
from lib_hires.standalone.cli import main
from lib_hires.standalone.pipeline.outputs import read_about, save
from lib_hires.standalone.pipeline.request import Request
from lib_hires.standalone.world.judge import to_tensor

bundled = pytest.mark.skipif(not MODEL.is_file(), reason="the bundled model is not there")


@pytest.fixture(autouse=True)
def a_thread_a_process(monkeypatch) -> None:
    """Two threads wait long for each other where another process has one of their cores."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


# --- the bundled model ----------------------------------------------------------------------------


@bundled
@pytest.mark.slow(30)
def test_quality_reports_a_row_for_each_technique_and_makes_no_image_twice(
    tmp_path: Path, small_demo: Path
) -> None:
    def measure(dtype: torch.dtype) -> str:
        return quality(
            tmp_path,
            Subject(small_demo, dtype=dtype, sampling=Request(steps=2)),
            Judged(true_images=3),
            images=2,
            scale=2,
            techniques=[UG],
            first_seed=50,
            workers=1,
        )

    text = measure(torch.float32)
    report = json.loads((tmp_path / "report.json").read_text())
    true, enlarged, through_vae, native, guided = report
    assert [row["technique"] for row in report] == [*ROWS, "native", "ug"]
    assert {row["n"] for row in report} == {2}
    assert (true["one_object"], true["class_accuracy_95"]) == (1, "0.34-1.00")
    assert all(row["judge_fd_whole"] > 0 and row["judge_fd_whole_error"] >= 0 for row in report)
    of_the_size = ("judge_fd_crop", "fd_crop", "kd_crop", "detail", "octaves", "gap_closed")
    assert {native[name] for name in of_the_size} == {None}
    assert all(row["fd_crop"] > 0 for row in report if row is not native)
    assert true["detail"] > 3 * enlarged["detail"] > 0 and through_vae["detail"] > 0
    assert len(guided["octaves"]) == 4 and guided["octaves"][0] == guided["detail"]
    assert (true["model_evaluations"], native["model_evaluations"]) == (None, 2)
    assert guided["model_evaluations"] == 4  # both steps natively
    assert 0 < native["memory_mib"] < guided["memory_mib"] < 2000
    first = "2 images a technique, seeds from 50, 2 steps, Karras, CFG 3, torch.float32"
    assert text.splitlines()[0] == first
    few, calibration = text.splitlines()[1:3]
    assert few.startswith("Distances are taken from 3 true images, not 400")
    assert calibration.startswith("kd_crop: true_enlarged (")
    in_the_report = (tmp_path / "report.md").read_text()
    assert few in in_the_report and calibration.split(": ", 1)[1] in in_the_report
    promised = "technique scale n one_object class_accuracy colour_accuracy kd_crop fd_crop"
    assert {*promised.split(), "seconds_per_picture"} <= set(guided)
    assert text.splitlines()[-1].endswith("ug_cadence=0 DPM++ 2M, Karras, 2 steps, CFG 3")
    assert (tmp_path / "samples.png").is_file()
    page = (tmp_path / "index.html").read_text()
    linked = {tmp_path / name for name in re.findall('src="([^"]+)"', page)}
    assert linked == {*tmp_path.glob("pictures/*/*.png"), tmp_path / "quality.png"}

    generated = {path: path.stat().st_mtime_ns for path in tmp_path.glob("pictures/*/*.*")}
    assert len(generated) == 4 + 2 * 2
    lost = tmp_path / "pictures" / "2x-ug" / "51.png"
    before = lost.read_bytes()
    lost.unlink()
    note = lost.with_name("made.json")  # as a version without one of the controls has written it
    made = json.loads(note.read_text())
    del made["settings"]["refine_upsampler"]
    note.write_text(json.dumps(made))
    measure(torch.float32)
    assert np.array_equal(Image.open(lost), Image.open(BytesIO(before)))
    unchanged = [path for path in generated if path != lost and path.name != "made.json"]
    assert all(path.stat().st_mtime_ns == generated[path] for path in unchanged)
    with pytest.raises(SettingsError, match="native holds images of another model, other promp"):
        measure(torch.bfloat16)


@bundled
@pytest.mark.slow(30)
def test_few_step_models_are_sampled_as_they_want_it(tmp_path: Path, small_demo: Path) -> None:
    """CFG 1 halves the rows of an evaluation, and UG makes a native one at every step.

    A model of the bundled one's scenes is judged as that one is.
    """
    options = "--scenes --sampler LCM --steps 2 --cfg 1 --techniques ug,ug_eta0.6_edge4_euler"
    options += " --pictures 2 --workers 1 --true-images 3"
    given = ["--model", str(small_demo), "--out", str(tmp_path)]
    assert main(["benchmark", "quality", *given, *options.split()]) == 0
    report = {row["technique"]: row for row in json.loads((tmp_path / "report.json").read_text())}
    assert (report["native"]["sampler"], report["native"]["model_evaluations"]) == ("LCM", 2)
    assert (report["ug"]["sampler"], report["ug"]["model_evaluations"]) == ("LCM", 4)
    assert report["ug_eta0.6_edge4_euler"]["sampler"] == "Euler"
    assert {(row["steps"], row["cfg"]) for row in report.values() if row["sampler"]} == {(2, 1)}
    assert report["native"]["class_accuracy"] is not None
    made = read_about(next(tmp_path.glob("pictures/2x-ug/*.png")))["request"]
    assert (made["sampler"], made["steps"], made["cfg"]) == ("LCM", 2, 1)


def test_quality_refuses_too_few_images(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--pictures: expected at least 2, got 1"):
        quality(tmp_path, Subject(), Judged(), images=1, scale=2)


def test_images_without_seconds_and_evaluations_are_read(tmp_path: Path) -> None:
    save(Image.new("RGB", (8, 8)), tmp_path / "1.png", {"seconds": 2.5})
    assert list(costs([tmp_path / "1.png"])) == [{"seconds": 2.5, "model_evaluations": None}]


# --- any model ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with networks of the layouts that clean-fid and CLIP have, tiny and random."""
    folder = tmp_path_factory.mktemp("weights")
    tiny_models.write_inception(folder / INCEPTION_FILE)
    tiny_models.write_clip(folder / "clip")
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with references of several sizes and a file of prompts."""
    (tmp_path / "true").mkdir()
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(40, 60), (32, 32), (90, 50)]):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "true" / f"{number}.png")
    (tmp_path / "prompts.txt").write_text("a red house\n\na blue fish\n")
    return tmp_path


@pytest.fixture
def hires(inputs: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]):
    """Run the command on the tiny model; later options win. Returns its code and its output."""

    def run(*options: str) -> tuple[int, str]:
        common = ["benchmark", "quality", "--model", str(tiny_folder), "--out", str(inputs / "out")]
        common += ["--references", str(inputs / "true"), "--prompts", str(inputs / "prompts.txt")]
        common += ["--pictures", "2", "--techniques", "ug", "--dtype", "float32"]
        common += ["--steps", "4"]
        code = main([*common, *options])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


@pytest.mark.slow
def test_any_model_is_measured_by_what_is_on_the_machine(
    hires, inputs: Path, weights: Path
) -> None:
    code, output = hires("--inception", str(inputs), "--clip", str(inputs / "none"))
    assert code == 0
    assert f"FID and KID are left out: there is no {INCEPTION_FILE} in {inputs}; get it" in output
    assert f"The CLIP score is left out: {inputs / 'none'} is not on this machine" in output
    _, guided = json.loads((inputs / "out" / "report.json").read_text())
    assert {guided[name] for name in ("fid", "patch_fid", "kid", "clip_score")} == {None}
    assert guided["detail"] > 0
    page = (inputs / "out" / "index.html").read_text()
    assert "The CLIP score is left out" in page
    assert "quality.png" not in page

    generated = {path: path.stat().st_mtime_ns for path in inputs.glob("out/pictures/*/*.png")}
    networks = ["--inception", str(weights), "--clip", str(weights / "clip")]
    code, output = hires(*networks)
    assert (code, "--inception" in output, "--clip" in output, len(generated)) == (
        0,
        False,
        False,
        4,
    )
    assert "Distances of real features are left out: images of " in output
    assert all(path.stat().st_mtime_ns == when for path, when in generated.items())
    native, guided = json.loads((inputs / "out" / "report.json").read_text())
    assert (native["technique"], guided["technique"], guided["n"]) == ("native", "ug", 2)
    assert all(row["fid"] > 0 and 0 <= row["clip_score"] <= 100 for row in (native, guided))
    assert (native["patch_fid"], guided["patch_fid"] > 0) == (None, True)
    assert {"kid", "patch_kid", "fid_error", "detail", "seconds_per_picture"} <= set(guided)
    assert "one_object" not in guided
    assert (native["model_evaluations"], guided["model_evaluations"]) == (4, 8)
    prompts = {read_about(path)["request"]["prompt"] for path in generated}
    assert prompts == {"a red house", "a blue fish"}
    page = (inputs / "out" / "index.html").read_text()
    assert all(head in page for head in ("patch fid", "clip score", "quality.png"))

    (inputs / "prompts.txt").write_text("a red house\n")
    code, output = hires(*networks)
    assert code == 2
    assert "holds images of another model, other prompts or other settings" in output


def test_a_device_that_is_not_there_claims_no_folder(tmp_path: Path, capsys) -> None:
    """Of the bundled model, which has no references to be looked at first."""
    options = ["--out", str(tmp_path), "--device", "no-such"]
    assert main(["benchmark", "quality", *options]) == 2
    assert "device 'no-such': cannot be used here" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--references", "/nowhere"], "--references: there is no folder /nowhere"),
        (["--references", "{empty}"], "--references: expected 2 images or more in "),
        (["--references", "{broken}"], "broken/b.png is not an image that can be read"),
        (["--prompts", "{blank}"], "is empty"),
        (["--prompts", "{table}"], "--prompts: table.csv, line 2: expected a prompt alone"),
        (["--model", "/nowhere"], "/nowhere: no such model"),
        (["--device", "no-such"], "device 'no-such': cannot be used here"),
        (["--pictures", "1"], "--pictures: expected at least 2, got 1"),
        (["--variant", "ug", "ug_theta=3"], "--variant ug ug_theta=3: ug_theta: expected"),
        (["--techniques", "ug,ug"], "--techniques: ug is there twice"),
        (["--techniques", "refine_upsampled"], "--techniques: refine_upsampled at 2x: refine_up"),
    ],
)
def test_bad_input_is_refused_before_anything_is_generated(hires, inputs, options, message) -> None:
    (inputs / "empty").mkdir()
    (inputs / "broken").mkdir()
    for name in ("a", "b"):
        (inputs / "broken" / f"{name}.png").write_bytes(b"none")
    Image.new("RGB", (8, 8)).save(inputs / "broken" / "a.png")
    (inputs / "blank.txt").write_text("\n")
    (inputs / "table.csv").write_text("prompt,seed\na house,3\n")
    paths = {name: inputs / name for name in ("empty", "broken")}
    paths |= {"blank": inputs / "blank.txt", "table": inputs / "table.csv"}
    code, output = hires(*(option.format(**paths) for option in options))
    assert code == 2
    assert message in output
    assert not list(inputs.glob("out/pictures"))


def test_options_of_another_model_come_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "quality", "--references", "there"]) == 2
    output = capsys.readouterr().err
    assert output == "hires: --references: expected --model and --prompts beside it\n"
    for options, message in (
        (["--clip", "there"], "--scenes: expected --model beside it"),
        (["--model", "there", "--prompts", "there"], "--prompts: expected no --scenes beside it"),
    ):
        assert main(["benchmark", "quality", "--scenes", *options]) == 2
        assert capsys.readouterr().err == f"hires: {message}\n"
    others = ["--model", "there", "--references", "there", "--prompts", "there"]
    for options, message in (
        ([*others, "--true-images", "3"], "--true-images: expected no --references beside it"),
        (["--true-images", "1"], "--true-images: expected at least 2, got 1"),
    ):
        assert main(["benchmark", "quality", *options]) == 2
        assert capsys.readouterr().err == f"hires: {message}\n"


def test_features_are_those_of_clean_fid(inputs: Path, weights: Path) -> None:
    from cleanfid.fid import get_folder_features

    subject = Subject(prompts=("a house",))
    measurer = Referenced(inputs / "true", subject, weights, str(weights / "clip"))
    images = list(measurer.true_images(32, 32))
    ours = [measurer.features(to_tensor(image), False) for image in images]
    assert measurer.notes == []
    for number, image in enumerate(images):
        image.save(inputs / "true" / f"{number}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "`torch.jit")
        from cleanfid.inception_torchscript import InceptionV3W

        network = InceptionV3W(str(weights), download=False)
        options = {"num_workers": 0, "device": torch.device("cpu"), "verbose": False}
        theirs = get_folder_features(str(inputs / "true"), network, **options)
    assert np.allclose(torch.cat(ours), theirs, atol=1e-5)


def test_the_calibration_takes_references_that_it_is_not_held_against(
    inputs: Path, weights: Path
) -> None:
    def measurer() -> Referenced:
        return Referenced(inputs / "true", Subject(prompts=("a",)), weights, str(weights / "clip"))

    assert list(measurer().other_true_images(9, 32, 32)) == []  # of 3
    for number in range(3, 5):
        Image.new("RGB", (32, 32), (50 * number, 0, 0)).save(inputs / "true" / f"{number}.png")
    looker = measurer()
    others = [image.tobytes() for _, image in looker.other_true_images(9, 32, 32)]
    every = [image.tobytes() for image in looker.true_images(32, 32)]
    assert len(every) == 5 and sorted(every) == sorted(others + every[looker.apart])
    assert len(list(looker.other_true_images(1, 32, 32))) == 1


def test_small_references_are_reported(inputs: Path, weights: Path) -> None:
    measurer = Referenced(inputs / "true", Subject(prompts=("a",)), weights, str(weights / "clip"))
    assert [image.size for image in measurer.true_images(64, 36)] == [(64, 36)] * 3
    (note,) = measurer.notes
    assert note.startswith("3 of 3 references are smaller than 64x36 and were upsampled")


@torch.no_grad()
def test_clip_scores_the_angle_between_image_and_prompt(weights: Path) -> None:
    clip = load_clip(str(weights / "clip"))
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    image = Image.fromarray(pixels)
    inputs = clip.processor(text="red", images=image, return_tensors="pt")
    seen, meant = (
        getattr(found, "pooler_output", found)[0]  # transformers 4 gives the tensor itself
        for found in (
            clip.model.get_image_features(inputs.pixel_values),
            clip.model.get_text_features(inputs.input_ids),
        )
    )
    cos = float(seen @ meant / (seen.norm() * meant.norm()))
    assert cos != 0
    assert clip.score(to_tensor(image), "red") == pytest.approx(max(100 * cos, 0), abs=1e-3)
    assert clip.score(to_tensor(image), "red " * 40) >= 0  # its end is left out


def test_broken_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / INCEPTION_FILE).write_bytes(b"none")
    with pytest.raises(SettingsError, match=f"{INCEPTION_FILE} cannot be read; get it again"):
        load_inception(tmp_path)
    with pytest.raises(WeightsMissing, match="--clip"):
        load_clip(str(tmp_path))


def test_a_clip_that_is_not_whole_is_named_and_not_random(weights: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(weights / "clip", tmp_path / "clip"))
    file = folder / "model.safetensors"
    state = {k: v for k, v in load_file(file).items() if not k.startswith("vision_model")}
    save_file(state, file, {"format": "pt"})
    with pytest.raises(WeightsMissing, match="lacks vision_model.* more; name a folder"):
        load_clip(str(folder))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsMissing, match="The CLIP score is left out: .* could not be read"):
        load_clip(str(folder))


# --- measures and memory ----------------------------------------------------------------


def test_a_mark_is_a_share_or_a_mean() -> None:
    def look(value: float, objects: int) -> Look:
        features = torch.tensor([[value, 1.0]])
        marks = {"one": objects == 1, "objects": 1.0 * objects}
        return Look(features, features, [1 + value, 2.0], marks, torch.full((3, 16, 16), value))

    seen = [look(value, objects) for value, objects in ((0.0, 1), (1.0, 3), (2.0, 1), (1.0, 1))]
    measures = row(seen, seen, Names("f", "fc", "k", "kc"), seen)
    assert (measures["one"], measures["one_95"]) == (0.75, "0.30-0.95")
    assert (measures["objects"], measures["detail"], measures["f"]) == (1.5, 1, 0)
    assert measures["octaves"] == [1, 1]
    assert 0.3 < measures["objects_error"] < 0.55  # std(objects) / 2 = 0.43
    unknown = [Look(None, None, [1.0], {"score": None}, torch.zeros(3, 16, 16)) for _ in seen]
    measures = row(unknown, unknown, Names("f", "fc", "k", "kc"), unknown)
    assert {measures[name] for name in ("score", "score_error", "f", "fc", "k", "kc")} == {None}
