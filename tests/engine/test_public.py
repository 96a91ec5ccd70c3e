"""The names that a program may import from `lib_hires` itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lib_hires

ROOT = Path(lib_hires.__file__).parents[1]
PUBLIC = [
    "AttentiveGuidance",
    "FeatureUpsampler",
    "Flow",
    "NoiseFamily",
    "Preset",
    "PresetError",
    "ProgressiveRefinement",
    "Reduction",
    "Settings",
    "SettingsError",
    "Stage",
    "StageResult",
    "UpsampleGuidance",
    "UpsampleGuided",
    "Upsampled",
    "UpsamplerError",
    "UpsamplerInfo",
    "VarianceExploding",
    "VariancePreserving",
    "Windowed",
    "captured",
    "draw",
    "gamma_at",
    "generators",
    "guidance_weight",
    "mix_into_state_",
    "native_size",
    "pfsa",
    "plan",
    "preset_for",
    "read_upsampler",
    "refine",
    "shifted_schedule",
    "small_size",
    "vae_tiled",
    "write_upsampler",
]


def test_the_public_names_are_these() -> None:
    assert lib_hires.__all__ == PUBLIC, "a change of the public names belongs in the changelog"
    assert set(PUBLIC) <= set(dir(lib_hires))


@pytest.mark.parametrize("name", PUBLIC)
def test_each_is_the_one_of_its_module_and_documented(name: str) -> None:
    value = getattr(lib_hires, name)
    assert value.__module__ == f"lib_hires.{lib_hires._MODULE_OF[name]}"
    assert value.__doc__
    assert getattr(lib_hires, name) is value


def test_type_checkers_see_what_a_program_gets() -> None:
    tree = ast.parse(Path(lib_hires.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {node.module: tuple(alias.name for alias in node.names) for node in block.body}
    assert seen == {f"lib_hires.{module}": names for module, names in lib_hires._MODULES.items()}
    assert (ROOT / "lib_hires" / "py.typed").is_file()


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'lib_hires' has no attribute 'upscale'"):
        lib_hires.upscale  # noqa: B018
    with pytest.raises(ImportError, match="upscale"):
        from lib_hires import upscale  # noqa: F401


def test_importing_it_imports_no_torch_and_settings_need_none() -> None:
    script = "import sys, lib_hires; lib_hires.Settings(); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0
