"""Which dtypes a device computes fast: the one place that chooses half precision on a CPU."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import torch

_UNITS = {
    torch.bfloat16: {"amx_bf16", "avx512_bf16", "bf16", "arm_bf16"},
    torch.float16: {"amx_fp16", "avx512_fp16", "asimdhp"},
}
"""What the units for a dtype are called, by Linux and by torch, on x86 and on ARM."""

_LIMITS = {torch.bfloat16: ("BF16", "FP16", "AMX", "AVX10"), torch.float16: ("FP16", "AVX10")}
"""oneDNN's names of instruction sets, of which those with the units hold one of these words."""


def fast_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """The dtype in which a device computes a model fastest.

    Half precision; on a CPU bfloat16, and only where the processor has units for it: without them
    it takes 30 to 60 times as long as float32.
    """
    if torch.device(device).type != "cpu":
        return torch.float16
    return torch.bfloat16 if not is_slow(torch.bfloat16, device) else torch.float32


def fast_autocast(device: str | torch.device = "cpu") -> AbstractContextManager[object]:
    """A block under autocast to `fast_dtype`; a block like any other where that is float32."""
    dtype = fast_dtype(device)
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)


def is_slow(dtype: torch.dtype, device: str | torch.device = "cpu") -> bool:
    """Whether a CPU has no units for `dtype`, so that float32 is many times faster."""
    if torch.device(device).type != "cpu" or dtype not in _UNITS:
        return False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    limit = limit.upper()
    allowed = limit in ("ALL", "DEFAULT") or any(word in limit for word in _LIMITS[dtype])
    return not (allowed and _UNITS[dtype] & set(_processor()))


def slow_message(dtype: torch.dtype, device: str | torch.device = "cpu") -> str:
    """A warning for who chooses a dtype that is slow there; empty where it is not."""
    if not is_slow(dtype, device):
        return ""
    name = str(dtype).removeprefix("torch.")
    return f"{name} is slow here, for this CPU has no units for it; float32 is many times faster"


@cache
def _processor() -> Collection[str]:
    """The names of the processor's extensions, as Linux lists them or else as torch does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(words.split())
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return frozenset(name for name, there in capabilities.items() if there is True)
