"""`hires generate --prompts`: many images, by one process and by two."""

from __future__ import annotations

from pathlib import Path

import pytest
from launched import in_two_processes
from PIL import Image

from lib_hires.standalone import bundled
from lib_hires.standalone.cli import main
from lib_hires.standalone.pipeline.batch import _is_finished
from lib_hires.standalone.pipeline.outputs import read_about, read_run, save

GUIDED = ("--ug", "--width", "32", "--height", "32")
PROMPTS = "a red house\n\na blue fish\na red house\n"


@pytest.fixture
def hires(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs the command on a file of that text; returns its code, the images and its errors."""

    def run(text: str, *options: str, name: str = "prompts.txt") -> tuple[int, list[Path], str]:
        (tmp_path / name).write_text(text)
        files = ["--prompts", str(tmp_path / name), "--out", str(tmp_path / "out")]
        common = ["generate", "--model", str(tiny_folder), "--steps", "3", *files]
        code = main([*common, *options])
        errors = capsys.readouterr()
        return code, [Path(line) for line in errors.out.split()], errors.err

    return run


def contents(paths: list[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths}


def test_every_line_becomes_an_image_and_equal_lines_the_same(hires) -> None:
    code, paths, _ = hires(PROMPTS, "--seed", "5", "--batch", "2")
    assert code == 0
    assert [read_run(path)["request"]["prompt"] for path in paths] == (
        ["a red house"] * 2 + ["a blue fish"] * 2 + ["a red house"] * 2
    )
    assert paths[:2] == paths[4:]
    assert [path.stem.rpartition("-")[2] for path in paths] == ["5", "6"] * 3


def test_a_line_gives_the_image_that_it_gives_alone(hires, tiny_folder, tmp_path, capsys) -> None:
    _, (path,), _ = hires("a red house\n", *GUIDED)
    files = ["--model", str(tiny_folder), "--out", str(tmp_path / "alone")]
    assert main(["generate", "a red house", "--steps", "3", *GUIDED, *files]) == 0
    other = Path(capsys.readouterr().out.strip())
    assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("more", [(), ("--frames", "4")], ids=["cells", "option"])
def test_a_table_has_images_and_clips_of_the_bundled_model(more, tmp_path, capsys) -> None:
    (tmp_path / "table.csv").write_text("prompt,frames\na clip,4\nas the option,\nan image,1\n")
    files = ["--prompts", str(tmp_path / "table.csv"), "--out", str(tmp_path / "out")]
    words = ["generate", "--steps", "1", "--width", "64", "--height", "64", *more]
    assert main([*words, *files]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    made = {}
    for path in paths:
        about = read_run(path)
        made[about["request"]["prompt"]] = path.suffix, about.get("motion")
    image = ".png", None
    clip = ".webp", bundled.MOTION.stem
    assert made == {"a clip": clip, "as the option": clip if more else image, "an image": image}


def test_a_table_sets_what_its_cells_say(hires) -> None:
    table = 'prompt,seed,refine,refine_eta2\n"a house, red",7,,\na fish,,on,"0.5, 0.5"\n'
    code, paths, _ = hires(table, "--seed", "3", name="prompts.csv")
    assert code == 0
    first, second = map(read_run, paths)
    assert (first["request"]["prompt"], first["request"]["seed"]) == ("a house, red", 7)
    assert (second["request"]["seed"], second["settings"]["refine_eta2"]) == (3, "0.5, 0.5")


def test_a_preset_serves_every_line_and_cells_change_it(hires) -> None:
    table = "prompt,width,height\nx,,\nx,48,16\n"
    _, paths, _ = hires(table, "--preset", "2x, UG alone", name="prompts.csv")
    sizes = []
    for path in paths:
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes == [(32, 32), (48, 16)]


def test_a_bad_line_is_warned_of_and_the_rest_is_generated(hires) -> None:
    table = "prompt,Seed,ug,width\na house,x,,\na fish,1,,\n,2,,\na bird,3,on,8\na cat,1,,,9\n,,,\n"
    code, paths, errors = hires(table, name="prompts.csv")
    assert code == 2
    assert [read_run(path)["request"]["prompt"] for path in paths] == ["a fish"]
    for message in (
        "prompts.csv, line 2: seed: expected a whole number",
        "prompts.csv, line 4: prompt: expected one",
        "prompts.csv, line 6: has more cells than there are columns",
        "line 5: ug: ",
    ):
        assert message in errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,sed\na,1\n", "named as the options are, each once, got 'sed'; did you mean seed?"),
        ("prompt,seed,seed\na,1,2\n", "each once, got 'seed'"),
        ("prompt,ug_passes\na,both\n", "got 'ug_passes'"),
        ("seed\n1\n", "there is no column prompt"),
        ('prompt\na\n"a house\n', "line 3: unexpected end of data"),
        (" \n", "is empty"),
    ],
)
def test_a_table_without_sense_is_refused(hires, text: str, message: str) -> None:
    code, paths, errors = hires(text, name="prompts.csv")
    assert (code, paths) == (2, [])
    assert message in errors


def test_a_prompt_may_hold_what_other_programs_end_lines_with(hires) -> None:
    _, paths, _ = hires("a red\u2028house\x0cwith a door\n")
    assert [read_run(path)["request"]["prompt"] for path in paths] == [
        "a red\u2028house\x0cwith a door"
    ]


def test_no_cuda_is_refused_not_replaced(hires) -> None:
    code, paths, errors = hires("a red house\n", "--device", "cuda")
    assert (code, paths) == (2, [])
    assert "cuda" in errors


def test_a_missing_file_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["generate", "--prompts", str(tmp_path / "none.txt")]) == 2
    errors = capsys.readouterr().err
    assert "none.txt cannot be read (No such file or directory); one prompt is given w" in errors
    assert main(["generate", "a red house", "--prompts", "none.txt"]) == 2
    assert "neither a prompt nor --from beside it" in capsys.readouterr().err


def test_what_is_finished_is_not_generated_again(hires, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("--refine", "--refine-eta2", "0.5")
    _, paths, _ = hires(PROMPTS, *settings)
    house, fish = paths[:2]
    before = contents(paths)
    fish.unlink()
    image, about = house, read_about(house) | {"stage": 0}
    from PIL import Image

    with Image.open(image) as opened:  # as a process that was ended in stage 1 leaves it
        save(opened.convert("RGB"), house, about)
    generated = []
    from lib_hires.standalone.pipeline.generate import Run

    generate = Run.generate
    monkeypatch.setattr(
        Run, "generate", lambda run: generated.append(run.request.prompt) or generate(run)
    )
    assert hires(PROMPTS, *settings)[1] == paths
    assert contents(paths) == before
    assert generated == ["a red house", "a blue fish"]
    hires(PROMPTS, *settings, "--seed", "1")
    assert len(generated) == 4


def test_an_image_without_its_end_is_not_finished(tmp_path: Path) -> None:
    """As a full disk or a copy leaves it: its text stands at its beginning."""
    path = tmp_path / "a.png"
    save(Image.new("RGB", (8, 8)), path, {"stage": 0, "stages": 0})
    assert _is_finished(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert read_about(path) and not _is_finished(path)


@pytest.mark.slow(20)
def test_two_processes_make_the_same_images(hires, tiny_folder: Path, tmp_path: Path) -> None:
    text = "\n".join(f"a red house number {number}" for number in range(5))
    _, paths, _ = hires(text, *GUIDED)
    files = {"prompts": tmp_path / "prompts.txt", "out": tmp_path / "two", "model": tiny_folder}
    errors = in_two_processes("generate", *GUIDED, steps=3, **files)
    made = [Path(line) for line in errors.split() if line.endswith(".png")]
    assert len(made) == 5
    assert contents(sorted(made)) == contents(sorted(paths))
