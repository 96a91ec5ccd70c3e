"""HiRes Guidance: good images above a diffusion model's native size, with no retraining.

The engine's public names. Each is imported at its first use, because most need torch, which takes
seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lib_hires.attentive_guidance import gamma_at, mix_into_state_, pfsa
    from lib_hires.controls import SettingsError
    from lib_hires.feature_upsampler import (
        FeatureUpsampler,
        Upsampled,
        UpsamplerError,
        UpsamplerInfo,
        captured,
    )
    from lib_hires.noise import (
        Flow,
        NoiseFamily,
        VarianceExploding,
        VariancePreserving,
        draw,
        generators,
    )
    from lib_hires.presets import Preset, PresetError, preset_for
    from lib_hires.refinement import Stage, StageResult, plan, refine
    from lib_hires.resample import Reduction
    from lib_hires.settings import (
        AttentiveGuidance,
        ProgressiveRefinement,
        Settings,
        UpsampleGuidance,
    )
    from lib_hires.sizes import native_size, small_size
    from lib_hires.tiled_vae import vae_tiled
    from lib_hires.upsample_guidance import UpsampleGuided, guidance_weight, shifted_schedule
    from lib_hires.upsampler_file import read_upsampler, write_upsampler
    from lib_hires.windows import Windowed

__all__ = [
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

_MODULES = {  # of the names, as above
    "attentive_guidance": ("gamma_at", "mix_into_state_", "pfsa"),
    "controls": ("SettingsError",),
    "feature_upsampler": (
        "FeatureUpsampler",
        "Upsampled",
        "UpsamplerError",
        "UpsamplerInfo",
        "captured",
    ),
    "noise": (
        "Flow",
        "NoiseFamily",
        "VarianceExploding",
        "VariancePreserving",
        "draw",
        "generators",
    ),
    "presets": ("Preset", "PresetError", "preset_for"),
    "refinement": ("Stage", "StageResult", "plan", "refine"),
    "resample": ("Reduction",),
    "settings": (
        "AttentiveGuidance",
        "ProgressiveRefinement",
        "Settings",
        "UpsampleGuidance",
    ),
    "sizes": ("native_size", "small_size"),
    "tiled_vae": ("vae_tiled",),
    "upsample_guidance": ("UpsampleGuided", "guidance_weight", "shifted_schedule"),
    "upsampler_file": ("read_upsampler", "write_upsampler"),
    "windows": ("Windowed",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
