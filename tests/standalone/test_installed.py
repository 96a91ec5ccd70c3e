"""The package as `pip install` puts it, not as a clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "import setuptools.build_meta as build; build.build_wheel('dist')"
LOOK = "import lib_hires.standalone.app.serve as app; print(app.__file__); print(app.head())"


@pytest.mark.slow
def test_the_page_has_its_script_and_style(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[app]'")
    clone = tmp_path / "clone"
    for folder in ("javascript", "lib_hires"):
        left_out = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / folder, clone / folder, ignore=left_out)
    for file in ("LICENSE", "README.md", "pyproject.toml", "style.css"):
        shutil.copy(ROOT / file, clone)
    subprocess.run([sys.executable, "-c", BUILD], cwd=clone, capture_output=True, check=True)
    (wheel,) = (clone / "dist").glob("*.whl")

    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", str(wheel)]
    subprocess.run([python, *install], check=True)
    (package,) = (tmp_path / "venv").glob("**/site-packages/lib_hires")
    shutil.rmtree(clone)

    found = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(package.parent)},  # all else is where the tests run
        capture_output=True,
        text=True,
        check=True,
    )
    where, head = found.stdout.split("\n", 1)
    assert Path(where).is_relative_to(package)
    for part in ("javascript/hires_guidance.js", "style.css"):
        assert (ROOT / part).read_text(encoding="utf-8") in head
