"""Output that cannot raise, and warnings about what a command line asks for."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lib_hires.standalone.cli import main
from lib_hires.standalone.cli.options import Console, let_print, say
from lib_hires.standalone.models import precision
from lib_hires.standalone.pipeline.outputs import read_about, read_run


@pytest.mark.parametrize("encoding", ["gbk", "ascii", "cp1252", "utf-8"])
def test_letters_that_a_console_lacks_are_escaped(encoding: str, monkeypatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    say("p 🎨/1.png")
    let_print()
    sys.stdout.write("p 🎨\n")
    say("b\udc80d")
    lines = raw.getvalue().decode(encoding, "surrogateescape").splitlines()
    assert lines[0].startswith("p ") and lines[0].endswith("/1.png")
    assert lines[0] == "p 🎨/1.png" if encoding == "utf-8" else "\\U0001f3a8" in lines[0]
    assert lines[2] == "b\\udc80d"


def test_a_closed_or_missing_console_raises_nothing(monkeypatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    closed = io.StringIO()
    closed.close()
    for stream in (Gone(), closed, None):
        monkeypatch.setattr(sys, "stdout", stream)
        say("x")
        let_print()
        sys.stdout.write("x")
        sys.stdout.flush()
        assert sys.stdout.isatty() is False
        let_print()
        assert not isinstance(sys.stdout._stream, Console)  # one around another would do no harm


@pytest.mark.parametrize("device", ["a pipe without a reader", "/dev/full"])
def test_images_are_kept_whatever_becomes_of_the_console(
    device: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """Progress is written in the middle of sampling: `hires generate ... 2>&1 | head -1`."""
    words = ["generate", "a red house", "--steps", "2", "--model", str(tiny_folder)]
    words += ["--out", str(tmp_path)]
    if device == "/dev/full":
        gone = os.open(device, os.O_WRONLY)
    else:
        reader, gone = os.pipe()
        os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "lib_hires.standalone.cli", *words], stdout=gone, stderr=gone
    )
    os.close(gone)
    assert done.returncode == 0
    assert len(list(tmp_path.glob("*.png"))) == 1


@pytest.mark.slow
def test_a_batch_goes_on_whatever_the_console_can_print(tiny_folder: Path, tmp_path: Path) -> None:
    """As on a Windows code page with the output redirected."""
    (tmp_path / "prompts.txt").write_text("a red house\na blue fish\n")
    out = tmp_path / "p 🎨"
    words = ["generate", "--prompts", str(tmp_path / "prompts.txt"), "--steps", "1"]
    words += ["--model", str(tiny_folder), "--out", str(out)]
    program = f"from lib_hires.standalone.cli import main; raise SystemExit(main({words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONIOENCODING": "gbk"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode("gbk").splitlines()
    assert len(lines) == 2 and all("\\U0001f3a8" in line for line in lines)
    assert len(list(out.glob("*.png"))) == 2


def test_a_dtype_that_is_slow_here_is_warned_of(
    tiny_folder: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(precision, "_processor", lambda: frozenset({"avx2"}))
    common = ["generate", "x", "--model", str(tiny_folder), "--out", str(tmp_path), "--steps", "1"]
    for dtype, warned in (("bfloat16", True), ("float16", True), ("float32", False)):
        assert main([*common, "--dtype", dtype]) == 0
        assert (f"hires: {dtype} is slow here" in capsys.readouterr().err) is warned


def test_overrides_reach_the_model_and_its_images(
    tiny_folder: Path, tmp_path: Path, capsys
) -> None:
    common = ["generate", "x", "--model", str(tiny_folder), "--out", str(tmp_path), "--steps", "2"]

    def images(*words: str) -> bytes:
        assert main([*common, *words]) == 0
        path = Path(capsys.readouterr().out.strip())
        about = read_about(path)
        shown.append({name: about.get(name) for name in ("prediction", "zero_snr")})
        with Image.open(path) as image:
            return image.tobytes()

    shown: list[dict[str, object]] = []
    made = [images(), images("--prediction", "v"), images("--prediction", "v", "--zero-snr")]
    assert len(set(made)) == 3
    assert shown == [
        {"prediction": None, "zero_snr": None},
        {"prediction": "v", "zero_snr": None},
        {"prediction": "v", "zero_snr": True},
    ]
    last = str(next(tmp_path.glob("00003*")))
    again = ["generate", "--from", last, "--model", str(tiny_folder), "--out", str(tmp_path)]
    assert main(again) == 0
    with Image.open(Path(capsys.readouterr().out.strip())) as image:
        assert image.tobytes() == made[2]


def test_a_random_seed_is_drawn_and_kept(tiny_folder: Path, tmp_path: Path, capsys) -> None:
    common = ["--model", str(tiny_folder), "--out", str(tmp_path), "--steps", "1"]
    seeds = []
    for _ in range(2):
        assert main(["generate", "x", "--seed", "-1", *common]) == 0
        path = Path(capsys.readouterr().out.strip())
        seeds.append(read_run(path)["request"]["seed"])
        assert path.stem.endswith(f"-{seeds[-1]}")
    assert seeds[0] != seeds[1] and min(seeds) >= 0
    (tmp_path / "p.txt").write_text("x\nx\n")
    assert main(["generate", "--prompts", str(tmp_path / "p.txt"), "--seed", "-1", *common]) == 0
    assert len(set(capsys.readouterr().out.split())) == 2
