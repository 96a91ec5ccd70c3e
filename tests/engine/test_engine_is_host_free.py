"""The engine imports torch, safetensors and the standard library, whatever host it runs in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lib_hires

ROOT = Path(lib_hires.__file__).parents[1]
SIDES = {"comfy", "webui", "standalone", "diffusers"}
ENGINE = sorted(
    f for f in (ROOT / "lib_hires").rglob("*.py") if f.relative_to(ROOT).parts[1] not in SIDES
)
LIBRARIES = ("torch", "safetensors")  # which every host has
HOSTS = ("modules", "comfy", "comfy_api", "gradio", "diffusers", "transformers", "k_diffusion")

BLOCKED_IMPORT = """
import importlib, sys

HOSTS = {hosts!r}

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HOSTS:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Wall())
for name in {names!r}:
    importlib.import_module(name)
taken = sorted(name for name in sys.modules if name.split(".")[0] in HOSTS)
assert not taken, taken
side = [n for n in sys.modules if n.startswith({sides!r})]
assert not side, side
"""


def test_the_engine_has_modules():
    assert {"settings", "noise", "upsample_guidance", "plan", "norms"} <= {f.stem for f in ENGINE}


def test_every_module_imports_where_no_host_can_be():
    names = [
        ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for f in ENGINE
    ]
    sides = tuple(f"lib_hires.{side}" for side in sorted(SIDES))
    script = BLOCKED_IMPORT.format(hosts=HOSTS, names=names, sides=sides)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_name_the_engines_libraries_only(path):
    """Also those inside functions, which an import alone does not run."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.append(node.module)
    for name in names:
        assert name.split(".")[0] in {*sys.stdlib_module_names, *LIBRARIES, "lib_hires"}, name
        assert not name.startswith(tuple(f"lib_hires.{side}" for side in SIDES)), name
